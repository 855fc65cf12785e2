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
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common import ROOT, InputError, flag, parse_flags, replace_folder, run_command
from hub import fingerprint, load_tokenizer

if TYPE_CHECKING:
    import numpy as np
    from tokenizers import Tokenizer

FORMAT_VERSION = 2
LABELS = {".py": "Python", ".java": "Java"}
DEFAULT_SOURCES = ("dataset/Python", "dataset/Java")
# Besides tests and demos: generated tables, a quarter of the tokens, that would flatter any dev score.
STDLIB_LEFT_OUT = {
    "test",
    "tests",
    "idlelib",
    "turtledemo",
    "encodings",
    "pydoc_data",
    "site-packages",
    "dist-packages",
}
CONTAMINATION_NGRAMS = (20, 50)
BATCH_CHARACTERS = 1_000_000  # tokenized at once: enough for every core, small enough for memory


@dataclass
class ConvertConfig:
    segment_len: int = flag(254, "tokens of a window; with the control word and <eos> around it, 256")
    stride: int = flag(10, "tokens between the starts of two windows of a file")
    dev_size: float = flag(0.1, "share of each language's windows that goes to dev.jsonl")
    source: tuple[str, ...] = flag(
        DEFAULT_SOURCES,
        "folders (or files) of .py and .java; `stdlib` is the running Python's own library without its tests; "
        "of the default folders, whichever exist",
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
        if Path(self.dataset_name).name != self.dataset_name or self.dataset_name in ("", ".."):
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
    starts: "np.ndarray" = field(default=None)  # [windows] int64: where in ids each begins
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
        reasons = ", ".join(sorted({reason for _, reason in skipped}))
        raise InputError(f"{' '.join(config.source)}: no file can be used ({reasons}); name other sources")
    languages = {label: [f for f in files if f.label == label] for label in sorted({f.label for f in files})}
    contaminations = measure_splits(languages, config)
    meta = {
        "format_version": FORMAT_VERSION,
        # without num_workers, which changes nothing in the result
        "flags": {name: value for name, value in asdict(config).items() if name != "num_workers"},
        "tokenizer": {
            "name": config.tokenizer,
            "fingerprint": fingerprint(tokenizer),
            "vocab_size": tokenizer.get_vocab_size(),
        },
        "languages": {label: count(of_language, config.segment_len) for label, of_language in languages.items()},
        "contamination": contaminations,
        "duplicate_files": len(files) - len({file.digest for file in files}),
        "sources": describe_sources(files, skipped),
    }
    folder = ROOT / "dataset" / config.dataset_name / "json"
    with replace_folder(folder, durable=False) as new:
        write_rows(files, config.segment_len, new)
        (new / "meta.json").write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")
    print_summary(meta, folder)


# ---- reading


def source_root(source: str) -> Path:
    if source == "stdlib":
        return Path(sysconfig.get_path("stdlib"))
    return ROOT / source if source in DEFAULT_SOURCES else Path(source)


def find_sources(sources: Sequence[str]) -> list[SourceFile]:
    """Every .py and .java file of the sources, in the order of the sources, then of the paths.

    Hidden folders and caches are left out, and of the default sources those that do not exist.

    Raises:
        InputError: a source that does not exist, or no file in any of them.
    """
    if sources == DEFAULT_SOURCES:
        sources = [source for source in sources if source_root(source).is_dir()]
    found = []
    for source in sources:
        root = source_root(source)
        if not root.exists():
            raise InputError(f"--source {source}: no such file or folder")
        files = _walk(root, STDLIB_LEFT_OUT if source == "stdlib" else set())
        paths = {(file.relative_to(root).as_posix() if file != root else file.name): file for file in files}
        found += [SourceFile(file, source, path, LABELS[file.suffix]) for path, file in sorted(paths.items())]
    if not found:
        raise InputError(
            f"no .py or .java file in {' or '.join(sources or DEFAULT_SOURCES)}; name a folder of source code with "
            "--source DIR, or take Python's own library with --source stdlib"
        )
    return found


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
) -> tuple[list[SourceFile], list[tuple[SourceFile, str]]]:
    """Fill in the files' ids and starts. Returns the files that give a window, and the others with the reason."""
    import numpy as np
    from tqdm import tqdm

    kept, skipped, batch, texts = [], [], [], []

    def flush() -> None:
        for file, encoding in zip(batch, tokenizer.encode_batch_fast(texts, add_special_tokens=False), strict=True):
            file.ids = np.array(encoding.ids, dtype=np.int32)
            file.starts = np.arange(0, len(file.ids) // stride * stride, stride)
            if len(file.starts):
                kept.append(file)
            else:
                skipped.append((file, f"shorter than the stride of {stride} tokens"))
        batch.clear()
        texts.clear()

    for file in tqdm(files, "tokenize", unit="file", leave=False, disable=None):  # None: shown on a terminal only
        try:
            text = read_text(file.file)
        except UnicodeDecodeError:
            skipped.append((file, "not UTF-8"))
            continue
        if not text.strip():
            skipped.append((file, "empty"))
            continue
        encoded = text.encode()
        file.n_bytes, file.digest = len(encoded), hashlib.sha256(encoded).hexdigest()
        batch.append(file)
        texts.append(text)
        if sum(map(len, texts)) >= BATCH_CHARACTERS:
            flush()
    flush()
    return kept, skipped


# ---- splitting


def split(label: str, files: list[SourceFile], config: ConvertConfig) -> None:
    """Choose which windows of one language's files are in dev.

    Raises:
        InputError: too few files or windows to have both a train and a dev split.
    """
    import numpy as np

    rng = random.Random(config.seed)
    windows = [len(file.starts) for file in files]
    total = sum(windows)
    if config.split_by == "segment":
        in_dev = np.zeros(total, dtype=bool)
        in_dev[rng.sample(range(total), int(config.dev_size * total))] = True
        if not in_dev.any():
            raise InputError(f"{label}: dev would be empty, of {total} windows; add files or raise --dev_size")
        for file, part in zip(files, np.split(in_dev, np.cumsum(windows)[:-1]), strict=True):
            file.in_dev = part
        return
    units = group(files, config.split_by)
    if len(units) < 2:
        raise InputError(
            f"{label}: a split would be empty, since the {len(files)} usable files stay together with --split_by "
            f"{config.split_by}; add files or use --split_by {'file or ' * (config.split_by == 'folder')}segment"
        )
    rng.shuffle(units)
    dev = choose_dev([sum(windows[i] for i in unit) for unit in units], config.dev_size * total)
    for number, unit in enumerate(units):
        for i in unit:
            files[i].in_dev = np.full(windows[i], number in dev)


def measure_splits(languages: dict[str, list[SourceFile]], config: ConvertConfig) -> dict[str, dict[str, float | None]]:
    """Split the files as `config` says.

    Returns:
        the contamination that results, and beside it that of the splits by file and by segment: n -> share.
    Raises:
        InputError: as `split`.
    """
    from dataset.contamination import contamination

    files = [file for of_language in languages.values() for file in of_language]
    shares = {}
    own_last = sorted({"file", "segment", config.split_by}, key=lambda split_by: split_by == config.split_by)
    for split_by in own_last:
        try:
            for label, of_language in languages.items():
                split(label, of_language, replace(config, split_by=split_by))
        except InputError:
            if split_by == config.split_by:
                raise
            continue
        shares[split_by] = {str(n): contamination(files, config.segment_len, n) for n in CONTAMINATION_NGRAMS}
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


# ---- measuring


def describe_sources(files: list[SourceFile], skipped: list[tuple[SourceFile, str]]) -> list[dict[str, Any]]:
    """Each source's name, version, files with their number of tokens, and skipped files with the reason."""
    return [
        {
            "source": source,
            "version": source_version(source),
            "files": {file.path: len(file.ids) for file in files if file.source == source},
            "skipped": {file.path: reason for file, reason in skipped if file.source == source},
        }
        for source in dict.fromkeys(file.source for file in [*files, *(file for file, _ in skipped)])
    ]


def source_version(source: str) -> str | None:
    """Python's version for stdlib; else the git commit, where the source is (part of) a git work tree."""
    if source == "stdlib":
        return f"Python {sys.version.split()[0]}"
    # HEAD:./ exists only if the folder itself is in the commit: a source that our own repository ignores is not.
    command = ["git", "-C", str(source_root(source)), "rev-parse", "HEAD", "HEAD:./"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True)
    except OSError:  # no git on this machine
        return None
    return f"git {answer.stdout.split()[0]}" if answer.returncode == 0 else None


def count(files: list[SourceFile], segment_len: int) -> dict[str, dict[str, int]]:
    """Per split: files with a window in it, windows, tokens of the windows, and those files' own tokens and bytes."""
    counts = {}
    for name, is_dev in (("train", False), ("dev", True)):
        chosen = [file for file in files if (file.in_dev == is_dev).any()]
        lengths = [(len(f.ids) - f.starts[f.in_dev == is_dev]).clip(max=segment_len) for f in chosen]
        counts[name] = {
            "files": len(chosen),
            "windows": sum(map(len, lengths)),
            "window_tokens": int(sum(map(sum, lengths))),
            "source_tokens": sum(len(file.ids) for file in chosen),
            "source_bytes": sum(file.n_bytes for file in chosen),
        }
    return counts


# ---- writing


def write_rows(files: list[SourceFile], segment_len: int, folder: Path) -> None:
    """One JSON row a window; `token_ids` comes first, which is what lets data.py read a row without a JSON parser."""
    import numpy as np

    head = b'{"token_ids": ['
    with (folder / "train.jsonl").open("wb") as train, (folder / "dev.jsonl").open("wb") as dev:
        for file in files:
            words = [b"%d" % token_id for token_id in file.ids.tolist()]
            text = b", ".join(words) + b", "
            at = np.cumsum([0, *(len(word) + 2 for word in words)]).tolist()  # token number -> offset in text
            tail = f'], "label": "{file.label}", "path": {json.dumps(file.path)}}}\n'.encode()
            ends = (file.starts + segment_len).clip(max=len(words)).tolist()
            rows = [
                head + text[at[start] : at[end] - len(b", ")] + tail
                for start, end in zip(file.starts.tolist(), ends, strict=True)
            ]
            train.writelines(itertools.compress(rows, (~file.in_dev).tolist()))
            dev.writelines(itertools.compress(rows, file.in_dev.tolist()))


def print_summary(meta: dict[str, Any], folder: Path) -> None:
    n_files = sum(len(source["files"]) for source in meta["sources"])
    reasons = Counter(reason for source in meta["sources"] for reason in source["skipped"].values())
    details = ", ".join(f"{number} {reason}" for reason, number in sorted(reasons.items()))
    print(f"{n_files} files read, {reasons.total()} skipped{f' ({details})' * bool(details)}")
    print(f"{'':14}{'files':>8}{'windows':>12}{'window tokens':>16}{'source tokens':>16}{'source bytes':>16}")
    for label, splits in meta["languages"].items():
        for name, counts in splits.items():
            cells = "".join(f"{n:>{w},}" for n, w in zip(counts.values(), (8, 12, 16, 16, 16), strict=True))
            print(f"{label + ' ' + name:14}{cells}")
    for n, share in meta["contamination"][meta["flags"]["split_by"]].items():
        print(f"dev {n}-grams that stand in train: {'none to measure' if share is None else f'{share:.2%}'}")
    print(f"written: {folder}")


if __name__ == "__main__":
    run_command(main)
