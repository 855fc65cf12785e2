"""A project's source files, and the chunks of them that resemble the code around a cursor."""

import hashlib
import re
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from common.command import InputError
from completion.cursor import Cursor
from completion.repository.chunks import LONGEST_CHUNK, NAME, Chunk, cut_chunks, words_of
from dataset.sources import SourceFile, find_sources, read_text

QUERY_BEFORE, QUERY_AFTER = 24, 4  # lines before and after the cursor whose words are searched for
NEARER = 0.9  # weight of a line's words, relative to the line that is one closer to the cursor
HALF_WORD = re.compile(r"\w*\Z")
# Lowest score of a chunk that is shown. With 0.3, SmolLM2-135M kept almost all that context gains in a project (exact
# lines at 400 places: 31.5 to 42.8 %), and lost nothing on HumanEval with chunks that have nothing to do with it.
GOOD_ENOUGH = 0.3
KEPT = 1.5  # factor for the score of a chunk that was shown last, so that the choice stays the same while one types
MOST = 6  # chunks
MOST_TRIED = 16  # most chunks that are tried until one fits
SATURATION, LENGTH_SHARE = 1.5, 0.75  # BM25's usual k1 and b
LAST_LINES = 200  # characters of the last prefix, by which it is recognized after more was typed
CHECKED_AFTER = 5  # seconds after which files are looked at again


class _File(NamedTuple):
    stamp: tuple[int, int]  # time of the last change in ns, bytes
    digest: bytes  # of the text
    chunks: list[Chunk]
    words: list[np.ndarray]  # of each chunk [words] int32: the numbers of its different words


class _Index(NamedTuple):
    """Which chunks each word occurs in."""

    chunks: list[Chunk]
    places: dict[Chunk, int]  # of each chunk in the list
    lengths: np.ndarray  # [chunks] float32: different words of each
    starts: np.ndarray  # [words + 1] int64: where in `found` each word's chunks begin
    found: np.ndarray  # [occurrences] int32


