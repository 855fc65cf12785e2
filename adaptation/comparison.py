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
    "base + context": ("before", "prefix, suffix, context"),
    "adapted": ("after", "prefix, suffix"),
    "adapted + context": ("after", "prefix, suffix, context"),
}
PAIRS = (
    ("adapted", "base"),
    ("adapted + context", "base + context"),
    ("adapted + context", "adapted"),
    ("adapted + context", "base"),
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
    """Yield what a model fills in at each place: its text, whether it is exact, and the bits of the correct text."""
    from evaluation.likelihood import load_with_scorer

    engine, bits = load_with_scorer(path)
    for place in fill_in(engine, spans, Contexts(engine, repository, CONTEXT_TOKENS), bits, WAYS):
        answers = {
            name: {"text": answer.text, "exact": answer.exact, "bits": round(answer.bits, 3)}
            for name, answer in place.answers.items()
        }
        yield {"kind": place.span.kind, "file": place.span.path, "wanted": place.span.middle, "answers": answers}


def compare(before: Answers, after: Answers) -> dict[str, Any]:
    """Return, for each kind of place, the results of each arm and their paired differences.

    exact: percentage of places that are filled in exactly; the differences are in points.
    bits: bits per byte of the correct text; the differences are percentages of the older arm's bits.

    The 95 % intervals come from a bootstrap over files, because places in one file resemble each other. With fewer
    than FEW files it is a bootstrap over places.
    """
    stages = {"before": before[: len(after)], "after": after}
    result = {}
    for kind in KINDS:
        places = [number for number, place in enumerate(after) if place["kind"] == kind]
        if not places:
            continue
        files = [after[number]["file"] for number in places]
        answers = {
            arm: [stages[stage][number]["answers"][way] for number in places] for arm, (stage, way) in ARMS.items()
        }
        exact = {arm: [100.0 * answer["exact"] for answer in found] for arm, found in answers.items()}
        bits = {arm: [answer["bits"] for answer in found] for arm, found in answers.items()}
        size = sum(len(after[number]["wanted"].encode()) for number in places) / len(places)  # bytes
        result[kind] = {
            "places": len(places),
            "files": len(set(files)),
            "exact": {arm: _figure(values, files) for arm, values in exact.items()},
            "bits": {arm: _figure(values, files, 1 / size) for arm, values in bits.items()},
            "differences": {
                f"{new} - {old}": {
                    "exact": _figure([a - b for a, b in zip(exact[new], exact[old], strict=True)], files),
                    "bits": _figure(
                        [a - b for a, b in zip(bits[new], bits[old], strict=True)],
                        files,
                        100 * len(places) / max(sum(bits[old]), 1e-9),
                    ),
                }
                for new, old in PAIRS
            },
        }
    return result


def _figure(values: Sequence[float], files: Sequence[str], unit: float = 1.0) -> dict[str, float]:
    low, high = bootstrap_interval(values, files if len(set(files)) >= FEW else None)
    return {"mean": unit * sum(values) / len(values), "low": unit * low, "high": unit * high}


def tell(result: dict[str, Any]) -> str:
    """Return the table, the sentence about other code, and the verdict."""
    return "\n".join([table(result), forgetting(result), verdict(result)])


def _bits(result: dict[str, Any], of: str) -> dict[str, float]:
    return {stage: losses[of]["bits_per_byte"] for stage, losses in result["losses"].items()}


def table(result: dict[str, Any]) -> str:
    """Return, for each kind of place, a line for each arm and one for each difference."""
    bits = _bits(result, "project")
    lines = [
        f"whole held-out files: {bits['before']:.3f} bits per byte before, {bits['after']:.3f} after "
        f"({bits['after'] / bits['before'] - 1:+.1%})"
    ]
    for kind, of_kind in result["places"].items():
        head = f"{kind}, {of_kind['places']} places in {of_kind['files']} files"
        lines += ["", f"{head:<42}{'exact, %':>22}{'bits per byte':>23}"]
        for arm in ARMS:
            exact, bits_per_byte = _show(of_kind["exact"][arm]), _show(of_kind["bits"][arm], digits=3)
            lines.append(f"  {arm:<40}{exact:>22}{bits_per_byte:>23}")
        lines.append(f"{'differences at the same places':<42}{'exact, points':>22}{'bits per byte, %':>23}")
        for name, difference in of_kind["differences"].items():
            exact, relative = (_show(difference[key], "+") for key in ("exact", "bits"))
            lines.append(f"  {name.replace(' - ', ' minus '):<40}{exact:>22}{relative:>23}")
    return "\n".join([*lines, "", "In brackets the 95 % interval."])


def _show(figure: dict[str, float], sign: str = "", digits: int = 1) -> str:
    mean, low, high = (f"{figure[key]:{sign}.{digits}f}" for key in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"


def verdict(result: dict[str, Any]) -> str:
    """Return one sentence: whether the completions that a person sees became better by more than chance."""
    differences = next(iter(result["places"].values()))["differences"]["adapted + context - base + context"]
    line, bits = differences["exact"], differences["bits"]
    sizes = f"by {line['mean']:+.1f} points, with a 95 % interval from {line['low']:+.1f} to {line['high']:+.1f}"
    if line["low"] > 0:
        return f"Better, and not by chance: with context, the rest of a line is exact more often ({sizes})."
    if line["high"] < 0:
        return (
            f"Worse, and not by chance: with context, the rest of a line is exact less often ({sizes}); keep the base."
        )
    told = ""
    if bits["high"] < 0:
        told = f"the model does find your code more likely (bits per byte {bits['mean']:+.0f} %, not by chance), but "
    return f"Not shown to be better: {told}exact lines changed {sizes}, which chance alone can explain."


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
