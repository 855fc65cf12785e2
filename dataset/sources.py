"""Finding and reading source files."""

import os
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from common.command import InputError
from common.files import ROOT
from common.source_code import LABELS, NotSourceCode, label_of, read_source

if TYPE_CHECKING:
    import numpy as np

DEFAULT_SOURCES = tuple(f"dataset/{label}" for label in LABELS.values())
# Tests, demos, and generated tables: a quarter of all tokens, which would make every dev score look better.
STDLIB_LEFT_OUT = {"test", "tests", "idlelib", "turtledemo", "encodings", "pydoc_data"}
STDLIB_LEFT_OUT |= {"site-packages", "dist-packages"}
INSTALLED = {"site-packages", "dist-packages", "node_modules"}
INSTALLED_OR_BUILT = {"venv", "build", "dist"}  # except packages, such as the standard library's venv


@dataclass(eq=False)
class SourceFile:
    file: Path
    source: str  # as the user named it
    path: str  # relative to the source's root, with forward slashes
    label: str
    n_bytes: int = 0
    digest: str = ""  # of the text: equal for exact copies
    ids: "np.ndarray" = field(default=None)  # [tokens] int32
    starts: "np.ndarray" = field(default=None)  # [windows] int64: the index in ids where each begins
    in_dev: "np.ndarray" = field(default=None)  # [windows] bool


class SkippedFile(NamedTuple):
    source: str  # as the user named it
    path: str  # of a file or folder, relative to the source's root
    reason: str


class Found(NamedTuple):
    files: list[SourceFile]
    left_out: list[SkippedFile]
    skipped: list[SkippedFile]


def find_sources(sources: Sequence[str], include_ignored: bool = False) -> Found:
    """Every file of the sources in a known language, in the order of the sources, then of the paths.

    Hidden folders, caches, linked folders, and default sources that do not exist are not reported.

    Args:
        include_ignored: also take what was installed or built, and what git ignores.
    Raises:
        InputError: a source does not exist, or no source has a file.
    """
    remedy = "name another folder of source code"
    if tuple(sources) == DEFAULT_SOURCES:
        sources = [source for source in sources if source_root(source).is_dir()]
        remedy = "name a folder of source code with --source DIR, or take Python's own library with --source stdlib"
    found = Found([], [], [])
    for source in sources:
        if not source_root(source).exists():
            raise InputError(f"{source}: no such file or folder; {remedy}")
        for part, of_source in zip(found, _search(source, include_ignored), strict=True):
            part += sorted(of_source, key=lambda item: item.path)
    if not found.files:
        reasons = sorted({file.reason for file in found.skipped})
        reasons += [say_left_out(found.left_out)] if found.left_out else []
        raise InputError(
            f"no {' or '.join(LABELS)} file in {' or '.join(sources or DEFAULT_SOURCES)}"
            f"{' (' * bool(reasons)}{'; '.join(reasons)}{')' * bool(reasons)}; {remedy}"
        )
    return found


def source_root(source: str) -> Path:
    if source == "stdlib":
        return Path(sysconfig.get_path("stdlib"))
    return ROOT / source if source in DEFAULT_SOURCES else Path(source)


def say_left_out(left_out: list[SkippedFile]) -> str:
    names = [file.path for file in left_out]
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"left out: {', '.join(names[:3])}{more}; --include_ignored takes them"


def _search(source: str, include_ignored: bool) -> Found:
    root, found = source_root(source), Found([], [], [])

    def name(path: Path) -> tuple[str, str]:
        return source, path.relative_to(root).as_posix()

    if not root.is_dir():
        if label := label_of(root.name):
            found.files.append(SourceFile(root, source, root.name, label))
        return found
    ignored = set() if include_ignored or source == "stdlib" else ignored_by_git(root)
    folders = [root]  # not by recursion, because a tree may be deeper than Python's stack
    while folders:
        folder = folders.pop()
        try:
            with os.scandir(folder) as opened:
                entries = list(opened)
        except OSError as error:
            found.skipped.append(SkippedFile(*name(folder), f"folder: {error.strerror}"))
            continue
        why = folder != root and not include_ignored and _why_left_out(folder, {item.name for item in entries})
        if why:
            found.left_out.append(SkippedFile(*name(folder), why))
            continue
        for item in entries:
            path, is_folder, label = Path(item.path), item.is_dir(follow_symlinks=False), label_of(item.name)
            if _is_passed_over(item.name, source) if is_folder else not label:
                continue
            if path in ignored:
                found.left_out.append(SkippedFile(*name(path), "ignored by git"))
            elif is_folder:
                folders.append(path)
            else:
                found.files.append(SourceFile(path, *name(path), label))
    return found


def _is_passed_over(folder: str, source: str) -> bool:
    return folder.startswith((".", "__pycache__")) or (source == "stdlib" and folder in STDLIB_LEFT_OUT)


def _why_left_out(folder: Path, names: set[str]) -> str | None:
    if "pyvenv.cfg" in names:
        return "a virtual environment"
    if folder.name in INSTALLED or (folder.name in INSTALLED_OR_BUILT and "__init__.py" not in names):
        return "installed or built"
    return None


def ignored_by_git(root: Path) -> set[Path]:
    """Files and folders below a root that git ignores; none if the root itself is ignored, since the user named it."""
    # A repository's configuration may name a program as fsmonitor, and git would run it.
    command = ["git", "-c", "core.fsmonitor=false", "-C", str(root), "ls-files", "-z"]
    command += ["--others", "--ignored", "--exclude-standard", "--directory"]
    try:
        answer = subprocess.run(command, capture_output=True)
    except OSError:  # no git on this machine
        return set()
    names = {name.rstrip("/") for name in os.fsdecode(answer.stdout).split("\0") if name}
    return set() if "." in names else {root / name for name in names}


def read_text(file: Path) -> tuple[str, str]:
    """(text, "") of a source file, or ("", reason) if it cannot be used."""
    try:
        text = read_source(file)
    except NotSourceCode as error:
        return "", error.reason
    except OSError as error:
        return "", error.strerror or str(error)
    return (text, "") if text.strip() else ("", "empty")


def source_version(source: str) -> str | None:
    """Python's version for stdlib; else the git commit if the source is in a git work tree; else None."""
    if source == "stdlib":
        return f"Python {sys.version.split()[0]}"
    # HEAD:./ exists only if the folder itself is in the commit. A source that our own repository ignores is not.
    command = ["git", "-C", str(source_root(source)), "rev-parse", "HEAD", "HEAD:./"]
    try:
        answer = subprocess.run(command, capture_output=True)
    except OSError:  # no git on this machine
        return None
    return f"git {answer.stdout.split()[0].decode()}" if answer.returncode == 0 else None
