"""Read training runs from the disk: their TensorBoard files and settings."""

import contextlib
import itertools
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict

from common.command import InputError
from common.files import ROOT
from common.json_files import read_json
from dataset.format import read_split
from training.config import RECIPE_RESULTS

Curve = dict[int, float]  # optimizer step -> value
PERPLEXITY = "eval_perplexity_dev"
# The names that Hugging Face's Trainer logs, and ours for the same scalars.
ALIASES = {
    "train/loss": "loss_train_recent",
    "eval/loss": "loss_dev",
    "train/learning_rate": "lr",
    "train/grad_norm": "grad_norm",
    "train/num_input_tokens_seen": "tokens_seen",
}


class Settings(TypedDict, total=False):
    """The part of a run's hyperparams.json that is used here."""

    model_select: str
    from_scratch: bool
    dataset_name: str
    recipe: str
    dev_windows: int
    num_epochs_train: int
    max_seq_length: int
    lr: float
    warmup_ratio: float


@dataclass
class Run:
    """What a run has logged.

    Attributes:
        scalars: name -> curve, in the order of the steps. Values that a restart computed again are left out.
        minutes: step -> minutes of training until then. The pause before a restart is not counted.
        settings: from hyperparams.json; empty for a run of another program.
    """

    name: str
    scalars: dict[str, Curve] = field(default_factory=dict)
    minutes: Curve = field(default_factory=dict)
    settings: Settings = field(default_factory=Settings)

    def positions(self, steps: Sequence[int], axis: str) -> list[float]:
        """Return where steps are on an axis: "step", "tokens" (trained on) or "time" (minutes).

        Raises:
            InputError: the run has not logged its tokens.
        """
        if axis == "step":
            return list(steps)
        known = {"tokens": self.scalars.get("tokens_seen"), "time": self.minutes}[axis]
        if not known:
            raise InputError(f"--x tokens: {self.name} has not logged tokens_seen; choose --x step or --x time")
        import numpy as np

        return np.interp(steps, list(known), list(known.values())).tolist()

    @property
    def model(self) -> str:
        name = self.settings.get("model_select", "unknown")
        return f"{name}, from random weights" if self.settings.get("from_scratch") else name

    @property
    def dataset(self) -> str:
        """The dataset's name and, if the dataset still exists, how it is split."""
        name = self.settings.get("dataset_name", "unknown")
        try:
            return f"{name} (split by {read_split(ROOT / 'dataset' / name / 'json')})"
        except InputError:
            return name

    def last(self, *scalars: str) -> float | None:
        """Return the last value of the first of `scalars` that the run has logged."""
        return next((next(reversed(self.scalars[name].values())) for name in scalars if name in self.scalars), None)

    def finite_perplexities(self) -> Curve:
        return {step: value for step, value in self.scalars.get(PERPLEXITY, {}).items() if math.isfinite(value)}

    def results(self) -> dict[str, float | None]:
        """Return the results in the report's table, then those that the report does not have."""
        finite = self.finite_perplexities()
        best = min(finite, key=finite.__getitem__, default=None)
        values = (
            -finite[best] if best is not None else None,
            self.last(PERPLEXITY),
            self.last("loss_dev"),
            self.last("loss_train", "loss_train_recent"),
        )
        return dict(zip(RECIPE_RESULTS, values, strict=True)) | {
            "perplexity_padded": self.last("eval_perplexity_padded_dev"),
            "best_step": best,
            "steps": max(step for curve in self.scalars.values() for step in curve),
        }


def read_run(folder: Path, name: str) -> Run:
    """Read a run folder or a folder of TensorBoard files. The run may still be running or have been restarted.

    Raises:
        InputError: there is no such folder, it has no readable TensorBoard file with scalars, or its hyperparams.json
            is not as train.py writes it.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; name a run folder, such as model/<run_name>")
    logs = folder / "tensorboard" if (folder / "tensorboard").is_dir() else folder
    settings = folder / "hyperparams.json"
    run = Run(name, settings=read_json(settings, Settings, "correct it or move it away") if settings.exists() else {})
    files = [read_events(file) for file in sorted(logs.glob("*tfevents*")) if file.is_file()]
    started = 0.0  # when the run would have started if it had never paused
    for events in sorted(filter(None, files), key=lambda events: events[0].wall_time):
        started = started or events[0].wall_time
        for event in events:
            if event.HasField("session_log") and event.session_log.status == event.session_log.START:
                for curve in (*run.scalars.values(), run.minutes):
                    for step in [step for step in curve if step >= event.step]:
                        del curve[step]
                started = event.wall_time - 60 * max(run.minutes.values(), default=0.0)
            for tag, value in scalars_of(event):
                run.scalars.setdefault(ALIASES.get(tag, tag), {})[event.step] = value
                run.minutes[event.step] = (event.wall_time - started) / 60
    run.scalars = {tag: dict(sorted(curve.items())) for tag, curve in run.scalars.items() if curve}
    run.minutes = dict(sorted(run.minutes.items()))
    if not run.scalars:
        raise InputError(f"{logs}: has no TensorBoard file with scalars; perhaps the run has logged nothing yet")
    if perplexities := run.finite_perplexities():
        best = itertools.accumulate((-value for value in perplexities.values()), max)
        run.scalars.setdefault("best_score_for_perplexity", dict(zip(perplexities, best, strict=True)))
    return run


def read_events(path: Path) -> list:
    """Read the events of one TensorBoard file. If it is damaged, use those before the damage and print a note."""
    from google.protobuf.message import DecodeError
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
    from tensorboard.compat.proto.event_pb2 import Event

    size = path.stat().st_size  # measured before reading, because the run may still be writing
    events, read = [], 0
    with contextlib.suppress(DecodeError):
        for record in RawEventFileLoader(str(path)).Load():
            events.append(Event.FromString(record))
            read += len(record) + 16  # with its length and two checksums
    if not events or read < size:
        print(f"note: {path}: damaged or empty; only its first {len(events)} records are used", file=sys.stderr)
    return events


def scalars_of(event) -> Iterator[tuple[str, float]]:
    """Yield the name and value of each scalar in a TensorBoard event."""
    from tensorboard.util.tensor_util import make_ndarray

    for value in event.summary.value:
        if value.HasField("simple_value"):
            yield value.tag, value.simple_value
        elif value.HasField("tensor"):  # as TensorFlow 2 writes scalars
            try:
                array = make_ndarray(value.tensor)
            except (KeyError, TypeError, ValueError):  # its type has no numbers, or does not fit its content
                continue
            if array.size == 1 and array.dtype.kind in "fiu":
                yield value.tag, array.item()
