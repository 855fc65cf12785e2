"""What every command shares: one-line errors, flags made from a dataclass, files that are whole or absent."""

import argparse
import contextlib
import ctypes
import dataclasses
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NoReturn, TypeVar

if TYPE_CHECKING:
    import torch

ROOT = Path(__file__).resolve().parent

T = TypeVar("T")


class InputError(Exception):
    """A mistake in what the user gave us. The message is one line: what, where, and what to do."""


def run_command(main: Callable[[], None]) -> NoReturn:
    """Run `main` as a program: a user's mistake or a failing disk ends in one line on stderr and exit code 2."""
    # torch's threads wait for each other by spinning, unless told otherwise before torch is loaded. Where another
    # program uses a core too, that made training steps 3.3 times as slow.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        main()
        sys.stdout.flush()
    except InputError as error:
        sys.exit(_fail(str(error)))
    except BrokenPipeError:  # the reader of our stdout has left, as in `... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        if error.strerror is None:  # not the operating system's own error, so a defect of ours: show where
            raise
        sys.exit(_fail(f"{error.filename or 'input/output'}: {error.strerror}"))
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(0)


def _fail(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 2


def keep_freed_memory(keep: bool = True) -> None:
    """Have the C library keep freed memory for the next allocation instead of giving it back to the system each time.

    A training step on a CPU frees and takes gigabytes, which the system would otherwise map and clear anew, page by
    page: at distilgpt2's shape that took 30 to 40 % of an eager step. `False` gives it back, and restores the default.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):  # glibc alone has these functions
        c_library = ctypes.CDLL(None)
        trim_threshold, mmap_max = -1, -4  # mallopt(3), malloc.h
        c_library.mallopt(trim_threshold, -1 if keep else 128 << 10)
        c_library.mallopt(mmap_max, 0 if keep else 65536)
        if not keep:
            c_library.malloc_trim(0)


def memory(device: "torch.device", key: str = "VmRSS") -> int:
    """Bytes in use: of tensors on a GPU, of the process on a CPU under Linux, elsewhere 0."""
    import torch

    if device.type == "cuda":
        return torch.cuda.memory_allocated()
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.is_file() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(key)), 0)


def peak_memory(device: "torch.device") -> int:
    """The most that was in use, as `memory` counts it."""
    import torch

    return torch.cuda.max_memory_allocated() if device.type == "cuda" else memory(device, "VmHWM")


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are InputErrors, and whose help shows every default."""

    def __init__(self, description: str | None, **kwargs: Any):
        super().__init__(
            description=description,
            formatter_class=_HelpFormatter,
            allow_abbrev=False,
            **kwargs,
        )

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (see {self.prog} -h)")


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    pass


def flag(default: Any, help: str, *aliases: str, **argparse_options: Any) -> Any:
    """A dataclass field that is also a command-line flag, `--<field name>` and `aliases`."""
    options = {"help": help, **argparse_options}
    if isinstance(default, bool):
        options["action"] = "store_true"
    elif "type" not in options:
        options["type"] = type(default)
    return dataclasses.field(default=default, metadata={"aliases": aliases, "options": options})


def parse_flags(
    config_class: type[T],
    description: str | None,
    argv: Sequence[str] | None = None,
    recipes: Callable[[str], dict[str, Any]] | None = None,
) -> T:
    """Make `config_class` from the command line. Its fields are the flags, so a default is stated once.

    Args:
        recipes: gives the defaults that stand instead for a name of --recipe.
    Raises:
        InputError: an unknown flag, or a value that the flag's type or the class's `__post_init__` refuses.
    """
    parser = Parser(description)
    for field in dataclasses.fields(config_class):
        names = [f"--{field.name}", *field.metadata["aliases"]]
        parser.add_argument(*names, dest=field.name, default=field.default, **field.metadata["options"])
    flags = parser.parse_args(argv)
    if recipes and flags.recipe:
        parser.set_defaults(**recipes(flags.recipe))
        flags = parser.parse_args(argv)
    return config_class(**vars(flags))


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
