"""Choose the chunks of a project that a model sees at a place."""

import os
import subprocess
from collections.abc import Collection, Sequence
from pathlib import Path

from completion.complete import read_place
from completion.engines.engine import Engine
from completion.repository.chunks import Chunk
from completion.repository.form import context_ids
from completion.repository.repository import Repository


def choose_context(
    repository: Repository,
    engine: Engine,
    prefix: str,
    suffix: str,
    language: str,
    path: str = "",
    extra: Sequence[Chunk] = (),
    exclude: Collection[str] = (),
    *,
    max_tokens: int,
    max_new_tokens: int,
) -> list[Chunk]:
    """Call `Repository.chunks_for` with a limit in this model's tokens.

    The chunks take at most `max_tokens`, and at most what the prompt and the completion leave of the context length.

    Args:
        max_new_tokens: the completion's length, which is kept free.
    """
    place = read_place(engine, prefix, suffix, (), path, language, max_new_tokens)
    room = engine.context_length - len(place.ids) - max_new_tokens - len(place.end.text)
    around = len(context_ids(engine.vocabulary, [], language, path))

    def count(chunk: Chunk) -> int:
        return len(context_ids(engine.vocabulary, [chunk], language, path)) - around

    most = min(max_tokens, room) - around
    return repository.chunks_for(prefix, suffix, path or None, extra, exclude, max_tokens=most, count_tokens=count)


def work_tree(file: Path) -> Path | None:
    """Return the git work tree that contains a file, or None."""
    command = ["git", "-C", str(file.absolute().parent), "rev-parse", "--show-toplevel"]
    try:
        answer = subprocess.run(command, capture_output=True)
    except OSError:  # no git on this machine
        return None
    return Path(os.fsdecode(answer.stdout.removesuffix(b"\n"))) if answer.returncode == 0 else None
