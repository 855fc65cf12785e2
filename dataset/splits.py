"""Which windows are in train and which in dev."""

import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.command import InputError
from common.model_files import fingerprint
from dataset.sources import SourceFile, find_sources
from dataset.windows import tokenize_files

if TYPE_CHECKING:
    import numpy as np
    from tokenizers import Tokenizer

    from dataset.format import Meta

CONTAMINATION_NGRAMS = (20, 50)


def choose_split(
    files: list[SourceFile], split_by: str, dev_size: float, seed: int, known: dict[str, bool]
) -> "list[np.ndarray]":
    """For each file of one language, which of its windows are in dev: [windows] bool.

    Args:
        known: path -> whether it was in dev before. These files stay in their split, and only other files are drawn.
            A file that must stay together with a known file joins it; if one of these is in train, all are.
    Raises:
        InputError: there are too few files or windows for both a train and a dev split.
    """
    import numpy as np

    rng = random.Random(seed)
    label = files[0].label
    windows = [len(file.starts) for file in files]
    total = sum(windows)
    if split_by == "segment":
        in_dev = np.zeros(total, dtype=bool)
        in_dev[rng.sample(range(total), int(dev_size * total))] = True
        if not in_dev.any():
            raise InputError(f"{label}: dev would be empty, of {total} windows; add files or raise --dev_size")
        return np.split(in_dev, np.cumsum(windows)[:-1])
    units = group(files, split_by)
    if len(units) < 2:
        raise InputError(
            f"{label}: a split would be empty, since the {len(files)} usable files stay together with --split_by "
            f"{split_by}; add files or use --split_by {'file or ' * (split_by == 'folder')}segment"
        )
    rng.shuffle(units)
    sides = [{known[files[i].path] for i in unit if files[i].path in known} for unit in units]
    new = [unit for unit, side in zip(units, sides, strict=True) if not side]
    chosen = choose_dev([sum(windows[i] for i in unit) for unit in new], dev_size) if new else set()
    dev = {i for number in chosen for i in new[number]}
    dev |= {i for unit, side in zip(units, sides, strict=True) if side == {True} for i in unit}
    return [np.full(count, i in dev) for i, count in enumerate(windows)]


def split_sources(meta: "Meta", folder: Path, tokenizer: "Tokenizer") -> tuple[list[SourceFile], list[SourceFile]]:
    """Read and tokenize again the Python source files of a dataset; return those of dev and those of train.

    Args:
        meta: the meta.json of the dataset in `folder`.
    Raises:
        InputError: dev has no whole Python file, or the sources or the tokenizer have changed since the conversion.
    """
    flags = meta["flags"]
    if flags["split_by"] == "segment":
        raise InputError(
            f"{folder}: split by segment, so train holds parts of every file; convert with --split_by file"
        )
    if fingerprint(tokenizer) != meta["tokenizer"]["fingerprint"]:
        raise InputError(f"{folder}: made with another tokenizer of this name; convert again")
    sources = {source["source"]: source for source in meta["sources"]}
    found = find_sources(flags["source"], flags["include_ignored"]).files
    python = [file for file in found if file.label == "Python"]
    files, _ = tokenize_files(python, tokenizer, flags["stride"], flags["whole_files"])
    dev, train = [], []
    for file in files:
        source = sources.get(file.source)
        if source and file.path in source["skipped"]:
            continue
        if not source or source["files"].get(file.path) != len(file.ids):
            raise InputError(f"{file.file}: has changed since {folder} was made of it; convert again")
        (dev if file.path in source["dev_files"] else train).append(file)
    if not dev:
        raise InputError(f"{folder}: dev holds no Python file; convert sources with more Python files")
    return dev, train


def measure_splits(
    languages: dict[str, list[SourceFile]], segment_len: int, split_by: str, dev_size: float, seed: int
) -> dict[str, dict[str, float | None]]:
    """Measure the contamination of the chosen split and, for comparison, of splits by file and by segment."""
    from dataset.contamination import contamination

    files = [file for of_language in languages.values() for file in of_language]
    shares = {}
    for way in sorted({"file", "segment", split_by}):
        in_dev = [file.in_dev for file in files]
        if way != split_by:
            try:
                in_dev = [mask for part in languages.values() for mask in choose_split(part, way, dev_size, seed, {})]
            except InputError:  # too few files for a split that is only made for comparison
                continue
        shares[way] = {str(n): contamination(files, in_dev, segment_len, n) for n in CONTAMINATION_NGRAMS}
    return shares


def group(files: list[SourceFile], split_by: str) -> list[list[int]]:
    """Group the indices of files that must stay together: exact copies, and with "folder" the files of a folder."""
    parent: dict[Any, Any] = {}

    def root(key: Any) -> Any:
        while parent.setdefault(key, key) != key:
            parent[key] = parent[parent[key]]  # shortens the path for the next time
            key = parent[key]
        return key

    for file in files:
        place = file.file.parent if split_by == "folder" else file.file
        parent[root(file.digest)] = root(place)  # copies and neighbours now have the same root
    units: dict[Any, list[int]] = {}
    for i, file in enumerate(files):
        units.setdefault(root(file.digest), []).append(i)
    return list(units.values())


def choose_dev(sizes: list[int], dev_size: float) -> set[int]:
    """The numbers of the units for dev: those that fit into its share, in their order, then the smallest other one.

    Args:
        sizes: windows of each unit. If one, such as a generated file, has more than half of all windows, it goes to
            train, and dev gets its share of the others. Otherwise all others could fit into dev.
    """
    total, largest = sum(sizes), max(sizes)
    target = dev_size * (total - largest if largest > total / 2 else total)
    dev, filled = set(), 0
    for number, size in enumerate(sizes):
        if filled + size <= target:
            dev.add(number)
            filled += size
    rest = [number for number in range(len(sizes)) if number not in dev]
    if filled < target and len(rest) > 1:
        dev.add(min(rest, key=lambda number: sizes[number]))
    return dev
