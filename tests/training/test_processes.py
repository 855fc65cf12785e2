"""Two processes under torchrun: they skip the same steps, wait for each other, and report one that has ended."""

import os
import subprocess
import sys

import pytest
from conftest import ROOT
from safetensors.torch import load_file
from torch import equal

HEAD = f"""
import os, signal, sys, time
from pathlib import Path
sys.path.insert(0, {str(ROOT)!r})
import torch
from training import processes
"""

ONE_SIDED = """
from data import SrcCodeDataset
from model import GPTSingleHead
from safetensors.torch import save_file
from trainer import ModelTrainer
from training.config import TrainConfig
from evaluation.loss import SingleCLMEvaluator

base, data, folder = map(Path, sys.argv[1:])
processes.start(1, "0")
torch.manual_seed(0)
model = GPTSingleHead(str(base), 64, from_scratch=True)
datasets = [SrcCodeDataset(data / f"{split}.jsonl", model) for split in ("train", "dev")]
config = TrainConfig(max_steps=3, logging_steps=1, evaluation_steps=9, precision="fp32", scheduler="constantlr")
trainer = ModelTrainer(model, *datasets, SingleCLMEvaluator(precision="fp32", windows=4), config, folder)
plain_step = trainer.step.__class__.__call__
def step(self, *arguments):
    nats = self._summed_loss
    if processes.rank() == 1 and trainer.progress.step == 1:
        self._summed_loss = lambda ids, labels: nats(ids, labels) + float("inf")  # the gradient stays finite
    norm = plain_step(self, *arguments)
    self._summed_loss = nats
    return norm
trainer.step.__class__.__call__ = step
trainer.train()
weights = {name: value.clone() for name, value in model.gpt.transformer.state_dict().items()}
weights["skipped"] = torch.tensor(trainer.progress.skipped_steps)
save_file(weights, folder / f"{processes.rank()}.safetensors")
processes.finish()
"""

ONE_IS_LATE = """
processes.start(1, "0")
if processes.is_main():
    time.sleep(2)  # as it writes
    Path(sys.argv[1]).write_text("whole")
processes.finish()
sys.exit(130)
"""

ONE_IS_GONE = """
from common.command import run_command
def main():
    processes.start(1, "0")
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun sends it, on some machines before the error that is tested
    with processes.others_needed():
        processes.all_sum(torch.zeros(1))
        if not processes.is_main():
            os._exit(3)
        while True:
            processes.all_sum(torch.zeros(1))
run_command(main)
"""


@pytest.fixture
def two(tmp_path):
    def two(script, *arguments):
        (tmp_path / "script.py").write_text(HEAD + script)
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
        return subprocess.run(
            [*torchrun, tmp_path / "script.py", *arguments], capture_output=True, text=True, timeout=120,
            env=os.environ | {"PYTHONWARNINGS": "ignore"},
        )  # fmt: skip

    return two


def test_a_loss_that_is_not_finite_in_one_process_is_skipped_by_all(two, base, dataset_folder, tmp_path):
    done = two(ONE_SIDED, base, dataset_folder, tmp_path)
    assert done.returncode == 0, done.stderr
    first, second = (load_file(tmp_path / f"{rank}.safetensors") for rank in range(2))
    assert first["skipped"] == second["skipped"] == 1
    assert all(equal(first[name], second[name]) for name in first)


def test_none_ends_while_another_still_writes(two, tmp_path):
    two(ONE_IS_LATE, tmp_path / "file")
    assert (tmp_path / "file").read_text() == "whole"


def test_a_process_whose_peer_is_gone_says_so_in_one_line(two):
    done = two(ONE_IS_GONE)
    said = [line for line in done.stderr.splitlines() if "error: process 0: another of the 2 processes" in line]
    assert len(said) == 1, done.stderr
    assert "[rank0]" not in done.stderr
