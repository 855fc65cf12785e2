"""JSON from outside: what a TypedDict allows, and the line that names what it does not."""

import json
import os
from pathlib import Path
from typing import Annotated, TypedDict

import pytest

from common.command import InputError
from common.json_files import read_json


class Inner(TypedDict):
    size: Annotated[int, range(1, 1000)]


class Extra(TypedDict, total=False):
    note: str | None


class Shape(Extra):
    flags: Inner
    share: float
    counts: dict[str, list[int]]
    split: Annotated[str, ("file", "folder")]


GOOD = {"flags": {"size": 3, "more": []}, "share": 1, "counts": {"a": [1, 2]}, "split": "file", "foreign": {}}


@pytest.mark.parametrize("note", [{}, {"note": "text"}, {"note": None}])
def test_a_file_of_the_shape_is_read(tmp_path, note):
    (tmp_path / "x.json").write_text(json.dumps(GOOD | note))
    assert read_json(tmp_path / "x.json", Shape, "mend it") == GOOD | note


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "No such file"),
        ("", "not JSON, perhaps torn"),
        ('{"flags": ', "not JSON, perhaps torn"),
        ("[" * 100_000, "not JSON, perhaps torn"),
        (b"\xff\xfe\x00", "not JSON, perhaps torn"),
        ("1" * 5000, "not JSON, perhaps torn"),
        ([], "the content is [], not an object"),
        (GOOD | {"flags": 3}, "flags is 3, not an object"),
        (GOOD | {"flags": {}}, "flags.size is missing"),
        (GOOD | {"flags": {"size": -5}}, "flags.size is -5, not in range(1, 1000)"),
        (GOOD | {"flags": {"size": True}}, "flags.size is true, not an integer"),
        (GOOD | {"flags": {"size": "abc"}}, 'flags.size is "abc", not an integer'),
        (GOOD | {"share": float("nan")}, "share is NaN, not a finite number"),
        (GOOD | {"share": float("inf")}, "share is Infinity, not a finite number"),
        (GOOD | {"share": 10**400}, "share is 10000"),
        (GOOD | {"share": None}, "share is null, not a finite number"),
        (GOOD | {"counts": {"a": 3}}, "counts.a is 3, not a list"),
        (GOOD | {"counts": {"a": [1, 2.5]}}, "counts.a.1 is 2.5, not an integer"),
        (GOOD | {"split": "line"}, 'split is "line", not in ["file", "folder"]'),
        (GOOD | {"note": 1}, "note is 1, not a text"),
        (GOOD | {"flags": list(range(99))}, "..., not an object"),
    ],
)
def test_any_other_file_gets_one_line(tmp_path, content, said):
    path = tmp_path / "x.json"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(InputError) as caught:
        read_json(path, Shape, "mend it")
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and message.endswith("; mend it") and "\n" not in message
    assert said in message


def test_half_a_character_becomes_a_question_mark(tmp_path):
    (tmp_path / "a.json").write_text('{"note": "a\\ud800b \\u00e9 \\ud83d\\ude00"}')
    assert read_json(tmp_path / "a.json", Extra, "mend it") == {"note": "a?b é 😀"}


def test_what_is_no_regular_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for path in (tmp_path, tmp_path / "pipe", tmp_path / "loop", Path("/dev/zero"), Path("a\0b")):
        with pytest.raises(InputError, match="; mend it"):
            read_json(path, Inner, "mend it")
