"""Training runs as they lie on the disk: their TensorBoard files, and a table of several in the lab report's layout."""

import itertools
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from common.command import InputError
from common.files import ROOT
from training.recipes import RESULTS

Curve = dict[int, float]  # optimizer step -> value


@dataclass
class Run:
    """What a run has logged.

    Attributes:
        scalars: by name, in the order of the steps; what a restart has made void is left out.
        minutes: step -> time in training up to then; the pause before a restart does not count.
        settings: hyperparams.json; empty for a run of another program.
    """

    name: str
    scalars: dict[str, Curve] = field(default_factory=dict)
    minutes: Curve = field(default_factory=dict)
    settings: dict = field(default_factory=dict)

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
            meta = json.loads((ROOT / "dataset" / name / "json" / "meta.json").read_text(encoding="utf-8"))
            return f"{name} (split by {meta['flags']['split_by']})"
        except (OSError, ValueError, KeyError, TypeError):
            return name

    def last(self, scalar: str) -> float | None:
        return next(reversed(self.scalars.get(scalar, {}).values()), None)

    def results(self) -> dict[str, float | None]:
        """The rows of the report's table, then what it lacks."""
        perplexities = self.scalars.get("eval_perplexity_dev", {})
        best = min(perplexities, key=perplexities.__getitem__, default=None)
        values = (
            -perplexities[best] if best is not None else None,
            self.last("eval_perplexity_dev"),
            self.last("loss_dev"),
            self.last("loss_train"),
        )
        return dict(zip(RESULTS, values, strict=True)) | {
            "perplexity_padded": self.last("eval_perplexity_padded_dev"),
            "best_step": best,
            "steps": max(step for curve in self.scalars.values() for step in curve),
        }


def read_run(folder: Path, name: str) -> Run:
    """Read a run folder, or a bare folder of TensorBoard files; the run may be going on, or have been restarted.

    Raises:
        InputError: no such folder, or no readable TensorBoard file in it.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; name a run folder, as model/<run_name>")
    logs = folder / "tensorboard" if (folder / "tensorboard").is_dir() else folder
    run = Run(name, settings=_settings(folder))
    files = [read for file in sorted(logs.glob("*tfevents*")) if (read := _read_file(file)).events]
    for file in sorted(files, key=lambda file: file.started):
        _add(file, run)
    if not run.scalars:
        raise InputError(f"{logs}: holds no TensorBoard file with scalars; has the run logged yet?")
    perplexities = run.scalars.get("eval_perplexity_dev", {})
    best = itertools.accumulate((-value for value in perplexities.values()), max)
    run.scalars.setdefault("best_score_for_perplexity", dict(zip(perplexities, best, strict=True)))
    return run


@dataclass
class _EventFile:
    started: float = 0.0  # time of its first record
    purge_step: int | None = None  # what earlier files have from this step on is void
    events: list[tuple[int, float, str, float]] = field(default_factory=list)  # step, time, scalar, value


def _settings(folder: Path) -> dict:
    file = folder / "hyperparams.json"
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError:
        raise InputError(f"{file}: is not JSON; mend it or move it away") from None


def _read_file(path: Path) -> _EventFile:
    """The scalars of one file, as far as it is whole; says in a line on stderr if it is not."""
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader
    from tensorboard.compat.proto.event_pb2 import SessionLog

    file, records = _EventFile(), 0
    begun = _count_records(path)  # before reading, as the run may be going on
    for event in LegacyEventFileLoader(str(path)).Load():
        records += 1
        file.started = file.started or event.wall_time
        if event.HasField("session_log") and event.session_log.status == SessionLog.START:
            file.purge_step = event.step
        file.events += [(event.step, event.wall_time, tag, value) for tag, value in _scalars(event)]
    if records < begun:
        print(f"note: {path}: torn or empty; {records} whole records are used", file=sys.stderr)
    return file


def _count_records(file: Path) -> int:
    """Records that a TensorBoard file has begun, at least 1: TensorFlow's record format, 8 bytes of length, a checksum
    of 4, the data, a checksum of 4 (tensorflow.org/tutorials/load_data/tfrecord)."""
    content, records, start = file.read_bytes(), 0, 0
    while start < len(content):
        start += 16 + int.from_bytes(content[start : start + 8], "little")
        records += 1
    return max(records, 1)


def _scalars(event) -> Iterator[tuple[str, float]]:
    from tensorboard.util.tensor_util import make_ndarray

    for value in event.summary.value:
        if value.HasField("simple_value"):
            yield value.tag, value.simple_value
        elif value.HasField("tensor"):  # TensorFlow 2 writes scalars so
            array = make_ndarray(value.tensor)
            if array.size == 1 and array.dtype.kind in "fiu":
                yield value.tag, array.item()


def _add(file: _EventFile, run: Run) -> None:
    """Add a file to the earlier ones of its run.

    Our restarts say which steps of their predecessor are void; with those of others, each curve goes on where the new
    file begins it.
    """
    if file.purge_step is not None:
        for curve in run.scalars.values():
            _cut(curve, file.purge_step)
    _cut(run.minutes, file.events[0][0] if file.purge_step is None else file.purge_step)
    earlier = max(run.minutes.values(), default=0.0)
    begun = set()
    for step, time, name, value in file.events:
        curve = run.scalars.setdefault(name, {})
        if name not in begun:
            _cut(curve, step)
            begun.add(name)
        curve[step] = value
        run.minutes[step] = earlier + (time - file.started) / 60


def _cut(curve: Curve, first: int) -> None:
    for step in [step for step in curve if step >= first]:
        del curve[step]
