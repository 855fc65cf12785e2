"""Training rows with repository context: code of other training files before the text, in the form of completion."""

import json
from functools import lru_cache
from itertools import groupby
from typing import NamedTuple

import numpy as np

from common.command import InputError
from completion.cursor import Cursor
from completion.engines.torch_engine import vocabulary_of
from completion.repository.chunks import LONGEST_CHUNK, Chunk
from completion.repository.form import context_ids
from completion.repository.repository import Repository
from data import SrcCodeDataset
from dataset.format import read_meta
from model import GPTSingleHead

SHARE = 2  # chunks take at most a row's length divided by this
TOKENS_OF_A_LINE = 20  # nearly all lines have at most this many; used to make chunks that fit into a short row
CONTEXT = 2  # added to seed and epoch, so that the random numbers differ from those of training/fim.py


class _File(NamedTuple):
    label: str
    path: str


class RowContext:
    """Finds chunks for the rows of a training set that convert.py made.

    The training files are rebuilt from their windows, so the sources are not needed.

    Raises:
        InputError: there is no meta.json next to the rows.
    """

    def __init__(self, dataset: SrcCodeDataset, model: GPTSingleHead, context_rate: float, seed: int):
        self._dataset, self._context_rate, self._seed = dataset, context_rate, seed
        self._vocabulary, self._eos = vocabulary_of(model), model.eos_token_id
        self._tokenizer = model.tokenizer.backend_tokenizer
        folder = dataset.file_path.parent
        if not (folder / "meta.json").is_file():
            raise InputError(f"{dataset.file_path}: --context_rate needs the meta.json that convert.py writes")
        stride = read_meta(folder)["flags"]["stride"]
        self._files = _files_of_rows(dataset)
        texts: dict[str, str] = {}
        for file, rows in groupby(range(len(dataset)), self._files.__getitem__):
            *bodies, last = (self._body(row) for row in rows)
            ids = [token for body in bodies for token in body[:stride]] + last
            texts[file.path] = texts.get(file.path, "") + self._tokenizer.decode(ids, skip_special_tokens=False)
        self._most = dataset.max_seq_length // SHARE
        lines = max(2, min(LONGEST_CHUNK, self._most // TOKENS_OF_A_LINE))
        self._repository = Repository.of_texts(texts, lines)
        self._count = lru_cache(100_000)(self._count)

    def ids_for(self, row: int, epoch: int) -> list[int]:
        """Return the context of a row in an epoch. It depends only on seed, epoch and row, and is empty in most rows.

        The search uses the first half of the row's text, because the model completes the text after it.
        """
        if np.random.default_rng([self._seed, CONTEXT, epoch, row]).random() >= self._context_rate:
            return []
        file, body = self._files[row], self._body(row)
        text = self._tokenizer.decode(body[: len(body) // 2], skip_special_tokens=False)
        language = file.label.lower()
        around = len(context_ids(self._vocabulary, [], language, file.path))
        chunks = self._repository.search(
            Cursor(text, path=file.path),
            exclude={file.path},
            max_tokens=self._most - around,
            count_tokens=lambda chunk: self._count(chunk, language, file.path) - around,
        )
        return context_ids(self._vocabulary, chunks, language, file.path) if chunks else []

    def _count(self, chunk: Chunk, language: str, path: str) -> int:
        return len(context_ids(self._vocabulary, [chunk], language, path))

    def _body(self, row: int) -> list[int]:
        body = self._dataset.tokens[row, self._dataset.head_length : self._dataset.lengths[row]].tolist()
        return body[:-1] if body[-1:] == [self._eos] else body


def _files_of_rows(dataset: SrcCodeDataset) -> list[_File]:
    """Return, for each row, the file that it is a window of.

    Raises:
        InputError: a row does not name it.
    """
    files: list[_File] = []
    known: dict[bytes, _File] = {}  # all windows of a file end in the same label and path
    with dataset.file_path.open("rb") as rows:
        for number, line in enumerate(rows, 1):
            tail = line[line.rfind(b"]") :]
            if tail not in known:
                try:
                    row = json.loads(line)
                    known[tail] = _File(row["label"], row["path"])
                except (ValueError, KeyError, TypeError):
                    raise InputError(
                        f"{dataset.file_path}:{number}: has no path; convert again, or leave out --context_rate"
                    ) from None
            files.append(known[tail])
    return files
