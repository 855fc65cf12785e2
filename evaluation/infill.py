"""How well a model fills in text taken out of files, with and without suffix, with and without context."""

import difflib
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from common.command import InputError
from completion.complete import complete_at, read_cursor
from completion.cursor import Cursor
from completion.engines.engine import Engine
from completion.prompt import Prompt
from completion.repository.choice import choose_context
from completion.repository.repository import Repository
from dataset.sources import source_root
from evaluation.intervals import figure, paired_difference
from evaluation.places import NEXT_LINES, OF_ONE_LINE, Span

MAX_NEW_TOKENS, MOST_IN_FUNCTION = 128, 512
WAYS = tuple(product((False, True), (False, True)))  # with suffix, with context


@dataclass(frozen=True)
class Answer:
    """What a model filled in at a place.

    Attributes:
        similarity: `difflib`'s ratio (Ratcliff and Obershelp), from 0 to 1 for equal texts.
        bits: the bits that the correct text costs the model; None if not measured.
        shown: where the chunks that the model saw come from, for example bank.py:1.
    """

    text: str
    exact: bool
    similarity: float
    seconds: float
    bits: float | None
    shown: list[str]


@dataclass(frozen=True)
class Place:
    span: Span
    answers: dict[str, Answer]  # keys are from `way_name`


def way_name(suffix: bool, context: bool) -> str:
    return "prefix" + ", suffix" * suffix + ", context" * context


class Contexts:
    """Chooses the chunks that the model sees at a place. They never come from the file itself or a copy of it.

    Args:
        folder: the repository; for places in a published file, the folder with their repositories. None: the source
            folder of the place's file, or the chunks in the published file.
        max_tokens: the most tokens of all chunks together; 0 for no context.
    """

    def __init__(self, engine: Engine, folder: str | None, max_tokens: int):
        self._engine, self._folder, self._max_tokens = engine, folder, max_tokens
        self._repositories: dict[Path, Repository] = {}

    def any_for(self, spans: Sequence[Span]) -> bool:
        """Whether there is a repository, or chunks that belong to the places."""
        found = self._folder is not None or any(span.source or span.context for span in spans)
        return bool(self._max_tokens) and found

    def __call__(self, span: Span, cursor: Cursor) -> Cursor:
        """Return the cursor, which is at this span, with its chunks.

        Raises:
            InputError: the repository of a published place lacks its file, which could be shown under another name.
        """
        if self._folder is None and not span.source:
            return replace(cursor, context=span.context)
        root = source_root(span.source) if self._folder is None else Path(self._folder) / span.repository
        file = (source_root(span.source) if span.source else root) / span.path
        if not span.source and not file.is_file():
            raise InputError(f"{file}: no such file; name with --repository the folder that holds {span.repository}")
        if root not in self._repositories:
            self._repositories[root] = Repository(root)
        repository = self._repositories[root]
        return choose_context(
            repository,
            self._engine,
            replace(cursor, path=repository.path_of(file)),
            exclude=repository.copies_of(file),
            max_tokens=self._max_tokens,
            max_new_tokens=MAX_NEW_TOKENS,
        )


def fill_in(
    engine: Engine,
    spans: Sequence[Span],
    add_context: Callable[[Span, Cursor], Cursor] | None = None,
    bits: Callable[[Prompt, str, bool], float] | None = None,
) -> Iterator[Place]:
    """Fill in each span greedily, up to the end of the line or of the block.

    Args:
        add_context: such as `Contexts`; None to skip the ways with context.
        bits: returns the bits that a text costs after a prompt, given whether it ends with its line.
    """
    has_suffix = any(span.suffix for span in spans)
    ways = [way for way in WAYS if (has_suffix or not way[0]) and (add_context or not way[1])]
    for span in spans:
        answers = {}
        for with_suffix, with_context in ways:
            cursor = span.cursor(with_suffix)
            if with_context:
                cursor = add_context(span, cursor)
            answers[way_name(with_suffix, with_context)] = _answer(engine, span, cursor, bits)
        yield Place(span, answers)


def _answer(engine: Engine, span: Span, cursor: Cursor, bits: Callable | None) -> Answer:
    stop = "line" if span.kind in OF_ONE_LINE else "block"
    most = MOST_IN_FUNCTION if span.kind == NEXT_LINES else MAX_NEW_TOKENS
    settings = {"temperature": 0, "max_new_tokens": most, "stop": stop}
    began = time.perf_counter()
    (found,) = complete_at(engine, cursor, **settings)
    seconds = time.perf_counter() - began
    written, wanted = compared(span, found.text)
    similarity = difflib.SequenceMatcher(None, written, wanted, autojunk=False).ratio()
    prompt = read_cursor(engine, cursor, most)
    cost = bits(prompt, span.middle.rstrip(), span.suffix.startswith(("\n", "\r\n"))) if bits else None
    shown = [f"{chunk.path}:{chunk.first_line}" for chunk in cursor.context]
    return Answer(found.text, written == wanted, similarity, seconds, cost, shown)


