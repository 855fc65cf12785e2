"""Files and folders that are complete or absent, input files that are checked, and locks."""

import atexit
import contextlib
import gzip
import os
import platform
import re
import shutil
import tempfile
import time
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

from common.command import InputError

ROOT = Path(__file__).resolve().parents[1]
PATIENCE_S = 5  # a process that was killed holds its locks until its memory has been freed


def dataset_file(dataset_name: str, split: str) -> Path:
    """The jsonl file of a converted dataset.

    Raises:
        InputError: there is none; names the existing datasets and the command that makes one.
    """
    path = present_folder(ROOT / "dataset" / dataset_name / "json") / f"{split}.jsonl"
    if not path.is_file():
        known = sorted(found.parent.parent.name for found in ROOT.glob(f"dataset/*/json/{split}.jsonl"))
        raise InputError(
            f"{path}: no such dataset; make it with `python dataset/convert.py --dataset_name {dataset_name}"
            + " --split_by segment" * dataset_name.endswith("segment")  # the recipes'
            + "`"
            + (f", or choose --dataset_name from {', '.join(known)}" if known else "")
        )
    return path


def open_input(path: Path, remedy: str = "name another file") -> IO[bytes]:
    """Open a file that the user has named, or may have changed.

    Raises:
        InputError: it is missing, may not be read, or is a folder, a pipe or a device, which might never end.
    """
    try:
        if path.exists() and not path.is_file():
            raise InputError(f"{path}: not a regular file; {remedy}")
        return path.open("rb")
    except (OSError, ValueError) as error:  # a ValueError: the name has a NUL byte
        raise InputError(f"{path}: {getattr(error, 'strerror', None) or error}; {remedy}") from None


def read_input(path: Path, remedy: str = "name another file") -> bytes:
    """The content of a file; raises InputError as `open_input` does."""
    with open_input(path, remedy) as file:
        return file.read()


def read_lines(path: Path, remedy: str) -> tuple[list[str], bytes]:
    """The lines of a UTF-8 file, which may be compressed with gzip, and its bytes without the compression.

    Raises:
        InputError: as `open_input`, or it is not whole or not UTF-8.
    """
    content = read_input(path, remedy)
    try:
        content = gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
        return content.decode("utf-8-sig").split("\n"), content
    except (EOFError, gzip.BadGzipFile, zlib.error):
        raise InputError(f"{path}: not a whole gzip file; {remedy}") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: not UTF-8; {remedy}") from None


