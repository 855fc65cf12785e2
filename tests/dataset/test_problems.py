"""Problems from source files: what a function needs, which are kept, and what of them occurs in train."""

import json

import pytest

from dataset.doctests import cut_problems
from dataset.problem_file import read_problems

MODULE = '''"""A module."""
from __future__ import annotations

import math
import os, sys
from collections import deque

LIMIT: int = 10
TABLE = {}
TABLE["a"] = LIMIT
UNUSED = os.sep


class Pair:
    def __init__(self, a, b):
        self.a, self.b = a, b


def outer(n):
    return inner(n) + len(TABLE)


@property
def no_docstring(n):
    return n


def total(
    pair: Pair, more=math.inf
) -> int:
    """The sum, at most `more`.

    >>> total(Pair(1, 2))
    4
    >>> total(Pair(1, 2), more=2)
    2
    >>> print("text")
    text
    """
    # outer adds the table's length
    return min(outer(pair.a) + pair.b, more)


def inner(n):
    r"""Without examples."""
    return n


def twice(n): return 2 * n


def empty(n):
    """
    >>> empty(1)
    """


if __name__ == "__main__":
    total(Pair(1, 2))
'''


def test_a_prompt_holds_what_the_body_needs():
    (cut,) = cut_problems(MODULE)
    assert cut.name == "total"
    assert cut.modules == {"__future__", "math"} and not cut.foreign_modules
    assert cut.solution == "    # outer adds the table's length\n    return min(outer(pair.a) + pair.b, more)\n"
    wanted = [
        "from __future__ import annotations",
        "import math",
        "LIMIT: int = 10",
        'TABLE["a"] = LIMIT',
        "class Pair:",
        "def outer(n):",
        "def inner(n):",
        "def total(",
    ]
    places = [cut.prompt.index(line) for line in wanted]
    assert places == sorted(places)
    for absent in ("import os", "deque", "UNUSED", "twice", "no_docstring", "__main__", '"""A module."""', "min("):
        assert absent not in cut.prompt
    assert cut.prompt.endswith('    """\n')
    compile(cut.prompt + cut.solution + cut.test, "whole", "exec")
    bodies = ["pass", "return 4", "return 2", "return 'text'", "return pair", "return more"]
    assert cut.trivial == [f"    {body}\n" for body in bodies]


def test_the_last_of_two_functions_with_a_name_counts():
    text = 'def f(n):\n    """\n    >>> f(1)\n    %d\n    """\n    return %d\n'
    (cut,) = cut_problems(text % (1, 1) + text % (2, 2))
    assert cut.solution == "    return 2\n"


FUNCTION = '''import {module}


def {name}(n):
    """What {name} gives.

    >>> {name}({one})
    {first}
    >>> {name}({other})
    {second}
    """
    {body}
'''


def function(name, first, second, body, module="math", one="1", other="2"):
    return FUNCTION.format(**locals())


SOURCES = {
    "sound": function("double", 2, 4, "return n * 2"),
    "constant": function("constant", 7, 7, "return 7"),
    "identity": function("identity", 1, 2, "return n"),
    "nothing": function("nothing", "", "", "return None"),
    "wrong": function("wrong", 2, 5, "return n * 2"),
    "unordered": function("order", "'a'", "'b'", "return next(iter({n, 'a', 'b', 'c', 'd'} - {n}))", one="'b'"),
    "foreign": function("foreign", 2, 4, "return int(torch.tensor(n)) * 2", module="torch"),
    "apart": function("apart", 1, 2, "return len({id(x) for x in n})", one="[object()]", other="[object(), object()]"),
    "raises": function("root", "2.0", "Traceback (most recent call last):\n    ValueError: math domain error", "return "
    "math.sqrt(n)", one="4", other="-1"),
}  # fmt: skip


@pytest.fixture(scope="module")
def converted(project, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    for name, text in SOURCES.items():
        (folder / f"{name}.py").write_text(text)
    (folder / "copy.py").write_text("\n\n\n".join(["import math", SOURCES["sound"]] * 2))
    (folder / "broken.py").write_text("def f(:\n" * 30)
    flags = ("--source", folder, "--tokenizer", "tiny", "--segment_len", 62)
    project.run("dataset/convert.py", *flags, "--dataset_name", "own", "--dev_size", 0.5)
    project.run("dataset/convert.py", *flags, "--dataset_name", "windows", "--split_by", "segment")
    return project, folder


def test_problems_of_both_splits_and_their_counts(converted):
    project, _ = converted
    kept, steps = {}, {}
    for split in ("dev", "train"):
        output = project.folder / f"{split}.jsonl"
        done = project.run(
            "dataset/problems.py", "--dataset_name", "own", "--split", split, "--output", output, "--allow_weak_sandbox"
        )
        problems, _ = read_problems(output)
        rows = [json.loads(line) for line in output.read_text().splitlines()]
        kept |= {problem.task_id: row for problem, row in zip(problems, rows, strict=True)}
        counts = json.loads(output.with_suffix(".json").read_text())
        assert counts["problems"] == len(problems)
        for step, number in counts["steps"].items():
            steps[step] = steps.get(step, 0) + number
            assert step in done.stdout
    assert set(kept) == {"sound.py:double", "copy.py:double", "raises.py:root", "apart.py:apart"}
    assert all(row["solution_in_train"] is None for row in kept.values())  # shorter than an n-gram
    reasons = {step: number for step, number in steps.items() if step.startswith("left out")}
    assert sum(reasons.values()) == len(SOURCES) - 3
    assert steps["candidates: functions with examples in the docstring"] == len(SOURCES) + 1
    assert reasons["left out: need more than the standard library and NumPy"] == 1
    assert reasons["left out: their own solution does not pass"] == 2
    assert sum(number for step, number in steps.items() if "cannot read" in step) == 1


def test_mistakes_cost_one_line(converted):
    project, folder = converted
    assert "split by segment" in project.fails("dataset/problems.py", "--dataset_name", "windows")
    (folder / "sound.py").write_text(SOURCES["sound"] * 2)
    assert "has changed" in project.fails("dataset/problems.py", "--dataset_name", "own")
