"""train.py as real processes: killed, interrupted, out of disk, and several at once."""

import json
import os
import random
import resource
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import scalars
from safetensors.torch import load_file

FLAGS = ["--max_steps", 40, "--evaluation_steps", 5, "--logging_steps", 2, "--max_seq_length", 64, "--lr", 1e-3]


def train_command(base, run_name):
    return ["train.py", "--model_select", base, "--from_scratch", "--run_name", run_name, *FLAGS]


@pytest.fixture(scope="module")
def whole(project, with_dropout):
    """A run that was never interrupted."""
    project.run(*train_command(with_dropout, "whole"))
    return project.folder / "model" / "whole"


def start_and_wait(project, command, reports):
    """Start a process in a group of its own; return it at its n-th evaluation report, just before it saves a state."""
    process = subprocess.Popen(
        [sys.executable, "-u", *map(str, command)],
        cwd=project.folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    for line in process.stderr:
        reports -= "train_loss =" in line
        if reports == 0:
            break
    return process


def end(process, number, delay):
    """Send a signal `delay` seconds from now; returns the exit status and the output."""
    try:
        process.wait(delay)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, number)
    output, _ = process.communicate(timeout=60)
    return process.returncode, output


def assert_same_weights(expected_run, run, hint=""):
    for file in ("last/model", "last/optimizer", "0_GPTSingleHead/model"):
        expected, got = (load_file(folder / f"{file}.safetensors") for folder in (expected_run, run))
        assert expected.keys() == got.keys()
        assert all(torch.equal(expected[name], got[name]) for name in expected), (file, hint)


def assert_same_run(expected_run, run, hint):
    assert_same_weights(expected_run, run, hint)
    curves, expected_curves = scalars(run), scalars(expected_run)
    for name in expected_curves.keys() - {"tokens_per_second", "tflops"}:
        assert curves[name] == expected_curves[name], (name, hint)
    assert len(curves["loss_train"]) == 20
    assert (run / "ck_report.json").read_text() == (expected_run / "ck_report.json").read_text()
    assert not list(run.glob("*.autocoder-*"))


def test_a_run_killed_again_and_again_ends_bit_for_bit_like_one_that_was_not(project, with_dropout, whole):
    rng = random.Random(0)
    delays = [0.0, 0.02] + [rng.uniform(0, 0.3) for _ in range(3)]
    command = [*train_command(with_dropout, "torn"), "--restore_training"]
    statuses = [end(start_and_wait(project, command, 1), signal.SIGKILL, delay)[0] for delay in delays]
    assert statuses == [-signal.SIGKILL] * 5, delays
    project.run(*command)
    assert_same_run(whole, project.folder / "model" / "torn", delays)


def test_a_second_train_py_leaves_the_run_of_the_first_alone(project, with_dropout, whole):
    command = train_command(with_dropout, "twice")
    first = start_and_wait(project, command, reports=2)
    first.send_signal(signal.SIGSTOP)
    assert f"in use by process {first.pid} " in project.fails(*command, "--overwrite", log_lines=True)
    first.send_signal(signal.SIGCONT)
    first.communicate(timeout=60)
    assert first.returncode == 0
    assert_same_run(whole, project.folder / "model" / "twice", "beside a second one")


def test_sigterm_and_ctrl_c_save_and_print_the_command_that_goes_on(project, with_dropout, whole):
    command = train_command(with_dropout, "interrupted")
    for number, expected_status, delay in ((signal.SIGTERM, 0, 0.0), (signal.SIGINT, 130, 0.04)):
        process = start_and_wait(project, command, 2)
        status, output = end(process, number, delay)
        assert status == expected_status
        said = output.splitlines()[-1]
        assert said.startswith("stopped after step ")
        command = shlex.split(said.partition(": ")[2])[1:]
        assert "--restore_training" in command
    project.run(*command)
    assert_same_run(whole, project.folder / "model" / "interrupted", "")


def test_a_full_disk_is_reported_in_one_line_and_the_state_before_it_still_loads(project, with_dropout):
    command = [*train_command(with_dropout, "full"), "--restore_training", "--max_steps"]
    project.run(*command, 5)
    last = project.folder / "model" / "full" / "last"
    before = {file.name: file.read_bytes() for file in last.iterdir()}

    def limit_file_size(size):  # writing beyond it fails, as on a full disk
        return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    cases = {"0_GPTSingleHead": (300_000, [10]), "tensorboard": (12_000, [40, "--evaluation_steps", 40])}
    for place, (size, flags) in cases.items():
        command_now = [*command, *flags, "--logging_steps", 1]
        message = project.fails(*command_now, preexec_fn=limit_file_size(size), log_lines=True)
        assert f"{place}: cannot be written" in message
        assert "--restore_training" in message
    message = project.fails(*command, 5, "--run_name", "fuller", preexec_fn=limit_file_size(12_000), log_lines=True)
    assert "make room" in message  # for the packed dataset
    assert {file.name: file.read_bytes() for file in last.iterdir()} == before
    done = project.run(*command, 10)
    assert "continuing after step 5" in done.stderr


