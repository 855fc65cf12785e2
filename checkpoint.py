"""The state of a training run on disk: written whole or not at all, restored bit for bit, no pickle."""

import json
import random
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from common import InputError, recover_folder, replace_folder

if TYPE_CHECKING:
    from model import GPTSingleHead


def save_checkpoint(
    folder: Path,
    model: "GPTSingleHead",
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    progress: dict,
) -> None:
    """Replace `folder` by one that holds everything an exact restart needs.

    Args:
        folder: `<run folder>/last`; holds a saved model, optimizer.safetensors, rng.safetensors and state.json.
        progress: JSON values that tell how far the run is, with the flags it was started with.
    """
    with replace_folder(folder) as new:
        model.save(new)
        save_file(_optimizer_tensors(model, optimizer), new / "optimizer.safetensors")
        save_file(_rng_tensors(), new / "rng.safetensors")
        state = {"progress": progress, "scaler": scaler.state_dict(), "python_rng": random.getstate()}
        (new / "state.json").write_text(json.dumps(state, indent=1) + "\n", encoding="utf-8")


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
    """Put optimizer, scaler and every random generator back; the weights come with `GPTSingleHead.load(folder)`.

    Raises:
        InputError: a state that cannot be read, or one of another model.
    """
    state = _read_state(folder)
    try:
        optimizer_tensors = load_file(folder / "optimizer.safetensors")
        rng = load_file(folder / "rng.safetensors")
        for name, parameter in model.named_parameters():
            keys = [key for key in optimizer_tensors if key.rpartition("/")[0] == name]
            for key in keys:
                device = parameter.device
                optimizer.state[parameter][key.rpartition("/")[2]] = optimizer_tensors[key].to(device)
        scaler.load_state_dict(state["scaler"])
        version, internal, gauss = state["python_rng"]
        random.setstate((version, tuple(internal), gauss))
        np.random.set_state(("MT19937", rng["numpy_keys"].numpy(), int(rng["numpy_position"]), 0, 0.0))
        torch.set_rng_state(rng["torch"])
        for index in range(torch.cuda.device_count()):
            if f"cuda_{index}" in rng:
                torch.cuda.set_rng_state(rng[f"cuda_{index}"], index)
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


def _rng_tensors() -> dict[str, torch.Tensor]:
    _, keys, position, _, _ = np.random.get_state()
    tensors = {
        "torch": torch.get_rng_state(),
        "numpy_keys": torch.from_numpy(keys.copy()),
        "numpy_position": torch.tensor(position),
    }
    for index in range(torch.cuda.device_count()):
        tensors[f"cuda_{index}"] = torch.cuda.get_rng_state(index)
    return tensors
