"""train.py --problems: pass@1 of the model in training, which changes nothing of the training."""

import json
import signal

import pytest
import torch
from conftest import scalars
from test_restart import assert_same_weights, end, start_and_wait

FLAGS = ["--max_steps", 12, "--evaluation_steps", 4, "--logging_steps", 2, "--max_seq_length", 64, "--lr", 1e-3]
PROBLEM = {
    "task_id": "own/solved",
    "prompt": "def add(n):\n    '''One more than n.'''\n    return n + 1\n\n\ndef same(n):\n",
    "entry_point": "add",  # which the prompt has, so that any completion that parses is right
    "canonical_solution": "    return n\n",
    "test": "def check(candidate):\n    assert candidate(1) == 2\n",
}
OTHER = PROBLEM | {
    "task_id": "own/open",
    "entry_point": "same",
    "test": "def check(candidate):\n    assert candidate(1) == 1\n",
}


@pytest.fixture(scope="module")
def problems(tmp_path_factory):
    path = tmp_path_factory.mktemp("problems") / "problems.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in (PROBLEM, OTHER)))
    return path


def command(base, run_name, *flags):
    return ["train.py", "--model_select", base, "--from_scratch", "--run_name", run_name, *FLAGS, *flags]


@pytest.fixture(scope="module")
def followed(project, with_dropout, problems):
    flags = ("--problems", problems, "--allow_weak_sandbox")
    done = project.run(*command(with_dropout, "followed", *flags))
    return project.folder / "model" / "followed", done.stderr


def test_pass_at_1_is_logged_and_reported(followed):
    run, said = followed
    assert "what it writes is run on this machine, in a sandbox of level" in said.splitlines()[0]
    curve = scalars(run)["eval_pass_at_1_dev"]
    assert list(curve) == [4, 8, 12] and set(curve.values()) <= {0.0, 0.5, 1.0}
    report = json.loads((run / "ck_report.json").read_text())
    assert report["eval_scores_on_dev"]["pass_at_1"] == curve[report["saved_at_total_steps"]]
    assert "| pass_at_1 |" in (run / "0_GPTSingleHead" / "README.md").read_text()


def test_the_training_is_that_of_a_run_without_it(project, with_dropout, followed):
    project.run(*command(with_dropout, "alone"))
    run, alone = followed[0], project.folder / "model" / "alone"
    assert_same_weights(alone, run)
    expected, got = scalars(alone), scalars(run)
    assert got.keys() - expected.keys() == {"eval_pass_at_1_dev"}
    for name in expected.keys() - {"tokens_per_second", "tflops"}:
        assert got[name] == expected[name], name


def test_a_killed_run_goes_on_to_the_same_scores(project, with_dropout, followed, problems):
    torn = command(with_dropout, "torn_pass", "--problems", problems, "--allow_weak_sandbox", "--restore_training")
    for number, delay in ((signal.SIGKILL, 0.1), (signal.SIGTERM, 0.1)):
        end(start_and_wait(project, torn, 1), number, delay)
    project.run(*torn)
    run, torn_run = followed[0], project.folder / "model" / "torn_pass"
    assert_same_weights(run, torn_run)
    assert scalars(torn_run)["eval_pass_at_1_dev"] == scalars(run)["eval_pass_at_1_dev"]


def test_a_trained_model_scores_as_evaluate_does(project, model, problems, tmp_path):
    """Weights of no use but for one word: after each line break it ends the text."""
    from evaluation.pass_rate import PassRate

    with torch.no_grad():
        model.gpt.lm_head.weight.zero_()
        model.gpt.transformer.ln_f.weight.zero_()
        model.gpt.transformer.ln_f.bias.fill_(1)
        model.gpt.lm_head.weight[model.tokenize("    pass\n")[0]] = 1
    rate = PassRate(problems, allow_weak_sandbox=True)
    for mode in (True, False):
        model.train(mode)
        before = torch.get_rng_state()
        solved, asked = rate(model, slice(None), lambda: False)
        assert model.training is mode and torch.equal(torch.get_rng_state(), before)
        assert asked == 2
    assert rate(model, slice(1, None, 2), lambda: False)[1] == 1
    assert rate(model, slice(5, None), lambda: False) == (0, 0)
    model.save(tmp_path / "model")
    flags = ("--problems", problems, "--precision", "fp32", "--max_new_tokens", 256, "--allow_weak_sandbox")
    paths = ("--samples", tmp_path / "s.jsonl", "--output", tmp_path / "r.json")
    project.run("evaluate.py", "--model_path", tmp_path / "model", *flags, *paths)
    assert json.loads((tmp_path / "r.json").read_text())["pass_at_k"]["1"]["value"] == solved / 2


def test_mistakes_cost_one_line_and_leave_nothing(project, with_dropout, tmp_path):
    torn = tmp_path / "torn.jsonl"
    torn.write_text(json.dumps(PROBLEM)[:50])
    assert "torn.jsonl:1: not JSON" in project.fails(*command(with_dropout, "bad", "--problems", torn))
    assert "no such file" in project.fails(*command(with_dropout, "bad", "--problems", tmp_path / "none.jsonl"))
    assert "give that too" in project.fails(*command(with_dropout, "bad", "--max_problems", 3))
    assert not (project.folder / "model" / "bad").exists()