def test_too_little_memory_is_reported_in_one_line_with_the_flags_to_lower(project, with_dropout):
    def limit_memory():
        resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))

    wide = project.folder / "wide"
    shutil.copytree(with_dropout, wide)
    config = json.loads((wide / "config.json").read_text()) | {"n_inner": 400_000}
    (wide / "config.json").write_text(json.dumps(config))
    command = [
        *train_command(wide, "large"),
        "--per_gpu_train_batch_size",
        1_000_000,
    ]  # limited to all windows of the dataset
    message = project.fails(*command, preexec_fn=limit_memory, log_lines=True)
    assert "out of memory (peak " in message
    assert "--per_gpu_train_batch_size" in message


def test_wandb_without_a_key_runs_offline_and_never_asks(project, with_dropout):
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(project.folder / "home"), "HF_HUB_OFFLINE": "1"}
    command = [*train_command(with_dropout, "tracked"), "--with_wandb", "--max_steps", 3]
    done = project.run(*command, env=environment, stdin=subprocess.DEVNULL)
    assert "offline" in done.stderr
    assert list((project.folder / "model" / "tracked").glob("wandb/offline-run-*/*.wandb"))


def test_a_wandb_server_that_is_not_there_costs_the_tracking_alone(project, with_dropout):
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(project.folder / "home"), "HF_HUB_OFFLINE": "1"}
    environment |= {"WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_INIT_TIMEOUT": "2"}
    command = [*train_command(with_dropout, "untracked"), "--with_wandb", "--max_steps", 3]
    done = project.run(*command, env=environment, stdin=subprocess.DEVNULL)
    assert "kept offline" in done.stderr
    assert "Traceback" not in done.stderr
    assert list((project.folder / "model" / "untracked").glob("wandb/offline-run-*/*.wandb"))


def test_without_a_compiler_it_trains_on_uncompiled(project, with_dropout):
    environment = {"PATH": "/nowhere", "HF_HUB_OFFLINE": "1", "TORCHINDUCTOR_CACHE_DIR": str(project.folder / "cache")}
    command = [*train_command(with_dropout, "uncompiled"), "--compile", "on", "--max_steps", 3]
    done = project.run(*command, env=environment)
    assert "not compiled" in done.stderr
    assert "best model" in done.stderr


def test_two_processes_killed_and_gone_on_by_one_learn_what_one_process_does(project, base):
    flags = ["--precision", "fp32", "--max_steps", 20, "--logging_steps", 1]
    one = [*train_command(base, "one"), *flags, "--per_gpu_train_batch_size", 4, "--accumulation_steps", 2]
    project.run(*one)
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2]
    two = [*torchrun, *train_command(base, "two"), *flags, "--per_gpu_train_batch_size", 2, "--accumulation_steps", 2]
    process = start_and_wait(project, two, 3)
    for worker in Path("/proc").glob("[0-9]*/cmdline"):  # torchrun's workers are in groups of their own
        if b"--run_name\0two\0" in worker.read_bytes():
            os.kill(int(worker.parent.name), signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process.stderr.close()
    state = json.loads((project.folder / "model" / "two" / "last" / "state.json").read_text())
    assert 0 < state["progress"]["run"]["step"] < 20
    project.run(*[*one, "--run_name", "two", "--restore_training"])
    expected, got = (scalars(project.folder / "model" / name) for name in ("one", "two"))
    for name in ("loss_train_recent", "loss_train", "grad_norm", "loss_dev", "eval_accuracy_dev", "tokens_seen"):
        assert list(got[name]) == list(expected[name])
        assert list(got[name].values()) == pytest.approx(list(expected[name].values()), abs=1e-5), name


def test_more_gpus_than_there_are_is_refused(project):
    message = project.fails("train.py", "--n_gpu", 2, "--run_name", "many")
    assert "this machine has 0" in message
    assert "torchrun" in message


def test_machines_without_a_shared_disk_train_together_and_are_told_why_they_cannot_go_on(project, base, tmp_path):
    """Two machines are two copies of the project here; only the first one's disk gets the run's state."""
    other = tmp_path / "other"
    shutil.copytree(project.folder, other, ignore=shutil.ignore_patterns("model", ".cache", "*.pyc"))

    def run_on_both(*flags):
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        torchrun = ["-m", "torch.distributed.run", "--nnodes", 2, "--master_addr", "127.0.0.1", "--master_port", port]
        return [
            subprocess.Popen(
                list(map(str, [sys.executable, *torchrun, "--node_rank", rank, *train_command(base, "nodes"), *flags])),
                cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )
            for rank, folder in enumerate((project.folder, other))
        ]  # fmt: skip

    outputs = [process.communicate(timeout=120)[1] for process in run_on_both("--max_steps", 2)]
    assert "best model: dev perplexity" in outputs[0]
    assert [*(other / ".cache" / "source_code").glob("*/train/meta.json")]
    assert not (other / "model").exists()
    processes = run_on_both("--max_steps", 4, "--restore_training")
    outputs = [process.communicate(timeout=120)[1] for process in processes]
    assert all(process.returncode for process in processes)
    assert any("put model/ on a shared disk" in output for output in outputs)
