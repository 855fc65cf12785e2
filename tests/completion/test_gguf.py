"""Models written as GGUF: llama.cpp computes what transformers does, and cuts texts as the tokenizer does."""

import http.client
import json
import os
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
from completion import export_gguf, gguf_cache  # noqa: E402
from completion.gguf_architectures import CannotConvert  # noqa: E402
from completion.gguf_file import convert  # noqa: E402
from completion.gguf_vocabulary import LLAMA3  # noqa: E402

WORDS = ["<|endoftext|>", "<pad>", "<python>", "<java>", "<fim_prefix>", "<fim_suffix>", "<fim_middle>"]
TEXT = (
    Path(textwrap.__file__).read_text(encoding="utf-8")
    + "x = 12345 + 67.5e10\r\n\tif x:\r\n\t\treturn 'naïve café', \"日本語のテキスト\"  # 🙂🙂 it's I'LL we've 2024年\n\n\n   \n  end  "
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
    """Llama 2's kind: a blank in front, blanks as ▁, bytes for unknown characters, <s> first."""
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
    return model.float()


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


def differences(model: torch.nn.Module, path: Path, tokens: int = 64) -> np.ndarray:
    """|log-probability by llama.cpp - by transformers| of tokens that llama.cpp draws, in nats.

    Only ASCII is drawn: of several tokens that make up a character, llama.cpp names the last one alone.
    """
    tokenizer = Tokenizer.from_file(str(path.parent / "model" / "tokenizer.json"))
    ascii_ids = {id for id in range(tokenizer.get_vocab_size()) if tokenizer.decode([id]).isascii()} - {0}
    prompt = tokenizer.encode("def wrap(text, width=70):\n", add_special_tokens=False).ids
    drawn = serve(path).handle_completions(
        {"prompt": prompt, "max_tokens": tokens, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
        | {"logprobs": 1, "seed": 3, "logit_bias": [[id, False] for id in range(544) if id not in ascii_ids]}
    )
    content = drawn["choices"][0]["logprobs"]["content"]
    new = [entry["id"] for entry in content]
    assert len(new) == tokens
    with torch.no_grad():
        logits = model(torch.tensor([prompt + new])).logits[0, len(prompt) - 1 : -1]
    expected = torch.log_softmax(logits, -1)[torch.arange(tokens), new]
    return np.abs(np.array([entry["logprob"] for entry in content]) - expected.numpy())


@pytest.fixture(scope="module")
def gpt2_tokenizer() -> Tokenizer:
    return byte_level()


@pytest.mark.parametrize("name", MODELS)
def test_log_probabilities_are_those_of_transformers(name, gpt2_tokenizer, tmp_path):
    model = save_model(tmp_path / "model", MODELS[name], gpt2_tokenizer)
    convert(tmp_path / "model", tmp_path / "f16.gguf", "f16")
    convert(tmp_path / "model", tmp_path / "q8_0.gguf", "q8_0")
    f, q = differences(model, tmp_path / "f16.gguf"), differences(model, tmp_path / "q8_0.gguf")
    print(f"RESULT {name:40} f16 mean {f.mean():.5f} max {f.max():.5f}   q8 mean {q.mean():.5f} max {q.max():.5f}")
    assert f.max() < 0.02
    assert q.mean() < 0.05
    assert (tmp_path / "q8_0.gguf").stat().st_size < (tmp_path / "f16.gguf").stat().st_size or "40" in name
