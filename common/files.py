"""Files and folders that are whole or absent, and where a dataset's lie."""

import contextlib
import os
import platform
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from common.command import InputError

ROOT = Path(__file__).resolve().parents[1]
PATIENCE_S = 5  # a process that was killed holds its locks until its memory has been freed


def dataset_file(dataset_name: str, split: str) -> Path:
    """The jsonl file of a converted dataset.

    Raises:
        InputError: there is none; names the datasets that there are and the command that makes one.
    """
    path = ROOT / "dataset" / dataset_name / "json" / f"{split}.jsonl"
    if not path.is_file():
        known = sorted(found.parent.parent.name for found in ROOT.glob(f"dataset/*/json/{split}.jsonl"))
        raise InputError(
            f"{path}: no such dataset; make it with `python dataset/convert.py --dataset_name {dataset_name}"
            + " --split_by segment" * dataset_name.endswith("segment")  # the recipes'
            + "`"
            + (f", or choose --dataset_name from {', '.join(known)}" if known else "")
        )
    return path


@contextlib.contextmanager
def atomic_write(path: Path, mode: str = "w") -> Iterator[IO]:
    """Open a file that appears under its name only when it is complete and on the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path = Path(os.path.realpath(path))  # a link stays one
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open(mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:  # a full disk's names no file, others name one that the user does not know
        error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def replace_folder(path: Path, durable: bool = True) -> Iterator[Path]:
    """Fill an empty folder that takes the place of `path` only when it is complete.

    durable: wait until the disk holds it, so that it outlives a power failure too. What can be made again need not.

    A folder cannot be renamed over another, so the old one steps aside as `<path>.autocoder-old` for an instant;
    after a crash in that instant `recover_folder` puts it back.
    """
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
        if error.filename in (None, str(new), str(old)):  # a full disk's names none
            error.filename = str(path)
        raise
    finally:
        shutil.rmtree(new, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)


def recover_folder(path: Path) -> None:
    """Undo what a crash inside `replace_folder(path)` left: the previous good state is back under its name.

    For the one process that writes the folder; `present_folder` is for those that read it.
    """
    old = _beside(path, "old")
    if old.exists() and not path.exists():
        old.rename(path)
    shutil.rmtree(old, ignore_errors=True)


def present_folder(path: Path) -> Path:
    """`path`, or the previous good state while `replace_folder(path)`, or a crash in it, has it step aside."""
    old = _beside(path, "old")
    return old if old.is_dir() and not path.exists() else path


@contextlib.contextmanager
def lock(path: Path, wait: bool = False) -> Iterator[None]:
    """Hold the file `path`, as one process at a time can. However a process ends, the system lets go of what it held.

    Args:
        wait: for another process to let go of it, instead of raising.
    Raises:
        InputError: another process holds it; says which.
    """
    deadline = time.monotonic() + PATIENCE_S
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+", encoding="utf-8")
        try:
            _take(file, wait)
        except (BlockingIOError, PermissionError):
            if time.monotonic() < deadline:
                file.close()
                time.sleep(0.1)
                continue
            file.seek(0)
            holder = file.read().strip() or "another process"
            file.close()
            raise InputError(f"{path.parent}: in use by {holder}; wait for its end or choose another name") from None
        if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
            break
        file.close()  # its last holder has removed it since it was opened
    try:
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}, since {time.strftime('%d %b %H:%M')}\n")
        file.flush()
        yield
    finally:
        with contextlib.suppress(OSError):  # Windows removes no open file, and needs not
            path.unlink()
        file.close()


def _take(file: IO, wait: bool) -> None:
    if os.name == "nt":
        import msvcrt

        file.seek(1 << 30)  # one byte far behind the text, which others may then read
        msvcrt.locking(file.fileno(), msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))


def _beside(path: Path, suffix: str) -> Path:
    """A name that no user gives a folder, as what bears it is deleted."""
    return path.with_name(f"{path.name}.autocoder-{suffix}")


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
