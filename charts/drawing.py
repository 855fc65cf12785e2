"""Charts: curves of runs, features of a dataset."""

import functools
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from common.files import atomic_write

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


# Okabe and Ito's colours, which colour-blind readers tell apart (jfly.uni-koeln.de/color), without the yellow.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
DASHES = ("-", "--")  # in turn, so that a curve shows under one that covers it; with seven colours, 14 styles
# Where none of these is installed, such characters are drawn as codes.
CJK_FONTS = (
    "Noto Sans CJK JP",
    "Noto Sans CJK SC",
    "WenQuanYi Micro Hei",
    "WenQuanYi Zen Hei",
    "PingFang SC",
    "Hiragino Sans",
    "Microsoft YaHei",
    "Yu Gothic",
)
AXES = {"step": "optimizer steps", "tokens": "tokens trained on", "time": "minutes of training"}


class Line(NamedTuple):
    label: str
    style: int  # chooses colour and dashes
    x: list[float]
    y: list[float]


class Bar(NamedTuple):
    label: str
    values: dict[str, tuple[float, float, float]]  # name -> share of 1, and the bounds of its interval


def _figure() -> "tuple[Figure, Axes]":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    _set_frame(axes)
    return figure, axes


def _set_frame(axes: "Axes") -> None:
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


@functools.cache
def _fonts() -> list[str]:
    """The font families that text is drawn with, those for what DejaVu lacks only where they are installed."""
    from matplotlib import font_manager

    return ["DejaVu Sans", *(name for name in CJK_FONTS if name in font_manager.get_font_names())]


def _text(name: str) -> dict[str, Any]:
    """A name of the user's as arguments of Text: not read as TeX, and what no font has as a code, \\u6f22."""
    from matplotlib import font_manager
    from matplotlib.ft2font import FT2Font

    fonts = [FT2Font(font_manager.findfont(family)) for family in _fonts()]
    drawn = [
        c if any(font.get_char_index(ord(c)) for font in fonts) else c.encode("unicode_escape").decode() for c in name
    ]
    return {"text": "".join(drawn), "fontfamily": _fonts(), "parse_math": False}


def line_chart(
    lines: list[Line], levels: list[Line], axis: str, y_label: str, is_noisy: bool, may_be_log: bool
) -> "Figure":
    """Curves of runs, and dotted levels at one value each.

    Args:
        axis: what x is, of AXES.
        is_noisy: draw the values thin and faint, and over them their moving mean.
        may_be_log: a logarithmic y axis where the values, all positive or all negative, span more than a factor of 10.
    """
    from matplotlib.ticker import EngFormatter

    figure, axes = _figure()
    legend = []
    for line in lines:
        look = {"color": COLOURS[line.style % len(COLOURS)], "linestyle": DASHES[line.style % 2]}
        width = len(line.y) // 20
        if is_noisy and width > 1:
            axes.plot(line.x, line.y, color=look["color"], alpha=0.3, linewidth=0.6)
            (curve,) = axes.plot(moving_mean(line.x, width), moving_mean(line.y, width), **look)
        else:
            (curve,) = axes.plot(line.x, line.y, **look, marker="o" if len(line.x) < 30 else None, markersize=3)
        legend.append((curve, line.label))
    for level in levels:
        colour = COLOURS[level.style % len(COLOURS)]
        legend.append((axes.axhline(level.y[0], color=colour, linestyle=":"), level.label))
    axes.set_xlabel(AXES[axis])
    axes.xaxis.set_major_formatter("{x:g}" if axis == "time" else EngFormatter(sep=""))
    axes.set_ylabel(y_label)
    axes.yaxis.set_major_formatter("{x:,g}")
    values = [value for line in [*lines, *levels] for value in line.y if math.isfinite(value)] or [0]
    smallest = min(map(abs, values))
    if may_be_log and min(values) * max(values) > 0 and max(map(abs, values)) > 10 * smallest:
        _set_log_y(axes, smallest, is_negative=max(values) < 0)
    _add_legend(figure, axes, legend)
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


def _add_legend(figure: "Figure", axes: "Axes", entries: "list[tuple[Artist, str]]") -> None:
    """Names outside the data, each once; a single name is the title."""
    handles = {label: handle for handle, label in entries}
    if len(handles) == 1:
        _set_title(axes, entries[0][1])
        return
    # Not by the labels of the handles: matplotlib leaves out those that begin with _.
    columns = min(3, len(handles))
    legend = figure.legend(
        [*handles.values()], [""] * len(handles), loc="outside lower center", ncols=columns, frameon=False
    )
    for text, label in zip(legend.get_texts(), handles, strict=True):
        text.set(**_text(label))


