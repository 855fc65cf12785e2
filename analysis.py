"""Look at a dataset, or at the curves of training runs: tables on the terminal, charts as PNG files.

python analysis.py data --dataset_name stdlib                 what a dataset holds
python analysis.py runs model/demo                            one run; charts go to model/demo/figures
python analysis.py runs model/a model/b --x tokens --report   several in one chart, beside the lab report's figures
"""

import argparse
import json
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from common import ROOT, InputError, Parser, atomic_write, dataset_file, run_command
from dataset.convert import FORMAT_VERSION
from recipes import report_results
from runs import Run, caption, compare, print_table, read_run, reference_columns, write_tables

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind readers tell apart (jfly.uni-koeln.de/color), without the yellow.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
DASHES = ("-", "--")  # in turn, so that a curve shows under one that covers it; with seven colours, 14 styles
# file name (the first four as in the report): scalar, label of its axis, whether it is so noisy that its mean is drawn
CURVES = {
    "train_loss": ("loss_train", "training loss (nats per token)", False),
    "dev_loss": ("loss_dev", "dev loss (nats per token)", False),
    "dev_eval_scores": ("eval_perplexity_dev", "dev perplexity", False),
    "best_score_perplexity": ("best_score_for_perplexity", "best score (minus dev perplexity)", False),
    "learning_rate": ("lr", "learning rate", False),
    "grad_norm": ("grad_norm", "gradient norm before clipping", True),
}
AXES = {"step": "optimizer steps", "tokens": "tokens trained on", "time": "minutes of training"}
FORMATS = ("png", "svg", "pdf")


def main() -> None:
    parser = Parser(__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="data | runs")
    data = commands.add_parser("data", description="what a dataset holds")
    data.add_argument(
        "--dataset_name", nargs="+", default=["source_code"], help="folders below dataset/ that convert.py has written"
    )
    data.add_argument("--output", type=Path, help="folder for the charts; else dataset/<dataset_name>/figures")
    runs = commands.add_parser("runs", description="the curves of training runs, and a table of them")
    runs.add_argument("runs", nargs="+", type=Path, help="run folders, or folders of TensorBoard files")
    runs.add_argument("--names", nargs="+", help="what to call the runs; else by their folders")
    runs.add_argument("--x", choices=AXES, default="step", help="what the curves are drawn against")
    runs.add_argument("--report", action="store_true", help="set the lab report's figures beside them, as dotted lines")
    runs.add_argument("--output", type=Path, help="folder for charts and table; else the run's figures, or ./figures")
    for command in (data, runs):
        command.add_argument("--format", choices=FORMATS, default="png", help="of the charts")
    flags = parser.parse_args()
    if flags.command == "data":
        for name in flags.dataset_name:
            several = len(flags.dataset_name) > 1
            folder = flags.output / name if flags.output and several else flags.output
            analyse_data(name, folder or ROOT / "dataset" / name / "figures", flags.format)
    else:
        analyse_runs(flags)


# ---- data -----------------------------------------------------------------------------------------------------------


def analyse_data(dataset_name: str, folder: Path, extension: str) -> None:
    train_file = dataset_file(dataset_name, "train")
    meta = read_meta(train_file.with_name("meta.json"))
    tokens = Counter()
    for split in ("train", "dev"):
        tokens += count_tokens(dataset_file(dataset_name, split), meta["flags"]["stride"])
    lengths = [count for source in meta["sources"] for count in source["files"].values()]
    print_features(dataset_name, meta, lengths)
    words = [(display_word(meta, token), count / tokens.total()) for token, count in tokens.most_common(25)]
    print("\nmost frequent tokens: " + "  ".join(f"{word} {share:.1%}" for word, share in words[:12]))

    save(histogram(lengths, f"{dataset_name}: tokens per file"), folder / f"tokens_per_file.{extension}")
    save(bars(words, f"{dataset_name}: most frequent tokens"), folder / f"frequent_tokens.{extension}")
    save(contamination_chart(meta, dataset_name), folder / f"contamination.{extension}")


def read_meta(path: Path) -> dict:
    """meta.json of a dataset.

    Raises:
        InputError: there is none, or it is not as convert.py writes it.
    """
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
        if {"flags", "languages", "sources"} <= meta.keys() and meta["format_version"] == FORMAT_VERSION:
            return meta
    except (OSError, ValueError, AttributeError, KeyError):
        pass
    raise InputError(f"{path}: missing or not as convert.py writes it; run dataset/convert.py again")


def count_tokens(jsonl: Path, stride: int) -> Counter:
    """How often each token id stands in the first `stride` tokens of every window.

    Windows overlap beyond that: so no token counts twice, and only a file's last few are left out.
    """
    tokens: Counter = Counter()
    with jsonl.open(encoding="utf-8") as file:
        for line in file:
            numbers = line[line.find("[") + 1 : line.find("]")]
            tokens.update(numbers.split(", ", stride)[:stride])
    return Counter({int(token): count for token, count in tokens.items() if token.isdecimal()})


