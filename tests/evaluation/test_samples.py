"""Samples, verdicts and pass@k, with completions from a list instead of a model."""

import itertools
import json
import re
from dataclasses import replace
from types import SimpleNamespace

import pytest

from common.command import InputError
from dataset.problem_file import Problem
from evaluation.pass_at_k import pass_at_k, summarise
from evaluation.problems import tasks_of, verified
from evaluation.samples import judge_again, read_samples, repeats_itself, take_samples
from sandbox.sandbox import Sandbox

TEST = "def check(candidate):\n    assert candidate(3) == {}\n"
PROBLEMS = [
    Problem(f"own/{i}", f"def add(n):\n    '''{i} more.'''\n", "add", f"    return n + {i}\n", TEST.format(3 + i))
    for i in range(3)
]


def completion(text: str):
    return SimpleNamespace(text=text, tokens=[1, 2], mean_log_prob=-0.5, finished=True, stop_reason="block")


class Model:
    """Gives its texts to each task in turn: the first to sample 0, the second to sample 1, and so on."""

    def __init__(self, *texts: str, dies_after: int = 10**9):
        self.texts, self.dies_after, self.asked = texts, dies_after, []

    def __call__(self, tasks, numbers):
        for place, (task, number) in enumerate(zip(tasks, numbers, strict=True)):
            if len(self.asked) == self.dies_after:
                raise KeyboardInterrupt
            self.asked.append((task.task_id, number))
            yield place, completion(self.texts[number % len(self.texts)]), "list"


@pytest.fixture(scope="module")
def sandbox():
    return Sandbox(allow_weak_sandbox=True)


@pytest.fixture(scope="module")
def tasks(sandbox):
    tasks, refused = verified(sandbox, tasks_of(PROBLEMS, False, 0))
    assert len(tasks) == 3 and not refused
    return tasks


def test_pass_at_k_is_the_mean_over_all_choices():
    for n, c, k in itertools.product(range(1, 7), range(7), range(1, 7)):
        if c <= n and k <= n:
            choices = list(itertools.combinations([True] * c + [False] * (n - c), k))
            assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, choices)) / len(choices))


def test_samples_are_judged_and_summed_up(sandbox, tasks, tmp_path):
    model = Model("    return n + 1\n", "    return n +\n")
    samples = take_samples(sandbox, tasks, 2, tmp_path / "s.jsonl", "r", model)
    result = summarise(samples, (1, 2))
    assert result["pass_at_k"]["1"]["value"] == pytest.approx(1 / 6)
    assert result["pass_at_k"]["2"]["value"] == pytest.approx(1 / 3)
    assert result["verdicts"] == {"not parseable": 3, "failed": 2, "passed": 1}
    assert result["engine"] == "list"
    assert result["shares"] == {"parses": 0.5, "runs": 0.5, "finished": 1.0, "repeats": 0.0}
    assert read_samples(tmp_path / "s.jsonl", "r") == samples
    with pytest.raises(InputError, match="--n_samples 3"):
        summarise(samples, (3,))


def test_an_interrupted_run_goes_on(sandbox, tasks, tmp_path):
    path = tmp_path / "s.jsonl"
    with pytest.raises(KeyboardInterrupt):
        take_samples(sandbox, tasks, 3, path, "r", Model("    return n\n", dies_after=8))
    kept = {(sample.task_id, sample.number) for sample in read_samples(path, "r")}
    path.write_text(path.read_text() + '{"run": "r", "task_id": "ow')  # what a killed process leaves
    model = Model("    return n\n")
    samples = take_samples(sandbox, tasks, 3, path, "r", model)
    wanted = {(f"own/{i}", number) for i in range(3) for number in range(3)}
    assert set(model.asked) == wanted - kept and len(model.asked) == 9 - len(kept)
    assert sorted((s.task_id, s.number) for s in samples) == sorted(wanted)
    assert len(read_samples(path, "r")) == 9
    with pytest.raises(InputError, match=r"s\.jsonl:1: a sample of another model"):
        take_samples(sandbox, tasks, 3, path, "other", model)


