"""Which windows are in train and which in dev."""

import random
from typing import Any

from common.command import InputError
from dataset.sources import SourceFile

CONTAMINATION_NGRAMS = (20, 50)


def choose_split(label: str, files: list[SourceFile], split_by: str, dev_size: float, seed: int) -> None:
    """Choose which windows of one language's files are in dev.

    Raises:
        InputError: too few files or windows to have both a train and a dev split.
    """
    import numpy as np

    rng = random.Random(seed)
    windows = [len(file.starts) for file in files]
    total = sum(windows)
    if split_by == "segment":
        in_dev = np.zeros(total, dtype=bool)
        in_dev[rng.sample(range(total), int(dev_size * total))] = True
        if not in_dev.any():
            raise InputError(f"{label}: dev would be empty, of {total} windows; add files or raise --dev_size")
        for file, part in zip(files, np.split(in_dev, np.cumsum(windows)[:-1]), strict=True):
            file.in_dev = part
        return
    units = group(files, split_by)
    if len(units) < 2:
        raise InputError(
            f"{label}: a split would be empty, since the {len(files)} usable files stay together with --split_by "
            f"{split_by}; add files or use --split_by {'file or ' * (split_by == 'folder')}segment"
        )
    rng.shuffle(units)
    dev = choose_dev([sum(windows[i] for i in unit) for unit in units], dev_size * total)
    for number, unit in enumerate(units):
        for i in unit:
            files[i].in_dev = np.full(windows[i], number in dev)


def measure_splits(
    languages: dict[str, list[SourceFile]], segment_len: int, split_by: str, dev_size: float, seed: int
) -> dict[str, dict[str, float | None]]:
    """Split the files of each language by `split_by`, one of file, folder and segment.

    Returns:
        the contamination that results, and beside it that of the splits by file and by segment: n -> share.
    Raises:
        InputError: as `choose_split`.
    """
    from dataset.contamination import contamination

    files = [file for of_language in languages.values() for file in of_language]
    shares = {}
    # The wanted split comes last, since each attempt overwrites `in_dev` of the files.
    for way in [*({"file", "segment"} - {split_by}), split_by]:
        try:
            for label, of_language in languages.items():
                choose_split(label, of_language, way, dev_size, seed)
        except InputError:
            if way == split_by:
                raise
            continue
        shares[way] = {str(n): contamination(files, segment_len, n) for n in CONTAMINATION_NGRAMS}
    return dict(sorted(shares.items()))


def group(files: list[SourceFile], split_by: str) -> list[list[int]]:
    """Indices of the files that must be in the same split: exact copies, and with "folder" all files of a folder."""
    parent: dict[Any, Any] = {}

    def root(key: Any) -> Any:
        while parent.setdefault(key, key) != key:
            key = parent[key]
        return key

    for file in files:
        place = file.file.parent if split_by == "folder" else file.file
        parent[root(file.digest)] = root(place)
    units: dict[Any, list[int]] = {}
    for i, file in enumerate(files):
        units.setdefault(root(file.digest), []).append(i)
    return list(units.values())


def choose_dev(sizes: list[int], target: float) -> set[int]:
    """Those of the units, in their order, that fit into the target, and the smallest other one to reach it."""
    dev, filled = set(), 0
    for number, size in enumerate(sizes):
        if filled + size <= target:
            dev.add(number)
            filled += size
    rest = [number for number in range(len(sizes)) if number not in dev]
    if filled < target and len(rest) > 1:
        dev.add(min(rest, key=lambda number: sizes[number]))
    return dev
