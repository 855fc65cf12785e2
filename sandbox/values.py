"""Values as JSON, and back as what they were: how a test and the code under test see each other's objects.

Immutable values are trees; a list, set, dictionary, array or instance is `["object", number]`, an entry of a table
that travels with the message. So shared and circular references survive, and what a call does to its arguments comes
back: the answer carries the table's new states, which are put into the very same objects.

Only builtin types, a few of the standard library, NumPy arrays and classes that the problem's own prompt defines are
rebuilt, from data alone: no code of the sender runs, nothing is unpickled or evaluated. Everything else stays where it
is and crosses as a handle (see `peer.py`).

This does not protect from values that are large or deep; the limits of the process that decodes them do.
"""

import base64
import builtins
import collections
import datetime
import decimal
import enum
import fractions
import sys
import types
from collections.abc import Callable, Iterable, Mapping
from typing import Any

SMALL = 2**63  # larger integers travel in hexadecimal, which Python reads without its limit of 4,300 digits
NAMED_TYPES = {
    kind.__name__: kind
    for kind in (bool, int, float, complex, str, bytes, bytearray, list, tuple, set, frozenset, dict, object, range)
}
CONTAINERS = {list: "list", set: "set", dict: "dict", collections.OrderedDict: "OrderedDict"} | {
    collections.Counter: "Counter"
}
MAKE = {name: kind for kind, name in CONTAINERS.items()}
DATES = {"date": datetime.date, "datetime": datetime.datetime, "time": datetime.time}
NUMPY_KINDS = "biufcSU"  # of dtypes whose bytes are plain data


class CannotCross(Exception):
    """A value that neither travels as data nor makes sense as a handle."""


class Table:
    """The objects of a message, numbered in the order in which they were met."""

    def __init__(self) -> None:
        self.objects: list[Any] = []
        self._numbers: dict[int, int] = {}  # by id, which stays an object's own while it is in the list

    def number(self, value: Any) -> int:
        number = self._numbers.setdefault(id(value), len(self.objects))
        if number == len(self.objects):
            self.objects.append(value)
        return number


