"""How much of dev also occurs in train, found by hashing every n-gram of token ids."""

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from dataset.sources import SourceFile

FILES_AT_ONCE = 1000  # their hashes are in memory together
CLONE_NGRAM, CLONE_SHARE = 20, 0.5


def contamination(files: "list[SourceFile]", in_dev: list[np.ndarray], segment_len: int, n: int) -> float | None:
    """Share of dev's n-grams that also occur in train; None if no dev window has n tokens.

    An n-gram at position p of a file belongs to a split if a window of the split covers [p, p + n). Each position
    counts once.

    Args:
        in_dev: for each file, which windows are in dev: [windows] bool.
    """
    dev = np.sort(split_hashes(files, in_dev, segment_len, n))
    if not len(dev):
        return None
    found = np.zeros(len(dev), dtype=bool)
    for i in range(0, len(files), FILES_AT_ONCE):
        some = slice(i, i + FILES_AT_ONCE)
        train = np.sort(split_hashes(files[some], [~chosen for chosen in in_dev[some]], segment_len, n))
        found |= occur_in(dev, train)
    return round(float(found.mean()), 6)


def find_clones(files: "list[SourceFile]") -> "list[SourceFile]":
    """The files in train of which at least half of the 20-grams occur in files of dev.

    Args:
        files: each is completely in train or completely in dev.
    """
    dev = [ngram_hashes(file.ids, CLONE_NGRAM) for file in files if file.in_dev.all()]
    seen = np.unique(np.concatenate(dev))

    def share(file: "SourceFile") -> float:
        hashes = ngram_hashes(file.ids, CLONE_NGRAM)
        return float(occur_in(hashes, seen).mean()) if len(hashes) else 0.0

    return [file for file in files if not file.in_dev.all() and share(file) >= CLONE_SHARE]


def occur_in(hashes: np.ndarray, ordered: np.ndarray) -> np.ndarray:
    """[hashes] bool: which of them are in `ordered`, which is sorted. Fastest if `hashes` is sorted too."""
    if not len(ordered):
        return np.zeros(len(hashes), dtype=bool)
    return ordered[np.searchsorted(ordered, hashes).clip(max=len(ordered) - 1)] == hashes


def split_hashes(files: "list[SourceFile]", chosen: list[np.ndarray], segment_len: int, n: int) -> np.ndarray:
    """[n-grams of the chosen windows] uint64: their hashes."""
    pairs = zip(files, chosen, strict=True)
    return np.concatenate(
        [ngram_hashes(file.ids, n)[covered(file, of_file, segment_len, n)] for file, of_file in pairs]
    )


def covered(file: "SourceFile", chosen: np.ndarray, segment_len: int, n: int) -> np.ndarray:
    """[max(0, tokens - n + 1)] bool: the positions whose n-gram is inside a chosen window; chosen: [windows] bool."""
    positions = max(0, len(file.ids) - n + 1)
    starts = file.starts[chosen]
    ends = np.minimum(starts + segment_len - n + 1, positions)  # after the last position of each window
    starts, ends = starts[ends > starts], ends[ends > starts]
    opened = np.bincount(starts, minlength=positions + 1) - np.bincount(ends, minlength=positions + 1)
    return np.cumsum(opened)[:positions] > 0


def ngram_hashes(ids: np.ndarray, n: int) -> np.ndarray:
    """A 64-bit hash of every n-gram: ids [tokens] -> [max(0, tokens - n + 1)] uint64.

    The hash of a wide n-gram is made of the hashes of two narrower ones that overlap or touch, so widths can double.
    The multipliers are xxHash's primes.
    """
    hashes, width = ids.astype(np.uint64) + np.uint64(1), 1
    while width < n:
        step = min(width, n - width)
        hashes = hashes[:-step] * np.uint64(0x9E3779B185EBCA87) ^ hashes[step:] * np.uint64(0xC2B2AE3D27D4EB4F)
        hashes ^= hashes >> np.uint64(31)
        width += step
    return hashes
