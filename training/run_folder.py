"""A run's folder, model/<run_name>/: who may write into it, and what a new run deletes there."""

import contextlib
import logging
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from common.command import InputError
from common.files import lock
from training.config import TrainConfig

# The files of a run, including those left when it is killed while writing. Nothing else is ever deleted.
RUN_FILE = re.compile(
    r"(0_GPTSingleHead|last|tensorboard|wandb|hyperparams\.json|ck_report\.json|log\.out|run\.lock"
    r"|adapt\.json|adapt_places\.json|humaneval_(before|after)\.jsonl|[^.]+\.gguf)"
    r"(\.autocoder-new|\.autocoder-old|\.\d+\.tmp)?"
)


def is_run(run_folder: Path) -> bool:
    """Whether a run has saved something in this folder that could be lost.

    Raises:
        InputError: the folder contains files, but none of a run.
    """
    names = sorted(path.name for path in run_folder.iterdir()) if run_folder.exists() else []
    if names and not any(map(RUN_FILE.fullmatch, names)):
        raise InputError(f"{run_folder}: holds {names[0]}, which is not of a run; choose another --run_name")
    return any(name.startswith(("last", "0_GPTSingleHead")) for name in names)


def check_free(run_folder: Path, config: TrainConfig) -> None:
    """Refuse to start a run if an earlier one would be lost.

    Raises:
        InputError: the folder holds an earlier run, and the flags neither continue nor delete it.
    """
    if not config.restore_training and is_run(run_folder) and not config.overwrite:
        raise InputError(
            f"{run_folder}: holds an earlier run; go on with it (--restore_training), delete it (--overwrite) "
            "or choose another --run_name"
        )


@contextlib.contextmanager
def hold(run_folder: Path, config: TrainConfig) -> Iterator[None]:
    """Keep other commands out of a run's folder while this one writes there.

    Raises:
        InputError: another command is training there, or has trained there since the flags were checked.
    """
    with lock(run_folder / "run.lock"):
        check_free(run_folder, config)
        yield


def start_files(run_folder: Path, config: TrainConfig) -> None:
    """Delete the files of an earlier run, unless this run continues it, and start to write log.out."""
    for path in run_folder.iterdir():
        if not config.restore_training and RUN_FILE.fullmatch(path.name) and path.name != "run.lock":
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    logging.raiseExceptions = False  # the trainer reports a full disk in one line
    handler = logging.FileHandler(run_folder / "log.out", encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s - %(name)s - %(levelname)s - %(message)s"))
    logging.getLogger().addHandler(handler)
