"""What the two confined processes do: one runs the test, the other the code under test.

The tester holds the prompt's own code (tests call its helpers) and the test; the name under test is there a function
that asks the candidate's process. The candidate's process never holds the test: it was forked before the test was
read.
"""

import builtins
import contextlib
import errno
import json
import os
import sys
import types
from collections.abc import Callable
from typing import Any

from sandbox.peer import MAX_MESSAGE, OPERATIONS, OutputFlood, Peer, PeerGone
from sandbox.values import CannotCross

NOT_PERMITTED = (errno.EPERM, errno.EACCES, errno.EROFS)


def run_candidate(incoming: int, outgoing: int) -> None:
    """Answer the tester's requests: run a program, then call what it defines. Returns when the tester has ended."""
    namespace = _module("solution")
    printed = _Printed()
    sys.stdout = printed
    builtins.exit = builtins.quit = sys.exit  # which `python -S` lacks

    def start(_: None, program: str, entry_point: str, classes: list[str]) -> str:
        try:
            code = compile(program, "<solution>", "exec")
        except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError) as error:
            return f"{type(error).__name__}: {error}"
        exec(code, namespace)
        peer.codec.classes = _classes(namespace, classes)
        return ""

    def call(target: Any, args: tuple, kwargs: dict, entry_point: str = "") -> Any:
        return (namespace[entry_point] if target is None else target)(*args, **kwargs)

    peer = Peer(incoming, outgoing, OPERATIONS | {"start": start, "call": call}, trusted=False)
    peer.take_printed = printed.take
    with contextlib.suppress(PeerGone):
        peer.serve()


class _Printed:
    """A standard output that keeps what is written until it is taken."""

    encoding = "utf-8"

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._size = 0

    def write(self, text: str) -> int:
        self._size += len(text)
        if self._size > MAX_MESSAGE // 8:
            raise OutputFlood
        self._parts.append(text)
        return len(text)

    def take(self) -> str:
        text = "".join(self._parts)
        self._parts.clear()
        self._size = 0
        return text

    def flush(self) -> None:
        pass

    def isatty(self) -> bool:
        return False


def run_tester(job: dict, incoming: int, outgoing: int, verdict: int) -> None:
    """Run the test of a job and write what came of it: {"verdict", "detail"}.

    Args:
        job: prompt, entry_point, test, program; or, without prompt and program, `programs` to be tested right here,
            since they are the problem's own: the detail of the verdict lists the numbers of those that pass.
    """
    kind, detail = passing_programs(job) if "programs" in job else test_of(job, incoming, outgoing)
    os.write(verdict, json.dumps({"verdict": kind, "detail": detail[:300]}).encode())


def passing_programs(job: dict) -> tuple[str, str]:
    passing = []
    for number, program in enumerate(job["programs"]):
        namespace = _module("__main__")
        with contextlib.suppress(BaseException):
            exec(compile(program, "<program>", "exec"), namespace)
            exec(compile(job["test"], "<test>", "exec"), namespace)
            namespace["check"](namespace[job["entry_point"]])
            passing.append(number)
    return "passed", json.dumps(passing)


def test_of(job: dict, incoming: int, outgoing: int) -> tuple[str, str]:
    allowed = {name: OPERATIONS[name] for name in ("call", "next", "send")}
    peer = Peer(incoming, outgoing, allowed, trusted=True)
    namespace, entry_point = _module("__main__"), job["entry_point"]
    prompt_runs = False
    try:
        exec(compile(as_stub(job["prompt"]), "<prompt>", "exec"), namespace)
        names = [name for name, value in namespace.items() if isinstance(value, type)]
        peer.codec.classes = _classes(namespace, names)
        exec(compile(job["test"], "<test>", "exec"), namespace)
        prompt_runs = True
        if fault := peer.ask("start", -1, job["program"], entry_point, list(peer.codec.classes)):
            return "not parseable", str(fault)
        namespace[entry_point] = _proxy(peer, namespace.get(entry_point), entry_point)
        namespace["check"](namespace[entry_point])
    except BaseException as error:
        detail = f"{type(error).__name__}: {error}"
        if not prompt_runs:
            return "refused", f"the prompt or the test does not run: {detail}"
        return kind_of(peer.fault or error), detail
    return (kind_of(peer.fault), str(peer.fault)) if peer.fault else ("passed", "")


def kind_of(error: BaseException) -> str:
    """What the exception that ended a test says of the candidate."""
    if isinstance(error, CannotCross):
        return "refused"
    if isinstance(error, PeerGone):
        return "broke off" if error.args[0] else "gone"
    if isinstance(error, OutputFlood) or type(error).__name__ == "OutputFlood":
        return "output flood"
    chain: list[BaseException] = []
    while error is not None and error not in chain:
        chain.append(error)
        error = error.__cause__ or error.__context__
    own = next((link for link in chain if getattr(link, "_from_candidate", False)), None)
    if own is None:
        return "out of memory" if isinstance(chain[0], MemoryError) else "failed"
    if isinstance(own, MemoryError):
        return "out of memory"
    if isinstance(own, SystemExit | KeyboardInterrupt):
        return "ended the process"
    if isinstance(own, BlockingIOError):  # of fork, beyond the limit
        return "too many processes"
    return "not permitted" if isinstance(own, OSError) and own.errno in NOT_PERMITTED else "raised"


def as_stub(prompt: str) -> str:
    """The prompt as a module: a function without a body gets one."""
    try:
        compile(prompt, "<prompt>", "exec")
        return prompt
    except SyntaxError:
        last = prompt.rstrip("\n").rsplit("\n", 1)[-1]
        return prompt.rstrip("\n") + "\n" + " " * (len(last) - len(last.lstrip()) + 4) + "pass\n"


def _proxy(peer: Peer, stub: Any, name: str) -> Callable:
    def candidate(*args: Any, **kwargs: Any) -> Any:
        return peer.ask("call", -1, args, kwargs, name)

    candidate.__name__ = candidate.__qualname__ = name
    candidate.__doc__ = getattr(stub, "__doc__", None)
    return candidate


def _module(name: str) -> dict[str, Any]:
    module = types.ModuleType(name)
    sys.modules[name] = module  # where dataclasses look for it
    return module.__dict__


def _classes(namespace: dict[str, Any], names: list[str]) -> dict[str, type]:
    """Those of the named classes that the namespace's own code defines."""
    return {
        name: kind
        for name in names
        if isinstance(kind := namespace.get(name), type)
        and kind.__module__ == namespace["__name__"]
        and kind.__name__ == name
    }
