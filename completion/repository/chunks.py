"""A source file cut into chunks, and a chunk's words."""

import re
from typing import NamedTuple

LONGEST = 24  # lines of a chunk; from half of it on, a chunk ends where a blank line or a new definition is
BOUNDARY = re.compile(r"\s*$|(class|def|async def|@|public|private|protected) ?")
NAME = re.compile(r"[^\W\d]\w*")
PART = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[^\W\dA-Z_]+|[A-Z]+|\d+")


class Chunk(NamedTuple):
    """Some lines of a file.

    Attributes:
        path: of the file, below the repository's folder, with forward slashes.
        first_line: counted from 1.
        text: whole lines, each with its line end.
    """

    path: str
    first_line: int
    text: str


def cut_chunks(path: str, text: str, longest: int = LONGEST) -> list[Chunk]:
    """All lines of a file as chunks, one after the other; those without a name in them are left out."""
    lines = text.splitlines(keepends=True)
    chunks, start = [], 0
    while start < len(lines):
        end = min(start + longest, len(lines))
        if end < len(lines):
            ends = (line for line in range(end, start + longest // 2 - 1, -1) if BOUNDARY.match(lines[line].lstrip()))
            end = next(ends, end)
        chunks.append(Chunk(path, start + 1, "".join(lines[start:end])))
        start = end
    return [chunk for chunk in chunks if NAME.search(chunk.text)]


def words_of(name: str) -> list[str]:
    """A name in lower case, and its parts where it has several: readFile gives read, file, readfile."""
    parts = [part.lower() for part in PART.findall(name)]
    return [*parts, name.lower()] if len(parts) > 1 else [name.lower()]
