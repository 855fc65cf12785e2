"""Models written as GGUF: llama.cpp computes what transformers does, and tokenizes as the tokenizer does."""

import hashlib
import http.client
import json
import math
import os
import resource
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForCausalLM

pytest.importorskip("gguf", reason="the package gguf is not installed")
xllamacpp = pytest.importorskip("xllamacpp", reason="the package xllamacpp is not installed")

import gguf  # noqa: E402

from common.command import InputError  # noqa: E402
from completion import export_gguf  # noqa: E402
from completion.engines.load_engine import load_engine  # noqa: E402
from completion.gguf_export import gguf_cache  # noqa: E402
from completion.gguf_export.errors import CannotConvert  # noqa: E402
from completion.gguf_export.gguf_file import convert  # noqa: E402
from completion.gguf_export.gguf_vocabulary import LLAMA3  # noqa: E402
from completion.prompt import Prompt, PromptEnd  # noqa: E402
from completion.settings import CompletionSettings  # noqa: E402

WORDS = ["<|endoftext|>", "<pad>", "<python>", "<java>", "<fim_prefix>", "<fim_suffix>", "<fim_middle>"]
TEXT = (
    Path(textwrap.__file__).read_text(encoding="utf-8")
    + "x = 12345 + 67.5e10\r\n\tif x:\r\n\t\treturn 'naïve café', \"日本語のテキスト\"\n"
    + "# 🙂🙂 it's I'LL we've 2024年\n\n\n   \n  end  "
)
QWEN = LLAMA3.replace("{1,3}", "")
SPLITS = {
    "gpt-2": [],
    "smollm": [pre_tokenizers.Digits(individual_digits=True)],
    "qwen2": [pre_tokenizers.Split(Regex(QWEN), "isolated")],
    "llama-bpe": [pre_tokenizers.Split(Regex(LLAMA3), "isolated")],
    "smaug-bpe": [pre_tokenizers.Split(Regex(LLAMA3), "isolated")],
    "deepseek-coder": [
        *(
            pre_tokenizers.Split(Regex(pattern), "isolated")
            for pattern in ("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+")
        ),
        pre_tokenizers.Digits(individual_digits=True),
    ],
}


def byte_level(name: str = "gpt-2") -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(ignore_merges=name == "llama-bpe"))
    own_split = name in ("gpt-2", "smollm")
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=own_split)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*SPLITS[name], last]) if SPLITS[name] else last
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=WORDS, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([TEXT], trainer)
    return tokenizer