def compared(span: Span, text: str) -> tuple[str, str]:
    """Return the text that a model wrote and the correct text, without what makes no difference at this place."""
    if span.source:
        return (text.lstrip("\n") if span.kind == "next line" else text).rstrip(), span.middle.rstrip()
    # The rule of RepoEval (microsoft/CodeT, RepoCoder/compute_score.py): without indentation and blank lines, and only
    # as many lines as the correct text has.
    written, wanted = ([line.strip() for line in each.splitlines() if line.strip()] for each in (text, span.middle))
    return "\n".join(written[: len(wanted)]), "\n".join(wanted)


def summarise(places: Sequence[Place]) -> dict[str, Any]:
    """Return, for each kind: the number of places, the results of each way, and paired differences, with intervals.

    The 95 % intervals are those of `figure`.
    """
    return {
        kind: _summarise_kind([place for place in places if place.span.kind == kind])
        for kind in dict.fromkeys(place.span.kind for place in places)
    }


def _summarise_kind(places: Sequence[Place]) -> dict[str, Any]:
    files = [(place.span.source, place.span.repository, place.span.path) for place in places]
    size = sum(len(place.span.middle.rstrip().encode()) for place in places)  # bytes
    ways = {name: [place.answers[name] for place in places] for name in places[0].answers}
    values = {
        "exact_match": {name: [float(answer.exact) for answer in answers] for name, answers in ways.items()},
        "edit_similarity": {name: [answer.similarity for answer in answers] for name, answers in ways.items()},
    }
    figures = {
        name: {key: _as_dict(figure(of_way[name], files)) for key, of_way in values.items()}
        | {"bits_per_byte": None, "seconds": statistics.median(answer.seconds for answer in answers)}
        for name, answers in ways.items()
    }
    if ways["prefix"][0].bits is not None:
        values["bits_per_byte"] = {name: [answer.bits for answer in answers] for name, answers in ways.items()}
        for name, bits in values["bits_per_byte"].items():
            figures[name]["bits_per_byte"] = sum(bits) / size
    differences = {}
    for name in ways:
        for part in (", context", ", suffix"):
            if part in name:
                old = name.replace(part, "")
                differences[f"{name} - {old}"] = {
                    key: _as_dict(paired_difference(of_way[name], of_way[old], files, relative=key == "bits_per_byte"))
                    for key, of_way in values.items()
                }
    shown = {name: statistics.mean(bool(a.shown) for a in answers) for name, answers in ways.items()}
    return {"places": len(places), "ways": figures, "differences": differences, "shown_context": shown}


def _as_dict(found: dict[str, float]) -> dict[str, Any]:
    return {"mean": found["mean"], "interval": (found["low"], found["high"])}


def as_json(places: Sequence[Place]) -> list[dict[str, Any]]:
    """Return every place with the correct text and the answer of each way."""
    return [asdict(place) for place in places]


def infill_table(summary: dict[str, Any]) -> str:
    lines = []
    for kind, of_kind in summary.items():
        lines.append(
            f"{kind}, {of_kind['places']} places{'exact':>23}{'similarity':>21}{'bits/byte':>11}{'seconds':>9}"
        )
        for name, row in of_kind["ways"].items():
            bits = "" if row["bits_per_byte"] is None else f"{row['bits_per_byte']:.3f}"
            exact, similar = (_percent(row[key]) for key in ("exact_match", "edit_similarity"))
            lines.append(f"  {name:<24}{exact:>22}{similar:>22}{bits:>10}{row['seconds']:>9.2f}")
        for name, row in of_kind["differences"].items():
            new, _, old = name.partition(" - ")
            exact, similar = (_percent(row[key], "+") for key in ("exact_match", "edit_similarity"))
            bits = _percent(row["bits_per_byte"], "+") if "bits_per_byte" in row else ""
            lines.append(
                f"  {new} minus {old}: exact {exact}, similarity {similar}, bits/byte {bits or 'not measured'}"
            )
    return "\n".join(lines)


def _percent(figure: dict[str, Any], sign: str = "") -> str:
    low, high = figure["interval"]
    return f"{100 * figure['mean']:{sign}.1f} [{100 * low:{sign}.1f}, {100 * high:{sign}.1f}] %"


def until_stopped(places: Iterator[Place], total: int) -> list[Place]:
    """Return all places, with a progress bar on a terminal; after Ctrl-C those that are done."""
    from tqdm import tqdm

    done: list[Place] = []
    try:
        for place in tqdm(places, "fill in", total, unit="place", leave=False, disable=None):
            done.append(place)
    except KeyboardInterrupt:
        print(f"stopped: {len(done)} of {total} places are done", file=sys.stderr)
    return done
