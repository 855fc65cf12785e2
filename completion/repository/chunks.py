"""Cut a source file into chunks, and split names into words."""

import re
from typing import NamedTuple

# Lines of a chunk. If possible, a chunk of at least half as many ends before a blank line or a definition.
LONGEST_CHUNK = 24
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


def cut_chunks(path: str, text: str, longest: int = LONGEST_CHUNK) -> list[Chunk]:
    """Divide all lines of a file into chunks. Chunks that contain no name are left out."""
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
    """Return a name in lower case, and before it its parts if it has several: readFile gives read, file, readfile."""
    parts = [part.lower() for part in PART.findall(name)]
    return [*parts, name.lower()] if len(parts) > 1 else [name.lower()]
