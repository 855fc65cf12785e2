"""A model's folder, found by its name; its configuration, tokenizer and FIM words, read without torch."""

import hashlib
import json
import logging
import math
import os
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict

from common.command import InputError, first_line
from common.files import ROOT, present_folder
from common.json_files import read_json

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MODEL_MAP = {
    "tiny": str(ROOT / "pretrained" / "tiny"),
    "distilgpt2": "distilgpt2",
    "gpt2": "gpt2",
    "gpt2_medium": "gpt2-medium",
    "gpt2_large": "gpt2-large",
}

BEST_MODEL = "0_GPTSingleHead"  # of a run folder
HUB_TIMEOUT_S = 5
COMPLETE_COPY = "take a complete copy of the model"
_TOKENIZER_FILES = ("tokenizer.json", "vocab.json")
# transformers makes a tokenizer from one of these; without any it would make one with an empty vocabulary.
_ANY_TOKENIZER_FILE = (*_TOKENIZER_FILES, "tokenizer.model", "spiece.model", "vocab.txt")
_WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")  # or the shards that NAME.index.json lists
# Whole numbers of a config.json, and the largest value of a possible model. More would hang or end the process.
_LARGEST = {
    **dict.fromkeys(("n_layer", "num_hidden_layers"), 1000),
    **dict.fromkeys(("n_head", "num_attention_heads", "num_key_value_heads", "head_dim"), 10_000),
    **dict.fromkeys(("n_embd", "hidden_size", "n_inner", "intermediate_size"), 1_000_000),
    **dict.fromkeys(("n_positions", "max_position_embeddings", "sliding_window", "vocab_size"), 1_000_000_000),
}
_POSITIVE = (  # numbers of a config.json above 0
    *("layer_norm_epsilon", "layer_norm_eps", "rms_norm_eps", "norm_epsilon", "initializer_range"),
    *("rope_theta", "rotary_emb_base", "rotary_pct", "partial_rotary_factor", "factor"),
)


def find_pretrained(name_or_path: str, weights: bool = True) -> Path:
    """The local folder of a model, which is downloaded if it is a Hub id that is not in the cache.

    Args:
        name_or_path: a name of MODEL_MAP, a model folder, a run folder or a Hub id.
        weights: False if only the tokenizer is needed.
    Raises:
        InputError: there is no such folder, a file is missing in it, or the Hub does not answer (known within 10 s).
    """
    name = MODEL_MAP.get(name_or_path, name_or_path)
    if (best := present_folder(Path(name) / BEST_MODEL)).is_dir():  # a run folder
        name = str(best)
    if (folder := Path(name)).is_dir():
        if not (_has_weights(folder) if weights else _has_any(folder, _TOKENIZER_FILES)):
            wanted = _WEIGHT_FILES if weights else _TOKENIZER_FILES
            raise InputError(f"{name}: has neither {' nor '.join(wanted)}; name the folder of a saved model")
        if weights and not _has_any(folder, _ANY_TOKENIZER_FILE):
            raise InputError(f"{name}: has no tokenizer, such as tokenizer.json; copy the model's own into it")
        try:
            os.path.realpath(folder).encode()
        except UnicodeEncodeError:
            raise InputError(f"{name}: the folder's name is not UTF-8, which the libraries need; rename it") from None
        for file in folder.iterdir():  # of which libraries open many; reading from a pipe would never end
            if file.exists() and not file.is_file() and not file.is_dir():
                raise InputError(f"{file}: not a regular file; remove it, or {COMPLETE_COPY}")
        return folder
    if name.count("/") > 1 or name.startswith((".", "/", "~")) or name.endswith("/") or "\\" in name:
        raise InputError(
            f"{name}: no such folder; give a local model folder, a Hub id, or one of {', '.join(MODEL_MAP)}"
        )
    owner = Path(name).parts[0] if name else ""
    is_run = name_or_path not in MODEL_MAP and (ROOT / "model" / name).is_dir()
    if owner == "model" or is_run or (owner != name and Path(owner).is_dir()):  # so it is not a Hub id
        runs = sorted(folder.parent.name for folder in ROOT.glob(f"model/*/{BEST_MODEL}"))
        raise InputError(
            f"{name}: no such folder below {Path.cwd()}; "
            + (f"in {ROOT / 'model'} there are the runs {', '.join(runs)}" if runs else "there is no run yet")
        )
    return _from_hub(name, weights)


