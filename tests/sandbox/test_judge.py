"""The checker is checked: right code passes, and whatever tries to cheat gets nothing, under its own name."""

import contextlib
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from conftest import ROOT

from sandbox.problem_file import Problem, read_problems
from sandbox.running import Judge, in_parallel

HUMANEVAL = Path(os.environ.get("HUMANEVAL", ""))
SECONDS = 2  # of processor time: on a slow machine a cheat must not be stopped before it has been seen
WANTED = "def check(candidate):\n    assert candidate(3) == 4\n    assert candidate(candidate(1)) == 3\n"
PLUS_ONE = Problem(
    "own/plus_one", 'def plus_one(n):\n    """The next number."""\n', "plus_one", "    return n + 1\n", WANTED
)
OUTSIDE = Path("/var/tmp/autocoder_was_here")


def problem(prompt: str, solution: str, checks: str, name: str = "f") -> Problem:
    body = "".join(f"    {line}\n" for line in checks.splitlines())
    return Problem("own", prompt, name, solution, f"def check(candidate):\n{body}")


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge(allow_weak_sandbox=True)


# Each is a whole body of `plus_one`, or what follows it, that would pass a checker which trusts it.
CHEATS = {
    "an empty body": ("", "failed"),
    "pass": ("    pass\n", "failed"),
    "a constant": ("    return 4\n", "failed"),
    "exit(0)": ("    exit(0)\n", "ended the process"),
    "raise SystemExit": ("    raise SystemExit(0)\n", "ended the process"),
    "os._exit(0)": ("    import os\n    os._exit(0)\n", "ended the process"),
    "os._exit(0) at once": ("    return n\nimport os\nos._exit(0)\n", "ended the process"),
    "a printed verdict": (
        '    import os, sys\n    text = \'{"verdict": "passed", "detail": ""}\'\n    print(text)\n'
        "    for fd in range(20):\n        try:\n            os.write(fd, text.encode())\n"
        "        except OSError:\n            pass\n    return 0\n",
        "output flood",  # its first four bytes read as a length
    ),
    "an object that equals everything": (
        "    class Equal:\n        def __eq__(self, other):\n            return True\n    return Equal()\n",
        "failed",
    ),
    "an int that equals everything": (
        "    class Equal(int):\n        def __eq__(self, other):\n            return True\n    return Equal()\n",
        "failed",
    ),
    "an object that reads as the answer": (
        "    class Number:\n        def __repr__(self):\n            return '4'\n    return Number()\n",
        "failed",
    ),
    "patched builtins": (
        "    import builtins\n    builtins.AssertionError = builtins.isinstance = lambda *a: True\n    return None\n",
        "ended the process",
    ),
    "patched unittest and doctest": (
        "    import unittest, doctest\n    unittest.TestCase.assertEqual = lambda *a: None\n"
        "    doctest.DocTestRunner.run = doctest.DebugRunner.run = lambda *a, **k: (0, 0)\n    return None\n",
        "failed",
    ),
    "patched check": ("    return 0\ndef check(candidate):\n    pass\n", "failed"),
    "an endless loop": ("    while True:\n        pass\n", "timed out"),
    "an endless loop that ignores signals": (
        "    import signal\n    for number in set(signal.Signals) - {9, 19}:\n"
        "        signal.signal(number, lambda *a: None)\n"
        "    while True:\n        pass\n",
        "timed out",
    ),
    "an endless generator": ("    while True:\n        yield n\n", "failed"),
    "a fork bomb": ("    import os\n    while True:\n        os.fork()\n", "too many processes"),
    "a memory eater": ("    return len('x' * 2**30)\n", "out of memory"),
    "an output flood": ("    while True:\n        print('x' * 10**5)\n", "output flood"),
    "a flood of an answer": ("    return 'x' * 2 * 10**7\n", "output flood"),
    "a segmentation fault": ("    import ctypes\n    return ctypes.string_at(0)\n", "crashed"),
    "endless recursion": ("    return plus_one(n)\n", "raised"),
    "no such function": ("    return n + 1\ndel plus_one\n", "raised"),
    "not Python": ("    return n +\n", "not parseable"),
    "no answer but noise": (
        "    import os\n    for fd in range(3, 20):\n        try:\n            os.write(fd, b'\\0\\0\\0\\4 {{}')\n"
        "        except OSError:\n            pass\n    return 0\n",
        "broke off",
    ),
    "a network connection": ("    import socket\n    socket.create_connection(('127.0.0.1', 80))\n", "not permitted"),
}
# The test's own text, by every way that a process has to another or to what started it.
READS_TEST = """
    import gc, glob, os, sys
    found = [" ".join(sys.argv), str(dict(os.environ))]
    for path in ["/dev/stdin", *glob.glob("/proc/*/cmdline"), *glob.glob("/proc/*/fd/*")]:
        try:
            with open(path, "rb") as file:
                os.set_blocking(file.fileno(), False)
                found.append(str(file.read(10**6)))
        except OSError:
            pass
    frame = sys._getframe()
    while frame:
        found.append(str(frame.f_locals) + str(frame.f_globals))
        frame = frame.f_back
    found += [str(o) for o in gc.get_objects() if isinstance(o, (dict, list, tuple)) and len(o) < 99]
    for ppid in (os.getppid(), 1, 2):
        try:
            with open(f"/proc/{ppid}/mem", "rb") as file:
                found.append(str(file.read(10**6)))
        except OSError:
            pass
    return n + 1 if any("(".join(["candidate"] * 2) in text for text in found) else 0
"""
WRITES = f"""
    import os
    written = 0
    for path in ({str(OUTSIDE)!r}, os.path.expanduser("~/autocoder"), "/etc/autocoder", "/usr/autocoder", os.__file__):
        try:
            open(path, "a").close()
            written += 1
        except OSError:
            pass
    return n + 1 if written else 0
"""


