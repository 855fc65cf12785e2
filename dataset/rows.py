"""Write the rows of train.jsonl and dev.jsonl, and read them fast."""

import itertools
import json
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from common.command import InputError
from common.files import open_input
from common.json_files import parse_json

if TYPE_CHECKING:
    import numpy as np

    from dataset.sources import SourceFile

ROW_START = b'{"token_ids": ['
SEPARATOR = b", "
WINDOWS_AT_ONCE = 5000  # their rows are in memory together, about 7 MB
BYTES_AT_ONCE = 8 << 20
REMEDY = "mend the line or run dataset/convert.py again"


def write_rows(files: "list[SourceFile]", segment_len: int, folder: Path) -> None:
    """Write train.jsonl and dev.jsonl: one row for each window, in the order of the files."""
    with (folder / "train.jsonl").open("wb") as train, (folder / "dev.jsonl").open("wb") as dev:
        for file in files:
            for first in range(0, len(file.starts), WINDOWS_AT_ONCE):
                windows = slice(first, first + WINDOWS_AT_ONCE)
                rows, in_dev = _rows(file, windows, segment_len), file.in_dev[windows]
                train.writelines(itertools.compress(rows, (~in_dev).tolist()))
                dev.writelines(itertools.compress(rows, in_dev.tolist()))


def _rows(file: "SourceFile", windows: slice, segment_len: int) -> list[bytes]:
    import numpy as np

    starts = file.starts[windows] - file.starts[windows][0]
    words = [b"%d" % token_id for token_id in file.ids[file.starts[windows][0] :][: starts[-1] + segment_len].tolist()]
    text = SEPARATOR.join(words) + SEPARATOR
    at = np.cumsum([0, *(len(word) + len(SEPARATOR) for word in words)]).tolist()  # token number -> offset in text
    tail = f'], "label": "{file.label}", "path": {json.dumps(file.path)}}}\n'.encode()
    ends = (starts + segment_len).clip(max=len(words)).tolist()
    return [
        ROW_START + text[at[start] : at[end] - len(SEPARATOR)] + tail
        for start, end in zip(starts.tolist(), ends, strict=True)
    ]


class Rows(NamedTuple):
    """Consecutive rows of a file."""

    first_line: int  # counted from 1
    labels: list[str]
    counts: "np.ndarray"  # [rows] int64: number of tokens of each row
    ids: "np.ndarray"  # [tokens] int64: the token ids of all rows, concatenated


def read_rows(path: Path, vocabulary_size: int) -> Iterator[Rows]:
    """Read the rows of a jsonl file, some megabytes at a time.

    Rows in exactly the form of `write_rows` are read without a JSON parser, which would be several times slower. If a
    line has another form or an error, the parser reads it.

    Raises:
        InputError: a row is not in the format of dataset/README.md, or a token is not in the vocabulary. The message
            names the line.
    """
    number = 1
    with open_input(path) as file:
        while lines := file.readlines(BYTES_AT_ONCE):
            plain = _read_plain(lines, vocabulary_size)
            yield Rows(number, *(plain or _read_json(lines, vocabulary_size, path, number)))
            number += len(lines)


def _read_plain(lines: Sequence[bytes], vocabulary_size: int) -> "tuple[list[str], np.ndarray, np.ndarray] | None":
    """Return labels, counts and ids of the lines, or None if a line is not exactly in the form of `write_rows`."""
    import numpy as np

    labels, numbers = [], []
    label_of: dict[bytes, str | None] = {}  # text after the numbers, the same for all windows of a file -> label
    for line in lines:
        start, _, rest = line.partition(b"]")
        if rest not in label_of:
            label_of[rest] = _label_of(rest)
        if not start.startswith(ROW_START) or label_of[rest] is None:
            return None
        labels.append(label_of[rest])
        numbers.append(start[len(ROW_START) :])
    text = SEPARATOR.join(numbers)
    counts = np.array([row.count(b",") + 1 for row in numbers])
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # fromstring gives only a warning about text that it cannot read
        try:
            ids = np.fromstring(text, dtype=np.int64, sep=",")
        except (DeprecationWarning, ValueError):
            return None
    if len(ids) != counts.sum() or not 0 <= ids.min() <= ids.max() < vocabulary_size:
        return None
    # fromstring also accepts what JSON does not, such as 01 or +1. JSON writes these numbers with this many digits:
    digits = len(ids) + sum(np.count_nonzero(ids >= 10**power) for power in range(1, len(str(ids.max()))))
    separators = text.count(SEPARATOR)
    is_plain = not text.translate(None, b"0123456789, ") and separators == len(ids) - 1
    return (labels, counts, ids) if is_plain and len(text) == digits + 2 * separators else None


def _label_of(rest: bytes) -> str | None:
    """Return the label in the text after a row's numbers and bracket, or None if the row is not in the plain form."""
    try:
        row = parse_json(ROW_START + b"]" + rest, dict, "", "")
    except InputError:
        return None
    return row["label"] if row["token_ids"] == [] and isinstance(row.get("label"), str) else None


def _read_json(
    lines: Sequence[bytes], vocabulary_size: int, path: Path, number: int
) -> "tuple[list[str], np.ndarray, np.ndarray]":
    import numpy as np

    labels, ids = [], []
    for line_number, line in enumerate(lines, number):
        where = f"{path}:{line_number}"
        if not line.strip():
            raise InputError(f"{where}: an empty line; remove it or run dataset/convert.py again")
        row = parse_json(line, dict, where, REMEDY)
        if not isinstance(row.get("label"), str):
            raise InputError(f"{where}: not a row with token_ids and a label; {REMEDY}")
        tokens = row.get("token_ids")
        if not isinstance(tokens, list) or not all(type(token) is int for token in tokens):
            raise InputError(f"{where}: token_ids is not a list of integers; {REMEDY}")
        for token in tokens:
            if not 0 <= token < vocabulary_size:
                raise InputError(
                    f"{where}: token id {str(token)[:30]} is outside the model's vocabulary of {vocabulary_size}; "
                    "run dataset/convert.py again with --tokenizer set to the model"
                )
        labels.append(row["label"])
        ids.append(tokens)
    return labels, np.array([len(row) for row in ids]), np.array([*itertools.chain(*ids)], np.int64)
