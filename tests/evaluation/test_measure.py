"""Samples, verdicts and pass@k, with completions that stand in a list instead of a model."""

import gzip
import itertools
import json
from dataclasses import replace
from types import SimpleNamespace

import pytest

from common.command import InputError
from evaluation.measure import check_problems, judge_again, single_lines, summarise, take_samples
from evaluation.pass_at_k import pass_at_k
from evaluation.samples import Sample, read_samples
from sandbox.problem_file import Problem, read_problems
from sandbox.running import Judge

TEST = "def check(candidate):\n    assert candidate(3) == {}\n"
PROBLEMS = [
    Problem(f"own/{i}", f"def add(n):\n    '''{i} more.'''\n", "add", f"    return n + {i}\n", TEST.format(3 + i))
    for i in range(3)
]


def completion(text: str):
    return SimpleNamespace(text=text, tokens=[1, 2], mean_log_prob=-0.5, finished=True, stop_reason="block")


class Model:
    """Gives the same texts to each prompt, one after the other."""

    def __init__(self, *texts: str, dies_after: int = 10**9):
        self.texts, self.dies_after, self.asked = texts, dies_after, 0

    def __call__(self, prompts, names):
        taken = {}
        for place, prompt in enumerate(prompts):  # each with what follows the completion
            if self.asked == self.dies_after:
                raise KeyboardInterrupt
            self.asked += 1
            number = taken[prompt] = taken.get(prompt, -1) + 1
            yield place, completion(self.texts[number % len(self.texts)]), "list"


@pytest.fixture(scope="module")
def judge():
    return Judge(allow_weak_sandbox=True)


@pytest.fixture(scope="module")
def sound(judge):
    problems, refused = check_problems(judge, PROBLEMS)
    assert len(problems) == 3 and not refused
    return problems


def test_pass_at_k_is_the_mean_over_all_choices():
    for n, c, k in itertools.product(range(1, 7), range(7), range(1, 7)):
        if c <= n and k <= n:
            choices = list(itertools.combinations([True] * c + [False] * (n - c), k))
            assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, choices)) / len(choices))


def test_samples_are_judged_and_summed_up(judge, sound, tmp_path):
    model = Model("    return n + 1\n", "    return n +\n")
    samples = take_samples(judge, sound, 2, tmp_path / "s.jsonl", "r", model)
    result = summarise(samples, (1, 2))
    assert result["pass_at_k"]["1"]["value"] == pytest.approx(1 / 6)
    assert result["pass_at_k"]["2"]["value"] == pytest.approx(1 / 3)
    assert result["verdicts"] == {"not parseable": 3, "failed": 2, "passed": 1}
    assert result["engine"] == "list"
    assert result["shares"] == {"parses": 0.5, "runs": 0.5, "finished": 1.0, "repeats": 0.0}
    assert read_samples(tmp_path / "s.jsonl", "r") == samples
    with pytest.raises(InputError, match="--n_samples 3"):
        summarise(samples, (3,))


def test_an_interrupted_run_goes_on(judge, sound, tmp_path):
    path = tmp_path / "s.jsonl"
    with pytest.raises(KeyboardInterrupt):
        take_samples(judge, sound, 3, path, "r", Model("    return n\n", dies_after=8))
    kept = len(path.read_text().splitlines())
    path.write_text(path.read_text() + '{"run": "r", "task_id": "ow')  # what a killed process leaves
    model = Model("    return n\n")
    samples = take_samples(judge, sound, 3, path, "r", model)
    assert model.asked == 9 - kept
    assert sorted(s.task_id for s in samples) == [f"own/{i}" for i in range(3) for _ in range(3)]
    assert len(read_samples(path, "r")) == 9
    with pytest.raises(InputError, match=r"s\.jsonl:1: a sample of another model"):
        take_samples(judge, sound, 3, path, "other", model)