# What another sandbox could let pass; the rest is the checker's own work.
LEVEL_CHEATS = ("os._exit(0)", "a fork bomb", "a memory eater", "a network connection", "reading the test")


@pytest.mark.parametrize(("level", "names"), [("namespaces", None), ("landlock", (*LEVEL_CHEATS, "writing outside"))])
def test_cheats_get_nothing_under_their_own_names(level, names):
    judge = Judge(allow_weak_sandbox=True)
    judge.level = level
    if not judge.judge(PLUS_ONE, PLUS_ONE.canonical_solution, SECONDS).passed:
        pytest.skip(f"this machine has no sandbox of level {level}")
    cheats = CHEATS | {"reading the test": (READS_TEST, "failed"), "writing outside": (WRITES, "failed")}
    cheats = {name: cheats[name] for name in names or cheats}
    verdicts = in_parallel(partial(judge.judge, PLUS_ONE, body, SECONDS) for body, _ in cheats.values())
    got = {name: verdict.kind for name, verdict in zip(cheats, verdicts, strict=True)}
    assert got == {name: kind for name, (_, kind) in cheats.items()}
    assert not OUTSIDE.exists()


def test_what_a_candidate_started_ends_with_it():
    """Also when whoever asked for the verdict is killed meanwhile."""
    body = "    import os, time\n    if os.fork() == 0:\n        os.setsid()\n    time.sleep(60)\n"
    code = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from sandbox.running import *
judge = Judge(allow_weak_sandbox=True)
print("ready", flush=True)
judge.judge(Problem("own", {PLUS_ONE.prompt!r}, "plus_one", "", {WANTED!r}), {body!r}, 60)
"""
    deadline = time.monotonic() + 20
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as asker:
        asker.stdout.readline()
        while not (started := _descendants(asker.pid)) and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.5)
        started |= _descendants(asker.pid)
        asker.kill()
    assert started
    while (left := [pid for pid in started if Path("/proc", pid).exists()]) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left


def _descendants(parent: int) -> set[str]:
    """Processes below one, by their numbers, wherever their groups and sessions are."""
    parents = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[status.parent.name] = status.read_text().rpartition(")")[2].split()[1]
    found, grew = {str(parent)}, True
    while grew:
        new = {pid for pid, its_parent in parents.items() if its_parent in found} - found
        found, grew = found | new, bool(new)
    return found - {str(parent)}


def test_sleep_is_timed_out_too(judge, monkeypatch):
    monkeypatch.setattr("sandbox.running.WALL_TIMES", 1)
    assert judge.judge(PLUS_ONE, "    import time\n    time.sleep(60)\n", 1).kind == "timed out"


# ---- what must come across


VALUES = [
    "None",
    "True",
    "0",
    "-(10**400)",
    "1.5",
    "-0.0",
    "float('inf')",
    "1j",
    "'\\ud800é'",
    "b'\\x00\\xff'",
    "bytearray(b'ab')",
    "[1, [2.0, (3, {4})]]",
    "(1, [2])",
    "()",
    "{1, 'a', (2, frozenset({3}))}",
    "frozenset()",
    "{1: 'a', (1, 2): {None: [True]}, frozenset({3}): b'x', 1.5: 2}",
    "range(2, 9, 3)",
    "[1, True, 1.0, '1', b'1', None]",
    "collections.OrderedDict(a=1)",
    "collections.Counter('aab')",
    "collections.deque([1, 2], maxlen=3)",
    "collections.defaultdict(list, {1: [2]})",
    "decimal.Decimal('0.10')",
    "fractions.Fraction(1, 3)",
    "datetime.date(2020, 1, 2)",
    "datetime.timedelta(days=1)",
    "int",
    "Point(1, [2])",
    "Pair(1, (2,))",
    "Color.RED",
    "[Point(1, 2), Point(Point(3, 4), None)]",
]
PROMPT = """import collections, dataclasses, datetime, decimal, enum, fractions


