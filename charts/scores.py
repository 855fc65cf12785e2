"""Compare results of evaluate.py --problems: a table and the bars of a chart for each set of problems."""

from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypedDict

from common.command import InputError
from common.json_files import read_json
from dataset.format import Count

if TYPE_CHECKING:
    from charts.drawing import Bar

ROUNDING = 1e-9  # a mean may lie outside its interval by this much
REMEDY = "name a file that evaluate.py --problems has written with --output"


class Rate(TypedDict):
    value: float
    low: float
    high: float


class Shares(TypedDict):
    parses: float
    runs: float
    finished: float
    repeats: float


class _Settings(TypedDict, total=False):
    """How the completions were generated. Missing without --infill, and in results of earlier versions."""

    infill: str
    no_infill: bool
    temperature: float
    stop: str


class _Result(TypedDict):
    model: str
    problems: Count
    samples_per_problem: Count
    pass_at_k: dict[str, Rate]
    shares: Shares
    problems_file: str
    problems_sha256: str
    settings: _Settings
    sandbox: str


class Result(_Result, total=False):
    """The part of a result that is used here. Rates and shares are fractions of 1."""

    engine: str  # missing in results of earlier versions


class ComparableResults(NamedTuple):
    """Results that may be compared, because they are of the same problems and of the same task."""

    title: str
    results: list[tuple[str, Result]]  # with their names, which need not differ
    ks: list[str]


def read_result(path: Path) -> Result:
    """Raises InputError if the file is not a result of evaluate.py --problems."""
    result = read_json(path, Result, REMEDY)
    for k, rate in result["pass_at_k"].items():
        bounds = (0, rate["low"], rate["value"], rate["high"], 1)
        if not k.isdecimal() or len(k) > 9 or any(low > high + ROUNDING for low, high in pairwise(bounds)):
            raise InputError(f"{path}: pass_at_k.{k:.20} is not a share with an interval around it; {REMEDY}")
    return result


def compare_results(results: list[tuple[str, Result]]) -> list[ComparableResults]:
    """Group results by their problems. The content and number of the problems count, not the file's name."""
    groups: dict[tuple, list[tuple[str, Result]]] = {}
    for name, result in results:
        key = result["problems_sha256"], result["problems"], result["settings"].get("infill", "")
        groups.setdefault(key, []).append((name, result))
    comparable = []
    for (sha, number, infill), of_group in groups.items():
        file = Path(of_group[0][1]["problems_file"]).name
        title = f"{file} ({sha[:8]}): {number:,} {'single lines' if infill else 'problems'}"
        ks = sorted({k for _, result in of_group for k in result["pass_at_k"]}, key=int)
        comparable.append(ComparableResults(title, of_group, ks))
    return comparable


def how(result: Result) -> str:
    """Return how the completions were generated, as far as it matters for a comparison."""
    settings, n = result["settings"], result["samples_per_problem"]
    sampling = "greedy" if n == 1 else f"{n} at {settings.get('temperature', '?')}"
    return f"{sampling}, " + ("no suffix" if settings.get("no_infill") else f"--stop {settings.get('stop', '?')}")


def results_table(group: ComparableResults) -> str:
    """Return a Markdown table with aligned columns."""
    rates = [f"pass@{k} (95 % interval)" for k in group.ks]
    rows = [["model", "completions", *rates, "parse", "run", "end", "repeat", "problems", "sandbox", "engine"]]
    for name, result in group.results:
        shares = (f"{result['shares'][share]:.1%}" for share in ("parses", "runs", "finished", "repeats"))
        cells = [name.replace("|", "\\|"), how(result), *(_show(result["pass_at_k"].get(k)) for k in group.ks), *shares]
        rows.append([*cells, f"{result['problems']:,}", result["sandbox"], result.get("engine") or "-"])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [f"| {' | '.join(map(str.ljust, row, widths))} |" for row in rows]
    return "\n".join([lines[0], f"|{'|'.join('-' * (width + 2) for width in widths)}|", *lines[1:]])


def _show(rate: Rate | None) -> str:
    return f"{rate['value']:.1%} ({rate['low']:.1%} to {rate['high']:.1%})" if rate else "-"


def bars_of(group: ComparableResults) -> "list[Bar]":
    """Return the bars that `charts.drawing.interval_chart` draws for a group."""
    from charts.drawing import Bar

    return [
        Bar(
            f"{name}\n{how(result)}",
            {f"pass@{k}": (rate["value"], rate["low"], rate["high"]) for k, rate in result["pass_at_k"].items()},
        )
        for name, result in group.results
    ]
