"""Judging completions: each is run against its problem's test in processes of its own, several at a time."""

import contextlib
import importlib.util
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from common.command import InputError
from common.files import ROOT
from sandbox.problem_file import Problem

T = TypeVar("T")

# What becomes of a completion, the rarer ones last.
KINDS = (
    "passed",
    "failed",  # an answer is wrong
    "raised",  # an exception where none was expected
    "not parseable",
    "timed out",
    "crashed",  # ended by a signal, such as a segmentation fault
    "out of memory",
    "ended the process",
    "too many processes",
    "output flood",
    "not permitted",  # it tried what the sandbox denies
    "broke off",  # it sent what is no answer
    "refused",  # the test cannot be held across a pipe, or does not run itself: no fault of the completion
)
TIMES_CANONICAL = 20  # the time limit, in times that the canonical solution takes with the processes' start
WALL_TIMES = 6  # time on the clock, in times of the processor's: the processor may be shared
PROBE = Problem(
    "probe", "def one():\n", "one", "    return 1\n", "def check(candidate):\n    assert candidate() == 1\n"
)
PROBE_SECONDS = 20


@dataclass(frozen=True)
class Verdict:
    """What became of a completion.

    Attributes:
        kind: one of KINDS.
        detail: what the test or the system said, in a line.
        seconds: of processor time that test and candidate took.
    """

    kind: str
    detail: str = ""
    seconds: float = 0.0

    @property
    def passed(self) -> bool:
        return self.kind == "passed"

    @property
    def runs(self) -> bool:
        """Whether the code answered all it was asked, rightly or wrongly."""
        return self.kind in ("passed", "failed")


class Judge:
    """Runs code in the best sandbox that this machine has.

    Raises:
        InputError: it has none but limits, and that was not asked for.

    Attributes:
        level: of the sandbox; see `sandbox.py`.
        start: processor seconds that a judgement takes here before it runs anything: the measure of the machine.
    """

    def __init__(self, allow_weak_sandbox: bool = False):
        if os.name != "posix":
            raise InputError("generated code can be run on Linux and macOS only; on Windows, use WSL")
        self._packages = _numpy_folders()
        self.level, self.start = "", 0.0
        for level in ("namespaces", "landlock", *["limits"] * allow_weak_sandbox):
            self.level = level
            probe = self._run(_job(PROBE, PROBE.canonical_solution), PROBE_SECONDS, 0)
            if probe.get("verdict") == "passed":
                self.start = probe["start"] + probe["seconds"]
                return
        raise InputError(
            "this machine has neither namespaces nor Landlock to keep generated code from your files; run in a virtual "
            "machine, or take the risk with --allow_weak_sandbox"
            if not allow_weak_sandbox
            else f"no process can be limited on this machine: {probe.get('detail')}"
        )

    def judge(self, problem: Problem, completion: str, seconds: int, hash_seed: int = 0) -> Verdict:
        """Run a completion against the problem's test.

        Args:
            seconds: of processor time for each of the two processes.
            hash_seed: of the interpreter's hashes, which the order of a set's strings depends on.
        """
        return self._verdict(_job(problem, completion), seconds, hash_seed)

    def passing(self, problem: Problem, bodies: list[str], seconds: int) -> list[str] | None:
        """Those of the bodies, which must be trusted as the problem is, that pass its test without a pipe between.

        None if the test ended its process, or took too long.
        """
        programs = [problem.prompt + body for body in bodies]
        job = {"entry_point": problem.entry_point, "test": problem.test, "programs": programs}
        verdict = self._verdict(job, seconds, 0)
        return [bodies[number] for number in json.loads(verdict.detail)] if verdict.passed else None

    def canonical(self, problem: Problem, hash_seed: int = 0) -> Verdict:
        """What the problem's own solution gets."""
        return self.judge(problem, problem.canonical_solution, PROBE_SECONDS, hash_seed)

    def limit(self, canonical: Verdict) -> int:
        """Processor seconds for a completion: they scale with the canonical solution's time on this machine."""
        return math.ceil(TIMES_CANONICAL * (self.start + canonical.seconds))

    def _verdict(self, job: dict, seconds: int, hash_seed: int) -> Verdict:
        result = self._run(job, seconds, hash_seed)
        return Verdict(result["verdict"], result["detail"], result["seconds"])

    def _run(self, job: dict, seconds: int, hash_seed: int) -> dict[str, Any]:
        command = [sys.executable, "-s", "-S", "-B", str(ROOT / "sandbox" / "judge.py")]
        command += [self.level, str(seconds), str(seconds * WALL_TIMES), *map(str, self._packages)]
        # Nothing of the user's environment; one thread a process, since the limit on processes counts threads.
        environment = {"PYTHONHASHSEED": str(hash_seed), "LC_ALL": "C.UTF-8", "OPENBLAS_NUM_THREADS": "1"}
        pipe = subprocess.PIPE
        with tempfile.TemporaryDirectory() as folder:
            # A session of its own: Ctrl-C is for us, and ends it in its turn.
            started = subprocess.Popen(
                command,
                cwd=folder,
                env=environment,
                stdin=pipe,
                stdout=pipe,
                stderr=pipe,
                start_new_session=True,
            )
            with started:  # its standard input stays open until it has answered: when we are killed, it ends
                with contextlib.suppress(BrokenPipeError):
                    started.stdin.write(json.dumps(job).encode() + b"\n")
                    started.stdin.flush()
                answer = started.stdout.read()
                complaint = started.stderr.read().decode(errors="replace").strip()
        try:
            return json.loads(answer)
        except ValueError:
            return {"verdict": "crashed", "detail": complaint[-300:], "seconds": 0.0, "start": 0.0}


def in_parallel(work: Iterable[T]) -> Iterator[Any]:
    """The results of functions without arguments, in their order, worked on by as many threads as there are cores.

    Takes from `work` only a little ahead of what is done.
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


def _job(problem: Problem, completion: str) -> dict[str, str]:
    return {
        "prompt": problem.prompt,
        "entry_point": problem.entry_point,
        "test": problem.test,
        "program": problem.prompt + completion,
    }


def _numpy_folders() -> list[Path]:
    spec = importlib.util.find_spec("numpy")
    if spec is None:
        return []
    package = Path(spec.origin).parent
    return [folder for folder in (package, package.with_name("numpy.libs")) if folder.exists()]
