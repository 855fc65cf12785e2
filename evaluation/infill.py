"""How well a model fills in what was taken out of files that it has not been trained on."""

import ast
import difflib
import random
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from completion.complete import complete
from completion.engines.engine import Engine

KINDS = ("rest of a line", "lines of a block", "any characters")
LINES_BEFORE, LINES_BEHIND = 32, 8  # of the cursor: about what an editor sends, and any model has room for
LONGEST = 400  # characters of a span; a longer one is nobody's next edit


@dataclass(frozen=True)
class Span:
    """A piece taken out of a file, and the lines around it: the text there is prefix + middle + suffix."""

    kind: str
    path: str
    prefix: str
    middle: str
    suffix: str


def choose_spans(sources: Sequence[tuple[str, str]], each: int, seed: int = 0) -> list[Span]:
    """Spans of every kind, as many of each, from random files; the same ones for the same files and seed.

    Args:
        sources: path and text of Python files.
        each: how many spans of a kind.
    """
    rng = random.Random(seed)
    spans = []
    for kind in KINDS:
        found = 0
        for _ in range(100 * each):
            path, text = rng.choice(sources)
            places = _place(kind, text, rng)
            if places and (middle := text[slice(*places)]).strip() and len(middle) <= LONGEST:
                prefix = text[: places[0]].splitlines(keepends=True)[-LINES_BEFORE:]
                suffix = text[places[1] :].splitlines(keepends=True)[:LINES_BEHIND]
                spans.append(Span(kind, path, "".join(prefix), middle, "".join(suffix)))
                found += 1
            if found == each:
                break
    return spans


def _place(kind: str, text: str, rng: random.Random) -> tuple[int, int] | None:
    if kind == "any characters":
        start = rng.randrange(len(text))
        return start, start + rng.randint(1, 120)
    lines = text.splitlines(keepends=True)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line))
    if kind == "rest of a line":
        row = rng.randrange(len(lines))
        code = lines[row].rstrip()
        if len(code.strip()) < 4:
            return None
        indent = len(code) - len(code.lstrip())
        return starts[row] + rng.randint(indent, len(code) - 1), starts[row] + len(code)
    blocks = list(_statements(text))
    if not blocks:
        return None
    body = rng.choice(blocks)
    first = rng.randrange(len(body))
    last = rng.randrange(first, min(len(body), first + 3))
    # From the end of the line before to the end of the last line, so that the cursor stands behind a line.
    return starts[body[first][0] - 1] - 1, starts[body[last][1]] - 1


def _statements(text: str) -> Iterator[list[tuple[int, int]]]:
    """First and last line, counted from 1, of the statements of each function's body, the docstring left out."""
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node) is not None else node.body
            rows = [(statement.lineno, statement.end_lineno) for statement in body if statement.lineno > node.lineno]
            if rows:
                yield rows


def measure(engine: Engine, spans: Sequence[Span], use_suffix: bool) -> dict[str, dict[str, float]]:
    """Of each kind of span: how many, how many were filled in exactly, how similar the texts are, seconds for one.

    Similarity is that of `difflib` (Ratcliff and Obershelp), as in CodeXGLUE's edit similarity: 1 for equal texts.
    Blanks and line breaks at the end do not count. Greedy; the rest of a line ends with the
    line, others with the block.
    """
    results: dict[str, dict[str, float]] = {}
    for kind in dict.fromkeys(span.kind for span in spans):
        exact, similar, seconds = [], [], []
        settings = {"temperature": 0, "max_new_tokens": 128, "stop": "line" if kind == KINDS[0] else "block"}
        for span in (span for span in spans if span.kind == kind):
            began = time.perf_counter()
            (found,) = complete(engine, span.prefix, suffix=span.suffix if use_suffix else "", **settings)
            seconds.append(time.perf_counter() - began)
            written, wanted = found.text.rstrip(), span.middle.rstrip()
            exact.append(written == wanted)
            similar.append(difflib.SequenceMatcher(None, written, wanted, autojunk=False).ratio())
        results[kind] = {
            "spans": len(exact),
            "exact_match": statistics.mean(exact),
            "edit_similarity": statistics.mean(similar),
            "seconds": statistics.median(seconds),
        }
    return results


def infill_table(results: dict[str, dict[str, dict[str, float]]]) -> str:
    lines = [f"  {'':<20}{'':<14}{'spans':>7}{'exact':>9}{'similar':>9}{'s':>8}"]
    for way, kinds in results.items():
        for kind, row in kinds.items():
            numbers = f"{row['spans']:>7}{row['exact_match']:>9.1%}{row['edit_similarity']:>9.1%}{row['seconds']:>8.2f}"
            lines.append(f"  {kind:<20}{way:<14}{numbers}")
    return "\n".join(lines)
