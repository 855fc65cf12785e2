"""The files of a converted dataset, and meta.json, which tells what they were made of and how."""

from pathlib import Path
from typing import Annotated, TypedDict

from common.command import InputError
from common.json_files import read_json

FILES = ("dev.jsonl", "meta.json", "train.jsonl")
FORMAT_VERSION = 4


SplitBy = Annotated[str, ("file", "folder", "segment")]


class MadeWith(TypedDict):
    name: str
    fingerprint: str


Count = Annotated[int, range(2**53)]


class Counts(TypedDict):
    """Of a language and split: files with a window in it, windows, and the tokens and bytes of those files."""

    files: Count
    windows: Count
    short_windows: Count  # of fewer than segment_len tokens, at the end of a file
    window_tokens: Count
    source_tokens: Count
    source_bytes: Count


class Flags(TypedDict):
    """Those of convert.py that are needed again."""

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
    dev_files: list[str]  # those of them that are wholly in dev
    skipped: dict[str, str]  # path -> reason


class Meta(TypedDict):
    format_version: Annotated[int, (FORMAT_VERSION,)]
    flags: Flags
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
        InputError: there is none, or it is not as convert.py writes it today.
    """
    meta = read_json(folder / "meta.json", Meta, _CONVERT_AGAIN)
    names = {source["source"] for source in meta["sources"]}
    fits = meta["flags"]["split_by"] in meta["contamination"] and names <= {*meta["flags"]["source"]}
    if not fits or not any(source["files"] for source in meta["sources"]):
        raise InputError(f"{folder / 'meta.json'}: its parts do not fit together; {_CONVERT_AGAIN}")
    return meta


def read_made_with(folder: Path) -> MadeWith | None:
    """What cut a dataset's text, whichever version of convert.py wrote it; None where there is no meta.json.

    Raises:
        InputError: it cannot be read.
    """
    file = folder / "meta.json"  # a dataset of the 2020 reference has none
    return read_json(file, _OnlyTokenizer, _CONVERT_AGAIN)["tokenizer"] if file.exists() else None


def read_split(folder: Path) -> str:
    """By what a dataset is split: file, folder or segment.

    Raises:
        InputError: as `read_made_with`, or there is no meta.json.
    """
    return read_json(folder / "meta.json", _OnlySplit, _CONVERT_AGAIN)["flags"]["split_by"]


def counts_table(languages: dict[str, dict[str, Counts]]) -> str:
    """A line for each language and split."""
    heads = ("files", "windows", "window tokens", "source tokens", "source bytes", "bytes/token")
    lines = [f"{'':<14}{heads[0]:>8}{heads[1]:>12}" + "".join(f"{head:>15}" for head in heads[2:])]
    for label, splits in languages.items():
        for name, counts in splits.items():
            cells = (f"{counts[key]:>15,}" for key in ("window_tokens", "source_tokens", "source_bytes"))
            ratio = counts["source_bytes"] / max(counts["source_tokens"], 1)
            lines.append(
                f"{f'{label} {name}':<14}{counts['files']:>8,}{counts['windows']:>12,}{''.join(cells)}{ratio:>15.2f}"
            )
    return "\n".join(lines)
