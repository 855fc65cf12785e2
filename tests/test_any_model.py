"""Causal LMs and tokenizers of other kinds than GPT-2's, made here: each works, or is refused in one line."""

import json
import math
import shutil

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from common.command import InputError
from common.source_code import SPECIAL_WORDS
from data import SrcCodeDataset
from evaluation.loss import SingleCLMEvaluator, token_bytes
from model import GPTSingleHead

TEXT = [
    "def add(a, b):\n    return a + b\n",
    "for item in items:\n    print(item)\n",
    "class Tree:\n    pass\n",
    "é = 'ä'\n",
]


def byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(TEXT, trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet))
    return tokenizer


def byte_level_with_end() -> Tokenizer:
    tokenizer = byte_level()
    tokenizer.add_special_tokens(["<end>"])
    return tokenizer


def sentence_piece() -> Tokenizer:
    """As Llama 2's: a space is ▁, one stands before every text, bytes for what is unknown, <s> in front."""
    tokenizer = byte_level()
    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    words += sorted({character for text in TEXT for character in text.replace(" ", "▁") if character not in "\nä"})
    tokenizer = Tokenizer(
        models.BPE({word: i for i, word in enumerate(words)}, [], unk_token="<unk>", byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    strip = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(strip)
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


def word_piece() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    tokenizer.train_from_iterator(TEXT, trainers.WordPieceTrainer(vocab_size=120, special_tokens=["[UNK]"]))
    return tokenizer


def unigram() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=60, special_tokens=["<unk>"], unk_token="<unk>")
    tokenizer.train_from_iterator(TEXT, trainer)
    return tokenizer


KINDS = {
    "byte level, no special word": (byte_level, {}),
    "pad is eos": (byte_level_with_end, {"eos_token": "<end>", "pad_token": "<end>"}),
    "SentencePiece": (sentence_piece, {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}),
    "WordPiece": (word_piece, {"unk_token": "[UNK]"}),
    "Unigram": (unigram, {"unk_token": "<unk>"}),
}


@pytest.fixture(params=KINDS)
def folder(request, tmp_path):
    make, words = KINDS[request.param]
    tokenizer = make()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **words).save_pretrained(tmp_path)
    size = tokenizer.get_vocab_size()
    torch.manual_seed(0)
    if make is sentence_piece:  # with a last layer of its own
        config = LlamaConfig(
            vocab_size=size,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=64,
            tie_word_embeddings=False,
        )
        LlamaForCausalLM(config).save_pretrained(tmp_path)
    else:
        config = GPT2Config(vocab_size=size, n_positions=64, n_embd=32, n_layer=2, n_head=2)
        GPT2LMHeadModel(config).save_pretrained(tmp_path)
    return tmp_path


def write_rows(folder, model):
    file = folder / "rows.jsonl"
    rows = [{"token_ids": model.tokenize(text), "label": "Python"} for text in TEXT]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_it_is_measured_as_it_is_and_trains_with_control_words(folder):
    model = GPTSingleHead.load(folder)
    dataset = SrcCodeDataset(write_rows(folder, model), model)
    own_start = [1] if model.tokenizer.bos_token == "<s>" else []
    assert dataset.tokens[0, : len(own_start) + 3].tolist() == own_start + model.tokenize(TEXT[0])[:3]
    assert math.isfinite(SingleCLMEvaluator(dataset)(model)["bits_per_byte"])

    model.add_special_words(SPECIAL_WORDS)
    dataset = SrcCodeDataset(dataset.file_path, model)
    assert dataset.tokens[0, : len(own_start) + 1].tolist() == [*own_start, model.control_id("python")]
    loss, _ = model({"input_ids": torch.from_numpy(dataset.tokens.astype("int64"))})
    loss.backward()
    assert loss.isfinite()
    model.save(folder / "saved")
    assert GPTSingleHead.load(folder / "saved").start_ids("python") == [*own_start, model.control_id("python")]


def test_new_rows_are_the_mean_of_the_others(folder):
    model = GPTSingleHead.load(folder)
    known = sorted(model.tokenizer.get_vocab().values())
    model.add_special_words(SPECIAL_WORDS)
    for layer in (model.gpt.get_input_embeddings(), model.gpt.get_output_embeddings()):
        expected = layer.weight[known].mean(0)
        torch.testing.assert_close(layer.weight[model.control_id("python")], expected)
        torch.testing.assert_close(layer.weight[model.control_id("java")], expected)


def test_bytes_of_tokens_are_those_of_the_text(folder):
    model = GPTSingleHead.load(folder)
    first, ids = model.tokenize("return"), model.tokenize("return a + b")
    assert ids[: len(first)] == first
    texts = [model.tokenizer.backend_tokenizer.decode(some).encode() for some in (first, ids)]
    assert token_bytes(model.tokenizer, model.vocabulary_size)[ids[len(first) :]].sum() == len(texts[1]) - len(texts[0])


def test_ids_beyond_the_embedding_are_refused_on_loading(folder):
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_tokens([f"<more_{i}>" for i in range(9)])
    tokenizer.save(str(folder / "tokenizer.json"))
    with pytest.raises(InputError, match="embedding only"):
        GPTSingleHead.load(folder)


def test_a_hole_among_the_ids_and_rows_without_a_word_are_allowed(base, tmp_path):
    shutil.copytree(base, tmp_path / "padded")
    config = json.loads((base / "config.json").read_text()) | {"vocab_size": 8300}
    (tmp_path / "padded" / "config.json").write_text(json.dumps(config))
    model = GPTSingleHead(str(tmp_path / "padded"), from_scratch=True)
    assert model.vocabulary_size == 8300
    model.add_special_words({"additional_special_tokens": ["<new>"]})
    assert model.vocabulary_size == 8300
    assert token_bytes(model.tokenizer, model.vocabulary_size).shape == (8300,)


def test_a_model_folder_without_a_tokenizer_is_refused(folder):
    for file in folder.glob("token*"):
        file.unlink()
    with pytest.raises(InputError, match=r"has no tokenizer, such as tokenizer\.json"):
        GPTSingleHead.load(folder)
