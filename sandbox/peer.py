"""The conversation between a test and the code under test, over two pipes: calls, answers, handles.

Either side asks (`ask`) and serves what the other asks meanwhile, such as a call of a function that it was given. The
side of the test hands out nothing but functions and iterators that the test itself passes, and lets nothing be done
with them but call and advance; the other side may be asked whatever an object of its own allows.
A comparison never crosses: an object of the candidate's own class equals itself alone.
"""

import builtins
import json
import os
import struct
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

from sandbox.values import CannotCross, Codec, Table

MAX_MESSAGE = 16 * 2**20  # bytes
HEAD = struct.Struct(">I")


class PeerGone(BaseException):
    """The other side has ended, or sent what is no message. Not an Exception: a test must not catch it."""

    def __init__(self, reason: str = ""):
        super().__init__(reason)


class OutputFlood(BaseException):
    """More was printed, or sent in one message, than there is room for."""


OPERATIONS: dict[str, Callable[..., Any]] = {
    "call": lambda target, args, kwargs: target(*args, **kwargs),
    "next": next,
    "send": lambda target, value: target.send(value),
    "iter": iter,
    "attribute": getattr,
    "item": lambda target, key: target[key],
    "set item": lambda target, key, value: target.__setitem__(key, value),
    "contains": lambda target, key: key in target,
    "length": len,
    "truth": bool,
    "text": str,
    "repr": repr,
    "enter": lambda target: target.__enter__(),
    "exit": lambda target: target.__exit__(None, None, None),
}


class Peer:
    """One side of the conversation.

    Args:
        incoming, outgoing: file descriptors of the pipes.
        operations: what the other side may ask, by name; of OPERATIONS where not its own.
        trusted: whether this is the test's side.
    """

    def __init__(self, incoming: int, outgoing: int, operations: dict[str, Callable[..., Any]], trusted: bool):
        self._incoming, self._outgoing, self._trusted = incoming, outgoing, trusted
        self._operations = operations
        self._exports: list[Any] = []
        self.fault: BaseException | None = None  # what ended the conversation, should a test have caught it
        self.codec = Codec(self._export, self._import, resolve_names=not trusted)
        self.take_printed: Callable[[], str] = lambda: ""  # what was printed since, to travel with the next message

    def ask(self, operation: str, target: int, *arguments: Any) -> Any:
        """What the operation on the other side's export number `target` gives.

        Raises:
            whatever it raised there; PeerGone; CannotCross: an argument.
        """
        try:
            return self._ask(operation, target, arguments)
        except (PeerGone, OutputFlood, CannotCross) as fault:
            self.fault = self.fault or fault
            raise

    def _ask(self, operation: str, target: int, arguments: tuple) -> Any:
        table = Table()
        tree = self.codec.encode(arguments, table)
        states = self.codec.states(table)
        self._send({"operation": operation, "target": target, "value": tree, "objects": states})
        while "operation" in (message := self._receive()):
            self._serve(message)
        try:
            value = self.codec.decode(message.get("value"), message["objects"], table)
            error = self._error(message["raised"], table) if "raised" in message else None
        except Exception as fault:
            raise PeerGone(f"its answer is none of ours: {type(fault).__name__}: {fault}") from None
        if error is not None:
            raise error
        return value

    def serve(self) -> None:
        """Answer until the other side closes its pipe."""
        while True:
            self._serve(self._receive())

    def _serve(self, message: dict) -> None:
        table, answer = Table(), {}
        try:
            arguments = self.codec.decode(message["value"], message["objects"], table)
            known = len(table.objects)
            target = self._exports[message["target"]] if message["target"] >= 0 else None
            result = self._operations[message["operation"]](target, *arguments)
            answer["value"] = self.codec.encode(result, table)
        except PeerGone:
            raise
        except BaseException as error:
            if self._trusted and isinstance(error, CannotCross):
                raise
            known = len(table.objects)
            answer["raised"] = self._describe(error, table)
        states = self.codec.states(table)
        before = message["objects"]
        answer["objects"] = [None if i < known and state == before[i] else state for i, state in enumerate(states)]
        self._send(answer)

    # ---- errors

    def _describe(self, error: BaseException, table: Table) -> dict:
        kind = type(error)
        try:
            arguments = self.codec.encode(error.args, table)
        except CannotCross:
            arguments = self.codec.encode((str(error),), table)
        number = error.errno if isinstance(error, OSError) else None
        return {"type": kind.__name__, "module": kind.__module__, "arguments": arguments, "errno": number}

    def _error(self, described: dict, table: Table) -> BaseException:
        name, module = str(described["type"]), str(described["module"])
        arguments = self.codec._value(described["arguments"], table)
        if module in ("__main__", "solution"):
            kind = self.codec.classes.get(name)
        else:
            kind = getattr(builtins if module == "builtins" else sys.modules.get(module), name, None)
        if not (isinstance(kind, type) and issubclass(kind, BaseException)) or issubclass(kind, PeerGone | CannotCross):
            kind = type(name, (Exception,), {"__module__": module})
        try:
            error = kind(*arguments) if module == "builtins" else kind.__new__(kind, *arguments)
            error.args = arguments
        except TypeError:
            error = Exception(*arguments)
        error._from_candidate = True
        return error

    # ---- handles

    def _export(self, value: Any) -> list:
        if isinstance(value, _Remote):
            return ["yours", value._number]
        if isinstance(value, types.FunctionType) and (remote := getattr(value, "_remote", None)) is not None:
            return ["yours", remote._number]
        if isinstance(value, types.GeneratorType):
            kind = "generator"
        elif isinstance(value, Iterator):
            kind = "iterator"
        elif callable(value) and not isinstance(value, type):
            kind = "function"
        elif self._trusted:
            raise CannotCross(f"the test passes an object of {type(value).__qualname__}")
        else:
            kind = "object"
        self._exports.append(value)
        return ["handle", len(self._exports) - 1, kind]

    def _import(self, tree: list) -> Any:
        if tree[0] == "yours":
            return self._exports[tree[1]]
        if tree[0] != "handle":
            raise ValueError(tree[0])
        _, number, kind = tree
        if kind == "generator":
            return _generate(self, number)
        return {"function": _RemoteFunction, "iterator": _RemoteIterator, "object": _RemoteObject}[kind](self, number)

    # ---- messages: four bytes of length, then JSON

    def _send(self, message: dict) -> None:
        if printed := self.take_printed():
            message["printed"] = printed
        content = json.dumps(message).encode()
        if len(content) > MAX_MESSAGE:
            if self._trusted:
                raise CannotCross(f"a message of {len(content):,} bytes")
            content = json.dumps({"flood": True}).encode()
        content = HEAD.pack(len(content)) + content
        try:
            while content:
                content = content[os.write(self._outgoing, content) :]
        except BrokenPipeError:
            raise PeerGone from None

    def _receive(self) -> dict:
        (length,) = HEAD.unpack(self._read(HEAD.size))
        if length > MAX_MESSAGE:
            raise OutputFlood
        try:
            message = json.loads(self._read(length))
            flood, printed = "flood" in message, message.get("printed", "")
            sys.stdout.write(printed)
        except (ValueError, RecursionError, AttributeError, TypeError):
            raise PeerGone("what it sent is no message") from None
        if flood:
            raise OutputFlood
        return message

    def _read(self, length: int) -> bytes:
        parts = []
        while length:
            part = os.read(self._incoming, min(length, 2**20))
            if not part:
                raise PeerGone
            parts.append(part)
            length -= len(part)
        return b"".join(parts)