def test_samples_are_judged_again_without_a_model(judge, sound, tmp_path):
    path = tmp_path / "s.jsonl"
    samples = take_samples(judge, sound, 1, path, "r", Model("    return n + 2\n"))
    path.write_text(path.read_text().replace('"passed"', '"failed"'))
    again = judge_again(judge, sound, path, "r")
    assert [s.verdict for s in again] == [s.verdict for s in samples] == ["failed", "failed", "passed"]
    with pytest.raises(InputError, match="no samples"):
        judge_again(judge, sound, tmp_path / "none.jsonl", "r")


def test_every_line_of_a_solution_is_filled_in_between_the_others(judge, tmp_path):
    solution = "    # adds\n    total = n\n\n    if total:\n        total += 2\n    return total\n"
    sound, _ = check_problems(judge, [replace(PROBLEMS[2], canonical_solution=solution)])
    lines = list(single_lines(sound[0]))
    assert [line.problem.canonical_solution.strip() for line in lines] == [
        "total = n",
        "if total:",
        "total += 2",
        "return total",
    ]
    assert all(each.before + each.problem.canonical_solution + each.after == solution for each in lines)
    samples = take_samples(judge, lines, 1, tmp_path / "s.jsonl", "r", Model("        total = 5"))
    assert [sample.task_id for sample in samples if sample.verdict == "passed"] == ["own/2/line 5"]


def test_a_problem_that_its_own_solution_fails_is_refused(judge):
    wrong = Problem("own/wrong", "def f(n):\n", "f", "    return n\n", TEST.format(9))
    problems, refused = check_problems(judge, [PROBLEMS[0], wrong])
    assert [each.problem for each in problems] == [PROBLEMS[0]]
    assert refused["own/wrong"].kind == "failed"
    with pytest.raises(InputError, match="own solution"):
        check_problems(judge, [wrong])


@pytest.mark.parametrize(
    ("text", "repeats"),
    [
        ("    return n + 1\n", False),
        ("    if n > 1:\n        return 1\n" * 3, True),
        ("    x = " + "a + " * 40, True),
        ("    a = 1\n\n\n\n                        b = 1\n", False),
    ],
)
def test_repetition(text, repeats):
    assert Sample("r", "t", text, 0.0, 1, True, False, "failed", "", 0.0).repeats == repeats


ROW = PROBLEMS[0].__dict__


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (json.dumps(ROW)[:40], ":1: not JSON, perhaps torn"),
        (json.dumps(ROW) + "\n[]\n", ":2: the content is .., not an object"),
        (json.dumps({**ROW, "test": None}), ":1: .* missing here: test"),
        (json.dumps({**ROW, "test": "assert add(1) == 1\n"}), ":1: .* no `def check"),
        (json.dumps({**ROW, "entry_point": "add it"}), ":1: .* not a function's name"),
        (f"{json.dumps(ROW)}\n\n{json.dumps(ROW)}\n", ":3: task_id own/0 stands there twice"),
        ("\n", ": holds no problem"),
        (b"\x1f\x8b\x08\x00\x00", ": not a whole gzip file"),
        (b"\xff\xfe\x00", ": not UTF-8"),
    ],
)
def test_faults_of_a_problem_file(tmp_path, content, message):
    path = tmp_path / "p.jsonl"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=f"^{path}{message}") as error:
        read_problems(path)
    assert "\n" not in str(error.value)


def test_problems_compressed_or_not(tmp_path):
    text = "".join(json.dumps(problem.__dict__ | {"more": 1}) + "\n" for problem in PROBLEMS).encode()
    (tmp_path / "p.jsonl").write_bytes(text)
    (tmp_path / "p.jsonl.gz").write_bytes(gzip.compress(text))
    assert read_problems(tmp_path / "p.jsonl") == read_problems(tmp_path / "p.jsonl.gz")
    assert read_problems(tmp_path / "p.jsonl")[0] == PROBLEMS
    with pytest.raises(InputError, match="no such file"):
        read_problems(tmp_path / "absent.jsonl")
