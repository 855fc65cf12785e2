"""Files and folders that are whole or absent, and where a dataset's lie."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from common.command import InputError

ROOT = Path(__file__).resolve().parents[1]


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

    A folder cannot be renamed over another, so the old one steps aside as `<path>.old` for an instant;
    after a crash in that instant `recover_folder` puts it back.
    """
    new, old = _beside(path, "new"), _beside(path, "old")
    recover_folder(path)
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    try:
        yield new
        if durable:
            for file in [*new.rglob("*"), new]:
                _fsync(file)
        if path.exists():
            path.rename(old)
        new.rename(path)
        _fsync(path.parent)
    except OSError as error:
        error.filename = error.filename or str(path)
        raise
    finally:
        shutil.rmtree(new, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)


def recover_folder(path: Path) -> None:
    """Undo what a crash inside `replace_folder(path)` left: the previous good state is back under its name."""
    old = _beside(path, "old")
    if old.exists() and not path.exists():
        old.rename(path)
    shutil.rmtree(old, ignore_errors=True)


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(f"{path.name}.{suffix}")


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