@contextlib.contextmanager
def atomic_write(path: Path, mode: str = "w") -> Iterator[IO]:
    """Open a file that appears under its name only when it is complete and on the disk.

    Raises:
        InputError: `path` is, or is a link to, a folder, a pipe or a device. That is left alone.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path = Path(os.path.realpath(path))  # a link stays one
    if path.exists() and not path.is_file():
        raise InputError(f"{path}: not a regular file, so it cannot be written; name another file, or remove it")
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        own = re.compile(re.escape(path.name) + r"\.[0-9]+\.tmp")
        _remove_abandoned(file for file in path.parent.iterdir() if own.fullmatch(file.name))
        with temporary.open(mode, encoding=None if "b" in mode else "utf-8") as file:
            with contextlib.suppress(OSError):  # some network disks have no locks
                _take(file.fileno())
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:  # a full disk's error names no file, and others name the temporary file
        if error.strerror is None:  # NumPy's, with a message alone
            error.strerror = f"{error}; the disk may be full"
        error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def replace_folder(path: Path, durable: bool = True) -> Iterator[Path]:
    """Give an empty folder to fill, which replaces `path` only when it is complete.

    A folder cannot be renamed over another. So the old one is first renamed to `<path>.autocoder-old`; after a crash
    at that moment `recover_folder` renames it back. If `path` is a link, the folder that it points to is replaced.

    Args:
        durable: wait until everything is on the disk, so that it also survives a power failure.
    Raises:
        InputError: `path` is not a folder.
    """
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_dir():
        raise InputError(f"{path}: not a folder; choose another name, or remove it")
    new, old = _beside(path, "new"), _beside(path, "old")
    try:
        recover_folder(path)
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        yield new
        if durable:
            for file in [*new.rglob("*"), new]:
                _fsync(file)
        if path.exists():
            path.rename(old)
        new.rename(path)
        _fsync(path.parent)
    except OSError as error:
        if error.filename in (None, str(new), str(old)):  # the user knows only `path`
            error.filename = str(path)
        raise
    finally:
        shutil.rmtree(new, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)


def recover_folder(path: Path) -> None:
    """Repair what a crash inside `replace_folder(path)` left: the previous folder gets its name back.

    Only for the process that writes the folder; processes that read it use `present_folder`.
    """
    path = Path(os.path.realpath(path))
    old = _beside(path, "old")
    if old.exists() and not path.exists():
        old.rename(path)
    shutil.rmtree(old, ignore_errors=True)


def present_folder(path: Path) -> Path:
    """`path`, or its previous state if `replace_folder(path)` is just renaming it, or was stopped while it did so."""
    old = _beside(Path(os.path.realpath(path)), "old")
    return old if old.is_dir() and not path.exists() else path


def scratch_folder() -> Path:
    """A new private folder, removed when this process ends. Also removes those of processes that were killed."""
    _remove_abandoned(Path(tempfile.gettempdir()).glob("autocoder-*"))
    folder = Path(tempfile.mkdtemp(prefix="autocoder-"))
    if os.name != "nt":
        _take(os.open(folder, os.O_RDONLY))  # until this process ends
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _remove_abandoned(paths: Iterable[Path]) -> None:
    """Remove files and folders whose writer has ended. A running writer has locked its own with `_take`."""
    for path in paths if os.name != "nt" else ():  # Windows locks no folders
        if not path.is_file() and not path.is_dir():  # opening a pipe would wait
            continue
        with contextlib.suppress(OSError, RecursionError):  # locked, another user's, or nested too deep
            descriptor = os.open(path, os.O_RDONLY)
            try:
                _take(descriptor)
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            finally:
                os.close(descriptor)


@contextlib.contextmanager
def lock(path: Path, wait: bool = False) -> Iterator[None]:
    """Hold the lock file `path`, which only one process at a time can do. It is released however the process ends.

    Folders that this creates for it are removed again if they are empty at the end.

    Args:
        wait: until another process releases it, instead of raising.
    Raises:
        InputError: another process holds it. The message names that process.
    """
    made = [folder for folder in path.parents if not folder.exists()]
    deadline = time.monotonic() + PATIENCE_S
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+", encoding="utf-8")
        try:
            _take(file.fileno(), wait)
            if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
                break  # else its last holder removed it after it was opened here
        except (BlockingIOError, PermissionError):
            if time.monotonic() >= deadline:
                file.seek(0)
                holder = file.read().strip() or "another process"
                message = f"{path.parent}: in use by {holder}; wait until that ends, or choose another name"
                raise InputError(message) from None
            time.sleep(0.1)
        file.close()
    try:
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}, since {time.strftime('%d %b %H:%M')}\n")
        file.flush()
        yield
    finally:
        with contextlib.suppress(OSError):  # Windows cannot remove an open file
            path.unlink()
        file.close()
        with contextlib.suppress(OSError):  # a folder is not empty
            for folder in made:
                folder.rmdir()


def _take(descriptor: int, wait: bool = False) -> None:
    """Lock an open file or folder until it is closed. Raises BlockingIOError or PermissionError if it is locked."""
    if os.name == "nt":
        import msvcrt

        os.lseek(descriptor, 1 << 30, os.SEEK_SET)  # a byte far after the text, so that others can read the text
        msvcrt.locking(descriptor, msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK, 1)
        os.lseek(descriptor, 0, os.SEEK_SET)
    else:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))


def _beside(path: Path, suffix: str) -> Path:
    """A name that no user gives to a folder, because a folder of that name is deleted."""
    return path.with_name(f"{path.name}.autocoder-{suffix}")


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
