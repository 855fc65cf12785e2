"""The commands train.py and evaluate.py as a user types them: what they refuse, what they keep, what they write."""

import json
import math
import os
import socket
import subprocess
import sys

import pytest

SMALL = ["--max_seq_length", 64, "--from_scratch", "--lr", 1e-3]


def snapshot(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def run(project, base):
    """A finished run of 6 steps, as `python train.py` leaves it."""
    project.run("train.py", "--model_select", base, *SMALL, "--max_steps", 6, "--run_name", "done")
    return project.folder / "model" / "done"


def test_the_run_folder_holds_what_the_readme_says(run):
    assert {path.name for path in run.iterdir()} == {
        "0_GPTSingleHead",
        "last",
        "tensorboard",
        "hyperparams.json",
        "ck_report.json",
        "log.out",
    }
    card = (run / "0_GPTSingleHead" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\n")
    assert "split by file" in card
    assert "`--max_steps 6`" in card
    report = json.loads((run / "ck_report.json").read_text())
    assert report["saved_at_total_steps"] == 6
    assert report["total_epochs"] == math.ceil(6 / report["steps_per_epoch"])  # not those that --max_steps leaves out
    assert report["eval_scores_on_dev"]["perplexity"] < 9000
    assert json.loads((run / "hyperparams.json").read_text())["lr"] == 1e-3
    assert "Total params: " in (run / "log.out").read_text()
    assert not [path for path in run.rglob("*") if path.suffix in (".bin", ".pt", ".pk", ".pkl")]


def test_an_earlier_run_is_not_touched_unless_the_flag_says_so(project, run, base):
    before = snapshot(run)
    command = ["train.py", "--model_select", base, *SMALL, "--max_steps", 2, "--run_name", "done"]
    message = project.fails(*command, stdin=subprocess.DEVNULL)
    assert "--restore_training" in message
    assert "--overwrite" in message
    message = project.fails(*command, "--overwrite", "--precision", "fp16")  # found wrong only after the model is made
    assert "fp16" in message
    assert snapshot(run) == before


def test_restoring_with_flags_that_change_the_data_order_is_refused(project, run, base):
    before = snapshot(run / "last")
    command = ["train.py", "--model_select", base, *SMALL, "--max_steps", 9, "--run_name", "done", "--restore_training"]
    message = project.fails(*command, "--seed", 7, log_lines=True)
    assert "--seed 122" in message
    train_file = project.folder / "dataset" / "source_code" / "json" / "train.jsonl"
    content = train_file.read_bytes()
    try:
        train_file.write_bytes(content[: content.rindex(b"\n", 0, -1) + 1])
        assert "converted anew" in project.fails(*command, log_lines=True)
    finally:
        train_file.write_bytes(content)
    assert snapshot(run / "last") == before


def test_restoring_goes_on_to_a_later_end_and_a_damaged_state_is_named(project, run, base):
    command = ["train.py", "--model_select", base, *SMALL, "--run_name", "done", "--restore_training"]
    done = project.run(*command, "--max_steps", 8)
    assert "continuing after step 6" in done.stderr
    assert json.loads((run / "last" / "state.json").read_text())["progress"]["run"]["step"] == 8
    optimizer = run / "last" / "optimizer.safetensors"
    optimizer.write_bytes(optimizer.read_bytes()[:1000])
    message = project.fails(*command, "--max_steps", 9, log_lines=True)
    assert "last" in message
    assert "damaged" in message


BAD_FLAGS = {
    "--lr 0": "--lr",
    "--max_steps -1": "--max_steps",
    "--warmup_ratio 2": "--warmup_ratio",
    "--per_gpu_train_batch_size 0": "--per_gpu_train_batch_size",
    "--scheduler sometimes": "warmuplinear",
    "--precision fp16 --fp16 --seed x": "--seed",
    "--precision bf16 --fp16": "contradict",
    "--restore_training --overwrite": "--overwrite",
    "--learning_rate 1": "--learning_rate",
    "--dataset_name none": "dataset/convert.py --dataset_name none",
    "--visiable_device first": "GPU numbers",
    "--with_wandb --wandb_project_name a/b": "a/b",
}


@pytest.mark.parametrize("flags", BAD_FLAGS)
def test_bad_flags_of_train(project, flags):
    assert BAD_FLAGS[flags] in project.fails("train.py", "--run_name", "bad", *flags.split())
    assert not (project.folder / "model" / "bad").exists()


def test_a_recipe_gives_the_settings_and_flags_overrule_it(project, base):
    project.run("train.py", "--recipe", "report-2", "--dataset_name", "source_code", "--model_select", base,
                "--from_scratch", "--lr", "3e-4", "--max_steps", 2, "--dev_windows", 4)  # fmt: skip
    found = json.loads((project.folder / "model" / "report-2" / "hyperparams.json").read_text())
    expected = {"recipe": "report-2", "max_seq_length": 128, "num_epochs_train": 1, "warmup_ratio": 0.2, "lr": 3e-4}
    assert {name: found[name] for name in expected} == expected
    message = project.fails("train.py", "--recipe", "report5")
    assert "did you mean report-" in message
    assert "--split_by segment" in project.fails("train.py", "--recipe", "reference")


def test_both_spellings_of_the_reference_flag(project):
    for spelling in ("--visiable_device", "--visible_device"):
        assert "--seed x" in project.fails("train.py", spelling, "0", "--seed", "x")


def test_a_hub_that_does_not_answer_is_said_soon_and_in_one_line(project):
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, and never says a word
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        environment = os.environ | {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": endpoint, "HF_HOME": str(project.folder)}
        code = "from common import model_files; model_files.find_pretrained('distilgpt2')"
        script = f"from common.command import run_command\nrun_command(lambda: exec({code!r}))"
        # The library alone would go on trying for minutes.
        done = project.run("-c", script, check=False, env=environment, timeout=60)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "tiny" in done.stderr
    assert endpoint in done.stderr


WRONG_ENVIRONMENT = {
    "LOCAL_RANK=1": ("train.py --model_select tiny", "error: LOCAL_RANK is set, as torchrun does"),
    "HF_ENDPOINT=nonsense HF_HUB_OFFLINE=0": (
        "dataset/convert.py --tokenizer distilgpt2",
        "error: distilgpt2: not in ",
    ),
    "HOME=\udce9": ("interact.py --model_path tiny --prompt x --max_length 2", None),
    "MPLBACKEND=nonsense PYTHONSAFEPATH=1": ("analysis.py data", None),
    "WANDB_MODE=nonsense": ("train.py --model_select tiny --with_wandb", "error: --with_wandb: "),
}


@pytest.mark.parametrize("environment", WRONG_ENVIRONMENT, ids=ascii)
def test_a_wrong_environment_gets_a_line_or_does_no_harm(project, environment, tmp_path):
    if environment.startswith("WANDB"):
        pytest.importorskip("wandb")
    command, said = WRONG_ENVIRONMENT[environment]
    env = os.environ | {"HF_HOME": str(tmp_path)} | dict(part.split("=") for part in environment.split())
    done = project.run(*command.split(), check=False, env=env)
    assert "Traceback" not in done.stderr
    assert done.returncode == (2 if said else 0), done.stderr
    assert done.stderr.startswith(said or "") and (not said or done.stderr.count("\n") == 1)


def test_bad_input_of_evaluate(project, tmp_path):
    assert "no such dataset" in project.fails("evaluate.py", "--dataset_name", "none")
    assert "no such file" in project.fails("evaluate.py", "--file_path", tmp_path / "none.jsonl")
    (tmp_path / "torn.jsonl").write_text('{"token_ids": [1, 2], "label": "Python"}\n{"token_ids": [1, 2')
    assert "torn.jsonl:2" in project.fails(
        "evaluate.py", "--file_path", tmp_path / "torn.jsonl", "--model_path", "tiny"
    )
    message = project.fails("evaluate.py", "--model_path", tmp_path / "none")
    assert "no such folder" in message
    assert "tiny" in message


@pytest.mark.parametrize("arguments", [["train.py", "-h"], ["interact.py", "--prompt=--", "--max_length", "2"]])
def test_a_stdout_that_is_full_ends_in_one_line(project, arguments):
    script = f"{sys.executable} {' '.join(arguments)} > /dev/full"
    done = subprocess.run(script, shell=True, cwd=project.folder, capture_output=True, text=True)
    assert done.stderr == "error: input/output: No space left on device\n"
    assert done.returncode == 2


def test_two_hyphens_are_a_value_like_any_other(project, tmp_path):
    assert "no such file" in project.fails("evaluate.py", "--model_path", "tiny", "--file_path=--")
    project.run("interact.py", "--prompt=--", "--model_path", "tiny", "--max_length", 2)
    assert "error: --: no such" in project.fails("dataset/convert.py", "--source=--", "--dataset_name", "none")


@pytest.mark.parametrize("command", ["train.py", "evaluate.py", "interact.py", "analysis.py"])
def test_help_needs_neither_torch_nor_transformers(project, command):
    script = (
        "import runpy, sys\n"
        "sys.path.insert(0, '.')\n"
        f"sys.argv = [{command!r}, '-h']\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit as end: assert not end.code\n"
        "assert not {'torch', 'transformers', 'matplotlib'} & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=project.folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "python " + command in done.stdout
