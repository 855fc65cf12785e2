"""Weights between those of the base and those of the adapted model, so that the model forgets less of other code.

On the straight line between both, the loss on other code falls much faster than the loss on the project rises (WiSE-FT,
Wortsman et al. 2022, arXiv:2109.01903). With SmolLM2-135M on a project, 70 steps of 4 rows: trained weights had 0.918
bits per byte there and 3.1 % more on Python's library; 0.7 of their change had 0.944, and 1.5 % less than the base.
"""

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from adaptation.comparison import load_model, measure_loss
from common.files import replace_folder
from common.json_files import read_json
from training.lora import ADAPTER

if TYPE_CHECKING:
    from torch.nn import Parameter

    from model import GPTSingleHead

SHARES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)  # of the change from the base to the adapted weights
MOST_LOSS = 1.01  # of other code, relative to the base's
AVERAGE = "average.json"  # in the model's folder


class Average(TypedDict):
    """The file AVERAGE."""

    share: float


def average(best: Path, base: str, general: Path, row_tokens: int, windows: int) -> float:
    """Replace the adapted model by one between it and its base, and return which share of the change it keeps.

    It keeps the largest of SHARES with which the loss on `general`, a jsonl file, is at most MOST_LOSS times the
    base's. Called again after a stop, it does not average the average.

    Args:
        best: the folder of the adapted model.
        row_tokens, windows: measure on so many windows of so many tokens.
    """
    if (best / AVERAGE).is_file():
        return read_json(best / AVERAGE, Average, "remove the run folder to start the adaptation again")["share"]
    model = load_model(base, row_tokens)
    allowed = MOST_LOSS * measure_loss(model, general, windows)["loss"]
    old = dict(model.gpt.named_parameters())
    model, before = load_model(str(best), row_tokens), 1.0
    for share in SHARES:
        _move_back(model, old, share / before)
        before = share
        if measure_loss(model, general, windows)["loss"] <= allowed:
            break
    with replace_folder(best) as folder:
        shutil.copytree(best, folder, dirs_exist_ok=True)
        if share < 1:
            model.save(folder)
            shutil.rmtree(folder / ADAPTER, ignore_errors=True)  # with LoRA: it is the adapter of the trained weights
        (folder / AVERAGE).write_text(json.dumps({"share": share}) + "\n", encoding="utf-8")
    return share


def _move_back(model: "GPTSingleHead", old: "dict[str, Parameter]", share: float) -> None:
    """Reduce the weights' distance from the old ones to a share of it, in place, because two models fill the memory."""
    for name, new in model.gpt.named_parameters():
        if name in old:  # `new` may have more rows, the embeddings of new marker words
            new.data[: len(old[name])].lerp_(old[name].data, 1 - share)
