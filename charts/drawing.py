"""Draw charts: curves of runs, features of a dataset, shares with their intervals."""

import math
import os
import warnings
from pathlib import Path
from typing import NamedTuple

os.environ.pop("MPLBACKEND", None)  # a wrong name there would stop the import; no window is opened here

import matplotlib
import numpy as np
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import SubplotSpec
from matplotlib.patches import Patch
from matplotlib.ticker import EngFormatter, LogLocator, SymmetricalLogLocator

from common.files import atomic_write

# The colours of Okabe and Ito without the yellow: colour-blind readers can tell them apart (jfly.uni-koeln.de/color).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
DASHES = ("-", "--")  # alternating: a curve is visible below a dashed one that covers it
CJK_FONTS = ("Noto Sans CJK JP", "Noto Sans CJK SC", "WenQuanYi Micro Hei", "PingFang SC", "Microsoft YaHei")
FONTS = [name for name in CJK_FONTS if name in font_manager.get_font_names()]
STYLE = {
    "text.parse_math": False,  # a $ in a name does not begin a formula
    "font.family": ["DejaVu Sans", *FONTS],
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.figsize": (7, 4),
    "figure.constrained_layout.use": True,
    "pdf.fonttype": 42,  # embeds fonts, so that text can be searched and copied
}
matplotlib.rcParams.update(STYLE)
X_LABELS = {"step": "optimizer steps", "tokens": "tokens trained on", "time": "minutes of training"}


class Line(NamedTuple):
    label: str
    style: int  # the number of its colour and dashes
    x: list[float]
    y: list[float]


class Bar(NamedTuple):
    label: str
    values: dict[str, tuple[float, float, float]]  # name -> share and the bounds of its interval, as fractions of 1


def line_chart(
    lines: list[Line], levels: list[Line], axis: str, y_label: str, is_noisy: bool, may_be_log: bool
) -> Figure:
    """Draw curves of runs.

    Args:
        levels: drawn as dotted horizontal lines, at the single value of each.
        axis: what x is, one of X_LABELS.
        is_noisy: draw the values thin and faint, with their moving mean on top.
        may_be_log: make the y axis logarithmic if all values have the same sign and span more than a factor of 10.
    """
    figure = Figure()
    axes = figure.add_subplot()
    handles = {}
    for line in lines:
        look = {"color": COLOURS[line.style % len(COLOURS)], "linestyle": DASHES[line.style % 2]}
        width = len(line.y) // 20
        x, y, marker = line.x, line.y, "o" if len(line.x) < 30 else None
        if is_noisy and width > 1:
            axes.plot(x, y, color=look["color"], alpha=0.3, linewidth=0.6)
            x, y, marker = moving_mean(x, width), moving_mean(y, width), None
        (handles[line.label],) = axes.plot(x, y, **look, marker=marker, markersize=3)
    for level in levels:
        colour = COLOURS[level.style % len(COLOURS)]
        handles[level.label] = axes.axhline(level.y[0], color=colour, linestyle=":")
    axes.set_xlabel(X_LABELS[axis])
    axes.xaxis.set_major_formatter("{x:g}" if axis == "time" else EngFormatter(sep=""))
    axes.set_ylabel(y_label)
    values = [value for line in [*lines, *levels] for value in line.y if math.isfinite(value)] or [0]
    smallest = min(map(abs, values))
    if may_be_log and min(values) * max(values) > 0 and max(map(abs, values)) > 10 * smallest:
        _set_log_y(axes, smallest, is_negative=max(values) < 0)
    axes.yaxis.set_major_formatter("{x:,g}")
    _add_legend(figure, axes, handles)
    return figure


def _set_log_y(axes: Axes, smallest: float, is_negative: bool) -> None:
    """Make the y axis logarithmic, with labels at 1, 2 and 5 of each decade. Negative values mirror it.

    Args:
        smallest: the smallest absolute value.
    """
    if is_negative:
        axes.set_yscale("symlog", linthresh=smallest)
        axes.set_ylim(top=-0.9 * smallest)
        axes.yaxis.set_minor_locator(SymmetricalLogLocator(base=10, linthresh=smallest, subs=(2, 5)))
    else:
        axes.set_yscale("log")
        axes.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
    axes.yaxis.set_minor_formatter("{x:,g}")


def _add_legend(figure: Figure, axes: Axes, handles: dict) -> None:
    """Write the names below the axes; a single name becomes the title."""
    if len(handles) == 1:
        axes.set_title(*handles)
        return
    legend = figure.legend(
        [*handles.values()], [""] * len(handles), loc="outside lower center", ncols=min(3, len(handles)), frameon=False
    )
    for text, label in zip(legend.get_texts(), handles, strict=True):
        text.set_text(label)  # set here, because `legend` leaves out labels that begin with _


def moving_mean(values: list[float], width: int) -> np.ndarray:
    """Return float64 [len(values) - width + 1]."""
    return np.convolve(values, np.full(width, 1 / width), "valid")


