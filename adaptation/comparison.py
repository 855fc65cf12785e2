"""Compare a model before and after its adaptation at the same places, with intervals that show what may be chance."""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evaluation.infill import MAX_NEW_TOKENS, Contexts, way_name
from evaluation.intervals import figure, paired_difference
from evaluation.loss import SingleCLMEvaluator
from evaluation.places import Span

if TYPE_CHECKING:
    from model import GPTSingleHead

WAYS = WITHOUT_CONTEXT, WITH_CONTEXT = way_name(True, False), way_name(True, True)  # an editor always sends the suffix
ARMS = {
    "base": ("before", WITHOUT_CONTEXT),
    "base + context": ("before", WITH_CONTEXT),
    "adapted": ("after", WITHOUT_CONTEXT),
    "adapted + context": ("after", WITH_CONTEXT),
}
PAIRS = (
    ("adapted", "base"),
    ("adapted + context", "base + context"),
    ("adapted + context", "adapted"),
    ("adapted + context", "base"),
)
CONTEXT_TOKENS = 500
AT_ONCE = 10  # places that are measured at once
Places = list[dict[str, Any]]


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


def measure_places(path: str, spans: Sequence[Span], repository: str) -> Iterator[list[dict[str, Any]]]:
    """Yield, for AT_ONCE places at a time, whether the correct text is the model's first choice, and its bits.

    At the first AT_ONCE places this also yields what an editor would show, the completion with suffix and context, and
    the seconds that it took.
    """
    from completion.complete import complete_at, read_cursor
    from evaluation.likelihood import load_measured, score_texts

    engine, model = load_measured(path)
    contexts = Contexts(engine, repository, CONTEXT_TOKENS)
    for first in range(0, len(spans), AT_ONCE):
        group = spans[first : first + AT_ONCE]
        places = [{"file": span.path, "wanted": span.middle, "answers": {}} for span in group]
        for way in WAYS:
            cursors = [span.cursor() for span in group]
            if way == WITH_CONTEXT:
                cursors = list(map(contexts, group, cursors))
            prompts = [read_cursor(engine, cursor, MAX_NEW_TOKENS) for cursor in cursors]
            scores = score_texts(model, prompts, [span.middle.rstrip() for span in group])
            for place, score in zip(places, scores, strict=True):
                place["answers"][way] = {"exact": score.first_choice, "bits": round(score.bits, 3)}
        if first == 0:
            for place, cursor in zip(places, cursors, strict=True):
                settings = {"temperature": 0, "max_new_tokens": MAX_NEW_TOKENS, "stop": "line"}
                began = time.perf_counter()
                (found,) = complete_at(engine, cursor, **settings)
                place |= {"text": found.text, "seconds": time.perf_counter() - began}
        yield places


def compare(before: Places, after: Places) -> dict[str, Any]:
    """Return the results of each arm at the same places, and their paired differences.

    exact: percentage of places where the model's first choice is correct; the differences are in points.
    bits: bits per byte of the correct text; the differences are percentages of the older arm's bits.

    The 95 % intervals are those of `figure`.
    """
    stages = {"before": before[: len(after)], "after": after}
    files = [place["file"] for place in after]
    answers = {arm: [place["answers"][way] for place in stages[stage]] for arm, (stage, way) in ARMS.items()}
    exact = {arm: [100.0 * answer["exact"] for answer in found] for arm, found in answers.items()}
    bits = {arm: [answer["bits"] for answer in found] for arm, found in answers.items()}
    size = sum(len(place["wanted"].encode()) for place in after) / len(after)  # bytes

    return {
        "places": len(after),
        "files": len(set(files)),
        "exact": {arm: figure(values, files) for arm, values in exact.items()},
        "bits": {arm: figure(values, files, 1 / size) for arm, values in bits.items()},
        "differences": {
            f"{new} - {old}": {
                "exact": paired_difference(exact[new], exact[old], files),
                "bits": paired_difference(bits[new], bits[old], files, 100, relative=True),
            }
            for new, old in PAIRS
        },
    }


def tell(result: dict[str, Any]) -> str:
    """Return the table, the sentence about other code, and the verdict."""
    return "\n".join([table(result), forgetting(result), verdict(result)])


def _bits(result: dict[str, Any], of: str) -> dict[str, float]:
    return {stage: losses[of]["bits_per_byte"] for stage, losses in result["losses"].items()}


def table(result: dict[str, Any]) -> str:
    """Return a line for each arm and one for each difference."""
    bits, places = _bits(result, "project"), result["places"]
    head = f"rest of a line, {places['places']} places in {places['files']} files"
    lines = [
        f"whole held-out files: {bits['before']:.3f} bits per byte before, {bits['after']:.3f} after "
        f"({bits['after'] / bits['before'] - 1:+.1%})",
        "",
        f"{head:<42}{'exact, %':>22}{'bits per byte':>23}",
    ]
    for arm in ARMS:
        exact, bits_per_byte = _show(places["exact"][arm]), _show(places["bits"][arm], digits=3)
        lines.append(f"  {arm:<40}{exact:>22}{bits_per_byte:>23}")
    lines.append(f"{'differences at the same places':<42}{'exact, points':>22}{'bits per byte, %':>23}")
    for name, difference in places["differences"].items():
        exact, relative = (_show(difference[key], "+") for key in ("exact", "bits"))
        lines.append(f"  {name.replace(' - ', ' minus '):<40}{exact:>22}{relative:>23}")
    return "\n".join([*lines, "In brackets the 95 % interval.", ""])


def examples(before: Places, after: Places) -> str:
    """Return what both models write at the first places, with context: the correct text, and where they differ."""
    rows = [f"{'correct':<36}{'base + context':<36}adapted + context"]
    for old, new in zip(before, after, strict=False):
        if "text" in old and "text" in new:
            rows.append("".join(f"{_short(text):<36}" for text in (old["wanted"], old["text"], new["text"])).rstrip())
    return "\n".join(rows)


def _short(text: str) -> str:
    line = text.strip().partition("\n")[0]
    return line if len(line) <= 34 else line[:33] + "…"


def _show(figure: dict[str, float], sign: str = "", digits: int = 1) -> str:
    mean, low, high = (f"{figure[key]:{sign}.{digits}f}" for key in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"


def verdict(result: dict[str, Any]) -> str:
    """Return one sentence: whether the completions that a person sees became better by more than chance."""
    difference = result["places"]["differences"]["adapted + context - base + context"]
    line, bits = difference["exact"], difference["bits"]
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
    kept = f" Its weights keep {result['share']:.0%} of their change in training, so that less is forgotten."
    return f"{told}.{kept * (result['share'] < 1)}"


def chart(result: dict[str, Any], path: Path) -> Path:
    from charts.drawing import Bar, interval_chart, save

    bars = [
        Bar(arm, {"exact": tuple(max(0.0, figure[key]) / 100 for key in ("mean", "low", "high"))})
        for arm, figure in result["places"]["exact"].items()
    ]
    gain = result["places"]["differences"]["adapted + context - base + context"]["exact"]
    # The intervals of the bars overlap even where the difference at the same places is certain.
    places = f"rest of a line, {result['places']['places']} places"
    title = f"{places}\nadapted minus base, with context: {_show(gain, '+')} points"
    return save(interval_chart({title: bars}, "(%), with 95 % intervals"), path)
