"""How train.py starts: the GPUs that it uses, its question, its errors. No GPU is needed."""

import logging
import os
import re
import signal
import sys

import pytest
import torch
from conftest import scalars
from safetensors.torch import load_file, save_file

import train
from common import files, gpu
from common.command import InputError
from model import GPTSingleHead
from training import checkpoint, processes
from training.processes import StopSignal


class Started(Exception):
    """Raised instead of replacing this process by another program."""


@pytest.fixture
def four_gpus(monkeypatch):
    """Pretend to have four GPUs; returns the arguments and visible GPUs of each program that is started."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch, "set_float32_matmul_precision", lambda _: None)
    started = []

    def take_over(program, arguments):
        started.append((arguments, os.environ["CUDA_VISIBLE_DEVICES"]))
        raise Started

    monkeypatch.setattr(os, "execv", take_over)
    return started


@pytest.fixture
def command(project, base, monkeypatch):
    """Call train.py's main in this process; returns the run's folder."""

    def command(name, *flags):
        for module in (train, files):
            monkeypatch.setattr(module, "ROOT", project.folder)
        small = ["--model_select", base, "--from_scratch", "--max_seq_length", 64, "--max_steps", 2]
        monkeypatch.setattr(sys, "argv", ["train.py", "--run_name", name, *map(str, [*small, *flags])])
        handlers = logging.getLogger().handlers[:]
        try:
            train.main()
        finally:
            logging.getLogger().handlers[:] = handlers
        return project.folder / "model" / name

    return command


@pytest.mark.parametrize(
    ("visible", "expected"), [("4,5,6,7", "6,4"), ("", "2,0"), ("GPU-a,GPU-b,GPU-c,GPU-d", "GPU-c,GPU-a")]
)
def test_gpus_are_counted_among_those_that_are_visible(four_gpus, monkeypatch, visible, expected):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(sys, "argv", ["train.py", "--n_gpu", "2"])
    with pytest.raises(Started):
        processes.start(2, "2,0")
    arguments, seen = four_gpus[0]
    assert seen == expected
    assert "--nproc_per_node=2" in arguments
    assert arguments[-3:] == ["train.py", "--n_gpu", "2"]


@pytest.mark.parametrize(
    ("n_gpu", "gpus", "said"), [(5, "0", "this machine has 4"), (2, "0,1,2", "as many"), (2, "3,4", "has 4")]
)
def test_gpus_that_are_not_there_are_refused(four_gpus, n_gpu, gpus, said):
    with pytest.raises(InputError, match=said):
        processes.start(n_gpu, gpus)
    assert not four_gpus


def test_it_asks_once_whether_to_overwrite_before_it_starts_the_others(four_gpus, command, project, monkeypatch):
    last = project.folder / "model" / "asked" / "last"
    last.mkdir(parents=True)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    questions = []
    monkeypatch.setattr("builtins.input", lambda question: questions.append(question) or "y")
    with pytest.raises(Started):
        command("asked", "--n_gpu", 2)
    assert len(questions) == 1
    arguments, _ = four_gpus[0]
    assert arguments[-1] == "--overwrite"  # so that none of the others asks
    assert last.exists()  # nothing is deleted before everything is checked


def test_the_largest_seed_trains(command):
    assert (command("seeded", "--seed", 2**63 - 1, "--fim_rate", 0.5) / "last").is_dir()


def test_a_gpu_too_small_for_the_model_is_reported_with_the_flags_to_lower(command, project, monkeypatch):
    def out_of_memory(self, device):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    monkeypatch.setattr(GPTSingleHead, "to", out_of_memory)
    with pytest.raises(InputError, match=r"out of memory .* --per_gpu_train_batch_size"):
        command("too_large")
    assert not (project.folder / "model" / "too_large").exists()


def test_a_compiler_that_fails_without_a_word_costs_the_compilation_alone(command, monkeypatch, caplog):
    def fails(*_arguments, **_options):
        raise AssertionError

    monkeypatch.setattr(torch, "compile", lambda _function, **_options: fails)
    command("not_compiled", "--compile", "on")
    assert "not compiled, so slower (AssertionError)" in caplog.text


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("exp_avg", lambda tensor: tensor.to(torch.int64)),
        ("exp_avg", lambda tensor: tensor * float("nan")),
        ("exp_avg_sq", lambda tensor: tensor - 1),
        ("step", lambda tensor: tensor.expand(3).clone()),
    ],
    ids=["integers", "not finite", "below 0", "three steps"],
)
def test_moments_that_no_optimizer_has_are_refused(command, kind, change):
    run = command("moments", "--restore_training")
    file = run / "last" / "optimizer.safetensors"
    content, tensors = file.read_bytes(), load_file(file)
    name = min(key for key in tensors if key.endswith(f"/{kind}"))
    try:
        save_file(tensors | {name: change(tensors[name])}, file)
        with pytest.raises(InputError, match=r"damaged \(.*start again"):
            command("moments", "--restore_training", "--max_steps", 4)
    finally:
        file.write_bytes(content)


def test_a_pipe_in_place_of_the_moments_is_refused(command):
    run = command("pipe", "--restore_training")
    file = run / "last" / "optimizer.safetensors"
    content = file.read_bytes()
    file.unlink()
    os.mkfifo(file)
    try:
        with pytest.raises(InputError, match=r"optimizer\.safetensors: not a regular file; remove it"):
            command("pipe", "--restore_training", "--max_steps", 4)
    finally:
        file.unlink()
        file.write_bytes(content)


@pytest.mark.parametrize("change", ["renamed", "left out", "added"])
def test_a_state_of_another_optimizer_is_refused(command, change):
    run = command("state", "--restore_training")
    file = run / "last" / "optimizer.safetensors"
    content, tensors = file.read_bytes(), load_file(file)
    name = min(tensors)
    if change != "added":
        tensors.pop(name)
    if change != "left out":
        tensors[f"{name}_2"] = torch.zeros(1)
    try:
        save_file(tensors, file)
        with pytest.raises(InputError, match=r"damaged \(optimizer.safetensors lacks .*start again"):
            command("state", "--restore_training", "--max_steps", 4)
    finally:
        file.write_bytes(content)


EDITS = {
    "torn": lambda text: text[: len(text) // 2],
    "of another kind": lambda text: "[]",
    "a step below 0": lambda text: text.replace('"step": 2', '"step": -2'),
    "a step that is a text": lambda text: text.replace('"step": 2', '"step": "2"'),
    "a step too few": lambda text: text.replace('"epoch_step"', '"epoch_steps"'),
    "another report": lambda text: text.replace('"saved_at_total_steps"', '"saved_at"'),
    "scores that are none": lambda text: re.sub('"perplexity": [0-9.]+', '"perplexity": "low"', text),
    "no flags": lambda text: text.replace('"flags"', '"settings"'),
    "a best score that is none": lambda text: re.sub('"best_score": [-0-9.]+', '"best_score": NaN', text),
    "a best score without a report": lambda text: re.sub('"best_score": [-0-9.]+', '"best_score": -Infinity', text),
    "a far epoch": lambda text: re.sub('"epoch": 0', '"epoch": 1000000', text, count=1),
    "a report without its perplexity": lambda text: re.sub('"perplexity": [0-9.]+,', "", text),
    "an evaluation of the future": lambda text: text.replace('"evaluated_step": 2', '"evaluated_step": 9'),
    "a scale that is none": lambda text: text.replace('"scaler": {}', '"scaler": {"scale": "abc"}'),
}


@pytest.mark.parametrize("edit", EDITS)
def test_a_state_that_someone_edited_gets_one_line(command, edit):
    file = command("state", "--restore_training") / "last" / "state.json"
    content = file.read_text()
    changed = EDITS[edit](content)
    assert changed != content
    try:
        file.write_text(changed)
        with pytest.raises(InputError, match=r"state.json: .*start again with --overwrite") as caught:
            command("state", "--restore_training", "--max_steps", 4)
        assert "\n" not in str(caught.value)
        assert file.read_text() == changed
    finally:
        file.write_text(content)


def test_a_state_without_a_flag_that_is_newer_goes_on(command):
    file = command("older", "--restore_training") / "last" / "state.json"
    file.write_text(re.sub('"save_steps": 0,', "", file.read_text()))
    assert '"step": 3' in (command("older", "--restore_training", "--max_steps", 3) / "last/state.json").read_text()


def test_a_run_cannot_learn_to_fill_in_the_middle_half_way(command):
    command("plain", "--restore_training")
    with pytest.raises(InputError, match=r"was started with --fim_rate 0.0, not 0.5"):
        command("plain", "--restore_training", "--fim_rate", 0.5)


def test_a_disk_that_fails_in_the_end_is_reported_in_one_line(command, monkeypatch):
    def fails(_descriptor):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises((InputError, OSError), match="nput/output error"):
        command("not_synced")


@pytest.mark.parametrize(
    "numbers", [(signal.SIGINT, signal.SIGTERM), (signal.SIGTERM, signal.SIGINT), (signal.SIGINT,) * 2]
)
def test_a_second_signal_stops_at_once(numbers):
    before = {number: signal.getsignal(number) for number in numbers}
    got = []
    try:
        for number in numbers:
            signal.signal(number, lambda number, _frame: got.append(number))
        with StopSignal() as stop:
            signal.raise_signal(numbers[0])
            assert stop.noted == numbers[0]
            assert not got
            signal.raise_signal(numbers[1])
            assert got == [numbers[1]]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_a_run_that_ended_while_this_one_waited_for_it_is_not_deleted(command, monkeypatch):
    run = command("first")
    before = (run / "last" / "state.json").read_bytes()
    monkeypatch.setattr(train, "check_free", lambda *_: None)  # as if the first run had ended after the check
    with pytest.raises(InputError, match="holds an earlier run"):
        command("first")
    assert (run / "last" / "state.json").read_bytes() == before


def test_evaluations_that_follow_closely_are_not_all_saved_but_the_best_model_is_kept(command, monkeypatch):
    monkeypatch.setattr(checkpoint, "SAVE_SHARE", 10**6)
    written = []
    write_best = checkpoint._write_best

    def note(folder, model, config, report):
        written.append(report["saved_at_total_steps"])
        write_best(folder, model, config, report)

    monkeypatch.setattr(checkpoint, "_write_best", note)
    # float32, since the best step is another one on other processors in bf16
    flags = (
        "--max_steps",
        6,
        "--evaluation_steps",
        1,
        "--lr",
        0.05,
        "--scheduler",
        "constantlr",
        "--precision",
        "fp32",
    )
    run = command("seldom_saved", *flags, "--logging_steps", 1)
    perplexities = scalars(run)["eval_perplexity_dev"]
    best = min(perplexities, key=perplexities.get)
    assert 1 < best < 6  # so that it was put aside, and the steps after it have changed the model
    assert written == [1, best]
    kept, last = (load_file(run / name / "model.safetensors") for name in ("0_GPTSingleHead", "last"))
    assert any(not torch.equal(kept[name], last[name]) for name in kept)
    monkeypatch.setattr(checkpoint, "SAVE_SHARE", 0)
    expected = load_file(command("often_saved", *flags) / "0_GPTSingleHead" / "model.safetensors")
    assert all(torch.equal(kept[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("cuda", "available", "capability", "said"),
    [
        (None, False, (0, 0), "install a CUDA build"),
        ("13.0", False, (0, 0), "its driver is too old"),
        ("13.0", True, (6, 0), "Tesla P100 has compute capability 6.0, and this PyTorch supports 7.5 and newer"),
        ("13.0", True, (9, 0), None),
    ],
)
def test_a_gpu_that_pytorch_cannot_use_is_named_with_what_to_install(
    monkeypatch, capsys, cuda, available, capability, said
):
    monkeypatch.setattr(gpu, "has_gpu", lambda: True)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla P100")
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_90", "sm_120", "compute_120"])
    assert gpu.usable_gpu() is (said is None)
    printed = capsys.readouterr().err
    assert printed.count("\n") == (said is not None)
    assert said is None or said in printed
