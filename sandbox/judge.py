"""One judgement, in a fresh process: python judge.py LEVEL SECONDS WALL_SECONDS [PACKAGES ...]

Started by `running.py`. Forks the candidate's process, then reads the job (one line of JSON on standard input) and
forks the tester's, both confined; prints one line of JSON: verdict, detail, processor seconds of both and of its own
start. Runs none of their code itself. Ends them when the time is over, when the test has ended, and when whoever
started it is gone.
"""

import contextlib
import ctypes
import json
import os
import select
import signal
import sys
import time
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from sandbox.confinement import EXIT_MEMORY, confine
from sandbox.roles import run_candidate, run_tester

PR_SET_CHILD_SUBREAPER = 36
PATIENCE_S = 2.0  # for a process to end by itself when the test is over


def main() -> None:
    level, seconds, wall_seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    packages = [Path(package) for package in sys.argv[4:]]
    sys.path += sorted({str(package.parent) for package in packages})
    if sys.platform == "linux":  # what the confined processes leave behind becomes our child
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    requests, to_candidate = os.pipe()
    from_candidate, answers = os.pipe()

    candidate = os.fork()
    if candidate == 0:
        work = partial(run_candidate, requests, answers)
        confine(work, level, (requests, answers), packages, seconds)
    os.close(requests)
    os.close(answers)
    verdicts, verdict = os.pipe()
    deadline = time.monotonic() + wall_seconds
    job = json.loads(sys.stdin.buffer.readline())  # only now: the candidate's process has never held the test
    tester = os.fork()
    if tester == 0:
        work = partial(run_tester, job, from_candidate, to_candidate, verdict)
        confine(work, level, (from_candidate, to_candidate, verdict), packages, seconds)
    for descriptor in (to_candidate, from_candidate, verdict):
        os.close(descriptor)

    is_over = not select.select([verdicts, 0], [], [], max(0, deadline - time.monotonic()))[0]
    said = os.read(verdicts, 1 << 16) if select.select([verdicts], [], [], 0)[0] else b""
    ends, used = _end_all((candidate, tester), 0 if is_over else PATIENCE_S)
    result = json.loads(said) if said else {"verdict": "timed out" if is_over else "gone", "detail": ""}
    if result["verdict"] == "gone":
        result |= {"detail": ""} | _why_gone(ends[candidate if said else tester], used, seconds)
    result |= {"seconds": round(used, 3), "start": round(time.process_time(), 3)}
    print(json.dumps(result), flush=True)


def _end_all(children: tuple[int, ...], patience: float) -> tuple[dict[int, int], float]:
    """Exit codes, negative for signals, and processor seconds; when this returns, no process is left."""
    ends: dict[int, int] = {}
    until = time.monotonic() + patience
    used = 0.0
    killed = False
    while True:
        if not killed and time.monotonic() >= until:
            killed = True
            for child in set(children) - ends.keys():
                _kill(child)
        try:
            child, status, usage = os.wait4(-1, 0 if killed else os.WNOHANG)
        except ChildProcessError:
            return ends, used
        if not child:
            time.sleep(0.002)
            continue
        used += usage.ru_utime + usage.ru_stime
        ends.setdefault(child, os.waitstatus_to_exitcode(status))


def _kill(child: int) -> None:
    """Kill a confined process; those that it started end with it (namespaces) or are of its group."""
    for kill in (os.killpg, os.kill):
        with contextlib.suppress(ProcessLookupError):
            kill(child, signal.SIGKILL)


def _why_gone(code: int, used: float, seconds: int) -> dict[str, str]:
    number = -code if code < 0 else code - 128 if code > 128 else 0
    if number == signal.SIGXCPU or (number == signal.SIGKILL and used >= seconds):
        return {"verdict": "timed out"}
    if code == EXIT_MEMORY:
        return {"verdict": "out of memory"}
    if number:
        return {"verdict": "crashed", "detail": signal.Signals(number).name}
    return {"verdict": "ended the process", "detail": f"exit code {code}"}


if __name__ == "__main__":
    main()
