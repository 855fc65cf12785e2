"""The state of a training run on disk: written whole or not at all, restored bit for bit, no pickle."""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from common.command import InputError
from common.files import replace_folder

if TYPE_CHECKING:
    from model import GPTSingleHead


@dataclass
class Progress:
    """How far a run is: what the loop needs to go on, apart from tensors."""

    step: int = 0  # optimizer steps done
    epoch: int = 0
    epoch_step: int = 0  # optimizer steps done in this epoch
    tokens_seen: int = 0  # unpadded targets trained on
    tokens_before_epoch: int = 0
    epoch_nats: float = 0.0  # and targets, so far in this epoch
    epoch_targets: float = 0.0
    recent_nats: float = 0.0  # since the last entry in the log
    recent_targets: float = 0.0
    evaluated_step: int = 0  # the step after which dev was measured last
    best_score: float = -math.inf  # minus the dev perplexity (or loss) of the best model
    report: dict | None = None  # of the best model, as ck_report.json
    early_stop_count: int = 0  # evaluations since then
    skipped_steps: int = 0  # steps whose loss or gradient was not finite
    wandb_id: str | None = None


def save_checkpoint(
    folder: Path,
    model: "GPTSingleHead",
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    progress: dict,
) -> None:
    """Replace `folder` by one that holds everything an exact restart needs.

    Random generators are not among it: schedule.seed_step makes their state a function of the step.

    Args:
        folder: `<run folder>/last`; holds a saved model, optimizer.safetensors and state.json.
        progress: JSON values that tell how far the run is, with the flags it was started with.
    Raises:
        InputError: the disk is full or may not be written to; what was saved before is kept.
    """
    with one_line_when_full(folder), replace_folder(folder) as new:
        model.save(new)
        save_file(_optimizer_tensors(model, optimizer), new / "optimizer.safetensors")
        state = {"progress": progress, "scaler": scaler.state_dict()}
        (new / "state.json").write_text(json.dumps(state, indent=1) + "\n", encoding="utf-8")


@contextmanager
def one_line_when_full(folder: Path) -> Iterator[None]:
    """Turn a failure to write below `folder` into an InputError that says what is kept."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"{folder}: cannot be written ({error}); what was saved before is kept; make room, then go on with "
            "--restore_training"
        ) from None


def read_progress(folder: Path) -> tuple[Progress, dict] | None:
    """How far the run is that `save_checkpoint` has saved and its flags, or None if nothing is saved there.

    Raises:
        InputError: a state that cannot be read.
    """
    if not folder.exists():
        return None
    saved = _read_state(folder)
    try:
        progress, flags = Progress(**saved["progress"]["run"]), dict(saved["progress"]["flags"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{folder / 'state.json'}: not as this version writes it ({error}); {_REMEDY}") from None
    for known in fields(Progress):
        default, value = known.default, getattr(progress, known.name)
        if default is not None and not isinstance(value, (int, float) if isinstance(default, float) else int):
            raise InputError(f"{folder / 'state.json'}: {known.name} is {value!r}; {_REMEDY}")
    return progress, flags


def restore_checkpoint(
    folder: Path,
    model: "GPTSingleHead",
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
) -> None:
    """Put optimizer and scaler back; the weights come with `GPTSingleHead.load(folder)`.

    Raises:
        InputError: a state that cannot be read, or one of another model.
    """
    state = _read_state(folder)
    try:
        optimizer_tensors = load_file(folder / "optimizer.safetensors")
        parameters = dict(model.named_parameters())
        wanted = {f"{name}/{key}" for name in parameters for key in ("step", "exp_avg", "exp_avg_sq")}
        if optimizer_tensors.keys() not in (wanted, set()):  # none before the first step that was not skipped
            raise ValueError(
                f"optimizer.safetensors lacks {min(wanted ^ optimizer_tensors.keys())}, or has it too much"
            )
        for key, tensor in optimizer_tensors.items():
            name, _, kind = key.rpartition("/")
            if kind != "step" and tensor.shape != parameters[name].shape:
                raise ValueError(f"{key} has the shape {tuple(tensor.shape)}")
            optimizer.state[parameters[name]][kind] = tensor.to(parameters[name].device)
        scaler.load_state_dict(state["scaler"])
    except (OSError, SafetensorError, KeyError, ValueError, TypeError, RuntimeError) as error:
        raise InputError(f"{folder}: the saved state is damaged ({error}); {_REMEDY}") from None


_REMEDY = "start again with --overwrite, from the run's 0_GPTSingleHead if you like (--model_select)"


def _read_state(folder: Path) -> dict:
    try:
        return json.loads((folder / "state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{folder / 'state.json'}: the saved state is damaged ({error}); {_REMEDY}") from None


def _optimizer_tensors(model: "GPTSingleHead", optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    return {
        f"{name}/{key}": value.contiguous()
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state[parameter].items()
    }
