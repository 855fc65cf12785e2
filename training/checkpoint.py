"""A run on disk: its best model and its state, written whole or not at all, restored bit for bit, without pickle."""

import json
import math
import os
import shutil
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, TypedDict

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from common.command import InputError
from common.files import atomic_write, open_input, replace_folder
from common.json_files import read_json
from model import GPTSingleHead
from training.config import TrainConfig
from training.lora import ADAPTER, has_lora, save_adapter, save_merged
from training.processes import is_main
from training.run_folder import model_card, report_unwritable

SAVE_SHARE = 20  # saving takes at most 1/SAVE_SHARE of a run's time, unless --save_steps asks for more
# Settings that must not change when a run continues: its model, and everything that decides which windows a step
# sees. "batch" is the batch of an optimizer step over all processes; its division may change.
FIXED = ("model_select", "dataset_name", "train_data", "dev_data", "seed", "fim_rate", "batch", "max_seq_length")
FIXED += ("lora_r", "lora_alpha", "context_rate")
_REMEDY = "start again with --overwrite, from the run's 0_GPTSingleHead if you like (--model_select)"

Count = Annotated[int, range(2**63)]


class Scores(TypedDict):
    loss: float
    perplexity: float


class Report(TypedDict):
    """The part of ck_report.json that a restart needs."""

    saved_at_total_steps: Count
    tokens_seen: Count
    eval_scores_on_dev: Scores


@dataclass
class Progress:
    """How far a run is: everything that the loop needs to continue, except tensors."""

    step: Count = 0  # optimizer steps done
    epoch: Count = 0
    epoch_step: Count = 0  # optimizer steps done in this epoch
    tokens_seen: Count = 0  # unpadded targets trained on
    tokens_before_epoch: Count = 0
    epoch_nats: float = 0.0  # sum of the losses in this epoch
    epoch_targets: float = 0.0
    recent_nats: float = 0.0  # the same since the last entry in the log
    recent_targets: float = 0.0
    evaluated_step: Count = 0  # the step after which dev was measured last
    best_score: float = -math.inf  # minus the dev perplexity (or loss) of the best model
    report: Report | None = None  # ck_report.json of the best model
    early_stop_count: Count = 0  # evaluations since the best one
    skipped_steps: Count = 0  # steps whose loss or gradient was not finite
    wandb_id: str | None = None


class SavedProgress(TypedDict):
    run: TypedDict("Run", {field.name: field.type for field in fields(Progress)})
    flags: dict


class SavedState(TypedDict):
    """state.json."""

    progress: SavedProgress
    scaler: dict[str, float]


class RunSaver:
    """Writes a run's best model and its state.

    On a fast GPU, writing a gigabyte may take longer than the steps between two evaluations. So not every evaluation is
    followed by a save, and the best model is kept in memory until it is written.

    Args:
        folder: the run's.
        flags: the settings that a restart is checked against.
    """

    def __init__(
        self,
        folder: Path,
        model: GPTSingleHead,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        config: TrainConfig,
        flags: dict,
    ):
        self.folder, self._model, self._optimizer, self._scaler = folder, model, optimizer, scaler
        self._config, self._flags = config, flags
        self._best: list[torch.Tensor] | None = None  # the best model's parameters, until they are written
        self._best_is_now = False  # whether the model is currently the best one
        self._next = 0.0

    @property
    def is_due(self) -> bool:
        return time.monotonic() >= self._next

    def keep_best(self) -> None:
        """Note that the model is the best so far. Save it or put it aside before the next step changes it."""
        self._best_is_now, self._best = is_main(), None

    def put_best_aside(self) -> None:
        if self._best_is_now:
            self._best = [parameter.detach().clone() for parameter in self._trained()]
        self._best_is_now = False

    def save(self, progress: Progress) -> None:
        """Write the state, and the best model if it is not written yet.

        Raises:
            InputError: the disk is full or may not be written to; what was saved before is kept.
        """
        began = time.monotonic()
        best_is_now = self._best_is_now
        self.save_best(progress)
        state = {"run": asdict(progress), "flags": self._flags}
        weights = self.folder / "0_GPTSingleHead" if best_is_now else None
        save_checkpoint(self.folder / "last", self._model, self._optimizer, self._scaler, state, weights)
        ended = time.monotonic()
        self._next = ended + SAVE_SHARE * (ended - began)

    def save_best(self, progress: Progress) -> None:
        """Write the best model if it is not written yet."""
        if self._best_is_now:
            _write_best(self.folder, self._model, self._config, progress.report)
        elif self._best is not None:
            self._exchange()
            try:
                _write_best(self.folder, self._model, self._config, progress.report)
            finally:
                self._exchange()
        self._best_is_now, self._best = False, None

    def _exchange(self) -> None:
        for parameter, kept in zip(self._trained(), self._best, strict=True):
            parameter.data, kept.data = kept.data, parameter.data

    def _trained(self) -> list[nn.Parameter]:
        return [parameter for parameter in self._model.parameters() if parameter.requires_grad]


def _write_best(folder: Path, model: GPTSingleHead, config: TrainConfig, report: dict) -> None:
    best = folder / "0_GPTSingleHead"
    with report_unwritable(best), replace_folder(best) as new:
        save_merged(model, new)
        (new / "README.md").write_text(model_card(config, report, model.fim_rate), encoding="utf-8")
    with atomic_write(folder / "ck_report.json") as file:
        json.dump(report, file, indent=2)


