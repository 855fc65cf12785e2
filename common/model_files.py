"""Names of models -> local folders, and tokenizers without torch: what convert.py and model.py both need."""

import hashlib
import logging
import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

from common.command import InputError, first_line
from common.files import ROOT

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
_TOKENIZER_FILES = ("tokenizer.json", "vocab.json")
# What transformers can make a tokenizer from; without any it would make one that knows no word.
_ANY_TOKENIZER_FILE = (*_TOKENIZER_FILES, "tokenizer.model", "spiece.model", "vocab.txt")
_WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


def find_pretrained(name_or_path: str, weights: bool = True) -> Path:
    """The local folder of a model: a MODEL_MAP name, a path, a cached Hub id, or a Hub id to download now.

    Args:
        name_or_path: what the user wrote.
        weights: False if the tokenizer alone is wanted.
    Raises:
        InputError: no such folder, nothing in it to load, or the Hub cannot be reached (said within 10 s).
    """
    name = MODEL_MAP.get(name_or_path, name_or_path)
    if (best := Path(name) / BEST_MODEL).is_dir():  # a run folder
        name = str(best)
    wanted = _WEIGHT_FILES if weights else _TOKENIZER_FILES
    if Path(name).is_dir():
        if not any((Path(name) / file).is_file() for file in wanted):
            raise InputError(f"{name}: has none of {', '.join(wanted)}; name the folder of a saved model")
        if weights and not any((Path(name) / file).is_file() for file in _ANY_TOKENIZER_FILE):
            raise InputError(f"{name}: has no tokenizer, such as tokenizer.json; copy the model's own into it")
        return Path(name)
    if name.count("/") > 1 or name.startswith((".", "/", "~")) or name.endswith("/") or "\\" in name:
        raise InputError(f"{name}: no such folder; give a local model folder, a Hub id, or one of {_names()}")
    owner = Path(name).parts[0] if name else ""
    is_run = name_or_path not in MODEL_MAP and (ROOT / "model" / name).is_dir()
    if owner == "model" or is_run or (owner != name and Path(owner).is_dir()):  # so it is no name of the Hub
        runs = sorted(folder.parent.name for folder in ROOT.glob("model/*/0_GPTSingleHead"))
        raise InputError(
            f"{name}: no such folder below {Path.cwd()}; "
            + (f"in {ROOT / 'model'} there are the runs {', '.join(runs)}" if runs else "there is no run yet")
        )
    return _from_hub(name, wanted, weights)


def newest_run() -> str:
    """The run folder whose best model was saved last; without any run, the embedded model's name."""
    saved = [folder / "config.json" for folder in ROOT.glob(f"model/*/{BEST_MODEL}")]
    newest = max((file for file in saved if file.is_file()), key=lambda file: file.stat().st_mtime, default=None)
    return str(newest.parent.parent) if newest else "tiny"


def _names() -> str:
    return ", ".join(MODEL_MAP)


def _from_hub(name: str, wanted: tuple[str, ...], weights: bool) -> Path:
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = ["*.json", "*.txt", "*.model", *(["*.safetensors"] if weights else [])]
    try:
        try:
            folder = Path(huggingface_hub.snapshot_download(name, allow_patterns=patterns, local_files_only=True))
            if any((folder / file).is_file() for file in wanted):
                return folder
        except LocalEntryNotFoundError:
            pass
        if not _hub_answers():
            raise InputError(
                f"{name}: not in the local cache, and {huggingface_hub.constants.ENDPOINT} does not answer; "
                "use the embedded model (tiny) or the path of a local model folder"
            )
        folder = Path(huggingface_hub.snapshot_download(name, allow_patterns=patterns))
        if weights and not any((folder / file).is_file() for file in wanted):  # an older repository, torch format only
            folder = Path(huggingface_hub.snapshot_download(name, allow_patterns=[*patterns, "pytorch_model*.bin"]))
    except (HfHubHTTPError, HFValidationError) as error:
        raise InputError(
            f"{name}: no model of that name could be had ({first_line(error)}); known names: {_names()}"
        ) from None
    if not any((folder / file).is_file() for file in wanted):
        raise InputError(f"{name}: the Hub's repository holds none of {', '.join(wanted)}; choose another model")
    return folder


def _hub_answers() -> bool:
    """Whether the Hub can be reached. In a thread, because a timeout does not cover a name server that hangs."""
    from huggingface_hub import constants

    answered = threading.Event()

    def ask() -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(constants.ENDPOINT, method="HEAD"), timeout=HUB_TIMEOUT_S)
            answered.set()
        except urllib.error.HTTPError:  # an answer all the same
            answered.set()
        except OSError as error:
            logging.getLogger(__name__).debug("hub: %s", error)

    if constants.HF_HUB_OFFLINE:
        return False
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(HUB_TIMEOUT_S)
    return answered.is_set()


def load_tokenizer(name_or_path: str) -> "Tokenizer":
    """A `tokenizers.Tokenizer` that treats control words in a text as ordinary text; needs no torch.

    Raises:
        InputError: as `find_pretrained`, or files that cannot be read as a tokenizer.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    folder = find_pretrained(name_or_path, weights=False)
    try:
        if (folder / "tokenizer.json").is_file():
            tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        else:  # GPT-2's original two files
            tokenizer = Tokenizer(models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt")))
            tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
            tokenizer.decoder = decoders.ByteLevel()
    except Exception as error:  # the Rust library raises bare Exceptions
        raise InputError(f"{folder}: cannot be read as a tokenizer ({error})") from None
    # What a file says of lengths is meant for one use of it; here it would cut every source file short.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    return tokenizer


def fingerprint(tokenizer: "Tokenizer") -> str:
    """Sixteen hex digits that two tokenizers share if and only if they have the same base vocabulary.

    Control words added later are left out: they do not change how a text is cut. So are the merges, which a
    byte-level BPE's vocabulary implies and which take ten times as long to read out.
    """
    vocabulary = tokenizer.get_vocab(with_added_tokens=False)
    content = "\n".join(sorted(vocabulary, key=vocabulary.__getitem__))
    return hashlib.sha256(content.encode()).hexdigest()[:16]
