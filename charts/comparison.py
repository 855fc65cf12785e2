"""Compare several runs in a table with the rows of the lab report's last table."""

import csv
from pathlib import Path

from charts.runs import Run
from charts.tables import text_table
from common.files import atomic_write
from training.config import RECIPE_FLAGS, RECIPE_RESULTS, RECIPES, find_recipe, recipe_of, report_results

# The rows: first the report's, then those that the report does not have.
ROWS = (*RECIPE_FLAGS, *RECIPE_RESULTS, "perplexity_padded", "best_step", "steps")
# The rows that the terminal shows, with their short names.
SHORT = {
    "steps": "steps",
    "train_loss": "train loss",
    "dev_loss": "dev loss",
    "dev_eval_scores": "perplexity",
    "perplexity_padded": "padded",
    "best_score_perplexity": "best score",
    "best_step": "at step",
}
Columns = dict[str, dict[str, float | None]]  # name of a run -> row -> value


def reference_columns(runs: list[Run]) -> list[tuple[str, int]]:
    """Choose the report's runs to show: (recipe, index of our first run with the same settings).

    If none of our runs has the settings of a recipe, all recipes are chosen, with indices after those of our runs.
    """
    found: dict[str, int] = {}
    for i, run in enumerate(runs):
        if recipe := recipe_of(run.settings):
            found.setdefault(recipe, i)
    return list(found.items()) or [(recipe, len(runs) + i) for i, recipe in enumerate(RECIPES)]


def compare(runs: list[Run], references: list[tuple[str, int]]) -> Columns:
    """Return the columns of the table. The report's run with the settings of ours comes right after it."""
    columns = [
        (i, run.name, {key: run.settings.get(key) for key in RECIPE_FLAGS} | run.results())
        for i, run in enumerate(runs)
    ]
    for recipe, i in references:
        figures = find_recipe(recipe) | report_results(recipe)
        figures["perplexity_padded"] = figures["dev_eval_scores"]
        columns.append((i, f"{recipe} (report)", figures))
    columns.sort(key=lambda column: column[0])
    return {name: {row: values.get(row) for row in ROWS} for _, name, values in columns}


def caption(runs: list[Run], references: list[tuple[str, int]]) -> str:
    """Return what a reader must know to compare the columns."""
    models = {run.name: run.model for run in runs}
    datasets = {run.name: run.dataset for run in runs}
    windows = {run.name: _dev_windows(run.settings) for run in runs}
    dataset = f"Dataset: {_same_or_each(datasets)}."
    if len(set(datasets.values())) > 1:
        dataset = f"The datasets differ, so losses and perplexities cannot be compared: {_same_or_each(datasets)}."
    sentences = [f"Model: {_same_or_each(models)}.", dataset, f"Dev loss and perplexity on {_same_or_each(windows)}."]
    if references:
        sentences.append(
            "The report fine-tuned distilgpt2's published weights, split windows at random (by segment) and counted "
            "padding in every loss. Compare its dev_eval_scores with our perplexity_padded."
        )
    return " ".join(sentences)


def _same_or_each(values: dict[str, str]) -> str:
    if len(set(values.values())) == 1:
        return next(iter(values.values()))
    return "; ".join(f"{name}: {value}" for name, value in values.items())


def _dev_windows(settings: dict) -> str:
    windows = settings.get("dev_windows")
    return f"{windows:,} windows of dev" if windows else "all of dev"


def write_tables(columns: Columns, caption: str, folder: Path) -> None:
    """Write comparison.md, with rounded figures and the caption, and comparison.csv, with all digits."""
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
    return f"{value:.4f}" if isinstance(value, float) and row not in RECIPE_FLAGS else str(value)


def runs_table(columns: Columns) -> str:
    """Return the table for the terminal, with a line for each run."""
    rows = [[name, *(_show(row, column[row]) for row in SHORT)] for name, column in columns.items()]
    return text_table([["", *SHORT.values()], *rows])
