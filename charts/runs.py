"""Training runs as they lie on the disk: their TensorBoard files and settings."""

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
from training.config import RESULTS

Curve = dict[int, float]  # optimizer step -> value
PERPLEXITY = "eval_perplexity_dev"
# What the Trainer of Hugging Face calls the same.
ALIASES = {
    "train/loss": "loss_train_recent",
    "eval/loss": "loss_dev",
    "train/learning_rate": "lr",
    "train/grad_norm": "grad_norm",
    "train/num_input_tokens_seen": "tokens_seen",
}


class Settings(TypedDict, total=False):
    """What is read of a run's hyperparams.json."""

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
        scalars: by name, in the order of the steps; what a restart has made void is left out.
        minutes: step -> time in training up to then; the pause before a restart of ours does not count.
        settings: hyperparams.json; empty for a run of another program.
    """

    name: str
    scalars: dict[str, Curve] = field(default_factory=dict)
    minutes: Curve = field(default_factory=dict)
    settings: Settings = field(default_factory=Settings)

    def positions(self, steps: Sequence[int], axis: str) -> list[float]:
        """Where steps lie on an axis: "step", "tokens" (trained on) or "time" (minutes).

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
        """Its name, and how it is split today."""
        name = self.settings.get("dataset_name", "unknown")
        try:
            return f"{name} (split by {read_split(ROOT / 'dataset' / name / 'json')})"
        except InputError:
            return name

    def last(self, *scalars: str) -> float | None:
        """The last value of the first of the scalars that has been logged."""
        return next((next(reversed(self.scalars[name].values())) for name in scalars if name in self.scalars), None)

    def results(self) -> dict[str, float | None]:
        """The rows of the report's table, then what it lacks."""
        finite = {step: value for step, value in self.scalars.get(PERPLEXITY, {}).items() if math.isfinite(value)}
        best = min(finite, key=finite.__getitem__, default=None)
        values = (
            -finite[best] if best is not None else None,
            self.last(PERPLEXITY),
            self.last("loss_dev"),
            self.last("loss_train", "loss_train_recent"),
        )
        return dict(zip(RESULTS, values, strict=True)) | {
            "perplexity_padded": self.last("eval_perplexity_padded_dev"),
            "best_step": best,
            "steps": max(step for curve in self.scalars.values() for step in curve),
        }


def read_run(folder: Path, name: str) -> Run:
    """Read a run folder, or a bare folder of TensorBoard files; the run may be going on, or have been restarted.

    Raises:
        InputError: no such folder, no readable TensorBoard file with scalars in it, or a hyperparams.json that is not
            as train.py writes it.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; name a run folder, as model/<run_name>")
    logs = folder / "tensorboard" if (folder / "tensorboard").is_dir() else folder
    settings = folder / "hyperparams.json"
    run = Run(name, settings=read_json(settings, Settings, "mend it or move it away") if settings.exists() else {})
    files = [read_events(file) for file in sorted(logs.glob("*tfevents*")) if file.is_file()]
    started = 0.0  # so that `minutes` leaves out a pause, the time at which the run would have begun without one
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
        raise InputError(f"{logs}: holds no TensorBoard file with scalars; has the run logged yet?")
    perplexities = {step: value for step, value in run.scalars.get(PERPLEXITY, {}).items() if math.isfinite(value)}
    best = itertools.accumulate((-value for value in perplexities.values()), max)
    if perplexities:
        run.scalars.setdefault("best_score_for_perplexity", dict(zip(perplexities, best, strict=True)))
    return run


def read_events(path: Path) -> list:
    """The events of one TensorBoard file as far as it is whole; a note on stderr reports it if it is not."""
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
    from tensorboard.compat.proto.event_pb2 import Event

    size = path.stat().st_size  # before reading, as the run may still be writing
    records = list(RawEventFileLoader(str(path)).Load())
    if not records or sum(len(record) + 16 for record in records) < size:  # each has a length and two checksums
        print(f"note: {path}: torn or empty; {len(records)} whole records are used", file=sys.stderr)
    return [Event.FromString(record) for record in records]


def scalars_of(event) -> Iterator[tuple[str, float]]:
    from tensorboard.util.tensor_util import make_ndarray

    for value in event.summary.value:
        if value.HasField("simple_value"):
            yield value.tag, value.simple_value
        elif value.HasField("tensor"):  # TensorFlow 2 writes scalars so
            array = make_ndarray(value.tensor)
            if array.size == 1 and array.dtype.kind in "fiu":
                yield value.tag, array.item()
