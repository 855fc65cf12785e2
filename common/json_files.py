"""Reading the JSON files that this project writes, and that someone may have edited or torn since."""

import json
import types
import typing
from pathlib import Path
from typing import Annotated, Any, TypeVar

from common.command import InputError

T = TypeVar("T")


def read_json(path: Path, shape: type[T], remedy: str) -> T:
    """The content of a JSON file, once it is known to have the expected shape.

    Args:
        shape: a TypedDict. Its values are annotated with int, float (an integer will do), str, bool, None, unions of
            these, `list[...]`, `dict[str, ...]`, further TypedDicts, or `Annotated[type, container]`, where the
            container, such as a range, holds every value that is allowed. Keys that it does not name are left alone.
        remedy: what the user is to do about a file that is missing or wrong.
    Raises:
        InputError: it cannot be read, is not JSON, or has another shape; says where in the file.
    """
    try:
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; {remedy}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON, perhaps torn ({error}); {remedy}") from None
    if wrong := _mismatch(value, shape, ""):
        raise InputError(f"{path}: {wrong}; {remedy}")
    return value


def _mismatch(value: Any, shape: Any, place: str) -> str | None:
    """What is wrong with a value, if anything. `place` is where in the file it stands, as `languages.Python`."""
    missing = []
    if typing.get_origin(shape) is Annotated:
        shape, allowed = typing.get_args(shape)
        wrong = _mismatch(value, shape, place)
        return wrong or (None if value in allowed else f"{place} is {_short(value)}, not in {_short(allowed)}")
    if typing.is_typeddict(shape):
        if not isinstance(value, dict):
            return f"{place or 'the content'} is {_short(value)}, not an object"
        hints = typing.get_type_hints(shape, include_extras=True)
        children = ((value[key], hint, _join(place, key)) for key, hint in hints.items() if key in value)
        missing = [f"{_join(place, key)} is missing" for key in hints if key in shape.__required_keys__ - value.keys()]
    elif isinstance(shape, types.UnionType):
        wrong = [_mismatch(value, choice, place) for choice in typing.get_args(shape)]
        return None if None in wrong else wrong[0]
    elif (container := typing.get_origin(shape) or shape) in (list, dict) and isinstance(value, container):
        of = (typing.get_args(shape) or (Any,))[-1]
        items = value.items() if isinstance(value, dict) else enumerate(value)
        children = ((item, of, _join(place, str(key))) for key, item in items)
    elif shape is Any or type(value) is shape or (shape is float and type(value) is int) or value is shape is None:
        return None
    else:
        return f"{place} is {_short(value)}, not {_name(shape)}"
    return next((wrong for child in children if (wrong := _mismatch(*child))), missing[0] if missing else None)


def _join(place: str, key: str) -> str:
    return f"{place}.{key}" if place else key


def _name(shape: Any) -> str:
    names = {int: "an integer", float: "a number", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(shape) or {list: "a list", dict: "an object"}[typing.get_origin(shape) or shape]


def _short(value: Any) -> str:
    text = str(value) if isinstance(value, range) else json.dumps(value, default=str)
    return text if len(text) <= 40 else text[:37] + "..."