class Repository:
    """The source files below a folder, as dataset/convert.py finds them: neither ignored by git nor installed.

    Every few seconds a background thread checks the files and reads those that have changed.
    It may be used by several threads.

    Args:
        folder: None for no files; then only the chunks passed to `chunks_for` are searched.
    Raises:
        InputError: no such folder, or no source file in it.
    """

    def __init__(self, folder: Path | None):
        if folder and not folder.is_dir():
            raise InputError(f"{folder}: no such folder; name the folder of a project")
        self.folder = folder
        self._numbers: dict[str, int] = {}  # of each word
        self._names: dict[str, tuple[int, ...]] = {}  # the numbers of the words of each name
        self._files: dict[str, _File] = {}
        self._lock = threading.Lock()
        self._checked = 0.0
        self._last: tuple[str, str, list[Chunk]] = ("", "", [])
        self.refresh()

    @classmethod
    def of_texts(cls, texts: Mapping[str, str], longest: int = LONGEST_CHUNK) -> "Repository":
        """Make a repository of files in memory (path -> text), in chunks of at most `longest` lines."""
        repository = cls(None)
        for path, text in texts.items():
            chunks = cut_chunks(path, text, longest)
            words = [repository._words(chunk.text) for chunk in chunks]
            repository._files[path] = _File((0, 0), _digest(text), chunks, words)
        repository._index = repository._build()
        return repository

    def path_of(self, file: str | Path) -> str:
        """A file's path below the folder, with forward slashes; empty if it is outside the folder."""
        file, folder = Path(file).resolve(), self.folder.resolve()
        return file.relative_to(folder).as_posix() if file.is_relative_to(folder) else ""

    def copies_of(self, file: Path) -> set[str]:
        """Return the paths of this file and of all files with the same text."""
        digest = _digest(read_text(file)[0])
        return {self.path_of(file)}.union(path for path, other in self._files.items() if other.digest == digest)

    def refresh(self) -> None:
        """Read files that are new or have changed."""
        with self._lock:
            before = self._files
            self._files = {}
            for source in self._sources():
                if file := self._read(source.file, source.path, before.get(source.path)):
                    self._files[source.path] = file
            if self._checked == 0 or list(self._files.items()) != list(before.items()):
                self._index = self._build()
            self._checked = time.monotonic()

    def chunks_for(
        self,
        cursor: Cursor,
        extra: Sequence[Chunk] = (),
        exclude: Collection[str] = (),
        *,
        max_tokens: int,
        count_tokens: Callable[[Chunk], int],
    ) -> list[Chunk]:
        """Return the chunks most similar to the code around the cursor, sorted by path and line; none if none is good.

        The order, and the preference for chunks shown last, keep the beginning of the prompt the same while one types,
        so that an engine can reuse its KV cache.

        Args:
            cursor: the other parts of its own file may be shown too.
            extra: further chunks to choose from, such as those an editor sends.
            exclude: paths of files that must not be shown.
            max_tokens: the most that all chunks together may take, as `count_tokens` counts them.
        """
        if self.folder and time.monotonic() - self._checked > CHECKED_AFTER:
            self._checked = time.monotonic()
            threading.Thread(target=self.refresh, daemon=True).start()
        last_path, begun, shown = self._last
        continues = cursor.path == last_path and begun and begun in cursor.prefix
        limits = {"max_tokens": max_tokens, "count_tokens": count_tokens}
        chosen = self.search(cursor, extra, exclude, shown if continues else (), **limits)
        # An editor sends the last lines before the cursor only, so the prefix loses lines at its beginning.
        self._last = cursor.path, cursor.prefix[: cursor.prefix.rfind("\n") + 1][-LAST_LINES:], chosen
        return chosen

    def search(
        self,
        cursor: Cursor,
        extra: Sequence[Chunk] = (),
        exclude: Collection[str] = (),
        preferred: Sequence[Chunk] = (),
        *,
        max_tokens: int,
        count_tokens: Callable[[Chunk], int],
    ) -> list[Chunk]:
        """Like `chunks_for`, but the result depends only on the arguments, not on what was shown last.

        Args:
            preferred: chunks whose score is multiplied by KEPT.
        """
        index = self._index
        chunks = [*index.chunks, *extra]
        scores = self._scores(index, query_of(cursor.prefix, cursor.suffix), extra)
        extra_places = {chunk: place for place, chunk in enumerate(extra, len(index.chunks))}
        for chunk in preferred:
            if (place := index.places.get(chunk, extra_places.get(chunk))) is not None:
                scores[place] *= KEPT
        good = np.flatnonzero(scores >= GOOD_ENOUGH)
        visible = {line.strip() for line in (cursor.prefix + cursor.suffix).splitlines()}
        chosen: list[Chunk] = []
        tried = 0
        for place in good[np.argsort(-scores[good], kind="stable")]:
            chunk = chunks[place]
            if len(chosen) == MOST or tried == MOST_TRIED:
                break
            if chunk.path in exclude:
                continue
            may_be_visible = cursor.path in ("", chunk.path) or place >= len(index.chunks)
            if may_be_visible and _mostly_in(chunk.text, visible):
                continue
            tried += 1
            if (tokens := count_tokens(chunk)) <= max_tokens:
                chosen.append(chunk)
                max_tokens -= tokens
                visible.update(map(str.strip, chunk.text.splitlines()))
        return sorted(chosen)

    def _sources(self) -> list[SourceFile]:
        try:
            # An absolute path, because find_sources takes `stdlib` for Python's own library.
            return find_sources([str(self.folder.absolute())]).files if self.folder else []
        except InputError:
            if self._checked:  # the last source file has been removed since
                return []
            raise

    def _read(self, file: Path, path: str, known: _File | None) -> _File | None:
        try:
            stat = file.stat()
        except OSError:  # deleted meanwhile
            return None
        stamp = stat.st_mtime_ns, stat.st_size
        if known and known.stamp == stamp:
            return known
        text, _ = read_text(file)
        chunks = cut_chunks(path, text)
        return _File(stamp, _digest(text), chunks, [self._words(c.text) for c in chunks])

    def _words(self, text: str) -> np.ndarray:
        """The numbers of a text's different words, [words] int32; new words get numbers."""
        numbers: set[int] = set()
        for name in set(NAME.findall(text)):
            if name not in self._names:
                words = words_of(name)
                self._names[name] = tuple(self._numbers.setdefault(word, len(self._numbers)) for word in words)
            numbers.update(self._names[name])
        return np.fromiter(numbers, np.int32, len(numbers))

    def _build(self) -> _Index:
        chunks = [chunk for file in self._files.values() for chunk in file.chunks]
        words = [words for file in self._files.values() for words in file.words]
        lengths = np.array([len(own) for own in words], np.int32)
        flat = np.concatenate([np.empty(0, np.int32), *words])
        order = np.argsort(flat, kind="stable")
        return _Index(
            chunks,
            {chunk: place for place, chunk in enumerate(chunks)},
            lengths.astype(np.float32),
            np.searchsorted(flat[order], np.arange(len(self._numbers) + 1)),
            np.repeat(np.arange(len(chunks), dtype=np.int32), lengths)[order],
        )

    def _scores(self, index: _Index, query: Mapping[str, float], extra: Sequence[Chunk]) -> np.ndarray:
        """Return BM25 scores [chunks + extra] float32, as fractions of the weight of all words searched for.

        A word counts once in a chunk. A library for BM25, bm25s, took 9 times as long to build the index of 5,000 files
        and 1 GB, and has no score for a text that is not in its index.
        """
        scores = np.zeros(len(index.chunks) + len(extra), np.float32)
        words_of_extra = [_words_in(chunk.text) for chunk in extra]
        total = 0.0
        for word, share in query.items():
            number = self._numbers.get(word, len(index.starts))
            begin, end = index.starts[number : number + 2] if number + 1 < len(index.starts) else (0, 0)
            in_extra = [place for place, words in enumerate(words_of_extra, len(index.chunks)) if word in words]
            if not (count := end - begin + len(in_extra)):
                continue
            weight = share * np.log1p((len(scores) - count + 0.5) / (count + 0.5))
            total += weight
            scores[index.found[begin:end]] += weight
            scores[in_extra] += weight
        lengths = np.concatenate([index.lengths, [len(words) for words in words_of_extra]])
        relative = lengths / max(1.0, float(lengths.mean() if len(lengths) else 0))
        norm = 1 - LENGTH_SHARE + LENGTH_SHARE * relative
        return scores * (1 + SATURATION) / (1 + SATURATION * norm) / max(total, 1e-9)


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def query_of(prefix: str, suffix: str) -> dict[str, float]:
    """The words of the lines around the cursor, without the word that is being typed, and how much each counts."""
    before = HALF_WORD.sub("", prefix).split("\n")[-QUERY_BEFORE:]
    after = suffix.split("\n")[:QUERY_AFTER]
    weights: dict[str, float] = {}
    for lines in (reversed(before), after):
        for distance, line in enumerate(lines):
            for word in sorted(_words_in(line)):
                weights[word] = max(weights.get(word, 0.0), NEARER**distance)
    return weights


def _words_in(text: str) -> set[str]:
    return {word for name in set(NAME.findall(text)) for word in words_of(name)}


def _mostly_in(text: str, visible: set[str]) -> bool:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return 2 * sum(line in visible for line in lines) >= len(lines)
