"""Cut source files into windows of token ids: dataset/<dataset_name>/json/{train,dev}.jsonl and meta.json.

python dataset/convert.py --source stdlib --tokenizer tiny --dataset_name stdlib   # this Python's own library
python dataset/convert.py --source ~/my_project --dataset_name my_project          # any folder of .py or .java files
python dataset/convert.py                      # TheAlgorithms in dataset/Python and dataset/Java, GPT-2's vocabulary
"""

import hashlib
import itertools
import json
import os
import random
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common import ROOT, InputError, flag, parse_flags, replace_folder, run_command
from hub import fingerprint, load_tokenizer

if TYPE_CHECKING:
    import numpy as np
    from tokenizers import Tokenizer

FORMAT_VERSION = 1
LABELS = {".py": "Python", ".java": "Java"}
DEFAULT_SOURCES = ("dataset/Python", "dataset/Java")
STDLIB_LEFT_OUT = {"test", "tests", "idlelib", "turtledemo", "site-packages", "dist-packages"}
CONTAMINATION_NGRAMS = (20, 50)
BATCH_CHARACTERS = 1_000_000  # tokenized at once: enough for every core, small enough for memory


@dataclass
class ConvertConfig:
    segment_len: int = flag(254, "tokens of a window; with the control word and <eos> around it, 256")
    stride: int = flag(10, "tokens between the starts of two windows of a file")
    dev_size: float = flag(0.1, "share of each language's windows that goes to dev.jsonl")
    source: tuple[str, ...] = flag(
        DEFAULT_SOURCES,
        "folders (or files) to read .py and .java from; `stdlib` is the running Python's own library without its "
        "tests; of the default folders, whichever exist",
        type=str,
        nargs="+",
        metavar="DIR",
    )
    tokenizer: str = flag("gpt2", "model name, Hub id or local folder whose vocabulary cuts the text")
    dataset_name: str = flag("source_code", "the result is dataset/<dataset_name>/json; an older one is replaced")
    seed: int = flag(122, "of the choice of dev files")
    num_workers: int = flag(0, "threads that tokenize; 0: all cores")
    split_by: str = flag(
        "file",
        "what is wholly in train or wholly in dev: a file, all files of a folder, or only a window (`segment`: "
        "overlapping windows on both sides, so dev measures memory)",
        choices=("file", "folder", "segment"),
    )

    def __post_init__(self) -> None:
        if self.segment_len < 1:
            raise InputError(f"--segment_len {self.segment_len}: a window needs at least 1 token")
        if self.stride < 1:
            raise InputError(f"--stride {self.stride}: windows must start at least 1 token apart")
        if not 0 < self.dev_size < 1:
            raise InputError(f"--dev_size {self.dev_size}: must be above 0 and below 1, as in 0.1")
        if self.num_workers < 0:
            raise InputError(f"--num_workers {self.num_workers}: must be 0 (all cores) or more")
        if Path(self.dataset_name).name != self.dataset_name or self.dataset_name in ("", "..", "json"):
            raise InputError(f"--dataset_name {self.dataset_name}: must be a plain folder name, as in source_code")


@dataclass
class SourceFile:
    file: Path
    source: str  # as the user named it
    path: str  # below the source's root, with forward slashes
    label: str
    n_bytes: int = 0
    digest: str = ""  # of the text: equal for exact copies
    ids: "np.ndarray" = field(default=None)  # [tokens] int32
    in_dev: "np.ndarray" = field(default=None)  # [windows] bool


