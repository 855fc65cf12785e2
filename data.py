"""SrcCodeDataset: the rows of a jsonl file as one packed token matrix, cached and memory-mapped."""

import hashlib
import json
import logging
import os
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from common.command import InputError
from common.files import atomic_write, lock, replace_folder
from common.loss import IGNORED
from common.model_files import fingerprint
from common.source_code import LANGUAGES
from dataset.format import ROW_START, SEPARATOR, read_tokenizer
from model import GPTSingleHead

logger = logging.getLogger(__name__)

CACHE_VERSION = 2
_CHUNK_BYTES = 8 << 20


class SrcCodeDataset(Dataset):
    """Rows `<language> + token_ids + <eos>`, cut to the model's max_seq_length.

    Attributes:
        tokens: [N, max_seq_length] of the smallest unsigned integer type that holds the vocabulary, padded on the
            right; memory-mapped where there is a cache.
        lengths: [N] int32, tokens of each row before its padding.
        content: SHA-256 of the file's bytes.

    Args:
        file_path: the jsonl file.
        model: gives the tokenizer, the control words and max_seq_length.
        cache_path: folder for the packed matrix. It is used again only for the same file content, vocabulary and
            length, and rebuilt otherwise; None packs in memory. Several processes may share it.
    Raises:
        InputError: no such file, an empty one, a row that is not as dataset/README.md says (file:line), or a
            dataset made with another tokenizer.
    """

    def __init__(self, file_path: str | Path, model: GPTSingleHead, cache_path: str | Path | None = None):
        self.file_path = Path(file_path)
        self.max_seq_length = model.max_seq_length
        self._begin, self._controls, self._end = _row_frame(model)
        # Tokens that stand before the text of each row.
        self.head_length = len(self._begin) + (None not in self._controls.values())
        if not self.file_path.is_file():
            raise InputError(f"{file_path}: no such file; dataset/convert.py makes datasets")
        self._tokenizer_print = fingerprint(model.tokenizer.backend_tokenizer)
        self._check_tokenizer(model)
        cache = Path(cache_path) if cache_path is not None else None
        if cache is None:
            self._pack(model, cache)
        elif not self._load(cache):
            with lock(cache.with_name(f"{cache.name}.lock"), wait=True):
                if not self._load(cache):  # as another process may have made it meanwhile
                    self._pack(model, cache)

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        return {"input_ids": self.tokens[index, : self.lengths[index]].tolist()}

    def _check_tokenizer(self, model: GPTSingleHead) -> None:
        made_with = read_tokenizer(self.file_path.parent)
        if made_with and made_with["fingerprint"] != self._tokenizer_print:
            raise InputError(
                f"{self.file_path}: made with the tokenizer {made_with['name']} ({made_with['fingerprint']}), but the "
                f"model's is {model.gpt.config.name_or_path} ({self._tokenizer_print}); run dataset/convert.py again "
                "with --tokenizer set to the model"
            )

    def _key(self, content: str) -> dict:
        return {
            "version": CACHE_VERSION,
            "content": content,
            "tokenizer": self._tokenizer_print,
            "max_seq_length": self.max_seq_length,
            "frame": [self._begin, self._controls, self._end],
        }

    def _load(self, cache: Path) -> bool:
        """Map the cached matrix if it was built from this very file. Hashes the file only if its date has changed."""
        stat = self.file_path.stat()
        try:
            meta = json.loads((cache / "meta.json").read_text(encoding="utf-8"))
            key = meta["key"]
            if meta["size"] != stat.st_size or key != self._key(key["content"]):
                return False
            if meta["mtime_ns"] != stat.st_mtime_ns and key["content"] != _hash_and_count(self.file_path)[0]:
                return False
            # mode "c" (private pages): torch.from_numpy wants memory that may be written to
            self.tokens = np.load(cache / "tokens.npy", mmap_mode="c", allow_pickle=False)
            self.lengths = np.load(cache / "lengths.npy", allow_pickle=False)
            self.content = key["content"]
        except (OSError, ValueError, KeyError, TypeError):  # absent or torn
            return False
        return self.tokens.shape == (meta["rows"], self.max_seq_length) and len(self.lengths) == meta["rows"]

    def _pack(self, model: GPTSingleHead, cache: Path | None) -> None:
        stat = self.file_path.stat()
        content, rows = _hash_and_count(self.file_path)
        if rows == 0:
            raise InputError(f"{self.file_path}: holds no rows; run dataset/convert.py on more or larger sources")
        dtype = np.min_scalar_type(model.vocabulary_size - 1)
        if cache is None:
            self.tokens = np.empty((rows, self.max_seq_length), dtype)
            self.lengths = _fill(self.tokens, self.file_path, model)
            self.content = content
            return
        try:
            with replace_folder(cache, durable=False) as new:  # another run may be reading the old one
                self._pack_into(new, model, dtype, rows, content, stat)
        except OSError as error:
            raise InputError(f"{cache}: cannot be written ({error.strerror}); make room there") from None
        if not self._load(cache):
            raise InputError(f"{self.file_path}: changed while it was read; start again")
        logger.info("packed %d rows of %s into %s", rows, self.file_path, cache)

    def _pack_into(
        self, cache: Path, model: GPTSingleHead, dtype: np.dtype, rows: int, content: str, stat: os.stat_result
    ) -> None:
        shape = (rows, self.max_seq_length)
        matrix = np.lib.format.open_memmap(cache / "tokens.npy", mode="w+", dtype=dtype, shape=shape)
        _reserve(cache / "tokens.npy")
        lengths = _fill(matrix, self.file_path, model)
        matrix.flush()
        with atomic_write(cache / "lengths.npy", "wb") as file:
            np.save(file, lengths)
        meta = {"key": self._key(content), "rows": rows, "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
        with atomic_write(cache / "meta.json") as file:
            json.dump(meta, file)


class TokenBatches:
    """A dataset's matrix on a device, from which batches are gathered by row number.

    TheAlgorithms takes 71 MB, so it lies on the device as a whole: no loader process and no copy per step.
    """

    def __init__(self, dataset: SrcCodeDataset, pad_id: int, device: torch.device | str):
        # Signed views of the same bits: torch indexes no unsigned type but uint8.
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
        """Targets in rows of any shape, on the device: every token but a row's first and its context; -1 has none."""
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


def _row_frame(model: GPTSingleHead) -> tuple[list[int], dict[str, int | None], list[int]]:
    """What stands around a row's tokens: ids before it, each language's control word after these, and the end.

    A model knows control words for all languages or for none; a tokenizer may have no word for the end.
    """
    controls = {language: model.control_id(language) for language in LANGUAGES}
    return model.start_ids(""), controls, [] if model.eos_token_id is None else [model.eos_token_id]


def _reserve(file: Path) -> None:
    """Set room aside for the whole of a sparse file: the system kills who writes to a mapped page without any."""
    if hasattr(os, "posix_fallocate"):  # not on macOS
        with file.open("r+b") as opened:
            os.posix_fallocate(opened.fileno(), 0, file.stat().st_size)


def _hash_and_count(path: Path) -> tuple[str, int]:
    """SHA-256 of a file's content, and its number of lines."""
    digest, lines, last = hashlib.sha256(), 0, b"\n"
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
            lines += block.count(b"\n")
            last = block[-1:]
    return digest.hexdigest(), lines + (last != b"\n")


def _fill(matrix: np.ndarray, path: Path, model: GPTSingleHead) -> np.ndarray:
    """Write the rows of a jsonl file into matrix [N, L]; returns their lengths [N]."""
    width = matrix.shape[1]
    lengths = np.empty(len(matrix), np.int32)
    begin, controls, end = _row_frame(model)
    head = len(begin) + (None not in controls.values())
    done = 0
    for controls_of_rows, counts, ids in _parse(path, model):
        # [rows, head + longest + end]: what stands before a text, its token ids, what stands after it
        block = np.full((len(counts), head + counts.max(initial=0) + len(end)), model.pad_id, np.int64)
        block[:, : len(begin)] = begin
        if head > len(begin):
            block[:, len(begin)] = controls_of_rows
        columns = np.arange(block.shape[1] - head)
        block[:, head:][columns < counts[:, None]] = ids
        if end:
            block[np.arange(len(counts)), head + counts] = end
        rows = slice(done, done + len(counts))
        matrix[rows, : block.shape[1]] = block[:, :width]
        matrix[rows, block.shape[1] :] = model.pad_id
        lengths[rows] = np.minimum(head + counts + len(end), width)
        done += len(counts)
    return lengths


def _parse(path: Path, model: GPTSingleHead) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Chunks of rows: control word ids [rows], token counts [rows], and all token ids one after the other.

    Reads the numbers with np.fromstring, 3.5 times as fast as json; a chunk that is not wholly of convert.py's own
    form goes through json line by line, which also finds the line to name in an error.
    """
    control_ids = _row_frame(model)[1]
    if not any(control_ids.values()):  # a model that was trained without control words
        control_ids = dict.fromkeys(control_ids, -1)
    vocabulary_size = model.vocabulary_size
    number = 0
    with path.open("rb") as file:
        while lines := file.readlines(_CHUNK_BYTES):
            chunk = _parse_fast(lines, control_ids, vocabulary_size)
            if chunk is None:
                rows = [
                    _parse_row(line, control_ids, vocabulary_size, f"{path}:{number + i}")
                    for i, line in enumerate(lines, start=1)
                ]
                chunk = _as_arrays(([head for head, _ in rows]), [ids for _, ids in rows])
            number += len(lines)
            yield chunk


def _as_arrays(heads: list[int], ids: list[list[int]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    counts = np.array([len(row) for row in ids])
    return np.array(heads), counts, np.array([token for row in ids for token in row], np.int64)


def _parse_fast(
    lines: Iterable[bytes], control_ids: dict[str, int | None], vocabulary_size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """The chunk's arrays, or None if any line is not exactly of the form that convert.py writes."""
    heads, texts = [], []
    head_of_tail: dict[bytes, int] = {}  # all windows of a source file end in the same label and path
    for line in lines:
        end = line.find(b"]")
        if not line.startswith(ROW_START) or end < 0:
            return None
        tail = line[end:]
        if tail not in head_of_tail:
            try:
                rest = json.loads(ROW_START + tail)
                if rest["token_ids"]:  # a second time, which json takes and we here would not
                    return None
                head_of_tail[tail] = control_ids[rest["label"].lower()]
            except (ValueError, RecursionError, KeyError, AttributeError, TypeError):
                return None
        heads.append(head_of_tail[tail])
        texts.append(line[len(ROW_START) : end])
    joined = SEPARATOR.join(texts)
    if None in heads or not _is_plain(joined):
        return None
    counts = np.array([text.count(b",") + 1 for text in texts])
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # np.fromstring only warns of what it cannot read
        try:
            ids = np.fromstring(joined, dtype=np.int64, sep=",")
        except (DeprecationWarning, ValueError):
            return None
    if len(ids) != counts.sum() or ids.max() >= vocabulary_size:
        return None
    return np.array(heads), counts, ids


def _is_plain(text: bytes) -> bool:
    """Whether a text is natural numbers as JSON spells them, with ", " between: np.fromstring takes much else."""
    characters = np.frombuffer(b", %b, " % text, np.uint8)
    digit, comma, space = characters - ord("0") < 10, characters == ord(","), characters == ord(" ")
    return bool(
        (digit | comma | space).all()
        and (comma[:-1] == space[1:]).all()
        and not (space[:-1] & comma[1:]).any()  # no number between them
        and not (space[:-3] & (characters[1:-2] == ord("0")) & digit[2:-1]).any()  # a leading zero
    )


def _parse_row(
    line: bytes, control_ids: dict[str, int | None], vocabulary_size: int, where: str
) -> tuple[int, list[int]]:
    """Control word id and token ids of one line.

    Raises:
        InputError: naming `where` and what is wrong with the line.
    """
    remedy = "mend the line or run dataset/convert.py again"
    if not line.strip():
        raise InputError(f"{where}: an empty line; remove it or run dataset/convert.py again")
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not a JSON row, perhaps torn ({error}); {remedy}") from None
    if not isinstance(row, dict) or not isinstance(row.get("label"), str):
        raise InputError(f"{where}: not a row with token_ids and a label; {remedy}")
    ids = row.get("token_ids")
    if not isinstance(ids, list) or not all(type(token) is int for token in ids):
        raise InputError(f"{where}: token_ids is not a list of integers; {remedy}")
    if row["label"].lower() not in control_ids:
        raise InputError(f"{where}: unknown label {row['label']!r}, known are {', '.join(control_ids)}; {remedy}")
    head = control_ids[row["label"].lower()]
    if head is None:
        raise InputError(f"{where}: the model has no control word <{row['label'].lower()}>; add it first")
    for token in ids:
        if not 0 <= token < vocabulary_size:
            raise InputError(
                f"{where}: token id {token} is outside the model's vocabulary of {vocabulary_size}; "
                "run dataset/convert.py again with --tokenizer set to the model"
            )
    return head, ids
