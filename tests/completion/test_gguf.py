"""Models written as GGUF: llama.cpp computes what transformers does, and cuts texts as the tokenizer does."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModelForCausalLM

from completion.gguf_architectures import CannotConvert

gguf = pytest.importorskip("gguf", reason="the PyPI package gguf is not installed")
from completion.gguf_file import convert  # noqa: E402

xllamacpp = pytest.importorskip("xllamacpp", reason="the PyPI package xllamacpp is not installed")
TINY = ROOT / "pretrained" / "tiny"
TOKENIZER = Tokenizer.from_file(str(TINY / "tokenizer.json"))
PARTS = [id for id in range(8192) if "\N{REPLACEMENT CHARACTER}" in TOKENIZER.decode([id])]
GPT2 = {"model_type": "gpt2", "n_layer": 2, "n_embd": 96, "n_head": 4, "n_positions": 128}
ROTARY = {
    "hidden_size": 96,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 128,
}
LLAMA = {"model_type": "llama", **ROTARY}
SCALED = {"factor": 4.0, "original_max_position_embeddings": 32, "rope_theta": 10000.0}
MODELS = {
    "gpt2": GPT2,
    "gpt2 untied, wide inner layer": {**GPT2, "tie_word_embeddings": False, "n_inner": 200},
    "gpt2, rows of 40": {**GPT2, "n_embd": 40},
    "gpt_bigcode": {**GPT2, "model_type": "gpt_bigcode", "multi_query": True},
    "gpt_bigcode, all keys": {**GPT2, "model_type": "gpt_bigcode", "multi_query": False},
    "llama": LLAMA,
    "llama tied, grouped queries, biases": {
        **LLAMA,
        "tie_word_embeddings": True,
        "num_key_value_heads": 2,
        "attention_bias": True,
        "mlp_bias": True,
    },
    "llama, wide heads": {**LLAMA, "head_dim": 32, "rms_norm_eps": 1e-3},
    "llama, linear": {**LLAMA, "rope_parameters": {"rope_type": "linear", "rope_theta": 5000.0, "factor": 4.0}},
    "llama, yarn": {**LLAMA, "rope_parameters": {"rope_type": "yarn", **SCALED}},
    "llama, llama3": {
        **LLAMA,
        "rope_parameters": {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0, **SCALED},
    },
    "qwen2": {**ROTARY, "model_type": "qwen2", "num_key_value_heads": 2},
    "qwen2 tied, yarn": {
        **ROTARY,
        "model_type": "qwen2",
        "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "yarn", **SCALED},
    },
    "qwen3": {**ROTARY, "model_type": "qwen3", "num_key_value_heads": 2, "head_dim": 32},
    "gpt_neox": {**ROTARY, "model_type": "gpt_neox"},
    "gpt_neox tied, one after the other": {
        **ROTARY,
        "model_type": "gpt_neox",
        "tie_word_embeddings": True,
        "use_parallel_residual": False,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
    },
    "starcoder2": {**ROTARY, "model_type": "starcoder2", "num_key_value_heads": 2},
    "starcoder2 untied": {**ROTARY, "model_type": "starcoder2", "tie_word_embeddings": False},
}


def save_model(folder: Path, settings: dict, rows: int = 8200) -> torch.nn.Module:
    """A random model whose every weight matters, with the embedded vocabulary."""
    config = AutoConfig.for_model(**settings, vocab_size=rows, bos_token_id=0, eos_token_id=0)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    for name, weight in model.named_parameters():
        spread = 1.0 / weight.shape[-1] ** 0.5 if weight.ndim > 1 else 0.2
        torch.nn.init.normal_(weight.data, 1.0 if "norm" in name.lower() and name.endswith("weight") else 0.0, spread)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TINY / name, folder)
    return model


def serve(path: Path):
    options = xllamacpp.CommonParams()
    options.model.path = str(path)
    options.n_ctx, options.n_parallel, options.verbosity = 128, 1, 0
    options.warmup = options.fit_params = False
    options.cpuparams.n_threads = options.cpuparams_batch.n_threads = 1
    return xllamacpp.Server(options)


def differences(model: torch.nn.Module, path: Path, tokens: int = 64) -> np.ndarray:
    """|log-probability by llama.cpp - by transformers| of tokens that llama.cpp draws, in nats.

    Only whole characters are drawn: of several tokens that make up one, llama.cpp names the last.
    """
    prompt = [5, 900, 42, 3001, 17, 260, 7777, 1234]
    drawn = serve(path).handle_completions(
        {"prompt": prompt, "max_tokens": tokens, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
        | {"logprobs": 1, "ignore_eos": True, "seed": 3, "logit_bias": [[id, False] for id in PARTS]}
    )
    content = drawn["choices"][0]["logprobs"]["content"]
    new = [entry["id"] for entry in content]
    assert len(new) == tokens
    with torch.no_grad():
        logits = model(torch.tensor([prompt + new])).logits[0, len(prompt) - 1 : -1].float()
    expected = torch.log_softmax(logits, -1)[torch.arange(tokens), new]
    return np.abs(np.array([entry["logprob"] for entry in content]) - expected.numpy())


@pytest.mark.parametrize("name", MODELS)
def test_llama_cpp_gives_the_same_log_probabilities(name, tmp_path):
    model = save_model(tmp_path / "model", MODELS[name])
    convert(tmp_path / "model", tmp_path / "f16.gguf", "f16")
    convert(tmp_path / "model", tmp_path / "q8_0.gguf", "q8_0")
    f, q = differences(model, tmp_path / "f16.gguf"), differences(model, tmp_path / "q8_0.gguf")
    print(f"RESULT {name:40} f16 mean {f.mean():.5f} max {f.max():.5f}   q8 mean {q.mean():.5f} max {q.max():.5f}")
    assert f.max() < 0.02
    assert q.mean() < 0.05