def newest_run() -> str:
    """The run folder whose best model was saved last; without any run, the embedded model's name."""
    saved = [folder / "config.json" for folder in ROOT.glob(f"model/*/{BEST_MODEL}")]
    newest = max((file for file in saved if file.is_file()), key=lambda file: file.stat().st_mtime, default=None)
    return str(newest.parent.parent) if newest else "tiny"


def _has_any(folder: Path, names: tuple[str, ...]) -> bool:
    return any((folder / name).is_file() for name in names)


class _ShardIndex(TypedDict):
    weight_map: dict[str, str]


def weight_shards(folder: Path, name: str = "model.safetensors") -> list[Path]:
    """The files of a model's weights: `name`, or the shards that its index names. Empty if there is neither.

    Raises:
        InputError: the index is damaged, or one of its files is missing.
    """
    if (folder / name).is_file():
        return [folder / name]
    if not (index := folder / f"{name}.index.json").is_file():
        return []
    names = set(read_json(index, _ShardIndex, COMPLETE_COPY)["weight_map"].values())
    shards = [folder / shard for shard in sorted(names)]
    if missing := [shard for shard in shards if not shard.is_file()]:
        raise InputError(f"{missing[0]}: missing, though {index.name} names it; {COMPLETE_COPY}")
    return shards


def _has_weights(folder: Path) -> bool:
    return any(weight_shards(folder, name) for name in _WEIGHT_FILES)


def _is_cached(folder: Path, weights: bool) -> bool:
    """Whether the cache holds what is needed now. An earlier command may have downloaded the tokenizer alone."""
    try:
        return _has_any(folder, _ANY_TOKENIZER_FILE) and (not weights or _has_weights(folder))
    except InputError:  # shards are missing
        return False


def _from_hub(name: str, weights: bool) -> Path:
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = ["*.json", "*.txt", "*.model", *(["*.safetensors"] if weights else [])]
    try:
        try:
            folder = Path(huggingface_hub.snapshot_download(name, allow_patterns=patterns, local_files_only=True))
            if _is_cached(folder, weights):
                return folder
        except LocalEntryNotFoundError:
            pass
        if not _hub_answers():
            raise InputError(
                f"{name}: not in the local cache, and {huggingface_hub.constants.ENDPOINT} does not answer; "
                "use the embedded model (tiny) or the path of a local model folder"
            )
        folder = Path(huggingface_hub.snapshot_download(name, allow_patterns=patterns))
        if weights and not _is_cached(folder, weights):  # an older repository has weights in torch's format only
            folder = Path(huggingface_hub.snapshot_download(name, allow_patterns=[*patterns, "pytorch_model*.bin"]))
    except (HfHubHTTPError, HFValidationError) as error:
        raise InputError(
            f"{name}: no model of that name is available ({first_line(error)}); known names: {', '.join(MODEL_MAP)}"
        ) from None
    if not _is_cached(folder, weights):
        what = "weights and a tokenizer" if weights else "tokenizer"
        raise InputError(f"{name}: the Hub's repository holds no {what} that can be read; choose another model")
    return folder


def _hub_answers() -> bool:
    """Whether the Hub can be reached. Asked in a thread, because a name server that hangs ignores the timeout."""
    from huggingface_hub import constants

    answered = threading.Event()

    def ask() -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(constants.ENDPOINT, method="HEAD"), timeout=HUB_TIMEOUT_S)
            answered.set()
        except urllib.error.HTTPError:  # also an answer
            answered.set()
        except Exception as error:  # for example, HF_ENDPOINT is not an address
            logging.getLogger(__name__).debug("hub: %s", error)

    if constants.HF_HUB_OFFLINE:
        return False
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(HUB_TIMEOUT_S)
    return answered.is_set()