def main() -> None:
    config = parse_flags(ConvertConfig, __doc__)
    if config.num_workers:
        os.environ["RAYON_NUM_THREADS"] = str(config.num_workers)
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    files = find_sources(config.source)
    tokenizer = load_tokenizer(config.tokenizer)
    files, skipped = tokenize_files(files, tokenizer, config.stride)
    if not files:
        reasons = sorted({reason for _, reason in skipped})
        raise InputError(f"{' '.join(config.source)}: no file can be used ({', '.join(reasons)}); name other sources")
    labels = sorted({file.label for file in files})
    for label in labels:
        split(label, [file for file in files if file.label == label], config)
    meta = {
        "format_version": FORMAT_VERSION,
        "flags": {name: value for name, value in asdict(config).items() if name != "num_workers"},
        "tokenizer": {
            "name": config.tokenizer,
            "fingerprint": fingerprint(tokenizer),
            "vocab_size": tokenizer.get_vocab_size(),
        },
        "sources": [describe_source(source) for source in dict.fromkeys(file.source for file in files)],
        "languages": {label: count([f for f in files if f.label == label], config) for label in labels},
        "duplicate_files": len(files) - len({file.digest for file in files}),
        "contamination": {str(n): contamination(files, config, n) for n in CONTAMINATION_NGRAMS},
        "skipped_files": [{"path": path, "reason": reason} for path, reason in skipped],
    }
    folder = ROOT / "dataset" / config.dataset_name / "json"
    with replace_folder(folder) as new:
        write_rows(files, config, new)
        (new / "meta.json").write_text(json.dumps(meta, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print_summary(meta, len(files), folder)


# ---- reading


def find_sources(sources: list[str] | tuple[str, ...], left_out: set[str] | None = None) -> list[SourceFile]:
    """Every .py and .java file below the sources, in the order of the sources, then of the paths.

    Hidden folders and caches are left out.

    Raises:
        InputError: a source that does not exist, or nothing in any of them.
    """
    if sources == DEFAULT_SOURCES:
        sources = [source for source in sources if (ROOT / source).is_dir()]
        roots = [ROOT / source for source in sources]
    else:
        roots = [Path(sysconfig.get_path("stdlib")) if source == "stdlib" else Path(source) for source in sources]
    found = []
    for source, root in zip(sources, roots, strict=True):
        if not root.exists():
            raise InputError(f"--source {source}: no such file or folder")
        skip = STDLIB_LEFT_OUT if source == "stdlib" else set()
        found += [
            SourceFile(file, source, path, LABELS[file.suffix])
            for path, file in sorted((_below(root, file), file) for file in _walk(root, skip))
        ]
    if not found:
        where = " ".join(sources) or " or ".join(DEFAULT_SOURCES)
        raise InputError(
            f"no .py or .java file in {where}; name a folder of source code with --source DIR, "
            "or take Python's own library with --source stdlib"
        )
    return found


def _below(root: Path, file: Path) -> str:
    return file.relative_to(root).as_posix() if file != root else file.name


def _walk(root: Path, skip: set[str]) -> Iterator[Path]:
    if root.is_file():
        yield from [root] if root.suffix in LABELS else []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if name not in skip and not name.startswith((".", "__pycache__"))]
        yield from (Path(folder, name) for name in names if Path(name).suffix in LABELS)


def read_text(file: Path) -> str:
    """A source file's text without a byte-order mark, its line ends as `\\n`.

    Raises:
        UnicodeDecodeError: not UTF-8.
    """
    return file.read_bytes().decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")


def tokenize_files(
    files: list[SourceFile], tokenizer: "Tokenizer", stride: int
) -> tuple[list[SourceFile], list[tuple[str, str]]]:
    """Fill in the files' ids. Returns the files that give at least one window, and (path, reason) of the others."""
    import numpy as np

    kept, skipped, batch, texts = [], [], [], []

    def flush() -> None:
        for file, encoding in zip(batch, tokenizer.encode_batch_fast(texts, add_special_tokens=False), strict=True):
            file.ids = np.array(encoding.ids, dtype=np.int32)
            if len(file.ids) < stride:
                skipped.append((file.path, f"shorter than the stride of {stride} tokens"))
            else:
                kept.append(file)
        batch.clear()
        texts.clear()

    for file in files:
        try:
            text = read_text(file.file)
        except UnicodeDecodeError:
            skipped.append((file.path, "not UTF-8"))
            continue
        if not text.strip():
            skipped.append((file.path, "empty"))
            continue
        encoded = text.encode()
        file.n_bytes, file.digest = len(encoded), hashlib.sha256(encoded).hexdigest()
        batch.append(file)
        texts.append(text)
        if sum(map(len, texts)) >= BATCH_CHARACTERS:
            flush()
    flush()
    return kept, sorted(skipped)


# ---- splitting


def window_starts(n_tokens: int, stride: int) -> range:
    """Where the windows of a file start; each is `segment_len` tokens long, or shorter at the file's end."""
    return range(0, n_tokens // stride * stride, stride)


def split(label: str, files: list[SourceFile], config: ConvertConfig) -> None:
    """Fill in which windows of one language's files are in dev; seeded, the same for any order of flags.

    Raises:
        InputError: too few files or windows to have both a train and a dev split.
    """
    import numpy as np

    rng = random.Random(config.seed)
    windows = [len(window_starts(len(file.ids), config.stride)) for file in files]
    total = sum(windows)
    if config.split_by == "segment":
        in_dev = np.zeros(total, dtype=bool)
        in_dev[rng.sample(range(total), int(config.dev_size * total))] = True
        if in_dev.all() or not in_dev.any():
            raise InputError(f"{label}: {total} windows leave a split empty; add files or change --dev_size")
        for file, part in zip(files, np.split(in_dev, np.cumsum(windows)[:-1]), strict=True):
            file.in_dev = part
        return
    units = list(group(files, config.split_by).values())
    if len(units) < 2:
        raise InputError(
            f"{label}: all usable files ({len(files)}) must stay together under --split_by {config.split_by}, which "
            f"leaves a split empty; add files or use --split_by {'file or ' * (len(files) > 1)}segment"
        )
    rng.shuffle(units)
    dev = choose_dev([sum(windows[i] for i in unit) for unit in units], config.dev_size * total)
    for number, unit in enumerate(units):
        for i in unit:
            files[i].in_dev = np.full(windows[i], number in dev)


def group(files: list[SourceFile], split_by: str) -> dict[Any, list[int]]:
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
    return units


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


# ---- measuring


def describe_source(source: str) -> dict[str, str | None]:
    """A source's name and, where it is (part of) a git work tree, the commit; for stdlib, Python's version."""
    if source == "stdlib":
        return {"source": source, "python": sys.version.split()[0]}
    folder = ROOT / source if source in DEFAULT_SOURCES and not Path(source).exists() else Path(source)
    # HEAD:./ exists only if the folder itself is in the commit: a source that our own repository ignores is not.
    command = ["git", "-C", str(folder), "rev-parse", "HEAD", "HEAD:./"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True)
        commit = answer.stdout.split()[0] if answer.returncode == 0 else None
    except OSError:  # no git here, or the source is a single file
        commit = None
    return {"source": source, "git_commit": commit}


def count(files: list[SourceFile], config: ConvertConfig) -> dict[str, dict[str, int]]:
    """Per split: files with at least one window, windows, tokens in windows, and the files' own tokens and bytes."""
    import numpy as np

    counts = {}
    for name, is_dev in (("train", False), ("dev", True)):
        lengths = [
            np.minimum(config.segment_len, len(file.ids) - np.array(window_starts(len(file.ids), config.stride)))[
                file.in_dev == is_dev
            ]
            for file in files
        ]
        chosen = [file for file, window_lengths in zip(files, lengths, strict=True) if len(window_lengths)]
        counts[name] = {
            "files": len(chosen),
            "windows": sum(map(len, lengths)),
            "window_tokens": int(sum(window_lengths.sum() for window_lengths in lengths)),
            "source_tokens": sum(len(file.ids) for file in chosen),
            "source_bytes": sum(file.n_bytes for file in chosen),
        }
    return counts


def contamination(files: list[SourceFile], config: ConvertConfig, n: int) -> float | None:
    """Share of dev's n-grams that stand in train word for word; None if no dev window is n tokens long.

    Counted over token positions: position p is a split's if one of its windows covers [p, p + n).
    """
    import numpy as np

    in_dev = [ngram_hashes(file.ids, n)[covered(file, True, config, n)] for file in files]
    dev, repeats = np.unique(np.concatenate(in_dev), return_counts=True)
    if not len(dev):
        return None
    found = np.zeros(len(dev), dtype=bool)
    for file in files:
        train = ngram_hashes(file.ids, n)[covered(file, False, config, n)]
        at = np.searchsorted(dev, train).clip(max=len(dev) - 1)
        found[at[dev[at] == train]] = True
    return round(float(repeats[found].sum() / repeats.sum()), 6)


def covered(file: SourceFile, is_dev: bool, config: ConvertConfig, n: int) -> "np.ndarray":
    """[max(0, tokens - n + 1)] bool: the positions whose n-gram lies in a window of the split."""
    import numpy as np

    positions = max(0, len(file.ids) - n + 1)
    starts = np.array(window_starts(len(file.ids), config.stride))[file.in_dev == is_dev]
    ends = np.minimum(starts + config.segment_len - n + 1, positions)  # of the positions that a window gives
    starts, ends = starts[ends > starts], ends[ends > starts]
    opened = np.bincount(starts, minlength=positions + 1) - np.bincount(ends, minlength=positions + 1)
    return np.cumsum(opened)[:positions] > 0


def ngram_hashes(ids: "np.ndarray", n: int) -> "np.ndarray":
    """A 64-bit hash of every n-gram: ids [tokens] -> [max(0, tokens - n + 1)] uint64.

    Widths double: two blocks that overlap or touch determine the wider one. (Multipliers: xxHash's primes.)
    """
    import numpy as np

    hashes, width = ids.astype(np.uint64) + np.uint64(1), 1
    while width < n:
        step = min(width, n - width)
        hashes = hashes[:-step] * np.uint64(0x9E3779B185EBCA87) ^ hashes[step:] * np.uint64(0xC2B2AE3D27D4EB4F)
        hashes ^= hashes >> np.uint64(31)
        width += step
    return hashes


# ---- writing


def write_rows(files: list[SourceFile], config: ConvertConfig, folder: Path) -> None:
    """One JSON row a window; `token_ids` comes first, which is what lets data.py read a row without a JSON parser."""
    import numpy as np

    head = b'{"token_ids": ['
    with (folder / "train.jsonl").open("wb") as train, (folder / "dev.jsonl").open("wb") as dev:
        for file in files:
            words = [b"%d" % token_id for token_id in file.ids.tolist()]
            text = b", ".join(words) + b", "
            at = np.cumsum([0, *(len(word) + 2 for word in words)]).tolist()  # token number -> offset in text
            tail = f'], "label": "{file.label}", "path": {json.dumps(file.path)}}}\n'.encode()
            starts = window_starts(len(words), config.stride)
            ends = [at[min(start + config.segment_len, len(words))] - len(b", ") for start in starts]
            rows = [head + text[at[start] : end] + tail for start, end in zip(starts, ends, strict=True)]
            train.writelines(itertools.compress(rows, (~file.in_dev).tolist()))
            dev.writelines(itertools.compress(rows, file.in_dev.tolist()))


def print_summary(meta: dict[str, Any], n_files: int, folder: Path) -> None:
    skipped = meta["skipped_files"]
    reasons = {reason: sum(row["reason"] == reason for row in skipped) for reason in {r["reason"] for r in skipped}}
    details = ", ".join(f"{number} {reason}" for reason, number in sorted(reasons.items()))
    print(f"{n_files} files read, {len(skipped)} skipped{f' ({details})' * bool(skipped)}")
    print(f"{'':14}{'files':>8}{'windows':>12}{'window tokens':>16}{'source tokens':>16}{'source bytes':>16}")
    for label, splits in meta["languages"].items():
        for name, counts in splits.items():
            cells = "".join(f"{n:>{w},}" for n, w in zip(counts.values(), (8, 12, 16, 16, 16), strict=True))
            print(f"{label + ' ' + name:14}{cells}")
    for n, share in meta["contamination"].items():
        print(f"dev {n}-grams that stand in train: {'none to measure' if share is None else f'{share:.2%}'}")
    print(f"written: {folder}")


if __name__ == "__main__":
    run_command(main)
