"""Compare a model before and after its adaptation at the same places, with intervals that show what may be chance."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evaluation.infill import Contexts, fill_in
from evaluation.intervals import bootstrap_interval
from evaluation.loss import SingleCLMEvaluator
from evaluation.places import Span

if TYPE_CHECKING:
    from model import GPTSingleHead

KINDS = ("rest of a line", "lines of a block")
WAYS = ((True, False), (True, True))  # (use suffix, use context): an editor always sends the suffix
ARMS = {
    "base": ("before", "prefix, suffix"),
    "base, with context": ("before", "prefix, suffix, context"),
    "adapted": ("after", "prefix, suffix"),
    "adapted, with context": ("after", "prefix, suffix, context"),
}
PAIRS = (
    ("adapted", "base"),
    ("adapted, with context", "base, with context"),
    ("adapted, with context", "adapted"),
    ("adapted, with context", "base"),
)
CONTEXT_TOKENS = 500
FEW = 5  # a bootstrap over fewer files would say nothing
Answers = list[dict[str, Any]]


def load_model(path: str, row_tokens: int) -> "GPTSingleHead":
    """Load a model on its device, for rows of at most `row_tokens` tokens."""
    from common.devices import choose_device
    from model import GPTSingleHead, use_fast_kernels

    model = GPTSingleHead.load(path)
    model.max_seq_length = row_tokens
    use_fast_kernels(model.gpt)
    return model.to(choose_device())


def measure_loss(model: "GPTSingleHead", file: Path, windows: int) -> dict[str, float]:
    """Measure a model as evaluate.py does, on `windows` windows of a jsonl file (always the same ones)."""
    from data import SrcCodeDataset

    return SingleCLMEvaluator(SrcCodeDataset(file, model), windows=windows)(model)


def answer_places(path: str, spans: Sequence[Span], repository: str) -> Iterator[dict[str, Any]]:
    """Yield what a model fills in at each place: its text, whether it is exact, and how similar it is."""
    from completion.engines.load_engine import load_engine

    engine = load_engine(path)
    for place in fill_in(engine, spans, Contexts(engine, repository, CONTEXT_TOKENS), ways=WAYS):
        answers = {
            name: {"text": answer.text, "exact": answer.exact, "similarity": round(answer.similarity, 4)}
            for name, answer in place.answers.items()
        }
        yield {"kind": place.span.kind, "file": place.span.path, "wanted": place.span.middle, "answers": answers}


def compare(before: Answers, after: Answers) -> dict[str, Any]:
    """Return, for each kind of place, the percentage of exact answers of each arm and the paired differences in points.

    The 95 % intervals come from a bootstrap over files, because places in one file resemble each other. With fewer
    than FEW files it is a bootstrap over places.
    """
    answers = {"before": before[: len(after)], "after": after}
    result = {}
    for kind in KINDS:
        places = [number for number, place in enumerate(after) if place["kind"] == kind]
        if not places:
            continue
        files = [after[number]["file"] for number in places]
        exact = {
            arm: [100.0 * answers[stage][number]["answers"][way]["exact"] for number in places]
            for arm, (stage, way) in ARMS.items()
        }
        result[kind] = {
            "places": len(places),
            "files": len(set(files)),
            "exact": {arm: _figure(values, files) for arm, values in exact.items()},
            "differences": {
                f"{new} - {old}": _figure([a - b for a, b in zip(exact[new], exact[old], strict=True)], files)
                for new, old in PAIRS
            },
        }
    return result


def _figure(values: Sequence[float], files: Sequence[str]) -> dict[str, float]:
    low, high = bootstrap_interval(values, files if len(set(files)) >= FEW else None)
    return {"mean": sum(values) / len(values), "low": low, "high": high}


def tell(result: dict[str, Any]) -> str:
    """Return the table, the sentence about other code, and the verdict."""
    return "\n".join([table(result), forgetting(result), verdict(result)])


def _bits(result: dict[str, Any], of: str) -> dict[str, float]:
    return {stage: losses[of]["bits_per_byte"] for stage, losses in result["losses"].items()}


def table(result: dict[str, Any]) -> str:
    """Return the table: a line for each arm, then the differences."""
    kinds, bits = result["places"], _bits(result, "project")

    def line(name: str, of_bits: str, part: str, key: str, sign: str = "") -> str:
        return f"{name:<46}{of_bits:>13}" + "".join(f"{_show(of[part][key], sign):>26}" for of in kinds.values())

    lines = [f"{'':<46}{'bits per byte':>13}" + "".join(f"{kind + ' exact, %':>26}" for kind in kinds)]
    for arm, (stage, way) in ARMS.items():
        lines.append(line(arm, "" if "context" in way else f"{bits[stage]:.3f}", "exact", arm))
    lines.append("differences at the same places, in points:")
    for new, old in PAIRS:
        change = f"{bits['after'] / bits['before'] - 1:+.1%}" if (new, old) == ("adapted", "base") else ""
        lines.append(line(f"  {new} minus {old}", change, "differences", f"{new} - {old}", "+"))
    counts = ", ".join(f"{of['places']} places ({kind}) in {of['files']} files" for kind, of in kinds.items())
    return "\n".join([*lines, f"In brackets the 95 % interval; {counts}."])


def _show(figure: dict[str, float], sign: str = "") -> str:
    return f"{figure['mean']:{sign}.1f} [{figure['low']:{sign}.1f}, {figure['high']:{sign}.1f}]"


def verdict(result: dict[str, Any]) -> str:
    """Return one sentence: whether the completions that a person sees became better by more than chance."""
    line = next(iter(result["places"].values()))["differences"]["adapted, with context - base, with context"]
    bits = _bits(result, "project")
    fall = 1 - bits["after"] / bits["before"]
    sizes = f"by {line['mean']:+.1f} points, with a 95 % interval from {line['low']:+.1f} to {line['high']:+.1f}"
    if line["low"] > 0:
        return f"Better, and not by chance: with context, the rest of a line is exact more often ({sizes})."
    if line["high"] < 0:
        return (
            f"Worse, and not by chance: with context, the rest of a line is exact less often ({sizes}); keep the base."
        )
    told = f"though bits per byte fell by {fall:.0%}, " if fall > 0.02 else ""
    return f"Not shown to be better: {told}exact lines changed {sizes}; chance alone can explain this."


def forgetting(result: dict[str, Any]) -> str:
    """Return a sentence about other code: what the model has forgotten."""
    bits = _bits(result, "library")
    told = (
        f"Elsewhere: bits per byte of Python's own library {bits['before']:.3f} before, {bits['after']:.3f} after "
        f"({bits['after'] / bits['before'] - 1:+.1%})"
    )
    if "humaneval" in result:
        before, after = (100 * result["humaneval"][stage]["value"] for stage in ("before", "after"))
        told += f"; single lines of HumanEval filled in {before:.1f} % before, {after:.1f} % after"
    return told + "."


def chart(result: dict[str, Any], path: Path) -> Path:
    from charts.drawing import Bar, interval_chart, save

    panels = {
        f"{kind}, {of['places']} places": [
            Bar(arm, {"exact": tuple(max(0.0, figure[key]) / 100 for key in ("mean", "low", "high"))})
            for arm, figure in of["exact"].items()
        ]
        for kind, of in result["places"].items()
    }
    return save(interval_chart(panels, "(%), with 95 % intervals"), path)