def sentence_piece() -> Tokenizer:
    """Llama 2's kind: a space before the text, spaces as ▁, bytes for unknown characters, <s> first."""
    normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizer
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    trained.train_from_iterator(
        [line for line in TEXT.splitlines() if line.isascii()],
        trainers.BpeTrainer(vocab_size=240, show_progress=False),
    )
    learned = json.loads(trained.to_str())["model"]
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += sorted(learned["vocab"], key=learned["vocab"].get)
    tokenizer = Tokenizer(
        models.BPE(
            {piece: id for id, piece in enumerate(pieces)},
            [tuple(pair) for pair in learned["merges"]],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = normalizer
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


GPT2 = {"model_type": "gpt2", "n_layer": 2, "n_embd": 96, "n_head": 4, "n_positions": 128}
ROTARY = {
    "hidden_size": 96,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 128,
}
LLAMA = {**ROTARY, "model_type": "llama"}
NEOX = {**ROTARY, "model_type": "gpt_neox"}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32}
LINEAR = {"rope_type": "linear", "rope_theta": 5000.0, "factor": 4.0}
LLAMA31 = {**YARN, "rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}
MODELS = {
    "gpt2": GPT2,
    "gpt2 untied, wide inner layer": {**GPT2, "tie_word_embeddings": False, "n_inner": 200},
    "gpt2, rows of 40": {**GPT2, "n_embd": 40},
    "gpt_bigcode": {**GPT2, "model_type": "gpt_bigcode"},
    "gpt_bigcode, every head its keys": {**GPT2, "model_type": "gpt_bigcode", "multi_query": False},
    "llama": LLAMA,
    "llama tied, grouped queries, biases": {
        **LLAMA,
        "tie_word_embeddings": True,
        "num_key_value_heads": 2,
        "attention_bias": True,
        "mlp_bias": True,
    },
    "llama, wide heads, large eps": {**LLAMA, "head_dim": 32, "rms_norm_eps": 1e-2},
    "llama, linear": {**LLAMA, "rope_parameters": LINEAR},
    "llama, yarn": {**LLAMA, "rope_parameters": YARN},
    "llama, llama3": {**LLAMA, "rope_parameters": LLAMA31},
    "qwen2": {**ROTARY, "model_type": "qwen2", "num_key_value_heads": 2},
    "qwen2 tied, yarn": {**ROTARY, "model_type": "qwen2", "tie_word_embeddings": True, "rope_parameters": YARN},
    "qwen3": {**ROTARY, "model_type": "qwen3", "num_key_value_heads": 2, "head_dim": 32},
    "gpt_neox": NEOX,
    "gpt_neox tied, one after the other": {
        **NEOX,
        "tie_word_embeddings": True,
        "use_parallel_residual": False,
        "rope_parameters": {"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 0.5},
    },
    "gpt_neox, linear": {**NEOX, "rope_parameters": {**LINEAR, "partial_rotary_factor": 0.5}},
    "gpt_neox, yarn": {**NEOX, "rope_parameters": {**YARN, "partial_rotary_factor": 0.5}},
    "starcoder2": {**ROTARY, "model_type": "starcoder2", "num_key_value_heads": 2},
    "starcoder2 untied, yarn": {
        **ROTARY,
        "model_type": "starcoder2",
        "tie_word_embeddings": False,
        "rope_parameters": YARN,
    },
}


def save_model(
    folder: Path, settings: dict, tokenizer: Tokenizer, rows: int = 544, dtype: torch.dtype = torch.float32, **options
) -> torch.nn.Module:
    """A random model whose every weight matters, and a tokenizer with fewer ids than the model has rows."""
    config = AutoConfig.for_model(**settings, vocab_size=rows, bos_token_id=0, eos_token_id=0)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval().to(dtype)
    for name, weight in model.named_parameters():
        spread = weight.shape[-1] ** -0.5 if weight.ndim > 1 else 0.2
        scale = weight.ndim == 1 and name.endswith("weight")  # of a norm
        torch.nn.init.normal_(weight.data, float(scale), spread)
    model.save_pretrained(folder, **options)
    tokenizer.save(str(folder / "tokenizer.json"))
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def serve(path: Path) -> xllamacpp.Server:
    options = xllamacpp.CommonParams()
    options.model.path = str(path)
    options.n_ctx, options.n_parallel, options.verbosity = 128, 1, 0
    options.warmup = options.fit_params = False
    options.cpuparams.n_threads = options.cpuparams_batch.n_threads = 1
    return xllamacpp.Server(options)


def tokenize(server: xllamacpp.Server, text: str, add_special: bool = False) -> list[int]:
    connection = http.client.HTTPConnection(server.listening_address.removeprefix("http://"))
    request = {"content": text, "add_special": add_special, "parse_special": False}
    connection.request("POST", "/tokenize", json.dumps(request), {"Content-Type": "application/json"})
    return json.loads(connection.getresponse().read())["tokens"]


PROMPT = "def wrap(text, width=70):\n"


def differences(model: torch.nn.Module, path: Path, tokenizer: Tokenizer, **options: object) -> np.ndarray:
    """|log-probability by llama.cpp - by transformers| of 64 tokens that llama.cpp draws, in nats."""
    prompt = tokenizer.encode(PROMPT, add_special_tokens=False).ids
    drawn = serve(path).handle_completions(
        {"prompt": prompt, "max_tokens": 64, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
        | {"logprobs": 1, "seed": 3, "ignore_eos": True, **options}
    )
    content = drawn["choices"][0]["logprobs"]["content"]
    new = [entry["id"] for entry in content]
    assert len(new) == 64
    with torch.no_grad():
        logits = model(torch.tensor([prompt + new])).logits[0, len(prompt) - 1 : -1]
    expected = torch.log_softmax(logits, -1)[torch.arange(64), new]
    return np.abs(np.array([entry["logprob"] for entry in content]) - expected.numpy())


def random_differences(model: torch.nn.Module, path: Path, tokenizer: Tokenizer) -> np.ndarray:
    """`differences` of ASCII: of several tokens that make up a character, llama.cpp names the last one alone."""
    ids = {id for id in range(tokenizer.get_vocab_size()) if tokenizer.decode([id]).isascii()}
    others = [[id, False] for id in range(model.config.vocab_size) if id not in ids]
    return differences(model, path, tokenizer, logit_bias=others)


@pytest.fixture(scope="module")
def gpt2_tokenizer() -> Tokenizer:
    return byte_level()


@pytest.mark.parametrize("name", MODELS)
def test_log_probabilities_are_those_of_transformers(name, gpt2_tokenizer, tmp_path):
    model = save_model(tmp_path / "model", MODELS[name], gpt2_tokenizer)
    convert(tmp_path / "model", tmp_path / "f16.gguf", "f16")
    convert(tmp_path / "model", tmp_path / "q8_0.gguf", "q8_0")
    f, q = (random_differences(model, tmp_path / f"{kind}.gguf", gpt2_tokenizer) for kind in ("f16", "q8_0"))
    assert f.max() < 0.02
    assert q.mean() < 0.05
    assert (tmp_path / "q8_0.gguf").stat().st_size < (tmp_path / "f16.gguf").stat().st_size or "40" in name


# The embedded model, and those in the folder that the environment names
REAL = [ROOT / "pretrained" / "tiny"]
if "AUTOCODER_MODELS" in os.environ:
    REAL += sorted(path.parent for path in Path(os.environ["AUTOCODER_MODELS"]).glob("*/config.json"))


@pytest.mark.parametrize("folder", REAL, ids=lambda folder: folder.name)
def test_real_models(folder, tmp_path):
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for kind in ("f16", "q8_0"):
        path = tmp_path / f"{kind}.gguf"
        assert convert(folder, path, kind) is None
        found = differences(model, path, tokenizer, temperature=0.2)
        assert found.max() < 0.02 if kind == "f16" else found.mean() < 0.05
    assert tokenize(serve(path), TEXT) == tokenizer.encode(TEXT).ids


@pytest.mark.parametrize("folder", REAL, ids=lambda folder: folder.name)
def test_greedy_text_is_that_of_generate(folder, cache):
    check_greedy(folder, Path(textwrap.__file__).read_text(encoding="utf-8"))


@pytest.mark.parametrize(("name", "make"), [("llama", sentence_piece), ("gpt_neox", byte_level)])
def test_greedy_text_of_small_models_is_that_of_generate(name, make, cache, tmp_path):
    tokenizer = make()
    model = save_model(tmp_path / "model", MODELS[name], tokenizer, rows=640)
    text = Path(textwrap.__file__).read_text(encoding="utf-8")
    ids = torch.tensor(tokenizer.encode(text, add_special_tokens=False).ids[:4096]).view(-1, 64)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for step in range(60):  # so that it has something to say, in whole characters
        batch = ids[torch.arange(8) + 8 * (step % 8)]
        model(batch, labels=batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(tmp_path / "model")
    check_greedy(tmp_path / "model", text)


def check_greedy(folder: Path, text: str) -> None:
    """At 18 of 20 places 48 tokens are the same. Elsewhere the two first different tokens are within 0.05 nats."""
    engine = load_engine(str(folder), "f16")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    lines = text.splitlines(keepends=True)
    same = 0
    for place in range(20):
        prompt = "".join(lines[20 * place + 10 : 20 * place + 15])
        ids = (engine.vocabulary.start("python") + engine.vocabulary.encode(prompt))[-64:]
        steps = engine.stream(
            [Prompt(ids, PromptEnd(engine.vocabulary))], CompletionSettings(temperature=0, max_new_tokens=48), set()
        )
        ours = [step.token for step in steps]
        settings = {"max_new_tokens": 48, "do_sample": False, "pad_token_id": 0}
        theirs = model.generate(torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), **settings)[
            0, len(ids) :
        ].tolist()
        end = min(len(ours), len(theirs))
        if ours[:end] == theirs[:end]:
            same += 1
            continue
        first = next(i for i in range(end) if ours[i] != theirs[i])
        with torch.no_grad():
            log_probs = model(torch.tensor([ids + theirs[:first]])).logits[0, -1].log_softmax(-1)
        assert abs(log_probs[ours[first]] - log_probs[theirs[first]]) < 0.05
    print(f"{folder.name}: {same} of 20 places the same")
    assert same >= 18


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_in_several_files(dtype, gpt2_tokenizer, tmp_path):
    model = save_model(tmp_path / "model", LLAMA, gpt2_tokenizer, dtype=dtype, max_shard_size="200KB")
    assert len(list((tmp_path / "model").glob("*.safetensors"))) > 1
    convert(tmp_path / "model", tmp_path / "f16.gguf", "f16")
    assert random_differences(model, tmp_path / "f16.gguf", gpt2_tokenizer).max() < 0.02


@pytest.mark.parametrize("scaling", [LINEAR, YARN, LLAMA31])
def test_configuration_of_transformers_4(scaling, gpt2_tokenizer, tmp_path):
    save_model(tmp_path / "model", {**LLAMA, "rope_parameters": scaling}, gpt2_tokenizer)
    convert(tmp_path / "model", tmp_path / "new.gguf")
    path = tmp_path / "model" / "config.json"
    config = json.loads(path.read_text())
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    config["rope_scaling"] = {"type": rope.pop("rope_type"), **rope}
    path.write_text(json.dumps(config))
    convert(tmp_path / "model", tmp_path / "old.gguf")
    assert (tmp_path / "old.gguf").read_bytes() == (tmp_path / "new.gguf").read_bytes()


@pytest.mark.parametrize("name", SPLITS)
def test_llama_cpp_tokenizes_as_the_tokenizer_does(name, tmp_path):
    tokenizer = byte_level(name)
    save_model(tmp_path / "model", GPT2, tokenizer)
    assert convert(tmp_path / "model", tmp_path / "model.gguf") is None
    assert metadata(tmp_path / "model.gguf")["tokenizer.ggml.pre"] == name
    assert tokenize(serve(tmp_path / "model.gguf"), TEXT) == tokenizer.encode(TEXT).ids


def unigram() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always", split=False)
    trainer = trainers.UnigramTrainer(
        vocab_size=300, special_tokens=["<unk>", "<s>", "</s>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(TEXT.splitlines(), trainer)
    return tokenizer


@pytest.mark.parametrize("make", [sentence_piece, unigram])
def test_sentence_piece(make, tmp_path):
    tokenizer = make()
    model = save_model(tmp_path / "model", LLAMA, tokenizer, rows=640)
    (tmp_path / "model" / "tokenizer_config.json").write_text('{"bos_token": "<s>", "eos_token": {"content": "</s>"}}')
    assert convert(tmp_path / "model", tmp_path / "f16.gguf", "f16") is None
    assert random_differences(model, tmp_path / "f16.gguf", tokenizer).max() < 0.02
    text = TEXT if make is sentence_piece else TEXT.replace("\n", " ")
    found, expected = tokenize(serve(tmp_path / "f16.gguf"), text, add_special=True), tokenizer.encode(text).ids
    if (
        make is unigram
    ):  # its training differs from run to run, and of two equally likely tokenizations either may be chosen
        scores = [score for _, score in json.loads(tokenizer.to_str())["model"]["vocab"]]
        found_score, expected_score = (sum(scores[id] for id in ids) for ids in (found, expected))
        assert found_score == pytest.approx(expected_score, abs=0.05)
        assert tokenizer.decode(found) == tokenizer.decode(expected)
    else:
        assert found == expected


def metadata(path: Path) -> dict:
    return {name: field.contents() for name, field in gguf.GGUFReader(path).fields.items()}


def test_special_tokens(gpt2_tokenizer, tmp_path):
    save_model(tmp_path / "model", GPT2, gpt2_tokenizer)
    named = {"eos_token": "<|endoftext|>", "pad_token": {"content": "<pad>"}}
    (tmp_path / "model" / "tokenizer_config.json").write_text(json.dumps(named))
    convert(tmp_path / "model", tmp_path / "model.gguf")
    found = metadata(tmp_path / "model.gguf")
    ids = {name.split(".")[2]: value for name, value in found.items() if name.endswith("token_id")}
    assert ids == {
        "bos_token_id": 2,  # <python>, as every text began in training
        "eos_token_id": 0,
        "padding_token_id": 1,
        "fim_pre_token_id": 4,
        "fim_suf_token_id": 5,
        "fim_mid_token_id": 6,
    }
    assert found["tokenizer.ggml.add_bos_token"] is True
    tokens, types = found["tokenizer.ggml.tokens"], found["tokenizer.ggml.token_type"]
    assert tokens[:7] == WORDS
    assert types[:7] == [gguf.TokenType.CONTROL] * 7
    assert tokens[500:] == [f"[PAD{id}]" for id in range(500, 544)]
    assert types[500:] == [gguf.TokenType.UNUSED] * 44
    assert set(types[7:500]) == {gguf.TokenType.NORMAL}


def test_unknown_split_is_reported(gpt2_tokenizer, tmp_path):
    tokenizer = Tokenizer.from_str(gpt2_tokenizer.to_str())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Punctuation(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    model = save_model(tmp_path / "model", GPT2, tokenizer)
    assert "splits texts" in convert(tmp_path / "model", tmp_path / "f16.gguf", "f16")
    assert random_differences(model, tmp_path / "f16.gguf", tokenizer).max() < 0.02


UNKNOWN = {
    "model_type": ("mamba", "model_type is 'mamba'"),
    "activation_function": ("relu", "activation_function is 'relu'"),
    "scale_attn_by_inverse_layer_idx": (True, "scale_attn_by_inverse_layer_idx"),
    "quantization_config": ({"bits": 4}, "quantised"),
    "vocab_size": (499, "the id 499"),
    "n_layer": (1, "tensor transformer.h.1."),
    "tie_word_embeddings": (False, "no output layer"),
    "n_head": (None, "config.json or tokenizer.json is damaged"),
}


@pytest.mark.parametrize("key", UNKNOWN)
def test_what_is_not_certain_is_refused(key, gpt2_tokenizer, tmp_path):
    save_model(tmp_path, GPT2, gpt2_tokenizer)
    value, reason = UNKNOWN[key]
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, key: value}))
    with pytest.raises(CannotConvert, match=reason):
        convert(tmp_path, tmp_path / "model.gguf")
    assert not list(tmp_path.glob("*.gguf*"))


UNKNOWN_ROTARY = {
    "dynamic": ({"rope_parameters": {**LINEAR, "rope_type": "dynamic"}}, "rope_type is 'dynamic'"),
    "part of a head": (
        {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}},
        "only a part of each head",
    ),
    "attention factor": ({"rope_parameters": {**YARN, "attention_factor": 2.0}}, "attention_factor"),
    "window": ({"model_type": "qwen2", "use_sliding_window": True}, "use_sliding_window"),
    "activation": ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
    "heads": ({"num_key_value_heads": 3}, "for 3 keys"),
}


@pytest.mark.parametrize("name", UNKNOWN_ROTARY)
def test_what_is_not_certain_of_llama_is_refused(name, gpt2_tokenizer, tmp_path):
    save_model(tmp_path, LLAMA, gpt2_tokenizer)
    change, reason = UNKNOWN_ROTARY[name]
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(CannotConvert, match=reason):
        convert(tmp_path, tmp_path / "model.gguf")


def test_starcoder2_has_the_context_of_one_window(gpt2_tokenizer, tmp_path):
    save_model(tmp_path / "model", {**ROTARY, "model_type": "starcoder2", "sliding_window": 48}, gpt2_tokenizer)
    convert(tmp_path / "model", tmp_path / "model.gguf")
    assert metadata(tmp_path / "model.gguf")["starcoder2.context_length"] == 48


def test_an_output_layer_that_should_be_tied_is_refused(gpt2_tokenizer, tmp_path):
    save_model(tmp_path, {**LLAMA, "tie_word_embeddings": False}, gpt2_tokenizer)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    with pytest.raises(CannotConvert, match="output layer of its own"):
        convert(tmp_path, tmp_path / "model.gguf")


def test_damaged_weights_are_refused(gpt2_tokenizer, tmp_path):
    save_model(tmp_path, GPT2, gpt2_tokenizer)
    weights = tmp_path / "model.safetensors"
    whole = weights.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])
    start, end = header["transformer.wte.weight"]["data_offsets"]
    header["transformer.wte.weight"]["data_offsets"] = [start - 64, end - 64]
    moved = json.dumps(header).encode()
    overlapping = len(moved).to_bytes(8, "little") + moved + whole[8 + length :]
    for damaged in (whole[:-1000], whole[:100], b"", b"\xff" * 100, overlapping):
        weights.write_bytes(damaged)
        with pytest.raises(InputError, match=r"model\.safetensors: damaged"):
            convert(tmp_path, tmp_path / "model.gguf")


def test_values_beyond_16_bits_and_unknown_decoders_are_refused(gpt2_tokenizer, tmp_path):
    model = save_model(tmp_path, GPT2, gpt2_tokenizer)
    for value, error in ((math.nan, InputError), (-math.inf, InputError), (1e6, CannotConvert)):
        model.transformer.wte.weight.data[3, 3] = value
        model.save_pretrained(tmp_path)
        with pytest.raises(error, match=r"token_embd.weight (holds numbers that are not finite|has a value beyond)"):
            convert(tmp_path, tmp_path / "model.gguf")
    tokenizer = Tokenizer.from_str(gpt2_tokenizer.to_str())
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(CannotConvert, match="the decoder WordPiece"):
        convert(tmp_path, tmp_path / "model.gguf")
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(CannotConvert, match=r"no tokenizer\.json"):
        convert(tmp_path, tmp_path / "model.gguf")
    assert not list(tmp_path.glob("*.gguf*"))


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    for name in ("XDG_CACHE_HOME", "HOME", "LOCALAPPDATA"):  # Linux, macOS, Windows
        monkeypatch.setenv(name, str(tmp_path / "home"))
    return gguf_cache.cache_folder()


def test_cache_knows_a_model_by_its_content(gpt2_tokenizer, cache, tmp_path):
    save_model(tmp_path / "model", GPT2, gpt2_tokenizer)
    first = gguf_cache.converted(tmp_path / "model")
    assert first.parent == cache
    made = first.stat().st_ino
    (tmp_path / "model").rename(tmp_path / "moved")
    assert gguf_cache.converted(tmp_path / "moved") == first
    assert first.stat().st_ino == made  # not made again
    assert gguf_cache.converted(tmp_path / "moved", "f16") != first
    save_model(tmp_path / "moved", {**GPT2, "n_head": 2}, gpt2_tokenizer)  # the same weights and sizes
    second = gguf_cache.converted(tmp_path / "moved")
    assert second != first
    assert metadata(second)["gpt2.attention.head_count"] == 2
    assert {path.suffix for path in cache.iterdir()} == {".gguf", ".json"}


def test_cache_removes_what_was_not_used_for_longest(gpt2_tokenizer, cache, tmp_path, monkeypatch):
    save_model(tmp_path / "model", GPT2, gpt2_tokenizer)
    cache.mkdir(parents=True)
    for days, name in enumerate(("new.gguf", "old.gguf", "half.gguf.1.tmp"), start=1):
        (cache / name).write_bytes(bytes(1000))
        os.utime(cache / name, (0, (cache / name).stat().st_mtime - days * 86400))
    monkeypatch.setattr(gguf_cache, "LIMIT", gguf_cache.converted(tmp_path / "model").stat().st_size + 1500)
    assert (cache / "old.gguf").exists()
    assert not (cache / "half.gguf.1.tmp").exists()
    save_model(tmp_path / "model", {**GPT2, "n_head": 2}, gpt2_tokenizer)
    made = gguf_cache.converted(tmp_path / "model")
    assert [path.name for path in cache.glob("*.gguf*")] == [made.name]


def test_cache_that_cannot_be_written_is_no_failure(gpt2_tokenizer, cache, tmp_path):
    save_model(tmp_path / "model", GPT2, gpt2_tokenizer)
    (tmp_path / "home").write_text("a file where the folder should be")
    made = gguf_cache.converted(tmp_path / "model")
    assert metadata(made)["general.architecture"] == "gpt2"
    assert gguf_cache.converted(tmp_path / "model") == made


def test_two_processes_at_once_without_torch(gpt2_tokenizer, cache, tmp_path):
    save_model(tmp_path / "model", GPT2, gpt2_tokenizer)
    code = (
        "import sys; from pathlib import Path; from completion.gguf_export.gguf_cache import converted\n"
        "print(converted(Path(sys.argv[1])).stat().st_size)\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    command = [sys.executable, "-c", code, tmp_path / "model"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    running = [subprocess.Popen(command, cwd=ROOT, **pipes) for _ in range(2)]
    said = [process.communicate(timeout=60) for process in running]
    assert [process.returncode for process in running] == [0, 0], said
    assert said[0] == said[1]
    assert len(list(cache.glob("*.gguf*"))) == 1
    command[2] = code.replace("'torch'", "'gguf', 'numpy', 'torch'")  # a second answer needs no converter either
    assert subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout == said[0][0]


def test_a_damaged_file_in_the_cache_is_made_again(gpt2_tokenizer, cache, tmp_path, capsys):
    folder = tmp_path / "model"
    save_model(folder, GPT2, gpt2_tokenizer)
    file = gguf_cache.converted(folder)
    whole = file.read_bytes()
    whole_hash = hashlib.sha256(whole).digest()  # a difference of the bytes would take pytest minutes to show
    file.write_bytes(whole[:-20_000])  # as a full disk or an interrupted copy leaves it
    assert load_engine(str(folder)).name.startswith("llama.cpp")
    assert hashlib.sha256(file.read_bytes()).digest() == whole_hash
    stat = file.stat()
    file.write_bytes(bytes(len(whole)))  # damaged, with the same size and time
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert load_engine(str(folder)).name.startswith("llama.cpp")
    assert hashlib.sha256(file.read_bytes()).digest() == whole_hash
    assert not capsys.readouterr().err.count("note:")


def test_an_export_to_a_full_disk_is_reported_in_one_line(project, tmp_path):
    def limit_file_size():  # writing beyond it fails, as on a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))

    command = ("-m", "completion.export_gguf", "--model_path", "tiny", "--output", tmp_path / "m.gguf")
    assert "m.gguf: " in project.fails(*command, preexec_fn=limit_file_size)
    assert not list(tmp_path.iterdir())


def test_what_llama_cpp_cannot_load_is_left_to_pytorch_or_refused_in_one_line(gpt2_tokenizer, cache, tmp_path, capsys):
    from safetensors.torch import load_file, save_file

    save_model(tmp_path / "model", GPT2, gpt2_tokenizer)
    weights = tmp_path / "model" / "model.safetensors"
    stored = load_file(weights)
    for missing in ("transformer.h.1.ln_2.weight", "transformer.ln_f.bias"):  # the converter notices; llama.cpp notices
        save_file({name: stored[name] for name in stored if name != missing}, weights, {"format": "pt"})
        with pytest.raises(InputError, match="weights are missing"):
            load_engine(str(tmp_path / "model"))
    assert "note:" not in capsys.readouterr().err  # the error is the only line
    save_file(stored, weights, {"format": "pt"})
    file = json.loads((tmp_path / "model" / "tokenizer.json").read_text())
    file["model"]["merges"] = []
    (tmp_path / "model" / "tokenizer.json").write_text(json.dumps(file))
    load_engine(str(tmp_path / "model"))
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps(config | {"n_layer": 3}))
    with pytest.raises(InputError, match=r"weights are missing, such as blk\.2"):
        load_engine(str(tmp_path / "model"))


def test_export_command(gpt2_tokenizer, tmp_path, capsys):
    save_model(tmp_path / "model", LLAMA, gpt2_tokenizer)
    output = tmp_path / "exported.gguf"
    export_gguf.main(["--model_path", str(tmp_path / "model"), "--output", str(output), "--type", "f16"])
    assert capsys.readouterr().out.startswith(f"{output}: ")
    answer = serve(output).handle_completions({"prompt": "def wrap(", "max_tokens": 4})
    assert answer["usage"]["completion_tokens"] == 4
    (tmp_path / "model" / "config.json").write_text('{"model_type": "mamba"}')
    with pytest.raises(InputError, match="cannot be written as GGUF: its model_type is 'mamba'"):
        export_gguf.main(["--model_path", str(tmp_path / "model"), "--output", str(output)])
