"""Training runs as they lie on the disk: their TensorBoard files, and a table of several in the lab report's layout."""

import csv
import itertools
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from common import ROOT, InputError, atomic_write
from recipes import RECIPES, RESULTS, SETTINGS, find_recipe, recipe_of, report_results

# Rows of the comparison: the report's, then what it lacks.
ROWS = (*SETTINGS, *RESULTS, "perplexity_padded", "best_step", "steps")
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


# ---- reading


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


# ---- comparing


def reference_columns(runs: list[Run]) -> list[tuple[str, int]]:
    """The report's runs to set beside ours, each with the place of ours that has its settings; all five if none has."""
    found: dict[str, int] = {}
    for i, run in enumerate(runs):
        if recipe := recipe_of(run.settings):
            found.setdefault(recipe, i)
    return list(found.items()) or [(recipe, len(runs) + i) for i, recipe in enumerate(RECIPES)]


def compare(runs: list[Run], references: list[tuple[str, int]]) -> dict[str, dict[str, float | None]]:
    """Columns of a table in the report's layout, name -> {row: value}; behind a run its recipe's in the report."""
    columns = [
        (i, run.name, {key: run.settings.get(key) for key in SETTINGS} | run.results()) for i, run in enumerate(runs)
    ]
    for recipe, i in references:
        figures = find_recipe(recipe) | report_results(recipe)
        figures["perplexity_padded"] = figures["dev_eval_scores"]
        columns.append((i, f"{recipe} (report)", figures))
    columns.sort(key=lambda column: column[0])
    return {name: {row: values.get(row) for row in ROWS} for _, name, values in columns}


def caption(runs: list[Run], references: list[tuple[str, int]]) -> str:
    """What a reader must know to compare the columns."""
    models = {run.name: run.model for run in runs}
    datasets = {run.name: run.dataset for run in runs}
    windows = {run.name: _dev_windows(run.settings) for run in runs}
    sentences = [f"Model: {_same_or_each(models)}.", f"Dataset: {_same_or_each(datasets)}."]
    if len(set(datasets.values())) > 1:
        sentences[-1] = f"The datasets differ, so losses and perplexities do not compare: {_same_or_each(datasets)}."
    sentences.append(f"Dev loss and perplexity on {_same_or_each(windows)}.")
    if references:
        sentences.append(
            "The report fine-tuned distilgpt2's published weights, split windows at random (by segment) and counted "
            "padding in every loss; what compares with its dev_eval_scores is perplexity_padded."
        )
    return " ".join(sentences)


def _same_or_each(values: dict[str, str]) -> str:
    if len(set(values.values())) == 1:
        return next(iter(values.values()))
    return "; ".join(f"{name}: {value}" for name, value in values.items())


def _dev_windows(settings: dict) -> str:
    windows = settings.get("dev_windows")
    return f"{windows:,} windows of dev" if windows else "all of dev"


def write_tables(columns: dict[str, dict[str, float | None]], caption: str, folder: Path) -> None:
    """comparison.md, with the caption and rounded figures, and comparison.csv, with all digits."""
    with atomic_write(folder / "comparison.md") as file:
        file.write(f"| parameter | {' | '.join(columns)} |\n|---|{'---:|' * len(columns)}\n")
        for row in ROWS:
            file.write(f"| {row} | {' | '.join(_show(row, column[row]) for column in columns.values())} |\n")
        file.write(f"\n{caption}\n")
    with atomic_write(folder / "comparison.csv") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["parameter", *columns])
        table.writerows([row, *(column[row] for column in columns.values())] for row in ROWS)


def _show(row: str, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if isinstance(value, float) and row not in SETTINGS else str(value)


def print_table(columns: dict[str, dict[str, float | None]], caption: str) -> None:
    """The table turned on its side: a line for each run."""
    heads = {
        "steps": "steps",
        "train_loss": "train loss",
        "dev_loss": "dev loss",
        "dev_eval_scores": "perplexity",
        "perplexity_padded": "padded",
        "best_score_perplexity": "best score",
        "best_step": "at step",
    }
    width = max(map(len, columns))
    print(" " * width + "".join(f"{head:>12}" for head in heads.values()))
    for name, column in columns.items():
        print(f"{name:<{width}}" + "".join(f"{_show(row, column[row]):>12}" for row in heads))
    print(caption)
