"""Describe a dataset, training runs, or results of pass@k: tables in the terminal, charts as files.

python analysis.py data --dataset_name stdlib                 what a dataset holds
python analysis.py runs model/demo                            one run; charts go to model/demo/figures
python analysis.py runs model/a model/b --x tokens --report   several in each chart, with the lab report's figures
python analysis.py results a.json b.json --names A B          files that evaluate.py --problems wrote with --output
"""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # which PYTHONSAFEPATH leaves out
from charts.comparison import caption, compare, reference_columns, runs_table, write_tables
from charts.dataset_features import contamination_table, describe, file_lengths, frequent_words
from charts.runs import PERPLEXITY, Run, read_run
from charts.scores import bars_of, compare_results, read_result, results_table
from common.command import Flags, InputError, Parser, add_flags, flag, folder_name, output_folder, run_command
from common.files import ROOT, atomic_write, dataset_file
from dataset.format import read_meta
from training.config import report_results

# Charts of runs. Name of the file (the first four as in the report): scalar, label of the y axis, whether the scalar is
# noisy, so that its moving mean is drawn too.
RUN_CHARTS = {
    "train_loss": ("loss_train_recent", "training loss (nats per token)", True),
    "dev_loss": ("loss_dev", "dev loss (nats per token)", False),
    "dev_eval_scores": (PERPLEXITY, "dev perplexity", False),
    "best_score_perplexity": ("best_score_for_perplexity", "best score (minus dev perplexity)", False),
    "pass_at_1": ("eval_pass_at_1_dev", "share of the problems solved, pass@1", False),
    "learning_rate": ("lr", "learning rate", False),
    "grad_norm": ("grad_norm", "gradient norm before clipping", True),
}
# The training loss as the report computes it. Also drawn if a run is older and has not logged loss_train_recent.
MEAN_TRAIN_LOSS = ("loss_train", "training loss, mean of the epoch so far\n(nats per token)", False)
FORMATS = ("png", "svg", "pdf")
X_AXES = ("step", "tokens", "time")


@dataclass
class DataFlags(Flags):
    """What a dataset contains: its counts, its most frequent tokens, and how much of dev occurs in train."""

    dataset_name: tuple[str, ...] = flag(
        ("source_code",), "names of datasets that convert.py has made", type=folder_name, nargs="+"
    )
    output: str | None = flag(
        None, "folder for the charts, instead of dataset/<dataset_name>/figures", type=output_folder
    )
    format: str = flag("png", "file format of the charts", choices=FORMATS)


@dataclass
class RunsFlags(Flags):
    """The curves of training runs, and a table of them."""

    runs: tuple[str, ...] = flag(
        (), "run folders, or folders of TensorBoard files", type=str, nargs="+", positional=True
    )
    names: tuple[str, ...] | None = flag(
        None, "names for the runs, instead of those of their folders", type=folder_name, nargs="+"
    )
    x: str = flag("step", "the x axis: optimizer steps, tokens trained on, or minutes of training", choices=X_AXES)
    report: bool = flag(False, "also show the lab report's figures, in the charts as dotted lines")
    output: str | None = flag(
        None,
        "folder for charts and table, instead of figures/ in the run's folder (of several runs: ./figures)",
        type=output_folder,
    )
    format: str = flag("png", "file format of the charts", choices=FORMATS)


@dataclass
class ResultsFlags(Flags):
    """A table and a chart of pass@k for each set of problems."""

    results: tuple[str, ...] = flag(
        (), "files that evaluate.py --problems wrote with --output", type=str, nargs="+", positional=True
    )
    names: tuple[str, ...] | None = flag(
        None, "names for the results, instead of those of their models", type=folder_name, nargs="+"
    )
    output: str | None = flag(None, "folder for chart and table, instead of ./figures", type=output_folder)
    format: str = flag("png", "file format of the chart", choices=FORMATS)


def main() -> None:
    flags = read_flags()
    if isinstance(flags, DataFlags):
        for name in flags.dataset_name:
            folder = Path(flags.output or ROOT / "dataset" / name / "figures")
            several = flags.output and len(flags.dataset_name) > 1
            analyse_data(name, folder / name if several else folder, flags.format)
    elif isinstance(flags, RunsFlags):
        analyse_runs(flags)
    else:
        analyse_results(flags)


def read_flags() -> "DataFlags | RunsFlags | ResultsFlags":
    parser = Parser(__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="data | runs | results")
    kinds = {"data": DataFlags, "runs": RunsFlags, "results": ResultsFlags}
    for name, kind in kinds.items():
        add_flags(commands.add_parser(name, description=kind.__doc__), kind)
    flags = vars(parser.parse_args())
    return kinds[flags.pop("command")](**flags)


