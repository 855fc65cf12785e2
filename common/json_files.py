"""The one reader of JSON from outside, which may have been edited, cut off or written to do harm."""

import json
import math
import types
import typing
from pathlib import Path
from typing import Annotated, Any, TypeVar

from common.command import InputError
from common.files import read_input

T = TypeVar("T")


def read_json(path: Path, shape: type[T], remedy: str) -> T:
    """The content of a JSON file that has the expected shape.

    Args:
        shape: as in `parse_json`.
        remedy: what the user can do about a file that is missing or wrong.
    Raises:
        InputError: it cannot be read, is not JSON, or has another shape. The message says where in the file.
    """
    return parse_json(read_input(path, remedy), shape, str(path), remedy)


def parse_json(text: str | bytes, shape: type[T], place: str, remedy: str) -> T:
    """The value of a JSON text that has the expected shape. Half a surrogate pair in it becomes a question mark.

    Args:
        shape: dict, or a TypedDict. Its values are annotated with int, float (finite, or -inf for a score that is not
            known yet; an integer is accepted), str, bool, None, unions of these, `list[...]`, `dict[str, ...]`,
            TypedDicts, or `Annotated[type, container]`, where the container, such as a range, holds every allowed
            value. The text may have further keys.
        place: the file, and the line if there are several, for the error message.
    Raises:
        InputError: it is not JSON, or has another shape.
    """
    try:
        value = json.loads(text)
        if (b"\\u" if isinstance(text, bytes) else "\\u") in text:  # half a surrogate pair cannot be written to a file
            value = json.loads(json.dumps(value, ensure_ascii=False).encode(errors="replace"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{place}: not JSON, perhaps torn ({error}); {remedy}") from None
    if wrong := _mismatch(value, shape, ""):
        raise InputError(f"{place}: {wrong}; {remedy}")
    return value


def _mismatch(value: Any, shape: Any, place: str) -> str | None:
    """What is wrong with a value, or None. `place` says where in the text it is, as in `languages.Python`."""
    kind, arguments = typing.get_origin(shape) or shape, typing.get_args(shape)
    if kind is Annotated:
        shape, allowed = arguments
        wrong = _mismatch(value, shape, place)
        return wrong or (None if value in allowed else f"{place} is {_short(value)}, not in {_short(allowed)}")
    if kind is types.UnionType:
        wrongs = [_mismatch(value, choice, place) for choice in arguments]
        return None if None in wrongs else wrongs[0]
    base = dict if typing.is_typeddict(kind) else kind
    fits = type(value) is base or (base is float and type(value) is int) or base is Any
    if not fits or (base is float and value != -math.inf and not abs(value) < 1e300):  # NaN is not below anything
        return f"{place or 'the content'} is {_short(value)}, not {_NAMES[base]}"
    if typing.is_typeddict(kind):
        hints = typing.get_type_hints(kind, include_extras=True)
        if missing := [key for key in hints if key in kind.__required_keys__ and key not in value]:
            return f"{_join(place, missing[0])} is missing"
        parts = [(key, value[key], hint) for key, hint in hints.items() if key in value]
    else:
        items = value.items() if base is dict else enumerate(value) if base is list else ()
        parts = [(key, item, arguments[-1]) for key, item in items] if arguments else []
    return next((wrong for key, item, hint in parts if (wrong := _mismatch(item, hint, _join(place, key)))), None)


_NAMES = {int: "an integer", float: "a finite number", str: "a text", bool: "true or false", type(None): "null"}
_NAMES |= {list: "a list", dict: "an object"}


def _join(place: str, key: str | int) -> str:
    return f"{place}.{key}" if place else str(key)


def _short(value: Any) -> str:
    text = str(value) if isinstance(value, range) else json.dumps(value, default=str)
    return text if len(text) <= 40 else text[:37] + "..."
