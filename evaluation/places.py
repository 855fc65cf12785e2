"""Places in files that a model was not trained on. The text at a place is taken out, and the model fills it in."""

import ast
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from common.command import InputError
from common.files import dataset_file, read_lines
from common.json_files import parse_json
from common.model_files import load_tokenizer
from common.source_code import LANGUAGES, language_of
from completion.cursor import Cursor
from completion.repository.chunks import Chunk
from dataset.format import read_meta
from dataset.sources import SourceFile, read_text
from dataset.splits import split_sources

KINDS = ("rest of a line", "lines of a block", "any characters", "next line")
OF_ONE_LINE = ("rest of a line", "next line")
NEXT_LINES = "next lines"  # the kind of places in published files whose text has several lines
LINES_BEFORE, LINES_AFTER = 32, 8  # around the cursor: about what an editor sends, and what any model has room for
LONGEST_SPAN = 400  # characters of a span; nobody writes more in one edit
# The keys of the correct text in the jsonl files of RepoEval, CrossCodeEval and HumanEval-Infilling.
ANSWER_KEYS = ("groundtruth", "ground_truth", "canonical_solution")
_REMEDY = "name a jsonl file in the format of RepoEval, CrossCodeEval or HumanEval-Infilling"


@dataclass(frozen=True)
class Span:
    """A piece of a file and the lines around it: the text there is prefix + middle + suffix.

    Attributes:
        source, path: the folder as the user named it, and the file's path below it.
        repository: for a place in a published file, the name of its repository's folder; `path` is below that.
        context: the chunks that the published file gives for this place.
    """

    kind: str
    path: str
    prefix: str
    middle: str
    suffix: str
    source: str = ""
    repository: str = ""
    context: tuple[Chunk, ...] = ()

    def cursor(self, with_suffix: bool = True) -> Cursor:
        """Where the middle is to be written."""
        language = language_of(Path(self.path)) or LANGUAGES[0]
        return Cursor(self.prefix, self.suffix if with_suffix else "", language, self.path)


def choose_spans(files: Sequence[SourceFile], each: int, seed: int = 0, kinds: Sequence[str] = KINDS) -> list[Span]:
    """Choose `each` spans of every kind from random files; the same files and seed give the same spans.

    The kinds alternate. Only Python files give lines of a block.

    Raises:
        InputError: there is no file, or no such place in any.
    """
    if not files:
        raise InputError("there is no held-out file to take places from; convert more sources")
    texts = [read_text(file.file)[0] for file in files]
    rng = random.Random(seed)
    of_kinds = []
    for kind in kinds:
        found: list[Span] = []
        for _ in range(100 * each):
            if len(found) == each:
                break
            number = rng.choice(range(len(files)))
            file, text = files[number], texts[number]
            places = _place(kind, text, rng)
            if places and (middle := text[slice(*places)]).strip() and len(middle) <= LONGEST_SPAN:
                prefix = text[: places[0]].splitlines(keepends=True)[-LINES_BEFORE:]
                suffix = text[places[1] :].splitlines(keepends=True)[:LINES_AFTER]
                found.append(Span(kind, file.path, "".join(prefix), middle, "".join(suffix), file.source))
        of_kinds.append(found)
    if not any(of_kinds):
        raise InputError(f"the held-out files have no place for {' or '.join(kinds)}")
    longest = max(map(len, of_kinds))
    return [spans[number] for number in range(longest) for spans in of_kinds if number < len(spans)]


def _place(kind: str, text: str, rng: random.Random) -> tuple[int, int] | None:
    if kind == "any characters":
        start = rng.randrange(len(text))
        return start, start + rng.randint(1, 120)
    lines = text.splitlines(keepends=True)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line))
    if kind in OF_ONE_LINE:
        row = rng.randrange(len(lines))
        code = lines[row].rstrip()
        if len(code.strip()) < 4:
            return None
        indent = len(code) - len(code.lstrip())
        column = 0 if kind == "next line" else rng.randint(indent, len(code) - 1)
        return starts[row] + column, starts[row] + len(code)
    blocks = list(_statements(text))
    if not blocks:
        return None
    body = rng.choice(blocks)
    first = rng.randrange(len(body))
    last = rng.randrange(first, min(len(body), first + 3))
    # From the end of the line before to the end of the last line, so that the cursor is at the end of a line.
    return starts[body[first][0] - 1] - 1, starts[body[last][1]] - 1


def _statements(text: str) -> Iterator[list[tuple[int, int]]]:
    """Yield, for each function body, the first and last line (from 1) of its statements, without the docstring."""
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


def spans_of_dataset(dataset_name: str, each: int, seed: int, kinds: Sequence[str] = KINDS) -> list[Span]:
    """Choose spans from a converted dataset's held-out files. Raises the errors of `split_sources` too."""
    folder = dataset_file(dataset_name, "dev").parent
    meta = read_meta(folder)
    files, _ = split_sources(meta, folder, load_tokenizer(meta["flags"]["tokenizer"]))
    return choose_spans(files, each, seed, kinds)


class _Answer(TypedDict, total=False):
    groundtruth: str
    ground_truth: str
    canonical_solution: str


class _Metadata(_Answer, total=False):
    repository: str
    file: str
    fpath_tuple: list[str]  # the repository's name, then the parts of the file's path


class _RelatedChunk(TypedDict):
    filename: str
    retrieved_chunk: str


class _RelatedChunks(TypedDict):
    list: list[_RelatedChunk]


class _Prompt(TypedDict):
    prompt: str


class _Row(_Prompt, _Answer, total=False):
    metadata: _Metadata
    suffix: str
    right_context: str
    crossfile_context: _RelatedChunks


def read_places(path: Path, most: int) -> list[Span]:
    """Read the first places of a jsonl file (or .gz) of RepoEval, CrossCodeEval or HumanEval-Infilling.

    Raises:
        InputError: it cannot be read, or a line of it is not such a place.
    """
    spans: list[Span] = []
    lines, _ = read_lines(path, _REMEDY)
    for number, line in enumerate(lines, 1):
        if line.strip() and len(spans) < most:
            row = parse_json(line, _Row, f"{path}:{number}", _REMEDY)
            answers = {**row.get("metadata", {}), **row}
            answers = [answers[key] for key in ANSWER_KEYS if key in answers]
            if len(answers) != 1 or not answers[0].strip():
                raise InputError(f"{path}:{number}: needs a text under one of {', '.join(ANSWER_KEYS)}; {_REMEDY}")
            spans.append(_read_place(row, *answers))
    if not spans:
        raise InputError(f"{path}: holds no place; {_REMEDY}")
    return spans


def _read_place(row: _Row, answer: str) -> Span:
    metadata, prefix = row.get("metadata", {}), row["prompt"]
    repository, path = metadata.get("repository", ""), metadata.get("file", "main.py")
    if parts := metadata.get("fpath_tuple"):  # RepoEval, whose prompts lack the end of their last line
        repository, path = parts[0], "/".join(parts[1:])
        prefix += "\n" * (not prefix.endswith("\n"))
    chunks = row.get("crossfile_context", {}).get("list", [])
    context = tuple(Chunk(chunk["filename"], 1, chunk["retrieved_chunk"]) for chunk in chunks)
    suffix = row.get("suffix", row.get("right_context", ""))
    kind = NEXT_LINES if "\n" in answer.strip() else "next line"
    return Span(kind, path, prefix, answer, suffix, repository=repository, context=context)