def analyse_data(dataset_name: str, folder: Path, extension: str) -> None:
    from charts.drawing import bars, contamination_chart, histogram, save

    meta = read_meta(dataset_file(dataset_name, "train").parent)
    words = frequent_words(meta)[:25]
    figures = {
        "tokens_per_file": histogram(file_lengths(meta), f"{dataset_name}: tokens per file"),
        "frequent_tokens": bars(
            {f"{dataset_name}: most frequent tokens": [(word, 100 * share) for word, share in words]},
            "share of all tokens (%)",
        ),
        "contamination": contamination_chart(meta, dataset_name),
    }
    files = [save(figure, folder / f"{name}.{extension}") for name, figure in figures.items()]
    print(f"{describe(dataset_name, meta)}\n\n{contamination_table(meta)}")
    print("\nmost frequent tokens: " + "  ".join(f"{word} {share:.1%}" for word, share in words[:12]))
    print(*files, sep="\n")


def analyse_runs(flags: RunsFlags) -> None:
    folders = [Path(run) for run in flags.runs]
    names = flags.names or [
        Path(os.path.realpath(folder)).name for folder in folders
    ]  # resolve() fails on a loop of links
    if len(names) != len(folders) or len(set(names)) < len(names):
        raise InputError(f"{len(folders)} runs named {', '.join(names)}; give each run a different name with --names")
    for name in names:  # a folder's name may contain control characters
        if not name or not name.isprintable():
            raise InputError(f"a run named {name!r}: give it another name with --names")
    runs = [read_run(folder, name) for folder, name in zip(folders, names, strict=True)]
    for folder, run in zip(folders, runs, strict=True):
        if not run.scalars.keys() & {scalar for scalar, _, _ in (*RUN_CHARTS.values(), MEAN_TRAIN_LOSS)}:
            raise InputError(
                f"{folder}: has logged only {', '.join(sorted(run.scalars)[:10])}, for which there is no chart; name a "
                "run of train.py or of Hugging Face's Trainer"
            )
    references = reference_columns(runs) if flags.report else []
    columns, text = compare(runs, references), caption(runs, references)
    folder = Path(flags.output or (folders[0] / "figures" if len(runs) == 1 else "figures"))
    write_tables(columns, text, folder)
    files = draw_curves(runs, references, flags, folder)
    for i, run in enumerate(runs if len(runs) > 1 else []):
        own = [(recipe, 0) for recipe, place in references if place == i]
        files += draw_curves([run], own, flags, folder / run.name)
    print(runs_table(columns), text, *files, sep="\n")


def draw_curves(runs: list[Run], references: list[tuple[str, int]], flags: RunsFlags, folder: Path) -> list[Path]:
    """Draw those of RUN_CHARTS whose scalar a run has logged, with the report's figures. Returns the files."""
    from charts.drawing import Line, line_chart, save

    labels = [run.name if len({run.dataset for run in runs}) == 1 else f"{run.name}: {run.dataset}" for run in runs]
    files = []
    for file, curve_of_file in RUN_CHARTS.items():
        if file == "train_loss" and (flags.report or not all("loss_train_recent" in run.scalars for run in runs)):
            curve_of_file = MEAN_TRAIN_LOSS
        scalar, y_label, is_noisy = curve_of_file
        lines = [
            Line(label, style, run.positions(list(curve), flags.x), list(curve.values()))
            for style, (label, run) in enumerate(zip(labels, runs, strict=True))
            if (curve := run.scalars.get(scalar))
        ]
        figures = [(recipe, style, report_results(recipe).get(file)) for recipe, style in references]
        levels = [
            Line("dotted: the report" if style < len(runs) else f"{recipe} (report)", style, [], [figure])
            for recipe, style, figure in figures
            if figure is not None
        ]
        if lines:
            figure = line_chart(lines, levels, flags.x, y_label, is_noisy, scalar != "lr")
            files.append(save(figure, folder / f"{file}.{flags.format}"))
    return files


def analyse_results(flags: ResultsFlags) -> None:
    from charts.drawing import interval_chart, save

    results = [read_result(Path(file)) for file in flags.results]
    names = flags.names or [Path(result["model"]).name for result in results]
    if len(names) != len(results):
        raise InputError(f"--names: {len(results)} results, but {len(names)} names; give one name for each result")
    groups = compare_results(list(zip(names, results, strict=True)))
    folder = Path(flags.output or "figures")
    text = "\n\n".join(f"{group.title}\n\n{results_table(group)}" for group in groups)
    if len(groups) > 1:
        text += "\n\nThe tables are for different problems, so do not compare figures of different tables."
    with atomic_write(folder / "results.md") as file:
        file.write(text + "\n")
    panels = {group.title: bars_of(group) for group in groups}
    chart = save(interval_chart(panels, "(%), with its 95 % interval"), folder / f"results.{flags.format}")
    print(text, folder / "results.md", chart, sep="\n")


if __name__ == "__main__":
    run_command(main)