class Codec:
    """Encodes and decodes the values of one side.

    Args:
        export: gives the tree of a value that stays here; raises CannotCross.
        import_: gives the stand-in, or the own object, for such a tree of the other side.
        resolve_names: whether the other side may name a function of an importable module.
    """

    def __init__(self, export: Callable[[Any], list], import_: Callable[[list], Any], resolve_names: bool):
        self.classes: Mapping[str, type] = {}  # of the prompt, by name: both sides have them
        self._export, self._import, self._resolve_names = export, import_, resolve_names

    # ---- encoding

    def encode(self, value: Any, table: Table) -> Any:
        """The value's tree; objects that it holds are added to the table."""
        kind = type(value)
        if value is None or kind in (bool, str, float) or (kind is int and -SMALL < value < SMALL):
            return value
        if kind is int:
            return ["int", hex(value)]
        if kind in (tuple, frozenset):
            return [kind.__name__, [self.encode(item, table) for item in value]]
        if kind is complex:
            return ["complex", value.real, value.imag]
        if kind is bytes:
            return ["bytes", _text(value)]
        if kind is range:
            return ["range", *(self.encode(part, table) for part in (value.start, value.stop, value.step))]
        if kind is slice:
            return ["slice", *(self.encode(part, table) for part in (value.start, value.stop, value.step))]
        if value is Ellipsis or value is NotImplemented:
            return ["constant", repr(value)]
        if kind is decimal.Decimal:
            return ["Decimal", str(value)]
        if kind is fractions.Fraction:
            return ["Fraction", *(self.encode(part, table) for part in (value.numerator, value.denominator))]
        if kind in DATES.values() and getattr(value, "tzinfo", None) is None:
            return [kind.__name__, value.isoformat()]
        if kind is datetime.timedelta:
            return ["timedelta", value.days, value.seconds, value.microseconds]
        if isinstance(value, type) and (name := self._class_name(value)):
            return ["class", name]
        if isinstance(value, enum.Enum) and (name := self._class_name(kind)):
            return ["member", name, value.name]
        if isinstance(value, tuple) and (name := self._class_name(kind)):
            return ["record", name, [self.encode(item, table) for item in value]]
        if _is_numpy(kind, "generic") and value.dtype.kind in NUMPY_KINDS:
            return ["scalar", value.dtype.str, _text(value.tobytes())]
        if self._is_object(value):
            return ["object", table.number(value)]
        if isinstance(value, types.BuiltinFunctionType | type) and not self._resolve_names and _is_importable(value):
            return ["name", value.__module__, value.__qualname__]
        return self._export(value)

    def states(self, table: Table) -> list[list]:
        """What each object of the table holds; objects that are found on the way join it."""
        states: list[list] = []
        while len(states) < len(table.objects):
            states.append(self._state(table.objects[len(states)], table))
        return states

    def _is_object(self, value: Any) -> bool:
        kind = type(value)
        return (
            kind in CONTAINERS
            or kind in (bytearray, collections.deque, collections.defaultdict)
            or (_is_numpy(kind, "ndarray") and kind.__name__ == "ndarray" and value.dtype.kind in NUMPY_KINDS + "O")
            or (self._class_name(kind) != "" and kind.__name__ not in NAMED_TYPES and _is_plain_class(kind))
        )

    def _state(self, value: Any, table: Table) -> list:
        kind = type(value)

        def items(values: Iterable[Any]) -> list:
            return [self.encode(item, table) for item in values]

        if kind in (list, set):
            return [CONTAINERS[kind], items(value)]
        if kind in CONTAINERS:
            return [CONTAINERS[kind], [items(pair) for pair in value.items()]]
        if kind is collections.defaultdict:
            return ["defaultdict", self.encode(value.default_factory, table), [items(pair) for pair in value.items()]]
        if kind is collections.deque:
            return ["deque", value.maxlen, items(value)]
        if kind is bytearray:
            return ["bytearray", _text(bytes(value))]
        if _is_numpy(kind, "ndarray"):
            if value.dtype.kind == "O":
                return ["objects", list(value.shape), items(value.ravel().tolist())]
            return ["array", value.dtype.str, list(value.shape), _text(value.tobytes())]
        slots = [name for base in kind.__mro__ for name in _slots(base) if hasattr(value, name)]
        state = {name: getattr(value, name) for name in slots} | getattr(value, "__dict__", {})
        return ["instance", self._class_name(kind), [[str(name), self.encode(v, table)] for name, v in state.items()]]

    def _class_name(self, kind: type) -> str:
        """Under which name both sides know a class; empty if they do not."""
        name = kind.__name__
        return name if self.classes.get(name) is kind or NAMED_TYPES.get(name) is kind else ""

    # ---- decoding

    def decode(self, tree: Any, states: list[list], table: Table) -> Any:
        """The value of a tree. `table` holds the objects that are here already, which take their new states.

        Raises:
            ValueError, TypeError, KeyError, ...: the message is not one of ours.
        """
        for state in states[len(table.objects) :]:
            table.number(self._empty(state))
        pairs = zip(table.objects, states, strict=True)
        order = sorted(pairs, key=lambda pair: pair[1] is not None and pair[1][0] in _HASHED)
        for value, state in order:  # what is hashed last, since a hash may look into what an object holds
            if state is not None:  # unchanged
                self._fill(value, state, table)
        return self._value(tree, table)

    def _value(self, tree: Any, table: Table) -> Any:
        if not isinstance(tree, list):
            return tree
        tag, *parts = tree

        def values(trees: Iterable[Any]) -> list[Any]:
            return [self._value(part, table) for part in trees]

        match tag:
            case "object":
                return table.objects[parts[0]]
            case "int":
                return int(parts[0], 16)
            case "tuple":
                return tuple(values(parts[0]))
            case "frozenset":
                return frozenset(values(parts[0]))
            case "complex":
                return complex(*map(float, parts))
            case "bytes":
                return _bytes(parts[0])
            case "range":
                return range(*values(parts))
            case "slice":
                return slice(*values(parts))
            case "constant":
                return {"Ellipsis": Ellipsis, "NotImplemented": NotImplemented}[parts[0]]
            case "Decimal":
                return decimal.Decimal(parts[0])
            case "Fraction":
                return fractions.Fraction(*values(parts))
            case "timedelta":
                return datetime.timedelta(*parts)
            case "class":
                return self._class(parts[0])
            case "member":
                return self._class(parts[0])[parts[1]]
            case "record":
                return tuple.__new__(self._class(parts[0]), values(parts[1]))
            case "scalar":
                return _array(parts[0], [1], parts[1])[0]
            case "name" if self._resolve_names:
                return _resolve(*parts)
        return DATES[tag].fromisoformat(parts[0]) if tag in DATES else self._import(tree)

    def _class(self, name: str) -> type:
        return self.classes[name] if name in self.classes else NAMED_TYPES[name]

    def _empty(self, state: list) -> Any:
        match state[0]:
            case "bytearray":
                return bytearray()
            case "deque":
                return collections.deque(maxlen=state[1])
            case "defaultdict":
                return collections.defaultdict()
            case "array":
                return _array(*state[1:]).copy()
            case "objects":
                return _numpy().empty(state[1], dtype=object)
            case "instance":
                return object.__new__(self.classes[state[1]])
        return MAKE[state[0]]()

    def _fill(self, value: Any, state: list, table: Table) -> None:
        def values(trees: Iterable[Any]) -> list[Any]:
            return [self._value(tree, table) for tree in trees]

        match state[0]:
            case "list":
                value[:] = values(state[1])
            case "set":
                new = values(state[1])
                value.clear()
                value.update(new)
            case "dict" | "OrderedDict" | "Counter" | "defaultdict":
                pairs = [values(pair) for pair in state[-1]]
                value.clear()
                for key, item in pairs:
                    dict.__setitem__(value, key, item)
                if state[0] == "defaultdict":
                    value.default_factory = self._value(state[1], table)
            case "deque":
                new = values(state[2])
                value.clear()
                value.extend(new)
            case "bytearray":
                value[:] = _bytes(state[1])
            case "array":
                value[...] = _array(*state[1:])
            case "objects":
                value[...] = _filled(state[1], values(state[2]))
            case "instance":
                new = {name: self._value(tree, table) for name, tree in state[2]}
                if hasattr(value, "__dict__"):
                    for name in value.__dict__.keys() - new.keys():
                        del value.__dict__[name]
                for name, item in new.items():  # not setattr: frozen dataclasses and properties refuse it
                    object.__setattr__(value, name, item)


