"""How much of dev stands in train word for word, by hashing every n-gram of token ids; convert.py reports it."""

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from dataset.sources import SourceFile

FILES_AT_ONCE = 1000  # whose hashes are held in memory together


def contamination(files: "list[SourceFile]", in_dev: list[np.ndarray], segment_len: int, n: int) -> float | None:
    """Share of dev's n-grams that stand in train word for word; None if no dev window is n tokens long.

    Counted over token positions: position p is a split's if one of its windows covers [p, p + n).

    Args:
        in_dev: of each file, which windows are in dev: [windows] bool.
    """
    dev = np.sort(split_hashes(files, in_dev, segment_len, n))
    if not len(dev):
        return None
    found = np.zeros(len(dev), dtype=bool)
    for i in range(0, len(files), FILES_AT_ONCE):
        some = slice(i, i + FILES_AT_ONCE)
        train = np.sort(split_hashes(files[some], [~chosen for chosen in in_dev[some]], segment_len, n))
        if len(train):
            at = np.searchsorted(train, dev).clip(max=len(train) - 1)  # quick, since both are sorted
            found |= train[at] == dev
    return round(float(found.mean()), 6)


def split_hashes(files: "list[SourceFile]", chosen: list[np.ndarray], segment_len: int, n: int) -> np.ndarray:
    """[n-grams of the chosen windows] uint64"""
    pairs = zip(files, chosen, strict=True)
    return np.concatenate(
        [ngram_hashes(file.ids, n)[covered(file, of_file, segment_len, n)] for file, of_file in pairs]
    )


def covered(file: "SourceFile", chosen: np.ndarray, segment_len: int, n: int) -> np.ndarray:
    """[max(0, tokens - n + 1)] bool: the positions whose n-gram lies in a chosen window; chosen: [windows] bool."""
    positions = max(0, len(file.ids) - n + 1)
    starts = file.starts[chosen]
    ends = np.minimum(starts + segment_len - n + 1, positions)  # of the positions that each window gives
    starts, ends = starts[ends > starts], ends[ends > starts]
    opened = np.bincount(starts, minlength=positions + 1) - np.bincount(ends, minlength=positions + 1)
    return np.cumsum(opened)[:positions] > 0


def ngram_hashes(ids: np.ndarray, n: int) -> np.ndarray:
    """A 64-bit hash of every n-gram: ids [tokens] -> [max(0, tokens - n + 1)] uint64.

    Widths double: two blocks that overlap or touch determine the wider one. (Multipliers: xxHash's primes.)
    """
    hashes, width = ids.astype(np.uint64) + np.uint64(1), 1
    while width < n:
        step = min(width, n - width)
        hashes = hashes[:-step] * np.uint64(0x9E3779B185EBCA87) ^ hashes[step:] * np.uint64(0xC2B2AE3D27D4EB4F)
        hashes ^= hashes >> np.uint64(31)
        width += step
    return hashes
