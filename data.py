"""SrcCodeDataset: the rows of a jsonl file as one packed token matrix, cached and memory-mapped."""

import hashlib
import json
import logging
import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from common.command import InputError
from common.files import lock, open_input, replace_folder
from common.loss import IGNORED
from common.model_files import fingerprint
from common.source_code import LANGUAGES
from dataset.format import read_made_with
from dataset.rows import REMEDY, Rows, read_rows
from model import GPTSingleHead

logger = logging.getLogger(__name__)

CACHE_VERSION = 2


class SrcCodeDataset(Dataset):
    """Rows `<language> + token_ids + <eos>`, cut to the model's max_seq_length.

    Attributes:
        tokens: [N, max_seq_length] of the smallest unsigned integer type that holds the vocabulary, padded on the
            right; memory-mapped if there is a cache.
        lengths: [N] int32, tokens of each row before its padding.
        content: SHA-256 of the file's bytes.
        head_length: tokens before the text of each row.

    Args:
        file_path: the jsonl file.
        model: its tokenizer, control words and max_seq_length are used.
        cache_path: folder for the packed matrix. It is reused only for the same file content, vocabulary and length,
            and rebuilt otherwise. None packs in memory. Several processes may share it.
    Raises:
        InputError: the file is missing or empty, a row does not have the format in dataset/README.md (names the
            line), or the dataset was made with another tokenizer.
    """

    def __init__(self, file_path: str | Path, model: GPTSingleHead, cache_path: str | Path | None = None):
        self.file_path = Path(file_path)
        self.max_seq_length = model.max_seq_length
        self._vocabulary_size, self._pad_id = model.vocabulary_size, model.pad_id
        # A row is: tokens that begin every text, the language's control word, the text, the end. A model has control
        # words for all languages or for none; a tokenizer may have no word for the end.
        self._begin = model.start_ids("")
        self._controls = {language: model.control_id(language) for language in LANGUAGES}
        self._end = [] if model.eos_token_id is None else [model.eos_token_id]
        self.head_length = len(self._begin) + (None not in self._controls.values())
        if not self.file_path.exists():
            raise InputError(f"{file_path}: no such file; dataset/convert.py makes datasets")
        self._tokenizer_print = fingerprint(model.tokenizer.backend_tokenizer)
        self._check_tokenizer(model)
        if cache_path is None:
            self.content, rows = self._hash_and_count()
            self.tokens = np.empty((rows, self.max_seq_length), np.min_scalar_type(self._vocabulary_size - 1))
            self.lengths = self._fill(self.tokens)
        elif not self._load(cache := Path(cache_path)):
            with lock(cache.with_name(f"{cache.name}.lock"), wait=True):
                if not self._load(cache):  # another process may have made it meanwhile
                    self._make_cache(cache)

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        return {"input_ids": self.tokens[index, : self.lengths[index]].tolist()}

    def _check_tokenizer(self, model: GPTSingleHead) -> None:
        made_with = read_made_with(self.file_path.parent)
        if made_with and made_with["fingerprint"] != self._tokenizer_print:
            raise InputError(
                f"{self.file_path}: made with the tokenizer {made_with['name']} ({made_with['fingerprint']}), but the "
                f"model's is {model.gpt.config.name_or_path} ({self._tokenizer_print}); run dataset/convert.py again "
                "with --tokenizer set to the model"
            )

    def _hash_and_count(self) -> tuple[str, int]:
        """SHA-256 of the file's content, and its number of lines, which is not 0."""
        digest, lines, last = hashlib.sha256(), 0, b"\n"
        with open_input(self.file_path) as file:
            while block := file.read(1 << 20):
                digest.update(block)
                lines += block.count(b"\n")
                last = block[-1:]
        lines += last != b"\n"  # a last line without a line end
        if lines == 0:
            raise InputError(f"{self.file_path}: holds no rows; run dataset/convert.py on more or larger sources")
        return digest.hexdigest(), lines

    # ---- cache

    def _key(self, content: str) -> dict:
        return {
            "version": CACHE_VERSION,
            "content": content,
            "tokenizer": self._tokenizer_print,
            "max_seq_length": self.max_seq_length,
            "frame": [self._begin, self._controls, self._end],
        }

    def _load(self, cache: Path) -> bool:
        """Map the cached matrix if it was built from this file. Hash the file only if its date has changed."""
        stat = self.file_path.stat()
        try:
            meta = json.loads((cache / "meta.json").read_text(encoding="utf-8"))
            key = meta["key"]
            if meta["size"] != stat.st_size or key != self._key(key["content"]):
                return False
            if meta["mtime_ns"] != stat.st_mtime_ns and key["content"] != self._hash_and_count()[0]:
                return False
            # Mode "c" (private pages), because torch.from_numpy needs writable memory.
            self.tokens = np.load(cache / "tokens.npy", mmap_mode="c", allow_pickle=False)
            self.lengths = np.load(cache / "lengths.npy", allow_pickle=False)
            self.content = key["content"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):  # absent or torn
            return False
        return self.tokens.shape == (meta["rows"], self.max_seq_length) and len(self.lengths) == meta["rows"]

    def _make_cache(self, cache: Path) -> None:
        stat = self.file_path.stat()
        content, rows = self._hash_and_count()
        try:
            with replace_folder(cache, durable=False) as new:  # another run may be reading the old one
                matrix = _make_matrix(new / "tokens.npy", (rows, self.max_seq_length), self._vocabulary_size)
                lengths = self._fill(matrix)
                matrix.flush()
                np.save(new / "lengths.npy", lengths)
                meta = {"key": self._key(content), "rows": rows, "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
                (new / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
        except OSError as error:
            raise InputError(f"{cache}: cannot be written ({error.strerror or error}); make room there") from None
        if not self._load(cache):
            raise InputError(f"{self.file_path}: changed while it was read; start again")
        logger.info("packed %d rows of %s into %s", rows, self.file_path, cache)

    # ---- packing

    def _fill(self, matrix: np.ndarray) -> np.ndarray:
        """Write the file's rows into matrix [N, L] and return their lengths [N]."""
        lengths = np.empty(len(matrix), np.int32)
        begin, end, head, done = len(self._begin), len(self._end), self.head_length, 0
        for rows in read_rows(self.file_path, self._vocabulary_size):
            counts = rows.counts
            # [rows, head + longest + end]: the head, the token ids and the end of each row
            block = np.full((len(counts), head + counts.max() + end), self._pad_id, np.int64)
            block[:, :begin] = self._begin
            block[:, begin:head] = np.array(self._control_ids(rows))[:, None]
            block[:, head:][np.arange(block.shape[1] - head) < counts[:, None]] = rows.ids
            if end:
                block[np.arange(len(counts)), head + counts] = self._end
            place = slice(done, done + len(counts))
            matrix[place] = self._pad_id
            matrix[place, : block.shape[1]] = block[:, : matrix.shape[1]]
            lengths[place] = np.minimum(head + counts + end, matrix.shape[1])
            done += len(counts)
        return lengths

    def _control_ids(self, rows: Rows) -> list[int]:
        """Return, for each row, the id of its language's control word; 0 if the model has no control words at all."""
        known = self._controls if any(self._controls.values()) else dict.fromkeys(self._controls, 0)
        for label in set(rows.labels):
            line = f"{self.file_path}:{rows.first_line + rows.labels.index(label)}"
            if label.lower() not in known:
                raise InputError(f"{line}: unknown label {label!r}, known are {', '.join(known)}; {REMEDY}")
            if known[label.lower()] is None:
                raise InputError(f"{line}: the model has no control word <{label.lower()}>; add it first")
        return [known[label.lower()] for label in rows.labels]


def _make_matrix(file: Path, shape: tuple[int, int], vocabulary_size: int) -> np.ndarray:
    """Make a memory-mapped matrix in a new file, with disk space reserved for all of it.

    Otherwise, on a full disk, writing to the matrix would kill the program without an error.
    """
    dtype = np.min_scalar_type(vocabulary_size - 1)
    matrix = np.lib.format.open_memmap(file, mode="w+", dtype=dtype, shape=shape)
    if hasattr(os, "posix_fallocate"):  # not on macOS
        with file.open("r+b") as opened:
            os.posix_fallocate(opened.fileno(), 0, file.stat().st_size)
    return matrix


class TokenBatches:
    """A dataset's matrix on a device, from which batches are gathered by row number.

    The whole dataset is on the device (71 MB for TheAlgorithms): no loader process and no copy for each step.
    """

    def __init__(self, dataset: SrcCodeDataset, pad_id: int, device: torch.device | str):
        # Signed views of the same bits, because uint8 is the only unsigned type that torch can index.
        signed = dataset.tokens.view(dataset.tokens.dtype.str.replace("u", "i"))
        self._tokens = torch.from_numpy(signed).to(device)  # [N, L]
        self._mask = int(np.iinfo(dataset.tokens.dtype).max)
        self.lengths = torch.from_numpy(dataset.lengths).to(device)  # [N]
        firsts = getattr(dataset, "firsts", None)  # [N]: the place of a row's first target
        self._firsts = torch.ones_like(self.lengths) if firsts is None else torch.from_numpy(firsts).to(device)
        self._positions = torch.arange(dataset.max_seq_length, device=device)  # [L]
        self._pad_id = pad_id

    def __len__(self) -> int:
        return len(self.lengths)

    def count_targets(self, rows: Tensor) -> Tensor:
        """Count the targets of rows [...] (on the device): all tokens except each row's first and its context."""
        return torch.where(rows >= 0, (self.lengths - self._firsts)[rows], 0).sum()

    def gather(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Token ids and labels [B, L] int64 of the rows [B] (on the device); labels are IGNORED on padding and context.

        A row number of -1 gives a row of padding alone, which fills a last batch up to the fixed shape.
        """
        ids = self._tokens[rows].long() & self._mask  # [B, L]
        lengths = torch.where(rows >= 0, self.lengths[rows], 0)
        padding = self._positions >= lengths[:, None]  # [B, L]
        ignored = padding | ((self._positions > 0) & (self._positions < self._firsts[rows][:, None]))
        return ids.masked_fill(padding, self._pad_id), ids.masked_fill(ignored, IGNORED)