def print_features(name: str, meta: dict, lengths: list[int]) -> None:
    flags = meta["flags"]
    print(f"{name}: windows of {flags['segment_len']} tokens every {flags['stride']}, split by {flags['split_by']}")
    print(f"{'':<14}{'files':>9}{'windows':>11}{'tokens':>13}{'bytes':>13}{'bytes/token':>13}")
    for language, splits in meta["languages"].items():
        for split, counts in splits.items():
            sizes = counts["files"], counts["windows"], counts["source_tokens"], counts["source_bytes"]
            ratio = counts["source_bytes"] / max(counts["source_tokens"], 1)
            print(
                f"{language + ' ' + split:<14}{sizes[0]:>9,}{sizes[1]:>11,}{sizes[2]:>13,}{sizes[3]:>13,}{ratio:>13.2f}"
            )
    ordered = sorted(lengths)
    median, longest = ordered[len(ordered) // 2], ordered[-1]
    # A file of n tokens has n // stride windows, of which those that start in its last segment_len tokens are short.
    windows = sum(n // flags["stride"] for n in lengths)
    full = sum(max(0, (n - flags["segment_len"]) // flags["stride"] + 1) for n in lengths)
    print(f"tokens per file: median {median:,}, longest {longest:,}")
    print(f"windows shorter than {flags['segment_len']} tokens: {1 - full / max(windows, 1):.1%}")
    print(f"exact copies of other files: {meta['duplicate_files']}")
    print(f"files skipped: {sum(len(source['skipped']) for source in meta['sources'])}")
    lengths = list(meta["contamination"][flags["split_by"]])
    print(f"\n{'dev n-grams in train':<24}" + "".join(f"{'n = ' + n:>10}" for n in lengths))
    for split_by, shares in meta["contamination"].items():
        label = f"split by {split_by}" + " (this)" * (split_by == flags["split_by"])
        cells = ("-" if shares[n] is None else f"{shares[n]:.2%}" for n in lengths)
        print(f"{label:<24}" + "".join(f"{cell:>10}" for cell in cells))


def display_word(meta: dict, token: int) -> str:
    """A token as text, with its white space made visible; its number where the tokenizer cannot be had."""
    from hub import load_tokenizer

    if "loaded" not in meta:
        try:
            meta["loaded"] = load_tokenizer(meta["tokenizer"]["name"])
        except InputError as error:
            print(f"note: tokens are shown by number ({error})", file=sys.stderr)
            meta["loaded"] = None
    if meta["loaded"] is None:
        return str(token)
    text = meta["loaded"].decode([token], skip_special_tokens=False)
    return text.replace("\n", "⏎").replace("\t", "⇥").replace(" ", "␣")


# ---- runs -----------------------------------------------------------------------------------------------------------


def analyse_runs(flags: argparse.Namespace) -> None:
    names = flags.names or [run.resolve().name for run in flags.runs]
    if len(names) != len(flags.runs) or len(set(names)) < len(names):
        raise InputError(f"{len(flags.runs)} runs named {', '.join(names)}; give --names, one and another for each")
    runs = [read_run(folder, name) for folder, name in zip(flags.runs, names, strict=True)]
    references = reference_columns(runs) if flags.report else []
    columns, text = compare(runs, references), caption(runs, references)
    print_table(columns, text)

    folder = flags.output or (flags.runs[0] / "figures" if len(runs) == 1 else Path("figures"))
    write_tables(columns, text, folder)
    draw_curves(runs, references, flags.x, folder, flags.format)
    for i, run in enumerate(runs if len(runs) > 1 else []):
        own = [(recipe, 0) for recipe, place in references if place == i]
        draw_curves([run], own, flags.x, folder / run.name, flags.format)


def draw_curves(runs: list[Run], references: list[tuple[str, int]], axis: str, folder: Path, extension: str) -> None:
    """A chart for each of CURVES that a run has logged, with dotted lines at the report's figures."""
    labels = [run.name if len({run.dataset for run in runs}) == 1 else f"{run.name}: {run.dataset}" for run in runs]
    for file, (scalar, y_label, is_noisy) in CURVES.items():
        lines = [
            Line(label, style, run.positions(list(curve), axis), list(curve.values()))
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
            save(line_chart(lines, levels, axis, y_label, is_noisy, scalar != "lr"), folder / f"{file}.{extension}")


# ---- charts ---------------------------------------------------------------------------------------------------------


class Line(NamedTuple):
    label: str
    style: int  # chooses colour and dashes
    x: list[float]
    y: list[float]


def _figure() -> "tuple[Figure, Axes]":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def line_chart(
    lines: list[Line], levels: list[Line], axis: str, y_label: str, is_noisy: bool, may_be_log: bool
) -> "Figure":
    """Curves of runs, and dotted levels at one value each.

    Args:
        axis: what x is, of AXES.
        is_noisy: draw the values faintly, and a moving mean over a fiftieth of them.
        may_be_log: a logarithmic y axis where the values, all positive or all negative, span more than a factor of 10.
    """
    from matplotlib.ticker import EngFormatter

    figure, axes = _figure()
    for line in lines:
        look = {"color": COLOURS[line.style % len(COLOURS)], "linestyle": DASHES[line.style % 2], "label": line.label}
        width = len(line.y) // 50
        if is_noisy and width > 1:
            axes.plot(line.x, line.y, color=look["color"], alpha=0.2, linewidth=0.8)
            axes.plot(moving_mean(line.x, width), moving_mean(line.y, width), **look)
        else:
            axes.plot(line.x, line.y, **look, marker="o" if len(line.x) < 30 else None, markersize=3)
    for level in levels:
        axes.axhline(level.y[0], color=COLOURS[level.style % len(COLOURS)], linestyle=":", label=level.label)
    axes.set_xlabel(AXES[axis])
    axes.xaxis.set_major_formatter("{x:g}" if axis == "time" else EngFormatter(sep=""))
    axes.set_ylabel(y_label)
    axes.yaxis.set_major_formatter("{x:,g}")
    values = [value for line in [*lines, *levels] for value in line.y]
    smallest = min(map(abs, values))
    if may_be_log and min(values) * max(values) > 0 and max(map(abs, values)) > 10 * smallest:
        _set_log_y(axes, smallest, is_negative=max(values) < 0)
    _add_legend(figure, axes)
    return figure


def _set_log_y(axes: "Axes", smallest: float, is_negative: bool) -> None:
    """A logarithmic axis with labels at 1, 2 and 5 of each decade; for negative values, mirrored.

    Args:
        smallest: the least of the values' magnitudes.
    """
    from matplotlib.ticker import LogLocator, SymmetricalLogLocator

    if is_negative:
        axes.set_yscale("symlog", linthresh=smallest)
        axes.set_ylim(top=-0.9 * smallest)
        axes.yaxis.set_minor_locator(SymmetricalLogLocator(base=10, linthresh=smallest, subs=(2, 5)))
    else:
        axes.set_yscale("log")
        axes.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
    axes.yaxis.set_major_formatter("{x:,g}")
    axes.yaxis.set_minor_formatter("{x:,g}")


def _add_legend(figure: "Figure", axes: "Axes") -> None:
    """Names outside the data, each once; a single name is the title."""
    handles = {label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    if len(handles) == 1:
        axes.set_title(next(iter(handles)))
    else:
        figure.legend(
            handles.values(), handles.keys(), loc="outside lower center", ncols=min(3, len(handles)), frameon=False
        )


def moving_mean(values: list[float], width: int) -> "np.ndarray":
    """[len(values) - width + 1] float64"""
    import numpy as np

    return np.convolve(values, np.full(width, 1 / width), "valid")


def histogram(lengths: list[int], title: str) -> "Figure":
    """Files by their number of tokens, on a logarithmic axis."""
    import numpy as np

    figure, axes = _figure()
    axes.hist(lengths, bins=np.geomspace(max(min(lengths), 1), max(lengths) + 1, 40), color=COLOURS[0])
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:,g}")
    axes.set_xlabel("tokens in the file")
    axes.set_ylabel("files")
    axes.set_title(title)
    return figure


def bars(words: list[tuple[str, float]], title: str) -> "Figure":
    """Shares of words as horizontal bars, the most frequent on top."""
    figure, axes = _figure()
    figure.set_size_inches(7, 6)
    axes.barh(range(len(words)), [100 * share for _, share in words], color=COLOURS[0])
    axes.set_yticks(range(len(words)), [word for word, _ in words], fontfamily="monospace", parse_math=False)
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("share of all tokens (%)")
    axes.set_title(title)
    return figure


def contamination_chart(meta: dict, title: str) -> "Figure":
    """Shares of dev's n-grams that stand in train, a group of bars for each split."""
    figure, axes = _figure()
    splits = meta["contamination"]
    lengths = list(splits[meta["flags"]["split_by"]])
    height = 0.8 / len(lengths)
    for number, length in enumerate(lengths):
        shares = [100 * (of_split[length] or 0) for of_split in splits.values()]
        places = [place + number * height for place in range(len(splits))]
        drawn = axes.barh(places, shares, 0.9 * height, color=COLOURS[number], label=f"{length}-grams")
        axes.bar_label(drawn, fmt="%.1f %%", padding=3)
    axes.set_yticks([place + 0.4 - height / 2 for place in range(len(splits))], [f"split by {name}" for name in splits])
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.set_xlim(0, 115)
    axes.set_xticks(range(0, 101, 20))
    axes.set_xlabel("share of dev's n-grams that stand in train (%)")
    axes.set_title(title)
    _add_legend(figure, axes)
    return figure


def save(figure: "Figure", path: Path) -> None:
    import matplotlib

    with atomic_write(path, "wb") as file, matplotlib.rc_context({"pdf.fonttype": 42}):  # text that stays text
        figure.savefig(file, format=path.suffix[1:], dpi=150)
    print(path)


if __name__ == "__main__":
    run_command(main)