def histogram(lengths: list[int], title: str) -> Figure:
    """Draw the number of files by their number of tokens, on a logarithmic axis."""
    figure = Figure()
    axes = figure.add_subplot(title=title, xlabel="tokens in the file", ylabel="files", xscale="log")
    axes.hist(lengths, bins=np.geomspace(max(min(lengths), 1), max(lengths) + 1, 40), color=COLOURS[0])
    axes.xaxis.set_major_formatter("{x:,g}")
    axes.yaxis.get_major_locator().set_params(integer=True)
    return figure


def bar_axes(figure: Figure, place: SubplotSpec | int, labels: list[str], title: str, x_label: str = "") -> Axes:
    """Add axes for horizontal bars, the first on top. `place` is what matplotlib's `add_subplot` takes."""
    axes = figure.add_subplot(place, title=title, xlabel=x_label)
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    return axes


def bars(panels: dict[str, list[tuple[str, float]]], x_label: str) -> Figure:
    """Draw horizontal bars with their values. Each panel has its title and its own x axis."""
    rows = [len(values) for values in panels.values()]
    figure = Figure(figsize=(7, 0.5 + 0.5 * len(rows) + 0.22 * sum(rows)))
    grid = figure.add_gridspec(len(rows), height_ratios=[2 + number for number in rows])
    for place, (title, values) in zip(grid, panels.items(), strict=True):
        axes = bar_axes(figure, place, [label for label, _ in values], title)
        drawn = axes.barh(range(len(values)), [value for _, value in values], color=COLOURS[0])
        axes.bar_label(drawn, fmt=lambda value: f"{value:,.{0 if value >= 100 else 2}f}", padding=3)
        axes.margins(x=0.12)
        axes.xaxis.set_major_formatter("{x:,g}")
        for label in axes.get_yticklabels():
            label.set_fontfamily(["DejaVu Sans Mono", "DejaVu Sans", *FONTS])
    axes.set_xlabel(x_label)
    return figure


def contamination_chart(meta: dict, title: str) -> Figure:
    """Draw the shares of dev's n-grams that occur in train, with a group of bars for each way to split."""
    figure = Figure()
    splits = meta["contamination"]
    lengths = list(splits[meta["flags"]["split_by"]])
    names = [f"split by {name}" for name in splits]
    axes = bar_axes(figure, 111, names, title, "share of dev's n-grams that occur in train (%)")
    height, handles = 0.8 / max(1, len(lengths)), {}
    for number, length in enumerate(lengths):
        shares = [of_split.get(length) for of_split in splits.values()]
        y = np.arange(len(splits)) + (number - (len(lengths) - 1) / 2) * height
        drawn = axes.barh(
            y, [100 * (share or 0) for share in shares], 0.9 * height, color=COLOURS[number % len(COLOURS)]
        )
        axes.bar_label(drawn, ["none to measure" if share is None else f"{share:.1%}" for share in shares], padding=3)
        handles[f"{length}-grams"] = drawn
    axes.set(xlim=(0, 115), xticks=range(0, 101, 20))
    _add_legend(figure, axes, handles)
    return figure


def interval_chart(panels: dict[str, list[Bar]], x_label: str) -> Figure:
    """Draw shares with their intervals: a panel for each group that may be compared, all with the same x axis."""
    rows = [len(values) for values in panels.values()]
    names = list(dict.fromkeys(name for bars in panels.values() for bar in bars for name in bar.values))
    colours = {name: COLOURS[number % len(COLOURS)] for number, name in enumerate(names)}
    height = 0.8 / max(1, len(names))
    figure = Figure(figsize=(7, 1 + 0.7 * len(rows) + 0.6 * sum(rows)))
    grid = figure.add_gridspec(len(rows), height_ratios=rows)
    for place, (title, bars) in zip(grid, panels.items(), strict=True):
        axes = bar_axes(figure, place, [bar.label for bar in bars], title)
        if axes is not figure.axes[0]:
            axes.sharex(figure.axes[0])
        axes.tick_params(labelbottom=place == grid[-1])
        for row, bar in enumerate(bars):
            for name, share in bar.values.items():
                value, low, high = (100 * each for each in share)
                y = row + (names.index(name) - (len(names) - 1) / 2) * height
                ends = [[max(0, value - low)], [max(0, high - value)]]
                axes.barh(y, value, 0.9 * height, color=colours[name], alpha=0.8)
                axes.errorbar(value, y, xerr=ends, fmt="none", ecolor="black", capsize=3)
                axes.annotate(f"{value:.1f}", (max(value, high), y), (4, 0), textcoords="offset points", va="center")
    figure.axes[0].margins(x=0.1)
    figure.axes[0].set_xlim(left=0)
    axes.set_xlabel(x_label if len(names) != 1 else f"{names[0]} {x_label}")
    if len(names) > 1:
        _add_legend(figure, axes, {name: Patch(color=colour, alpha=0.8) for name, colour in colours.items()})
    return figure


def save(figure: Figure, path: Path) -> Path:
    """Write a chart in the format of the file's name. Characters that no font has are drawn as boxes."""
    with atomic_write(path, "wb") as file, warnings.catch_warnings(), matplotlib.rc_context(STYLE):
        warnings.filterwarnings("ignore", "Glyph .* missing")
        figure.savefig(file, format=path.suffix[1:], dpi=150)
    return path
