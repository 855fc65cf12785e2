"""Comparison of results of evaluate.py --problems: a table and a chart for those of the same problems."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict

from common.command import InputError
from common.json_files import read_json

if TYPE_CHECKING:
    from charts.drawing import Bar

ROUNDING = 1e-9  # by how much the mean may be outside of its interval


class Rate(TypedDict):
    value: float
    low: float
    high: float


class Shares(TypedDict):
    parses: float
    runs: float
    finished: float
    repeats: float


class _Result(TypedDict):
    model: str
    problems: int
    samples_per_problem: int
    pass_at_k: dict[str, Rate]
    shares: Shares
    problems_file: str
    problems_sha256: str
    settings: dict[str, Any]
    sandbox: str


class Result(_Result, total=False):
    """What is read of a result; shares are of 1."""

    engine: str  # not in those of earlier versions


class ComparableResults(NamedTuple):
    """Results that may be compared: of the same problems, completed in the same way."""

    title: str
    results: list[tuple[str, Result]]  # with their names, which may be the same
    ks: list[str]


def read_result(path: Path) -> Result:
    """Raises InputError where the file is not a result of evaluate.py --problems."""
    remedy = "name a file that evaluate.py --problems has written with --output"
    result = read_json(path, Result, remedy)
    for k, rate in result["pass_at_k"].items():
        ordered = (
            -ROUNDING <= rate["low"] <= rate["value"] + ROUNDING <= rate["high"] + 2 * ROUNDING <= 1 + 3 * ROUNDING
        )
        if not k.isdecimal() or not ordered:
            raise InputError(f"{path}: pass_at_k.{k} is no share with an interval around it; {remedy}")
    return result


def compare_results(results: list[tuple[str, Result]]) -> list[ComparableResults]:
    """Results by their problems, told apart by content and number, not by the file's name."""
    groups: dict[tuple, list[tuple[str, Result]]] = {}
    for name, result in results:
        key = result["problems_sha256"], result["problems"], result["settings"].get("infill", "")
        groups.setdefault(key, []).append((name, result))
    return [
        ComparableResults(
            f"{Path(of_group[0][1]['problems_file']).name} ({sha[:8]}): {number:,} "
            + ("single lines" if infill else "problems"),
            of_group,
            sorted({k for _, result in of_group for k in result["pass_at_k"]}, key=int),
        )
        for (sha, number, infill), of_group in groups.items()
    ]


def how(result: Result) -> str:
    """How the completions were generated, as far as it matters for a comparison."""
    settings, n = result["settings"], result["samples_per_problem"]
    words = ["greedy" if n == 1 else f"{n} at {settings.get('temperature', '?')}"]
    words.append("no suffix" if settings.get("no_infill") else f"stop at {settings.get('stop', '?')}")
    return ", ".join(words)


def results_table(group: ComparableResults) -> str:
    """In Markdown, its columns aligned."""
    rates = [f"pass@{k} (95 % interval)" for k in group.ks]
    rows = [
        ["model", "completions", *rates, "parse", "run", "end", "repeat", "problems", "sandbox", "engine"],
        *(
            [
                name.replace("|", "\\|"),
                how(result),
                *(_show(result["pass_at_k"].get(k)) for k in group.ks),
                *(f"{result['shares'][share]:.1%}" for share in ("parses", "runs", "finished", "repeats")),
                f"{result['problems']:,}",
                result["sandbox"],
                result.get("engine") or "-",
            ]
            for name, result in group.results
        ),
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [f"| {' | '.join(map(str.ljust, row, widths))} |" for row in rows]
    return "\n".join([lines[0], f"|{'|'.join('-' * (width + 2) for width in widths)}|", *lines[1:]])


def shares_of(group: ComparableResults) -> "list[Bar]":
    """What charts.drawing.interval_chart draws of them."""
    from charts.drawing import Bar

    return [
        Bar(
            f"{name}\n{how(result)}",
            {f"pass@{k}": (rate["value"], rate["low"], rate["high"]) for k, rate in result["pass_at_k"].items()},
        )
        for name, result in group.results
    ]


def _show(rate: Rate | None) -> str:
    return f"{rate['value']:.1%} ({rate['low']:.1%} to {rate['high']:.1%})" if rate else "-"