def read_config(folder: Path) -> dict[str, Any]:
    """A model's config.json. Every size and constant in it is in the range that a model can have.

    Raises:
        InputError: it is missing or damaged, or a value is outside its range.
    """
    path = folder / "config.json"
    config = read_json(path, dict, COMPLETE_COPY)
    for part in (config, config.get("rope_scaling"), config.get("rope_parameters")):
        for name, value in part.items() if isinstance(part, dict) else ():
            wanted = None
            if name in _LARGEST and not (type(value) is int and 1 <= value <= _LARGEST[name]):
                wanted = f"a whole number from 1 to {_LARGEST[name]}"
            elif name in _POSITIVE and not (type(value) in (int, float) and 0 < value < math.inf):
                wanted = "a number above 0"
            if wanted and value is not None:
                raise InputError(f"{path}: {name} is {value!r:.40}, not {wanted}; {COMPLETE_COPY}")
    return config


def load_tokenizer(name_or_path: str) -> "Tokenizer":
    """The tokenizer of a model.

    Args:
        name_or_path: as in `find_pretrained`.
    Raises:
        InputError: as in `find_pretrained` and `read_tokenizer`.
    """
    return read_tokenizer(find_pretrained(name_or_path, weights=False))


def read_tokenizer(folder: Path) -> "Tokenizer":
    """A `tokenizers.Tokenizer` that treats control words in a text as ordinary text.

    Raises:
        InputError: the folder's files cannot be read as a tokenizer.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    try:
        if (folder / "tokenizer.json").is_file():
            tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        else:  # GPT-2's original two files
            tokenizer = Tokenizer(models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt")))
            tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
            tokenizer.decoder = decoders.ByteLevel()
        _check_templates(json.loads(tokenizer.post_processor.__getstate__()) if tokenizer.post_processor else {})
        tokenizer.encode("x")
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the Rust library raises Exception, and BaseException when it panics
        raise InputError(f"{folder}: cannot be read as a tokenizer ({first_line(error)})") from None
    # The file may set a maximum length, which would cut every source file short.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    return tokenizer


def _check_templates(post_processor: dict[str, Any]) -> None:
    """Refuse a template that names an unknown token: the library would panic and print many lines."""
    for part in post_processor.get("processors", [post_processor]):
        if part.get("type") == "TemplateProcessing":
            for piece in [*part["single"], *part["pair"]]:
                name = piece.get("SpecialToken", {}).get("id")
                if name is not None and name not in part["special_tokens"]:
                    raise ValueError(f"its post_processor names the unknown token {name!r}")


def fingerprint(tokenizer: "Tokenizer") -> str:
    """Sixteen hex digits, equal for two tokenizers if and only if their base vocabularies are equal.

    Control words added later do not count, because they do not change how a text is cut. Nor do the merges: they
    follow from a byte-level BPE's vocabulary, and reading them takes ten times as long.
    """
    vocabulary = tokenizer.get_vocab(with_added_tokens=False)
    content = "\n".join(sorted(vocabulary, key=vocabulary.__getitem__))
    return hashlib.sha256(content.encode()).hexdigest()[:16]


class FimWords(NamedTuple):
    """Marker words for FIM. In all families the prompt is: prefix word, prefix, suffix word, suffix, middle word."""

    prefix: str
    suffix: str
    middle: str


FIM_FAMILIES = (
    FimWords("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),  # StarCoder, Granite, and models trained here
    FimWords("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),  # SantaCoder
    FimWords("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),  # Qwen, CodeGemma
    FimWords("▁<PRE>", "▁<SUF>", "▁<MID>"),  # CodeLlama
    FimWords("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),  # DeepSeek-Coder
)


def known_fim_words(token_to_id: Callable[[str], int | None]) -> FimWords | None:
    """The first family whose three words are single tokens of a vocabulary, or None."""
    return next((words for words in FIM_FAMILIES if all(token_to_id(word) is not None for word in words)), None)
