"""Finding, reading and tokenizing source files."""

import hashlib
import os
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.command import InputError
from common.files import ROOT
from common.source_code import LABELS

if TYPE_CHECKING:
    import numpy as np
    from tokenizers import Tokenizer


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
BATCH_CHARACTERS = 1_000_000  # tokenized at once: enough for every core, small enough for memory


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


def source_root(source: str) -> Path:
    if source == "stdlib":
        return Path(sysconfig.get_path("stdlib"))
    return ROOT / source if source in DEFAULT_SOURCES else Path(source)


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
