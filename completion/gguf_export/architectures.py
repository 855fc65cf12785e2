"""What llama.cpp needs from a Hugging Face model's config.json: the metadata, and the layout of each tensor."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, GGUFWriter, RopeScalingType

from completion.gguf_export.errors import CannotConvert


def _interleaved(heads: int, size: int) -> np.ndarray:
    """Reorder rows from query, key and value for each head to all queries, then all keys, then all values."""
    return np.arange(heads * 3 * size).reshape(heads, 3, size).swapaxes(0, 1).ravel()


def _neighbours(heads: int, size: int) -> np.ndarray:
    """Alternate rows of the two halves of each head: llama.cpp rotates neighbours, transformers rotates halves."""
    return np.arange(heads * size).reshape(heads, 2, size // 2).swapaxes(1, 2).ravel()


@dataclass(frozen=True)
class Architecture:
    """How models of one `model_type` are written.

    Attributes:
        arch: llama.cpp's architecture.
        only: for some settings, the values that llama.cpp computes exactly; a model with another value is refused.
        defaults: transformers' defaults, under the names in RENAMED.
        rows: for tensors whose rows llama.cpp has in another order, a pattern of their names -> that order.
        transposed: a pattern of the names of weights that transformers stores as [in, out].
        copies_head: whether a tied embedding is stored twice, because llama.cpp has no tied output layer here.
    """

    arch: MODEL_ARCH
    only: dict[str, tuple]
    defaults: dict[str, Any]
    rotary: bool = True
    rows: dict[str, Callable[[int, int], np.ndarray]] = field(default_factory=dict)
    transposed: str = "(?!)"
    copies_head: bool = False


RENAMED = {  # GPT-2's names of settings, and the many names of the normalisation's epsilon
    **{"n_embd": "hidden_size", "n_layer": "num_hidden_layers", "n_head": "num_attention_heads"},
    **{"n_positions": "max_position_embeddings", "n_inner": "intermediate_size"},
    **{"layer_norm_epsilon": "eps", "layer_norm_eps": "eps", "norm_epsilon": "eps", "rms_norm_eps": "eps"},
}
# llama.cpp computes every GELU by the tanh formula; it differs from the exact one by at most 0.0005.
GELU = ("gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh")
GPT2_ONLY = {
    **{"activation_function": GELU, "scale_attn_weights": (True,), "add_cross_attention": (False,)},
    "scale_attn_by_inverse_layer_idx": (False,),
}
NEOX_ONLY = {"hidden_act": GELU, "attention_bias": (True,)}
LLAMA_ONLY = {"hidden_act": ("silu",), "use_sliding_window": (False,), "pretraining_tp": (1, None)}
QWEN2_ONLY = LLAMA_ONLY | {"mlp_bias": (False,)}
QWEN3_ONLY = QWEN2_ONLY | {"attention_bias": (False,)}
STARCODER2_ONLY = {"use_bias": (True,), "norm_type": ("layer_norm",), "mlp_type": ("default",), "hidden_act": GELU}
GPT2_DEFAULTS = {"tie_word_embeddings": True, "eps": 1e-5}
BIGCODE_DEFAULTS = GPT2_DEFAULTS | {"multi_query": True}
NEOX_DEFAULTS = {"eps": 1e-5, "rotary_pct": 0.25, "use_parallel_residual": True}
QWEN3_DEFAULTS = {"eps": 1e-6, "num_key_value_heads": 32, "head_dim": 128}
QWEN2_DEFAULTS = {"eps": 1e-6, "num_key_value_heads": 32}
STARCODER2_DEFAULTS = GPT2_DEFAULTS | {"num_key_value_heads": 2}
CONV1D = r"\.(c_attn|c_proj|c_fc)\.weight$"  # transformers' layer of GPT-2
ROTATED = {r"\.q_proj\.": _neighbours, r"\.k_proj\.": _neighbours}
BIGCODE_ROWS, NEOX_ROWS = {r"\.c_attn\.": _interleaved}, {r"\.query_key_value\.": _interleaved}
ARCHITECTURES = {
    "gpt2": Architecture(MODEL_ARCH.GPT2, GPT2_ONLY, GPT2_DEFAULTS, rotary=False, transposed=CONV1D),
    "gpt_bigcode": Architecture(MODEL_ARCH.STARCODER, GPT2_ONLY, BIGCODE_DEFAULTS, rotary=False, rows=BIGCODE_ROWS),
    "gpt_neox": Architecture(MODEL_ARCH.GPTNEOX, NEOX_ONLY, NEOX_DEFAULTS, rows=NEOX_ROWS, copies_head=True),
    "llama": Architecture(MODEL_ARCH.LLAMA, LLAMA_ONLY, {"eps": 1e-6}, rows=ROTATED),
    "qwen2": Architecture(MODEL_ARCH.QWEN2, QWEN2_ONLY, QWEN2_DEFAULTS),
    "qwen3": Architecture(MODEL_ARCH.QWEN3, QWEN3_ONLY, QWEN3_DEFAULTS),
    "starcoder2": Architecture(MODEL_ARCH.STARCODER2, STARCODER2_ONLY, STARCODER2_DEFAULTS),
}
RMS_NORM = ("llama", "qwen2", "qwen3")


@dataclass
class Layout:
    """How a model's tensors are stored in the GGUF file.

    Attributes:
        tied: whether the output layer is the token embedding.
        rows: a pattern of tensor names -> the order of their rows, [rows] int64.
        extra: tensors that transformers computes and does not store, by their GGUF names.
    """

    known: Architecture
    blocks: int
    tied: bool
    rows: dict[str, np.ndarray] = field(default_factory=dict)
    extra: dict[str, np.ndarray] = field(default_factory=dict)


def describe_model(config: dict[str, Any], writer_for: Callable[[str], GGUFWriter]) -> tuple[GGUFWriter, Layout]:
    """Return a writer with the model's metadata, and the layout of the model's tensors.

    Args:
        config: as `common.model_files.read_config` returns it.
        writer_for: makes a GGUFWriter from llama.cpp's name of an architecture.
    Raises:
        CannotConvert: the architecture is unknown, or uses something that llama.cpp may compute differently.
        LookupError, TypeError, ValueError: config.json lacks a setting, or a value has the wrong type.
    """
    kind = config.get("model_type")
    if kind not in ARCHITECTURES:
        raise CannotConvert(f"its model_type is {kind!r}; known are {', '.join(ARCHITECTURES)}")
    if config.get("quantization_config"):
        raise CannotConvert("its weights are quantised already")
    known = ARCHITECTURES[kind]
    for name, allowed in known.only.items():
        if name in config and config[name] not in allowed:
            raise CannotConvert(f"its {name} is {config[name]!r}")
    if "sliding_attention" in (config.get("layer_types") or []):
        raise CannotConvert("its attention has a sliding window")
    config = known.defaults | {RENAMED.get(name, name): value for name, value in config.items()}
    width, heads, blocks = config["hidden_size"], config["num_attention_heads"], config["num_hidden_layers"]
    size = config.get("head_dim") or width // heads
    keys = 1 if known.rows and config.get("multi_query") else config.get("num_key_value_heads") or heads
    if heads % keys or (known.rotary and size % 2) or (not config.get("head_dim") and width % heads):
        raise CannotConvert(
            f"its attention has {heads} heads of {size} numbers for {keys} keys"
        )  # llama.cpp would abort
    context = config["max_position_embeddings"]
    if kind == "starcoder2":  # llama.cpp knows no sliding window; a text within one window gives the same result
        context = min(context, config.get("sliding_window") or math.inf)

    writer = writer_for(MODEL_ARCH_NAMES[known.arch])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_block_count(blocks)
    writer.add_context_length(context)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(config.get("intermediate_size") or 4 * width)
    writer.add_head_count(heads)
    writer.add_head_count_kv(keys)
    (writer.add_layer_norm_rms_eps if kind in RMS_NORM else writer.add_layer_norm_eps)(config["eps"])
    if kind == "gpt_neox":
        writer.add_parallel_residual(config["use_parallel_residual"])
    layout = Layout(known, blocks, config.get("tie_word_embeddings", False))
    if known.rotary:
        _add_rotary(writer, config, size, layout)
    if not config.get("multi_query"):
        layout.rows = {name: order(keys if "k_proj" in name else heads, size) for name, order in known.rows.items()}
    return writer, layout


def _add_rotary(writer: GGUFWriter, config: dict[str, Any], size: int, layout: Layout) -> None:
    # transformers 5 writes rope_parameters, earlier versions wrote rope_theta and rope_scaling
    rope = {"rope_theta": config.get("rope_theta") or config.get("rotary_emb_base") or 10000.0}
    rope |= (config.get("rope_scaling") or {}) | (config.get("rope_parameters") or {})
    share = rope.get("partial_rotary_factor", config.get("rotary_pct", 1.0))
    if "rotary_pct" not in config:
        if share != 1:
            raise CannotConvert("its rotary embedding rotates only a part of each head")
        writer.add_key_length(size)
        writer.add_value_length(size)
    turned = int(size * share)
    writer.add_rope_dimension_count(turned)
    writer.add_rope_freq_base(rope["rope_theta"])
    match rope.get("rope_type", rope.get("type", "default")):
        case "default":
            pass
        case "linear":
            writer.add_rope_scaling_type(RopeScalingType.LINEAR)
            writer.add_rope_scaling_factor(rope["factor"])
        case "yarn":
            _add_yarn(writer, {"original_max_position_embeddings": config["max_position_embeddings"]} | rope)
        case "llama3" if layout.known.arch is MODEL_ARCH.LLAMA:
            layout.extra["rope_freqs.weight"] = _llama3_factors(rope, turned)
        case other:
            raise CannotConvert(f"its rope_type is {other!r}")


def _add_yarn(writer: GGUFWriter, rope: dict[str, Any]) -> None:
    """Write YaRN scaling (https://arxiv.org/abs/2309.00071). llama.cpp computes its attention factor from `factor`."""
    factor = rope["factor"]
    usual = 0.1 * math.log(factor) + 1
    if not math.isclose(rope.get("attention_factor") or usual, usual, rel_tol=1e-4):
        raise CannotConvert(f"its YaRN attention_factor is {rope['attention_factor']}")
    if rope.get("mscale") or rope.get("mscale_all_dim") or not rope.get("truncate", True):
        raise CannotConvert("its YaRN scaling has mscale or truncate set")
    writer.add_rope_scaling_type(RopeScalingType.YARN)
    writer.add_rope_scaling_factor(factor)
    writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    writer.add_rope_scaling_yarn_beta_fast(rope.get("beta_fast") or 32.0)
    writer.add_rope_scaling_yarn_beta_slow(rope.get("beta_slow") or 1.0)


def _llama3_factors(rope: dict[str, Any], dimensions: int) -> np.ndarray:
    """Return the number by which each rotary frequency is divided, float32 [dimensions / 2].

    It is `factor` for long waves, 1 for short ones, and in between for the others. The formula is Llama 3.1's
    (`apply_scaling` in github.com/meta-llama/llama-models).
    """
    frequency = rope["rope_theta"] ** (-np.arange(0, dimensions, 2) / dimensions)
    waves = rope["original_max_position_embeddings"] * frequency / (2 * np.pi)  # that fit into the first context
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    smooth = np.clip((waves - low) / (high - low), 0, 1)
    return (1 / ((1 - smooth) / rope["factor"] + smooth)).astype(np.float32)