class _Remote:
    """An object of the other side."""

    def __init__(self, peer: Peer, number: int):
        self._peer, self._number = peer, number

    def _ask(self, operation: str, *arguments: Any) -> Any:
        return self._peer.ask(operation, self._number, *arguments)


class _RemoteFunction(_Remote):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._ask("call", args, kwargs)


class _RemoteIterator(_Remote):
    def __iter__(self) -> Iterator:
        return self

    def __next__(self) -> Any:
        return self._ask("next")


class _RemoteObject(_Remote):
    def __getattr__(self, name: str) -> Any:
        return self._ask("attribute", name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._ask("call", args, kwargs)

    def __iter__(self) -> Iterator:
        return self._ask("iter")

    def __getitem__(self, key: Any) -> Any:
        return self._ask("item", key)

    def __setitem__(self, key: Any, value: Any) -> None:
        self._ask("set item", key, value)

    def __contains__(self, key: Any) -> bool:
        return bool(self._ask("contains", key))

    def __len__(self) -> int:
        return self._ask("length")

    def __bool__(self) -> bool:
        return bool(self._ask("truth"))

    def __str__(self) -> str:
        return str(self._ask("text"))

    def __repr__(self) -> str:
        return str(self._ask("repr"))

    def __enter__(self) -> Any:
        return self._ask("enter")

    def __exit__(self, *_: Any) -> None:
        self._ask("exit")


def _generate(peer: Peer, number: int) -> Iterator:
    """A generator of the other side as one of this: of the type that tests look for."""
    sent = None
    while True:
        try:
            item = peer.ask("send", number, sent)
        except StopIteration as end:
            return end.value
        sent = yield item
