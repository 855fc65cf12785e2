"""The files of a converted dataset, and meta.json, which records what they were made from and how."""

from pathlib import Path
from typing import Annotated, TypedDict

from common.command import InputError
from common.json_files import read_json

FILES = ("dev.jsonl", "meta.json", "train.jsonl")
FORMAT_VERSION = 4
SplitBy = Annotated[str, ("file", "folder", "segment")]
Count = Annotated[int, range(2**53)]


class MadeWith(TypedDict):
    """The tokenizer."""

    name: str
    fingerprint: str


class Counts(TypedDict):
    """Counts of one language in one split."""

    files: Count  # that have a window in the split
    windows: Count
    short_windows: Count  # of fewer than segment_len tokens, at the end of a file
    window_tokens: Count
    source_tokens: Count  # of those files
    source_bytes: Count


class ConvertFlags(TypedDict):
    """The flags of convert.py that other commands need."""

    segment_len: Annotated[int, range(1, 2**31)]
    stride: Annotated[int, range(1, 2**31)]
    source: list[str]
    include_ignored: bool
    whole_files: bool
    tokenizer: str
    split_by: SplitBy


class FrequentToken(TypedDict):
    id: Annotated[int, range(2**31)]
    count: Count


class Source(TypedDict):
    source: str  # as the user named it
    files: dict[str, Count]  # path -> tokens
    dev_files: list[str]  # paths of the files that are completely in dev
    skipped: dict[str, str]  # path -> reason


class Meta(TypedDict):
    format_version: Annotated[int, (FORMAT_VERSION,)]
    flags: ConvertFlags
    tokenizer: MadeWith
    languages: dict[str, dict[str, Counts]]
    contamination: dict[str, dict[str, float | None]]  # split -> n -> share of dev's n-grams that occur in train
    duplicate_files: Count
    frequent_tokens: list[FrequentToken]  # in the source files, the most frequent first
    sources: list[Source]


class _OnlyTokenizer(TypedDict):
    tokenizer: MadeWith


class _SplitFlag(TypedDict):
    split_by: SplitBy


class _OnlySplit(TypedDict):
    flags: _SplitFlag


_CONVERT_AGAIN = "run dataset/convert.py again"


def read_meta(folder: Path) -> Meta:
    """meta.json of a dataset.

    Raises:
        InputError: it is missing, or not in the format that convert.py writes today.
    """
    meta = read_json(folder / "meta.json", Meta, _CONVERT_AGAIN)
    names = {source["source"] for source in meta["sources"]}
    fits = meta["flags"]["split_by"] in meta["contamination"] and names <= {*meta["flags"]["source"]}
    if not fits or not any(source["files"] for source in meta["sources"]):
        raise InputError(f"{folder / 'meta.json'}: its parts do not fit together; {_CONVERT_AGAIN}")
    return meta


def read_made_with(folder: Path) -> MadeWith | None:
    """The tokenizer of a dataset, also of one from an earlier convert.py; None if there is no meta.json.

    Raises:
        InputError: meta.json cannot be read.
    """
    file = folder / "meta.json"  # a dataset of the 2020 reference has none
    return read_json(file, _OnlyTokenizer, _CONVERT_AGAIN)["tokenizer"] if file.exists() else None


def read_split(folder: Path) -> str:
    """How a dataset is split, also one from an earlier convert.py: by file, folder or segment.

    Raises:
        InputError: meta.json is missing or cannot be read.
    """
    return read_json(folder / "meta.json", _OnlySplit, _CONVERT_AGAIN)["flags"]["split_by"]


def counts_table(languages: dict[str, dict[str, Counts]]) -> str:
    """A line for each language and split."""
    widths = {"files": 8, "windows": 12, "window_tokens": 15, "source_tokens": 15, "source_bytes": 15}
    lines = [" " * 14 + "".join(f"{key.replace('_', ' '):>{n}}" for key, n in widths.items()) + f"{'bytes/token':>15}"]
    for label, splits in languages.items():
        for name, counts in splits.items():
            cells = "".join(f"{counts[key]:>{width},}" for key, width in widths.items())
            ratio = counts["source_bytes"] / max(counts["source_tokens"], 1)
            lines.append(f"{f'{label} {name}':<14}{cells}{ratio:>15.2f}")
    return "\n".join(lines)
