"""Token ids of source files, and where their windows begin."""

import hashlib
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from dataset.sources import SkippedFile, SourceFile, read_text

if TYPE_CHECKING:
    from tokenizers import Tokenizer

BATCH_CHARACTERS = 1_000_000  # tokenized together: enough work for all cores, in little memory
# A longer text is cut before a single space. The pre-tokenizers of byte-level vocabularies cut there too.
_CUT = re.compile(r"(?<=\S) (?=\S)")


def tokenize_files(
    files: list[SourceFile], tokenizer: "Tokenizer", stride: int, whole_files: bool = False
) -> tuple[list[SourceFile], list[SkippedFile]]:
    """Fill in the files' ids and starts. Return the files that give windows, and the skipped files.

    A file of n tokens gives n // stride windows, as in the 2020 reference. With `whole_files`, the rest of the file,
    which is shorter than the stride, is one more window.
    """
    import numpy as np
    from tqdm import tqdm

    skipped, batch, characters = [], [], 0
    ids: dict[int, list[np.ndarray]] = {}  # number of the file -> of its pieces

    def flush() -> None:
        encodings = tokenizer.encode_batch_fast([piece for _, piece in batch], add_special_tokens=False)
        for (number, _), encoding in zip(batch, encodings, strict=True):
            ids.setdefault(number, []).append(np.array(encoding.ids, dtype=np.int32))
        batch.clear()

    for number, file in enumerate(tqdm(files, "tokenize", unit="file", leave=False, disable=None)):  # on a terminal
        text, reason = read_text(file.file)
        if reason:
            skipped.append(SkippedFile(file.source, file.path, reason))
            continue
        encoded = text.encode()
        file.n_bytes, file.digest = len(encoded), hashlib.sha256(encoded).hexdigest()
        for piece in _pieces(text):
            batch.append((number, piece))
            characters += len(piece)
            if characters >= BATCH_CHARACTERS:
                flush()
                characters = 0
    flush()
    kept = []
    for number, parts in ids.items():
        file = files[number]
        file.ids = np.concatenate(parts)
        end = len(file.ids) if whole_files else len(file.ids) // stride * stride
        file.starts = np.arange(0, end, stride)
        if len(file.starts):
            kept.append(file)
        else:
            skipped.append(SkippedFile(file.source, file.path, f"shorter than the stride of {stride} tokens"))
    return kept, skipped


def _pieces(text: str) -> Iterator[str]:
    start = 0
    while len(text) - start > BATCH_CHARACTERS and (cut := _CUT.search(text, start + BATCH_CHARACTERS)):
        yield text[start : cut.start()]
        start = cut.start()
    yield text[start:]