def save_checkpoint(
    folder: Path,
    model: GPTSingleHead,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    progress: dict,
    same_weights: Path | None = None,
) -> None:
    """Replace `folder` by one with everything that an exact restart needs.

    The state of random generators is not saved, because step.seed_step computes it from the number of the step.

    Args:
        folder: `<run folder>/last`. It gets the model (with LoRA only the adapter), optimizer.safetensors and
            state.json.
        progress: JSON values: how far the run is, and the flags that it was started with.
        same_weights: a folder that `model.save` has just written. Its files are used again instead of being written a
            second time. Where the disk has hard links, the weights become one file with two names.
    Raises:
        InputError: the disk is full or may not be written to; what was saved before is kept.
    """
    with report_unwritable(folder), replace_folder(folder) as new:
        if has_lora(model):
            save_adapter(model, new / ADAPTER)
        elif same_weights:
            ignored = shutil.ignore_patterns("README.md")
            shutil.copytree(same_weights, new, ignore=ignored, copy_function=_link_weights, dirs_exist_ok=True)
        else:
            model.save(new)
        save_file(_optimizer_tensors(model, optimizer), new / "optimizer.safetensors")
        state = {"progress": progress, "scaler": scaler.state_dict()}
        (new / "state.json").write_text(json.dumps(state, indent=1) + "\n", encoding="utf-8")


def _link_weights(source: str, target: str) -> None:
    if source.endswith(".safetensors"):
        with suppress(OSError):  # for example on a network disk
            os.link(source, target)
            return
    shutil.copy(source, target)


def read_progress(folder: Path) -> tuple[Progress, dict] | None:
    """Return the progress and flags that `save_checkpoint` saved, or None if nothing is saved there.

    Raises:
        InputError: a state that cannot be read.
    """
    if not folder.exists():
        return None
    saved = _read_state(folder)["progress"]
    return Progress(**{field.name: saved["run"][field.name] for field in fields(Progress)}), saved["flags"]


def check_progress(run: Progress, steps_per_epoch: int, folder: Path) -> None:
    """Refuse progress, read from `folder`, that no run can have.

    Raises:
        InputError: names the values that contradict each other.
    """
    best_step = run.report["saved_at_total_steps"] if run.report else 0
    wrong = None
    if run.step != run.epoch * steps_per_epoch + run.epoch_step or run.epoch_step > steps_per_epoch:
        wrong = f"epoch {run.epoch} and epoch_step {run.epoch_step} do not make step {run.step}"
    elif max(run.evaluated_step, best_step) > run.step:
        wrong = f"the last evaluation or the best model is of a step after {run.step}"
    elif math.isfinite(run.best_score) != (run.report is not None):
        wrong = "best_score and report contradict each other"
    if wrong:
        raise InputError(f"{folder / 'state.json'}: {wrong}; {_REMEDY}")


def check_flags(run_folder: Path, saved: dict, now: dict) -> str:
    """Return a message about flags that have changed since the run was started.

    Raises:
        InputError: the run cannot continue with these flags.
    """
    saved = now | saved  # an earlier version of this program did not write the newer flags
    for name in FIXED:
        if saved[name] != now[name]:
            words = "a batch (per GPU x accumulation_steps x GPUs) of" if name == "batch" else f"--{name}"
            change = f"was started with {words} {saved[name]}, not {now[name]}"
            if name in ("train_data", "dev_data"):
                change = f"--dataset_name {now['dataset_name']} has been converted anew since it was started"
            raise InputError(f"{run_folder}: {change}; go on with the same, or start under another --run_name")
    free = now.keys() - {*FIXED, "restore_training", "overwrite", "accumulation_steps", "per_gpu_train_batch_size"}
    changed = [f"--{name} {now[name]} (was {saved[name]})" for name in sorted(free) if saved[name] != now[name]]
    return f"; changed: {', '.join(changed)}" if changed else ""


def restore_checkpoint(
    folder: Path,
    model: GPTSingleHead,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
) -> None:
    """Restore optimizer and scaler. `GPTSingleHead.load(folder)` restores the weights.

    Raises:
        InputError: a state that cannot be read, or one of another model.
    """
    state = _read_state(folder)
    try:
        open_input(folder / "optimizer.safetensors", _REMEDY).close()  # reading from a pipe would never end
        optimizer_tensors = load_file(folder / "optimizer.safetensors")
        parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        wanted = {f"{name}/{key}" for name in parameters for key in ("step", "exp_avg", "exp_avg_sq")}
        if optimizer_tensors.keys() not in (wanted, set()):  # empty if every step was skipped
            raise ValueError(
                f"optimizer.safetensors lacks {min(wanted ^ optimizer_tensors.keys())}, or should not have it"
            )
        for key, tensor in optimizer_tensors.items():
            name, _, kind = key.rpartition("/")
            wanted_shape = () if kind == "step" else parameters[name].shape
            if tensor.shape != wanted_shape or tensor.dtype != torch.float32:
                raise ValueError(f"{key} is {tensor.dtype} of shape {tuple(tensor.shape)}")
            if not tensor.isfinite().all() or (kind != "exp_avg" and (tensor < 0).any()):
                raise ValueError(f"{key} holds values that no optimizer has")
            optimizer.state[parameters[name]][kind] = tensor.to(parameters[name].device)
        if state["scaler"]:  # with another precision there was none
            if min(state["scaler"].values()) < 0 or state["scaler"].get("scale") == 0:
                raise ValueError("a loss scale that is not positive")
            scaler.load_state_dict(state["scaler"])
    except (OSError, SafetensorError, KeyError, ValueError, TypeError, RuntimeError) as error:
        raise InputError(f"{folder}: the saved state is damaged ({error}); {_REMEDY}") from None


def _read_state(folder: Path) -> SavedState:
    return read_json(folder / "state.json", SavedState, _REMEDY)


def _optimizer_tensors(model: GPTSingleHead, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    return {
        f"{name}/{key}": value.contiguous()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
        for key, value in optimizer.state[parameter].items()
    }
