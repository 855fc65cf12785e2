"""evaluate.py --problems: completions of a real model, run, kept and summed up."""

import json

import pytest

from common.files import lock
from evaluation.pass_at_k import STOP_WORDS
from evaluation.problems import before_any, stop_rule_of

PROBLEMS = [
    {
        "task_id": f"own/{i}",
        "prompt": f"def add_{i}(n):\n    '''{i} more than n.'''\n",
        "entry_point": f"add_{i}",
        "canonical_solution": f"    return n + {i}\n",
        "test": f"def check(candidate):\n    assert candidate(1) == {1 + i}\n",
    }
    for i in range(3)
]
FLAGS = ("evaluate.py", "--model_path", "tiny", "--max_new_tokens", 12, "--allow_weak_sandbox")


@pytest.fixture
def problems(tmp_path):
    path = tmp_path / "problems.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in PROBLEMS))
    return path


def test_result_says_what_is_needed_to_repeat_it(project, problems, tmp_path):
    flags = (*FLAGS, "--problems", problems, "--samples", tmp_path / "s.jsonl", "--n_samples", 2, "--k", "1,2")
    done = project.run(*flags, "--output", tmp_path / "r.json")
    result = json.loads((tmp_path / "r.json").read_text())
    assert done.stdout.startswith(f"completions are run on this machine, in a sandbox of level {result['sandbox']}\n")
    assert "2 samples at temperature 0.2" in done.stdout and "pass@2" in done.stdout
    assert set(result["pass_at_k"]) == {"1", "2"} and sum(result["verdicts"].values()) == 6
    assert set(result) > {"model", "model_fingerprint", "problems_sha256", "settings", "flags", "versions", "shares"}
    assert result["engine"].startswith(("llama.cpp, ", "PyTorch, "))
    before = (tmp_path / "s.jsonl").read_text()
    project.run(*flags)
    assert (tmp_path / "s.jsonl").read_text() == before  # nothing was left to do
    assert "a sample of another model" in project.fails(*flags, "--seed", 1, log_lines=True)
    project.run(*flags, "--judge_again", "--output", tmp_path / "again.json")
    again = json.loads((tmp_path / "again.json").read_text())
    assert again["verdicts"] == result["verdicts"] and again["engine"] == result["engine"]
    with lock(tmp_path / "s.jsonl.lock"):
        assert "in use by process" in project.fails(*flags)


def test_samples_may_be_added_later(project, problems, tmp_path):
    flags = (*FLAGS, "--problems", problems, "--temperature", 1)
    paths = (tmp_path / "twice.jsonl", tmp_path / "once.jsonl")
    project.run(*flags, "--samples", paths[0], "--n_samples", 2)
    for path in paths:
        project.run(*flags, "--samples", path, "--n_samples", 4)
    twice, once = (
        {(row["task_id"], row["number"]): row["completion"] for row in map(json.loads, path.read_text().splitlines())}
        for path in paths
    )
    assert twice == once and len(once) == 12
    assert len({once["own/0", number] for number in range(4)}) > 2


def test_single_lines_are_filled_in(project, problems, tmp_path):
    solutions = [f"    # {i} more\n\n    m = n\n    return m + {i}\n" for i in range(3)]
    rows = [row | {"canonical_solution": solution} for row, solution in zip(PROBLEMS, solutions, strict=True)]
    problems.write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = (*FLAGS, "--problems", problems, "--infill", "line", "--samples", tmp_path / "s.jsonl")
    done = project.run(*flags, "--max_problems", 1)
    assert "greedy, single lines\n" in done.stdout and "1 problems" in done.stdout
    project.run(*flags, "--output", tmp_path / "r.json")
    result = json.loads((tmp_path / "r.json").read_text())
    assert result["problems"] == 6 and sum(result["verdicts"].values()) == 6
    samples = [json.loads(line) for line in (tmp_path / "s.jsonl").read_text().splitlines()]
    assert {sample["task_id"] for sample in samples} == {f"own/{i}/line {n}" for i in range(3) for n in (3, 4)}
    assert not any("\n" in sample["completion"].strip() for sample in samples)
    assert "a sample of another model" in project.fails(*flags, "--no_infill", log_lines=True)
    assert "--infill N spans" in project.fails(*FLAGS, "--problems", problems, "--infill", 5)
    assert "--infill line takes" in project.fails(*FLAGS, "--infill", "line")
    assert "--infill" in project.fails(*FLAGS, "--infill", "lines")


def test_mistakes_cost_one_line_before_anything_runs(project, problems):
    assert "--n_samples 3" in project.fails(*FLAGS, "--problems", problems, "--k", "1,3")
    for ks in ("one", "0", "1,", "9" * 5000):
        assert "--k" in project.fails(*FLAGS, "--problems", problems, "--k", ks)
    assert "--temperature 0" in project.fails(*FLAGS, "--problems", problems, "--temperature", 0, "--n_samples", 2)
    problems.write_text(problems.read_text()[:-9])
    assert "problems.jsonl:3: not JSON" in project.fails(*FLAGS, "--problems", problems)


def test_stop_words_end_a_completion():
    text = "    return 1\n\n\nprint(2)\nmore"
    rule = before_any(STOP_WORDS)
    assert rule("    return 1\n") == (13, False)
    assert rule(text) == (text.index("\nprint"), True)
    assert all(rule(f"x{word}") == (1, True) for word in STOP_WORDS)


def test_a_completion_after_a_docstring_alone_may_hold_imports_and_helper_functions():
    rule = stop_rule_of('"""\nAdd.\nassert add(1, 2) == 3\n"""\n')
    text = "import math\n\n\ndef one():\n    return 1\n\n\ndef add(a, b):\n    return a + b\n"
    assert rule(text) == (len(text), False)
    assert rule(text + "\nassert add(1, 2)") == (len(text), True)
    assert stop_rule_of("def one():\n")("    return 1\n\nx = 2") == (12, True)
