"""The state of a training run on disk: written whole or not at all, restored bit for bit, no pickle."""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypedDict

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from common.command import InputError
from common.files import replace_folder
from common.json_files import read_json
from training.lora import ADAPTER, has_lora, save_adapter

if TYPE_CHECKING:
    from model import GPTSingleHead


Count = Annotated[int, range(2**63)]


class Report(TypedDict):
    """What a restart needs of ck_report.json."""

    saved_at_total_steps: Count
    eval_scores_on_dev: dict[str, float]


@dataclass
class Progress:
    """How far a run is: what the loop needs to go on, apart from tensors."""

    step: Count = 0  # optimizer steps done
    epoch: Count = 0
    epoch_step: Count = 0  # optimizer steps done in this epoch
    tokens_seen: Count = 0  # unpadded targets trained on
    tokens_before_epoch: Count = 0
    epoch_nats: float = 0.0  # and targets, so far in this epoch
    epoch_targets: float = 0.0
    recent_nats: float = 0.0  # since the last entry in the log
    recent_targets: float = 0.0
    evaluated_step: Count = 0  # the step after which dev was measured last
    best_score: float = -math.inf  # minus the dev perplexity (or loss) of the best model
    report: Report | None = None  # of the best model, as ck_report.json
    early_stop_count: Count = 0  # evaluations since then
    skipped_steps: Count = 0  # steps whose loss or gradient was not finite
    wandb_id: str | None = None


class Saved(TypedDict):
    run: TypedDict("Run", {field.name: field.type for field in fields(Progress)})
    flags: dict


class State(TypedDict):
    """state.json."""

    progress: Saved
    scaler: dict[str, float]


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
        folder: `<run folder>/last`; holds a saved model (of one with LoRA the adapter alone), optimizer.safetensors and
            state.json.
        progress: JSON values that tell how far the run is, with the flags it was started with.
    Raises:
        InputError: the disk is full or may not be written to; what was saved before is kept.
    """
    with one_line_when_full(folder), replace_folder(folder) as new:
        if has_lora(model):
            save_adapter(model, new / ADAPTER)
        else:
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
    saved = _read_state(folder)["progress"]
    return Progress(**{field.name: saved["run"][field.name] for field in fields(Progress)}), saved["flags"]


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
        parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
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
        if state["scaler"]:  # else another precision had none
            scaler.load_state_dict(state["scaler"])
    except (OSError, SafetensorError, KeyError, ValueError, TypeError, RuntimeError) as error:
        raise InputError(f"{folder}: the saved state is damaged ({error}); {_REMEDY}") from None


_REMEDY = "start again with --overwrite, from the run's 0_GPTSingleHead if you like (--model_select)"


def _read_state(folder: Path) -> State:
    return read_json(folder / "state.json", State, _REMEDY)


def _optimizer_tensors(model: "GPTSingleHead", optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    return {
        f"{name}/{key}": value.contiguous()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
        for key, value in optimizer.state[parameter].items()
    }
