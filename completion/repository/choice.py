"""Choose the chunks of a project that a model sees at a place."""

import os
import subprocess
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

from completion.complete import read_cursor
from completion.cursor import Cursor
from completion.engines.engine import Engine
from completion.repository.chunks import Chunk
from completion.repository.form import context_ids
from completion.repository.repository import Repository


def choose_context(
    repository: Repository,
    engine: Engine,
    cursor: Cursor,
    extra: Sequence[Chunk] = (),
    exclude: Collection[str] = (),
    *,
    max_tokens: int,
    max_new_tokens: int,
) -> Cursor:
    """Return the cursor with the chunks that `Repository.chunks_for` finds, within a limit in this model's tokens.

    The chunks take at most `max_tokens`, and at most what the prompt and the completion leave of the context length.

    Args:
        extra, exclude: as in `Repository.chunks_for`.
        max_new_tokens: the completion's length, which is kept free.
    """
    prompt = read_cursor(engine, replace(cursor, context=()), max_new_tokens)
    room = engine.context_length - len(prompt.ids) - max_new_tokens - len(prompt.end.text)
    around = len(context_ids(engine.vocabulary, [], cursor.language, cursor.path))

    def count(chunk: Chunk) -> int:
        return len(context_ids(engine.vocabulary, [chunk], cursor.language, cursor.path)) - around

    limits = {"max_tokens": min(max_tokens, room) - around, "count_tokens": count}
    return replace(cursor, context=tuple(repository.chunks_for(cursor, extra, exclude, **limits)))


def work_tree(file: Path) -> Path | None:
    """Return the git work tree that contains a file, or None."""
    command = ["git", "-C", str(file.absolute().parent), "rev-parse", "--show-toplevel"]
    try:
        answer = subprocess.run(command, capture_output=True)
    except OSError:  # no git on this machine
        return None
    return Path(os.fsdecode(answer.stdout.removesuffix(b"\n"))) if answer.returncode == 0 else None
