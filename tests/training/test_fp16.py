"""fp16 with the real train.py: loss scale, skipped steps, restart. Only these tests let a CPU compute in fp16."""

import json
import logging
import math
import shutil
import sys

import pytest
import torch
from conftest import scalars
from safetensors.torch import load_file

import train
from common import devices, files
from common.command import InputError


@pytest.fixture
def fp16(project, base, monkeypatch):
    """Train in fp16 up to a step, or continue the run of that name; returns its folder."""
    monkeypatch.setattr(devices, "FP16_DEVICES", ("cuda", "cpu"))
    for module in (train, files):
        monkeypatch.setattr(module, "ROOT", project.folder)

    def run(name, max_steps, *flags):
        settings = ["--model_select", base, "--from_scratch", "--max_seq_length", 64, "--lr", 1e-3]
        settings += ["--scheduler", "constantlr", "--logging_steps", 1, "--evaluation_steps", 50, "--save_steps", 1]
        settings += ["--precision", "fp16"]
        command = ["train.py", "--run_name", name, "--max_steps", max_steps, "--restore_training", *settings, *flags]
        monkeypatch.setattr(sys, "argv", list(map(str, command)))
        handlers = logging.getLogger().handlers[:]
        train.main()
        logging.getLogger().handlers[:] = handlers
        return project.folder / "model" / name

    return run


def state_of(run):
    return json.loads((run / "last" / "state.json").read_text())


def with_scaler(run, name, **values):
    """A copy of a run whose saved loss scaler has other values."""
    copy = run.with_name(name)
    shutil.copytree(run, copy)
    state = state_of(run)
    assert state["scaler"].keys() >= values.keys()
    state["scaler"] |= values
    (copy / "last" / "state.json").write_text(json.dumps(state))
    return copy


@pytest.fixture
def begun(fp16, project):
    """A run in fp16 after its second step."""
    folder = project.folder / "model" / "begun"
    return folder if folder.exists() else fp16("begun", 2)


def test_it_learns_what_float32_does(fp16):
    half, full = (scalars(fp16(name, 12, "--precision", name)) for name in ("fp16", "fp32"))
    assert half["loss_train_recent"] == pytest.approx(full["loss_train_recent"], abs=2e-3)
    assert half["loss_train_recent"] != full["loss_train_recent"]
    assert half["grad_norm"] == pytest.approx(full["grad_norm"], rel=0.02)  # the norm is logged without the scale
    assert half["loss_dev"] == pytest.approx(full["loss_dev"], abs=2e-3)
    assert full["loss_dev"][12] < full["loss_train_recent"][1] - 0.1


def test_a_restart_is_bit_for_bit_the_run_that_was_not_interrupted_with_its_scale(fp16, begun):
    whole = with_scaler(begun, "whole_fp16", scale=2.0**25, growth_interval=3)
    parts = shutil.copytree(whole, begun.with_name("parts_fp16"))
    fp16(whole.name, 13)
    for max_steps in (4, 9, 13):
        fp16(parts.name, max_steps)
    skipped = state_of(parts)["progress"]["run"]["skipped_steps"]
    assert skipped > 2
    assert state_of(parts)["scaler"]["scale"] > 2.0 ** (
        25 - skipped
    )  # halved at each skipped step, and sometimes doubled
    assert state_of(parts)["scaler"] == state_of(whole)["scaler"]
    assert state_of(parts)["progress"]["run"] == state_of(whole)["progress"]["run"]
    for name in ("model", "optimizer"):
        expected, got = (load_file(run / "last" / f"{name}.safetensors") for run in (whole, parts))
        assert all(torch.equal(expected[key], got[key]) for key in expected.keys() | got.keys())


def test_steps_that_overflow_are_skipped_counted_and_left_out_of_the_loss(fp16, begun):
    run = with_scaler(begun, "skipping", scale=2.0**25)
    curves, before = scalars(fp16(run.name, 3)), load_file(begun / "last" / "model.safetensors")
    assert not math.isfinite(curves["grad_norm"][3])
    assert curves["skipped_steps"][3] == 1
    assert curves["tokens_seen"][3] == curves["tokens_seen"][2]
    assert state_of(run)["scaler"]["scale"] == 2.0**24
    after = load_file(run / "last" / "model.safetensors")
    assert all(torch.equal(after[name], before[name]) for name in before)
    curves, state = scalars(fp16(run.name, 12)), state_of(run)
    skipped = state["progress"]["run"]["skipped_steps"]
    assert 1 < skipped < 9
    assert state["scaler"]["scale"] == 2.0 ** (25 - skipped)
    assert curves["skipped_steps"][12] == skipped
    assert curves["loss_train_recent"][12] < curves["loss_train_recent"][2]


def test_a_run_may_go_on_in_another_precision(fp16, begun):
    run = shutil.copytree(begun, begun.with_name("changing"))
    assert not state_of(fp16(run.name, 3, "--precision", "fp32"))["scaler"]
    assert state_of(fp16(run.name, 4))["scaler"]["scale"] == 2.0**16
    assert list(scalars(run)["loss_train"]) == [1, 2, 3, 4]


def test_ten_overflows_in_a_row_end_the_run_with_one_line(fp16, begun):
    run = with_scaler(begun, "overflowing", scale=2.0**80)
    with pytest.raises(InputError, match=r"not finite 10 steps in a row at step 12; .* --precision fp32") as caught:
        fp16(run.name, 50)
    assert "\n" not in str(caught.value)
    for name in ("last", "0_GPTSingleHead"):
        kept, before = (load_file(folder / name / "model.safetensors") for folder in (run, begun))
        assert all(torch.equal(kept[key], before[key]) for key in before)