def _set_title(axes: "Axes", name: str) -> None:
    axes.title.set(**_text(name))


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
    _set_title(axes, title)
    return figure


def bars(words: list[tuple[str, float]], title: str) -> "Figure":
    """Shares of words as horizontal bars, the most frequent on top."""
    figure, axes = _figure()
    figure.set_size_inches(7, 6)
    axes.barh(range(len(words)), [100 * share for _, share in words], color=COLOURS[0])
    axes.set_yticks(range(len(words)), [word for word, _ in words])
    for label, (word, _) in zip(axes.get_yticklabels(), words, strict=True):
        label.set(**_text(word) | {"fontfamily": ["DejaVu Sans Mono", *_fonts()]})
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("share of all tokens (%)")
    _set_title(axes, title)
    return figure


def contamination_chart(meta: dict, title: str) -> "Figure":
    """Shares of dev's n-grams that stand in train, a group of bars for each split."""
    figure, axes = _figure()
    splits = meta["contamination"]
    lengths = list(splits[meta["flags"]["split_by"]])
    height = 0.8 / len(lengths)
    legend = []
    for number, length in enumerate(lengths):
        shares = [of_split.get(length) for of_split in splits.values()]
        places = [place + number * height for place in range(len(splits))]
        bars = axes.barh(places, [100 * (share or 0) for share in shares], 0.9 * height, color=COLOURS[number])
        labels = ["none to measure" if share is None else f"{share:.1%}" for share in shares]
        axes.bar_label(bars, labels, padding=3)
        legend.append((bars, f"{length}-grams"))
    axes.set_yticks([place + 0.4 - height / 2 for place in range(len(splits))], [f"split by {name}" for name in splits])
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.set_xlim(0, 115)
    axes.set_xticks(range(0, 101, 20))
    axes.set_xlabel("share of dev's n-grams that stand in train (%)")
    _set_title(axes, title)
    _add_legend(figure, axes, legend)
    return figure


def interval_chart(panels: dict[str, list[Bar]], x_label: str) -> "Figure":
    """Shares with their intervals, a panel for each group that may be compared; all panels have the same scale."""
    from matplotlib.figure import Figure

    rows = [len(bars) for bars in panels.values()]
    names = list(dict.fromkeys(name for bars in panels.values() for bar in bars for name in bar.values))
    height = 0.8 / max(1, len(names))
    figure = Figure(figsize=(7, 1 + 0.7 * len(rows) + 0.6 * sum(rows)), layout="constrained")
    all_axes = figure.subplots(len(rows), squeeze=False, sharex=True, height_ratios=rows)[:, 0]
    legend = []
    for axes, (title, bars) in zip(all_axes, panels.items(), strict=True):
        _set_frame(axes)
        for number, name in enumerate(names):
            drawn = [(place, bar.values[name]) for place, bar in enumerate(bars) if name in bar.values]
            places = [place + (number - (len(names) - 1) / 2) * height for place, _ in drawn]
            lengths = [100 * value for _, (value, _, _) in drawn]
            ends = [[100 * max(0, value - low), 100 * max(0, high - value)] for _, (value, low, high) in drawn]
            boxes = axes.barh(places, lengths, 0.9 * height, color=COLOURS[number % len(COLOURS)], alpha=0.8)
            if drawn:
                axes.errorbar(lengths, places, xerr=[*zip(*ends, strict=True)], fmt="none", ecolor="black", capsize=3)
            for place, length, (_, above) in zip(places, lengths, ends, strict=True):
                axes.annotate(f"{length:.1f}", (length + above, place), (4, 0), textcoords="offset points", va="center")
            legend.append((boxes, name))
        axes.set_yticks(range(len(bars)), [bar.label for bar in bars])
        for label, bar in zip(axes.get_yticklabels(), bars, strict=True):
            label.set(**_text(bar.label))
        axes.set_ylim(len(bars) - 0.5, -0.5)
        axes.grid(visible=False, axis="y")
        _set_title(axes, title)
    all_axes[0].margins(x=0.1)
    all_axes[0].set_xlim(left=0)
    all_axes[-1].set_xlabel(x_label if len(names) != 1 else f"{names[0]} {x_label}")
    if len(names) > 1:
        _add_legend(figure, all_axes[0], legend)
    return figure


def save(figure: "Figure", path: Path) -> Path:
    import matplotlib

    with atomic_write(path, "wb") as file, matplotlib.rc_context({"pdf.fonttype": 42}):  # text that stays text
        figure.savefig(file, format=path.suffix[1:], dpi=150)
    return path