def test_samples_are_judged_again_without_a_model(sandbox, tasks, tmp_path):
    path = tmp_path / "s.jsonl"
    samples = take_samples(sandbox, tasks, 1, path, "r", Model("    return n + 2\n"))
    path.write_text(path.read_text().replace('"passed"', '"failed"'))
    assert [s.verdict for s in judge_again(sandbox, tasks[2:], path, "r")] == ["passed"]
    assert [s.verdict for s in read_samples(path, "r")] == ["failed", "failed", "passed"]  # the others stay
    assert judge_again(sandbox, tasks, path, "r") == [
        replace(sample, seconds=pytest.approx(sample.seconds, abs=9)) for sample in samples
    ]
    with pytest.raises(InputError, match="no samples"):
        judge_again(sandbox, tasks, tmp_path / "none.jsonl", "r")


def test_samples_of_earlier_versions_have_no_number(sandbox, tasks, tmp_path):
    path = tmp_path / "s.jsonl"
    take_samples(sandbox, tasks, 2, path, "r", Model("    return n\n"))
    path.write_text(re.sub(r', "number": \d', "", path.read_text()))
    assert sorted(sample.number for sample in read_samples(path, "r")) == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize(("key", "value"), [("completion", 5), ("tokens", "5"), ("number", None), ("finished", 1)])
def test_a_sample_that_someone_edited_is_refused(tmp_path, key, value):
    sample = {
        "run": "r", "task_id": "t", "completion": "", "mean_log_prob": 0.0, "tokens": 0, "finished": True,
        "looped": False, "verdict": "failed", "detail": "", "seconds": 0.0,
    }  # fmt: skip
    path = tmp_path / "s.jsonl"
    path.write_text(f"{json.dumps(sample)}\n{json.dumps(sample | {key: value})}\n")
    with pytest.raises(InputError, match=rf"s\.jsonl:2: {key} is .*delete the line"):
        read_samples(path, "r")
    path.write_text(2 * f"{json.dumps(sample | {'number': 0})}\n")  # which would count twice
    with pytest.raises(InputError, match=r"s\.jsonl:2: t has a sample 0 before"):
        read_samples(path, "r")


def test_every_line_of_a_solution_is_filled_in_between_the_others(sandbox, tmp_path):
    solution = "    # adds\n    total = n\n\n    if total:\n        total += 2\n    return total\n"
    problem = replace(PROBLEMS[2], canonical_solution=solution)
    lines, _ = verified(sandbox, tasks_of([problem], True, 0))
    assert [line.task_id for line in lines] == [f"own/2/line {number}" for number in (2, 4, 5, 6)]
    middles = ["    total = n", "    if total:", "        total += 2", "    return total"]
    assert [line.before + middle + line.after for line, middle in zip(lines, middles, strict=True)] == [solution] * 4
    samples = take_samples(sandbox, lines, 1, tmp_path / "s.jsonl", "r", Model("        total = 5"))
    assert [sample.task_id for sample in samples if sample.verdict == "passed"] == ["own/2/line 5"]
    assert [line.task_id for line in tasks_of([PROBLEMS[0], problem], True, 2)] == ["own/0/line 1", "own/2/line 2"]


def test_a_problem_that_its_own_solution_fails_is_refused_after_the_limit(sandbox):
    wrong = Problem("own/wrong", "def f(n):\n", "f", "    return n\n", TEST.format(9))
    tasks, refused = verified(sandbox, tasks_of([wrong, *PROBLEMS], False, 2))
    assert [task.problem for task in tasks] == PROBLEMS[:1]
    assert refused["own/wrong"].kind == "failed"
    with pytest.raises(InputError, match="own solution"):
        verified(sandbox, tasks_of([wrong], False, 0))


def test_the_time_limit_follows_the_own_solution(sandbox):
    slow = "    for _ in range(5_000_000):\n        pass\n    return n\n"
    problem = Problem("own/slow", "def f(n):\n", "f", slow, TEST.format(3))
    (task, other), _ = verified(sandbox, tasks_of([problem, PROBLEMS[0]], False, 0))
    assert task.seconds > other.seconds >= 1


def test_repetition():
    once = "".join(f"x{i} = {i}\n" for i in range(3000))
    assert not repeats_itself(once)  # 33,000 characters, in an instant
    assert not repeats_itself("return n + 1 " * 2 + "return n")
    assert repeats_itself(once[:77] + "return n + 1 " * 3 + once)
    assert repeats_itself("a + " * 40)
    for text in ("abcdefghijk", "aaaaaaaaaaaaaaab", "ab" * 7 + "c"):
        for lead in range(len(text)):
            assert repeats_itself("." * (lead % 5) + (text * 4)[lead : lead + 3 * len(text)])
