"""What llama.cpp needs to know of a Hugging Face model's config.json: its metadata, and how each tensor is laid out."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, GGUFWriter, RopeScalingType

from completion.gguf_export.errors import CannotConvert

# llama.cpp computes every GELU by the tanh formula; it differs from the exact one by at most 0.0005.
GELU = {"gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh"}


@dataclass
class Layout:
    """How a model's tensors are stored in the GGUF file.

    Attributes:
        rows: (pattern of names, order of rows): the weights and biases whose rows llama.cpp has in another order.
        transposed: pattern of the names of weights that are stored [in, out].
        tied: the output layer is the token embedding.
        copies_head: llama.cpp has no tied output layer for the architecture, so that the embedding is stored twice.
        extra: tensors that the model computes rather than stores, by GGUF name.
    """

    arch: MODEL_ARCH
    blocks: int
    vocabulary: int
    tied: bool
    rows: list[tuple[str, np.ndarray]] = field(default_factory=list)
    transposed: str = "(?!)"
    copies_head: bool = False
    extra: dict[str, np.ndarray] = field(default_factory=dict)

    def row_order(self, name: str) -> np.ndarray | None:
        return next((order for pattern, order in self.rows if re.search(pattern, name)), None)


def describe_model(config: dict[str, Any], writer_for: Callable[[str], GGUFWriter]) -> tuple[GGUFWriter, Layout]:
    """Read config.json: a writer that holds the model's metadata, and the layout of its tensors.

    Args:
        writer_for: makes a GGUFWriter from llama.cpp's name of an architecture.
    Raises:
        CannotConvert: the architecture is unknown, or uses something that llama.cpp is not certain to compute alike.
    """
    kind = config.get("model_type")
    if kind not in ARCHITECTURES:
        raise CannotConvert(f"its model_type is {kind!r}; known are {', '.join(ARCHITECTURES)}")
    if config.get("quantization_config"):
        raise CannotConvert("its weights are quantised already")
    arch, describe, defaults = ARCHITECTURES[kind]
    writer = writer_for(MODEL_ARCH_NAMES[arch])
    try:
        layout = describe(defaults | config, writer, arch)
    except KeyError as missing:
        raise CannotConvert(f"its config.json has no {missing}") from None
    except TypeError as error:
        raise CannotConvert(f"its config.json has a value of the wrong kind ({error})") from None
    writer.add_vocab_size(layout.vocabulary)
    return writer, layout


def _require(config: dict[str, Any], **expected: Any) -> None:
    """Refuse settings other than these. A set holds the alternatives; a setting that is absent has its default."""
    for key, allowed in expected.items():
        alternatives = allowed if isinstance(allowed, set) else {allowed}
        if key in config and config[key] not in alternatives:
            raise CannotConvert(f"its {key} is {config[key]!r}")


def _sizes(writer: GGUFWriter, blocks: int, width: int, inner: int, heads: int, kv_heads: int, context: int) -> None:
    writer.add_block_count(blocks)
    writer.add_context_length(context)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)


def _gpt2(config: dict[str, Any], writer: GGUFWriter, arch: MODEL_ARCH) -> Layout:
    _require(
        config,
        activation_function=GELU,
        scale_attn_weights=True,
        scale_attn_by_inverse_layer_idx=False,
        add_cross_attention=False,
    )
    width, heads, blocks = config["n_embd"], config["n_head"], config["n_layer"]
    big_code = arch is MODEL_ARCH.STARCODER
    one_key = big_code and config.get("multi_query", True)
    inner = config.get("n_inner") or 4 * width
    _sizes(writer, blocks, width, inner, heads, 1 if one_key else heads, config["n_positions"])
    writer.add_layer_norm_eps(config.get("layer_norm_epsilon", 1e-5))
    layout = Layout(arch, blocks, config["vocab_size"], config.get("tie_word_embeddings", False))
    if not big_code:
        layout.transposed = r"\.(c_attn|c_proj|c_fc)\.weight$"  # transformers' Conv1D
    elif not one_key:
        layout.rows = [(r"\.c_attn\.", _interleaved(heads, width // heads))]
    return layout


def _llama(config: dict[str, Any], writer: GGUFWriter, arch: MODEL_ARCH) -> Layout:
    _require(config, hidden_act="silu", use_sliding_window=False, pretraining_tp={1, None})
    if "sliding_attention" in (config.get("layer_types") or []):
        raise CannotConvert("its attention has a sliding window")
    if arch is not MODEL_ARCH.LLAMA:
        _require(config, mlp_bias=False)
    if arch is MODEL_ARCH.QWEN3:
        _require(config, attention_bias=False)
    layout = _rotary(config, writer, arch, config["max_position_embeddings"])
    writer.add_layer_norm_rms_eps(config.get("rms_norm_eps", 1e-6))
    if arch is MODEL_ARCH.LLAMA:  # llama.cpp rotates neighbours, transformers the halves of a head
        heads, kv_heads, size = _heads(config)
        layout.rows = [(r"\.q_proj\.", _neighbours(heads, size)), (r"\.k_proj\.", _neighbours(kv_heads, size))]
    return layout


def _starcoder2(config: dict[str, Any], writer: GGUFWriter, arch: MODEL_ARCH) -> Layout:
    _require(config, hidden_act=GELU, use_bias=True, norm_type="layer_norm", mlp_type="default")
    # llama.cpp looks back at the whole text, which is the same within one window.
    context = min(config["max_position_embeddings"], config.get("sliding_window") or math.inf)
    layout = _rotary(config, writer, arch, context)
    writer.add_layer_norm_eps(config.get("norm_epsilon", 1e-5))
    return layout


def _gpt_neox(config: dict[str, Any], writer: GGUFWriter, arch: MODEL_ARCH) -> Layout:
    _require(config, hidden_act=GELU, attention_bias=True)
    share = _rope(config).get("partial_rotary_factor", config.get("rotary_pct", 0.25))
    layout = _rotary(config, writer, arch, config["max_position_embeddings"], share)
    writer.add_parallel_residual(config.get("use_parallel_residual", True))
    writer.add_layer_norm_eps(config.get("layer_norm_eps", 1e-5))
    heads, _, size = _heads(config)
    layout.rows = [(r"\.query_key_value\.", _interleaved(heads, size))]
    layout.copies_head = True
    return layout


def _heads(config: dict[str, Any]) -> tuple[int, int, int]:
    """Query heads, key-value heads, and the width of one."""
    heads = config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads") or heads
    size = config.get("head_dim") or config["hidden_size"] // heads
    if heads % kv_heads or size % 2:  # llama.cpp would abort
        raise CannotConvert(f"its attention has {heads} heads of {size} numbers for {kv_heads} keys")
    return heads, kv_heads, size


def _neighbours(heads: int, size: int) -> np.ndarray:
    return np.arange(heads * size).reshape(heads, 2, size // 2).swapaxes(1, 2).ravel()


def _interleaved(heads: int, size: int) -> np.ndarray:
    """Rows stored as query, key and value head by head, in the order of all queries, all keys, all values."""
    return np.arange(heads * 3 * size).reshape(heads, 3, size).swapaxes(0, 1).ravel()


def _rope(config: dict[str, Any]) -> dict[str, Any]:
    """The rotary settings: transformers 5 writes rope_parameters, earlier versions rope_theta and rope_scaling."""
    older = {"rope_theta": config.get("rope_theta") or config.get("rotary_emb_base") or 10000.0}
    return older | (config.get("rope_scaling") or {}) | (config.get("rope_parameters") or {})


def _rotary(
    config: dict[str, Any], writer: GGUFWriter, arch: MODEL_ARCH, context: int, share: float | None = None
) -> Layout:
    heads, kv_heads, size = _heads(config)
    blocks = config["num_hidden_layers"]
    _sizes(writer, blocks, config["hidden_size"], config["intermediate_size"], heads, kv_heads, context)
    rope = _rope(config)
    if share is None:
        share = rope.get("partial_rotary_factor", 1.0)
        if share != 1:
            raise CannotConvert("its rotary embedding turns a part of each head only")
        writer.add_key_length(size)
        writer.add_value_length(size)
    turned = int(size * share)
    writer.add_rope_dimension_count(turned)
    writer.add_rope_freq_base(rope["rope_theta"])
    layout = Layout(arch, blocks, config["vocab_size"], config.get("tie_word_embeddings", False))
    match rope.get("rope_type", rope.get("type", "default")):
        case "default":
            pass
        case "linear":
            writer.add_rope_scaling_type(RopeScalingType.LINEAR)
            writer.add_rope_scaling_factor(rope["factor"])
        case "yarn":
            _yarn({"original_max_position_embeddings": config["max_position_embeddings"]} | rope, writer)
        case "llama3" if arch is MODEL_ARCH.LLAMA:
            layout.extra["rope_freqs.weight"] = _llama3_factors(rope, turned)
        case other:
            raise CannotConvert(f"its rope_type is {other!r}")
    return layout


def _yarn(rope: dict[str, Any], writer: GGUFWriter) -> None:
    """YaRN (https://arxiv.org/abs/2309.00071), whose attention factor llama.cpp computes from the scaling factor."""
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
    """What each rotary frequency is divided by: long waves by `factor`, short ones by 1, smoothly between.

    The formula is Llama 3.1's (`apply_scaling` in github.com/meta-llama/llama-models). float32 [dimensions / 2].
    """
    frequency = rope["rope_theta"] ** (-np.arange(0, dimensions, 2) / dimensions)
    waves = rope["original_max_position_embeddings"] * frequency / (2 * np.pi)  # that fit into the first context
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    smooth = np.clip((waves - low) / (high - low), 0, 1)
    return (1 / ((1 - smooth) / rope["factor"] + smooth)).astype(np.float32)


# model_type: llama.cpp's architecture, the reader of the config, and transformers' defaults that differ between models
ARCHITECTURES = {
    "gpt2": (MODEL_ARCH.GPT2, _gpt2, {"tie_word_embeddings": True}),
    "gpt_bigcode": (MODEL_ARCH.STARCODER, _gpt2, {"tie_word_embeddings": True}),
    "gpt_neox": (MODEL_ARCH.GPTNEOX, _gpt_neox, {}),
    "llama": (MODEL_ARCH.LLAMA, _llama, {}),
    "qwen2": (MODEL_ARCH.QWEN2, _llama, {"num_key_value_heads": 32}),
    "qwen3": (MODEL_ARCH.QWEN3, _llama, {"num_key_value_heads": 32, "head_dim": 128}),
    "starcoder2": (MODEL_ARCH.STARCODER2, _starcoder2, {"num_key_value_heads": 2, "tie_word_embeddings": True}),
}
