"""A table of several runs in the lab report's layout."""

import csv
from pathlib import Path

from charts.runs import Run
from common.files import atomic_write
from training.config import RECIPES, RESULTS, SETTINGS, find_recipe, recipe_of, report_results

# Rows of the comparison: the report's, then what it lacks.
ROWS = (*SETTINGS, *RESULTS, "perplexity_padded", "best_step", "steps")


def reference_columns(runs: list[Run]) -> list[tuple[str, int]]:
    """The report's runs to set beside ours, each with the place of ours that has its settings; all five if none has."""
    found: dict[str, int] = {}
    for i, run in enumerate(runs):
        if recipe := recipe_of(run.settings):
            found.setdefault(recipe, i)
    return list(found.items()) or [(recipe, len(runs) + i) for i, recipe in enumerate(RECIPES)]


def compare(runs: list[Run], references: list[tuple[str, int]]) -> dict[str, dict[str, float | None]]:
    """Columns of a table in the report's layout, name -> {row: value}; each run is followed by its recipe's."""
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
        names = [name.replace("|", "\\|") for name in columns]
        file.write(f"| parameter | {' | '.join(names)} |\n|---|{'---:|' * len(columns)}\n")
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


def runs_table(columns: dict[str, dict[str, float | None]]) -> str:
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
    lines = [" " * width + "".join(f"{head:>12}" for head in heads.values())]
    for name, column in columns.items():
        lines.append(f"{name:<{width}}" + "".join(f"{_show(row, column[row]):>12}" for row in heads))
    return "\n".join(lines)