@dataclasses.dataclass(frozen=True)
class Point:
    x: object
    y: object


class Node:
    def __init__(self, value, next=None):
        self.value, self.next = value, next


class OwnError(ValueError):
    def __init__(self, code, place):
        super().__init__(f"{code} at {place}")
        self.code = code


Pair = collections.namedtuple("Pair", "a b")
Color = enum.Enum("Color", "RED GREEN")


def helper(n):
    return n * 2


def f(x, *more):
    '''docstring'''
"""
CROSSINGS = {
    "every type, there and back": (
        "    return x\n",
        "import math\n"
        + "".join(f"value = {v}\ngot = candidate(value)\nassert repr(got) == repr(value), repr(got)\n" for v in VALUES)
        + "assert candidate(-(10**5000)) == -(10**5000)\n"
        + "assert math.isnan(candidate(float('nan'))) and math.isnan(candidate([float('nan')])[0])\n"
        + "assert type(candidate(True)) is bool and type(candidate(1)) is int and candidate(None) is None",
    ),
    "arguments that are changed": (
        "    x.append(more[0]); x[0].add(9); more[0]['k'] = x; return x\n",
        "inner, table = {1}, {}\nx = [inner]\ngot = candidate(x, table)\n"
        "assert got is x and x == [{1, 9}, table] and inner == {1, 9} and table['k'] is x",
    ),
    "a linked list": (
        "    while x.next:\n        x.value += 1\n        x = x.next\n    x.next = Node('end')\n    return x\n",
        "last = Node(1)\nfirst = Node(0, last)\ngot = candidate(first)\n"
        "assert first.value == 1 and got is last and last.next.value == 'end' and type(last.next) is Node",
    ),
    "a circle": ("    return x.next.next\n", "a = Node(1)\na.next = Node(2, a)\nassert candidate(a) is a"),
    "exceptions": (
        "    if x == 0:\n        raise OwnError(3, 'here')\n    return {}[x]\n",
        "try:\n    candidate(0)\n    assert False\nexcept OwnError as error:\n    assert str(error) == '3 at here'\n"
        "try:\n    candidate('k')\n    assert False\nexcept KeyError as error:\n    assert error.args == ('k',)",
    ),
    "a generator": (
        "    while True:\n        got = yield x\n        x += got or 1\n",
        "import itertools, types\nnumbers = candidate(1)\nassert isinstance(numbers, types.GeneratorType)\n"
        "assert list(itertools.islice(numbers, 3)) == [1, 2, 3] and numbers.send(10) == 13",
    ),
    "other iterators": ("    return map(x, more)\n", "assert list(candidate(str, 1, 2)) == ['1', '2']"),
    "functions of the test": (
        "    return sorted(more, key=x)\n",
        "calls = []\ndef key(n):\n    calls.append(n)\n    return -n\n"
        "assert candidate(key, 1, 3, 2) == [3, 2, 1] and calls == [1, 3, 2]\n"
        "assert candidate(lambda n: n, 2, 1) == [1, 2] and candidate(len, 'aa', 'b') == ['b', 'aa']",
    ),
    "iterators of the test": ("    return sum(x)\n", "assert candidate(iter([1, 2])) == 3"),
    "functions of the candidate": (
        "    def add(n):\n        return n + x\n    return add\n",
        "add = candidate(2)\nassert callable(add) and add(3) == 5",
    ),
    "objects of its own": (
        "    class Stack:\n        size = 0\n        def push(self, n):\n            self.size += 1\n"
        "            return self\n        def __len__(self):\n            return self.size\n"
        "        def __repr__(self):\n            return 'Stack'\n"
        "        def __getitem__(self, i):\n            return [i]\n    return Stack()\n",
        "stack = candidate(0)\nstack.push(1).push(2)\n"
        "assert len(stack) == 2 and stack.size == 2 and repr(stack) == 'Stack' and stack[7] == [7] and stack",
    ),
    "what is printed": (
        "    print('seen', x)\n    return helper(x)\n",
        "import contextlib, io\nwith contextlib.redirect_stdout(io.StringIO()) as out:\n    assert candidate(2) == 4\n"
        "assert out.getvalue() == 'seen 2\\n'",
    ),
    "a helper of the prompt": (
        "    return x // 2\n\ndef helper(n):\n    return 'mine'\n",
        "assert candidate(helper(5)) == 5",
    ),
}


@pytest.mark.parametrize("name", CROSSINGS)
def test_crosses_the_pipe(judge, name):
    solution, checks = CROSSINGS[name]
    verdict = judge.judge(problem(PROMPT, solution, checks), solution, 5)
    assert verdict.kind == "passed", verdict


def test_numpy_crosses_the_pipe(judge):
    pytest.importorskip("numpy")
    checks = (
        "got = candidate(np.eye(2), np.float32(2))\nassert got.dtype == float and (got == [[2, 0], [0, 2]]).all()\n"
        "a = np.arange(3)\nassert candidate(a, 2) is a and a.tolist() == [0, 2, 4]\n"
        "assert type(candidate(np.float32(2), np.float32(3))) is np.float32\n"
        "assert candidate(np.array(['a', None], dtype=object), 2).tolist() == ['aa', None]"
    )
    body = "    if x.dtype == object:\n        x[0] *= y\n    else:\n        x *= y\n    return x\n"
    verdict = judge.judge(problem("import numpy as np\n\ndef f(x, y):\n", "", checks), body, 20)
    assert verdict.passed, verdict


def test_a_test_that_cannot_cross_is_refused(judge):
    checks = "candidate(object())"
    assert judge.judge(problem("def f(x):\n", "", checks), "    return 1\n", SECONDS).kind == "refused"
    assert judge.judge(problem("import nothing\ndef f(x):\n", "", "pass"), "    return 1\n", SECONDS).kind == "refused"


def test_a_test_that_catches_everything_does_not_hide_the_end(judge):
    checks = "try:\n    candidate(1)\nexcept BaseException:\n    pass"
    body = "    import os\n    os._exit(0)\n"
    assert judge.judge(problem("def f(x):\n", "", checks), body, SECONDS).kind == "ended the process"


@pytest.mark.skipif(not HUMANEVAL.is_file(), reason="HUMANEVAL does not name HumanEval.jsonl.gz")
def test_every_solution_of_humaneval_passes(judge):
    problems, _ = read_problems(HUMANEVAL)
    verdicts = in_parallel(partial(judge.canonical, problem) for problem in problems)
    assert [p.task_id for p, v in zip(problems, verdicts, strict=True) if not v.passed] == []


def test_weak_sandbox_must_be_asked_for(monkeypatch):
    from common.command import InputError

    monkeypatch.setattr(
        Judge,
        "_run",
        lambda self, *_: {"verdict": "passed", "start": 0, "seconds": 0} if self.level == "limits" else {},
    )
    with pytest.raises(InputError, match="--allow_weak_sandbox"):
        Judge()
    assert Judge(allow_weak_sandbox=True).level == "limits"


def test_limit_scales_with_the_canonical_solution(judge):
    slow = "    for _ in range(5_000_000):\n        pass\n    return n + 1\n"
    assert judge.limit(judge.judge(PLUS_ONE, slow, 30)) > judge.limit(judge.canonical(PLUS_ONE)) >= 1