_HASHED = ("set", "dict", "OrderedDict", "Counter", "defaultdict")


def _text(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")


def _bytes(text: str) -> bytes:
    return base64.b64decode(text, validate=True)


def _numpy():
    """NumPy, where this process has loaded it or a message needs it."""
    import numpy

    return numpy


def _is_numpy(kind: type, name: str) -> bool:
    numpy = sys.modules.get("numpy")
    return hasattr(numpy, name) and issubclass(kind, getattr(numpy, name))


def _array(dtype: str, shape: list[int], content: str):
    if _numpy().dtype(dtype).kind not in NUMPY_KINDS:
        raise ValueError(dtype)
    return _numpy().frombuffer(_bytes(content), dtype=dtype).reshape(shape)


def _filled(shape: list[int], values: list[Any]):
    array = _numpy().empty(len(values), dtype=object)
    for i, value in enumerate(values):
        array[i] = value
    return array.reshape(shape)


def _slots(kind: type) -> list[str]:
    slots = kind.__dict__.get("__slots__", ())
    names = [slots] if isinstance(slots, str) else list(slots)
    return [name for name in names if name not in ("__dict__", "__weakref__")]


def _is_plain_class(kind: type) -> bool:
    """Whether instances are made of attributes alone, without a builtin's hidden content."""
    return all(
        base is object or base.__flags__ & 1 << 9  # Py_TPFLAGS_HEAPTYPE: defined in Python
        for base in kind.__mro__
        if base.__module__ not in ("typing", "abc")
    ) and not issubclass(kind, BaseException | type)


def _is_importable(value: Any) -> bool:
    module = getattr(value, "__module__", None)
    if (
        not isinstance(module, str)
        or module in ("__main__", "solution")
        or getattr(value, "__self__", None)
        not in (
            None,
            sys.modules.get(module),
        )
    ):
        return False
    try:
        return _resolve(module, value.__qualname__) is value
    except (AttributeError, ImportError):
        return False


def _resolve(module: str, name: str) -> Any:
    value = builtins if module == "builtins" else sys.modules.get(module) or __import__(module, fromlist=[name])
    for part in name.split("."):
        value = getattr(value, part)
    return value
