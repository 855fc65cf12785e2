"""How often a line is finished exactly, from a cursor at a line's end, inside a line and inside a word.

With the prompt's end healed, as interact.py completes, and without, as `generate` would go on from the same tokens.

python -m benchmarks.cursor_places --model_path tiny --source dataset/Python --places 300
"""

import io
import random
import tokenize
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from common.command import Flags, InputError, flag, parse_flags, run_command
from completion.complete import complete_all
from completion.engines.load_engine import PRECISIONS, load_engine
from completion.prompt import Beginning, Prompt

KINDS = ("line end", "inside a line", "inside a word")
LINES_BEFORE = 30


@dataclass
class PlacesFlags(Flags):
    model_path: str = flag("tiny", "a run folder, a model folder, a known name or a Hub id")
    precision: str = flag("auto", "as interact.py's", choices=PRECISIONS)
    source: str = flag("dataset/Python", "folder of Python files")
    places: int = flag(300, "cursor places, a third of each kind", at_least=3, at_most=100_000)
    seed: int = flag(0, "of the choice of places", at_least=0, below=2**63)


def main() -> None:
    flags = parse_flags(PlacesFlags, __doc__)
    files = sorted(Path(flags.source).rglob("*.py"))
    if not files:
        raise InputError(f"--source {flags.source}: no .py file in it; name a folder of Python files")
    places = list(choose_places(files, flags.places // len(KINDS), random.Random(flags.seed)))
    engine = load_engine(flags.model_path, flags.precision)
    print(f"{flags.model_path}, {engine.name}: {len(places)} places in {flags.source}")
    print(f"{'':<16}{'places':>8}{'healed':>10}{'as is':>10}")
    healed, plain = (exact(engine, places) for engine in (engine, Unhealed(engine)))
    for kind, number in Counter(kind for kind, _, _ in places).items():
        print(f"{kind:<16}{number:>8}{healed[kind] / number:>10.1%}{plain[kind] / number:>10.1%}")
    print(f"{'all':<16}{len(places):>8}{healed.total() / len(places):>10.1%}{plain.total() / len(places):>10.1%}")


class Unhealed:
    """An engine that goes on from the prompt's own tokens, whatever they cut."""

    def __init__(self, engine):
        self._engine = engine
        self.vocabulary, self.context_length = engine.vocabulary, engine.context_length

    def stream(self, prompts, options, over):
        whole = [Prompt([*prompt.ids, *prompt.beginning.exact], Beginning(self.vocabulary)) for prompt in prompts]
        return self._engine.stream([replace(prompt, needs_text=True) for prompt in whole], options, over)


def choose_places(files: list[Path], each: int, rng: random.Random) -> Iterator[tuple[str, str, str]]:
    """Kind, text before the cursor, and the rest of the line that is to be finished."""
    for kind in KINDS:
        found = 0
        while found < each:
            text = rng.choice(files).read_text(encoding="utf-8", errors="ignore")
            if place := _place(kind, text, rng):
                before = "\n".join(text[:place].split("\n")[-LINES_BEFORE:])
                rest = text[place:].lstrip("\n").split("\n")[0] if kind == KINDS[0] else text[place:].split("\n")[0]
                if rest.strip():
                    yield kind, before, rest.rstrip()
                    found += 1


def _place(kind: str, text: str, rng: random.Random) -> int | None:
    """A place in code, not in a comment or a string."""
    try:
        tokens = list(tokenize.generate_tokens(io.StringIO(text).readline))
    except (tokenize.TokenError, SyntaxError):
        return None
    starts = [0]
    for line in text.split("\n"):
        starts.append(starts[-1] + len(line) + 1)
    wanted = {
        "line end": lambda t: t.type == tokenize.NEWLINE,
        "inside a line": lambda t: t.type == tokenize.OP and not t.line[t.end[1] :].isspace(),
        "inside a word": lambda t: t.type == tokenize.NAME and len(t.string) > 3,
    }[kind]
    fitting = [token for token in tokens if token.start[0] > 3 and wanted(token)]
    if not fitting:
        return None
    token = rng.choice(fitting)
    row, column = token.start if kind != "inside a line" else token.end
    inside = rng.randint(1, len(token.string) - 1) if kind == "inside a word" else 0
    return starts[row - 1] + column + inside


def exact(engine, places: list[tuple[str, str, str]]) -> Counter:
    """Of each kind, how many lines were finished exactly."""
    hits: Counter = Counter()
    prompts = [before for _, before, _ in places]
    for place, (completion,) in complete_all(engine, prompts, temperature=0, max_new_tokens=32, stop="line"):
        kind, _, rest = places[place]
        hits[kind] += (
            completion.text.lstrip("\n").rstrip() == rest if kind == KINDS[0] else completion.text.rstrip() == rest
        )
    return hits


if __name__ == "__main__":
    run_command(main)
