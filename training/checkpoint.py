"""The state of a training run on disk: written whole or not at all, restored bit for bit, no pickle."""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from common.command import InputError
from common.files import recover_folder, replace_folder

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
    # Nats and targets of this epoch, and since the last entry in the log.
    sums: list[float] = field(default_factory=lambda: [0.0] * 4)
    best_score: float = -math.inf  # minus the dev perplexity (or loss) of the best model
    best_step: int = 0
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
    with replace_folder(folder) as new, one_line_when_full(folder):
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


def read_progress(folder: Path) -> dict | None:
    """The progress that `save_checkpoint` was given, or None if nothing is saved there.

    Raises:
        InputError: a state that cannot be read.
    """
    recover_folder(folder)
    if not folder.exists():
        return None
    return _read_state(folder)["progress"]


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
        for name, parameter in model.named_parameters():
            keys = [key for key in optimizer_tensors if key.rpartition("/")[0] == name]
            for key in keys:
                device = parameter.device
                optimizer.state[parameter][key.rpartition("/")[2]] = optimizer_tensors[key].to(device)
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
