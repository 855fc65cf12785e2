"""Charts: curves of runs, features of a dataset, shares with their intervals."""

import math
import os
import warnings
from pathlib import Path
from typing import NamedTuple

os.environ.pop("MPLBACKEND", None)  # for windows, of which none is opened; a wrong one would stop the import

import matplotlib
import numpy as np
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import EngFormatter, LogLocator, SymmetricalLogLocator

from common.files import atomic_write

# Okabe and Ito's colours, which colour-blind readers tell apart (jfly.uni-koeln.de/color), without the yellow.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
DASHES = ("-", "--")  # alternate, so that a curve is visible below one that covers it
CJK_FONTS = ("Noto Sans CJK JP", "Noto Sans CJK SC", "WenQuanYi Micro Hei", "PingFang SC", "Microsoft YaHei")
FONTS = [name for name in CJK_FONTS if name in font_manager.get_font_names()]
STYLE = {
    "text.parse_math": False,  # a name with $ is not TeX
    "font.family": ["DejaVu Sans", *FONTS],
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.figsize": (7, 4),
    "figure.constrained_layout.use": True,
    "pdf.fonttype": 42,  # text stays text
}
matplotlib.rcParams.update(STYLE)
X_LABELS = {"step": "optimizer steps", "tokens": "tokens trained on", "time": "minutes of training"}


class Line(NamedTuple):
    label: str
    style: int  # chooses colour and dashes
    x: list[float]
    y: list[float]


class Bar(NamedTuple):
    label: str
    values: dict[str, tuple[float, float, float]]  # name -> share of 1, and the bounds of its interval


def line_chart(
    lines: list[Line], levels: list[Line], axis: str, y_label: str, is_noisy: bool, may_be_log: bool
) -> Figure:
    """Curves of runs, and dotted levels at one value each.

    Args:
        axis: what x is, one of X_LABELS.
        is_noisy: draw the values thin and faint, and over them their moving mean.
        may_be_log: a logarithmic y axis if the values, all positive or all negative, span more than a factor of 10.
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
    """A logarithmic axis with labels at 1, 2 and 5 of each decade; mirrored for negative values.

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
    """Names below the axes; a single name becomes the title."""
    if len(handles) == 1:
        axes.set_title(*handles)
        return
    legend = figure.legend(
        [*handles.values()], [""] * len(handles), loc="outside lower center", ncols=min(3, len(handles)), frameon=False
    )
    for text, label in zip(legend.get_texts(), handles, strict=True):
        text.set_text(label)  # only now, since matplotlib leaves out labels that begin with _


def moving_mean(values: list[float], width: int) -> np.ndarray:
    """[len(values) - width + 1] float64"""
    return np.convolve(values, np.full(width, 1 / width), "valid")


def histogram(lengths: list[int], title: str) -> Figure:
    """Files by their number of tokens, on a logarithmic axis."""
    figure = Figure()
    axes = figure.add_subplot(title=title, xlabel="tokens in the file", ylabel="files", xscale="log")
    axes.hist(lengths, bins=np.geomspace(max(min(lengths), 1), max(lengths) + 1, 40), color=COLOURS[0])
    axes.xaxis.set_major_formatter("{x:,g}")
    axes.yaxis.get_major_locator().set_params(integer=True)
    return figure


def _bar_axes(figure: Figure, place: int, labels: list[str], title: str, x_label: str) -> Axes:
    """Axes for horizontal bars, the first on top."""
    axes = figure.add_subplot(place, title=title, xlabel=x_label)
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    return axes


def bars(words: list[tuple[str, float]], title: str) -> Figure:
    """Shares of words as horizontal bars, the most frequent on top."""
    figure = Figure(figsize=(7, 6))
    axes = _bar_axes(figure, 111, [word for word, _ in words], title, "share of all tokens (%)")
    axes.barh(range(len(words)), [100 * share for _, share in words], color=COLOURS[0])
    for label in axes.get_yticklabels():
        label.set_fontfamily(["DejaVu Sans Mono", "DejaVu Sans", *FONTS])
    return figure


def contamination_chart(meta: dict, title: str) -> Figure:
    """Shares of dev's n-grams that occur in train, a group of bars for each split."""
    figure = Figure()
    splits = meta["contamination"]
    lengths = list(splits[meta["flags"]["split_by"]])
    names, x_label = [f"split by {name}" for name in splits], "share of dev's n-grams that occur in train (%)"
    axes = _bar_axes(figure, 111, names, title, x_label)
    height, handles = 0.8 / len(lengths), {}
    for number, length in enumerate(lengths):
        shares = [of_split.get(length) for of_split in splits.values()]
        places = [place + (number - (len(lengths) - 1) / 2) * height for place in range(len(splits))]
        drawn = axes.barh(places, [100 * (share or 0) for share in shares], 0.9 * height, color=COLOURS[number])
        axes.bar_label(drawn, ["none to measure" if share is None else f"{share:.1%}" for share in shares], padding=3)
        handles[f"{length}-grams"] = drawn
    axes.set(xlim=(0, 115), xticks=range(0, 101, 20))
    _add_legend(figure, axes, handles)
    return figure


def interval_chart(panels: dict[str, list[Bar]], x_label: str) -> Figure:
    """Shares with their intervals, a panel for each group that may be compared; all panels have the same scale."""
    rows = [len(bars) for bars in panels.values()]
    names = list(dict.fromkeys(name for bars in panels.values() for bar in bars for name in bar.values))
    height = 0.8 / max(1, len(names))
    figure = Figure(figsize=(7, 1 + 0.7 * len(rows) + 0.6 * sum(rows)))
    grid, first = figure.add_gridspec(len(rows), height_ratios=rows), None
    for place, (title, bars) in zip(grid, panels.items(), strict=True):
        axes = _bar_axes(figure, place, [bar.label for bar in bars], title, "")
        first = first or axes
        if axes is not first:
            axes.sharex(first)
        if place != grid[-1]:
            axes.tick_params(labelbottom=False)
        for number, name in enumerate(names):
            colour = COLOURS[number % len(COLOURS)]
            for row, bar in enumerate(bars):
                if name not in bar.values:
                    continue
                value, low, high = (100 * share for share in bar.values[name])
                y = row + (number - (len(names) - 1) / 2) * height
                ends = [[max(0, value - low)], [max(0, high - value)]]
                axes.barh(y, value, 0.9 * height, color=colour, alpha=0.8)
                axes.errorbar(value, y, xerr=ends, fmt="none", ecolor="black", capsize=3)
                axes.annotate(f"{value:.1f}", (max(value, high), y), (4, 0), textcoords="offset points", va="center")
    first.margins(x=0.1)
    first.set_xlim(left=0)
    axes.set_xlabel(x_label if len(names) != 1 else f"{names[0]} {x_label}")
    if len(names) > 1:
        handles = {name: Patch(color=COLOURS[n % len(COLOURS)], alpha=0.8) for n, name in enumerate(names)}
        _add_legend(figure, axes, handles)
    return figure


def save(figure: Figure, path: Path) -> Path:
    """Write a chart; characters that no font has are drawn as boxes."""
    with atomic_write(path, "wb") as file, warnings.catch_warnings(), matplotlib.rc_context(STYLE):
        warnings.filterwarnings("ignore", "Glyph .* missing")
        figure.savefig(file, format=path.suffix[1:], dpi=150)
    return path
