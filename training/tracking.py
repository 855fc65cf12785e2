"""The log of a run's numbers: always TensorBoard, and Weights & Biases if asked."""

import logging
import netrc
import os
import threading
from dataclasses import asdict
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from common.command import InputError, first_line
from training.checkpoint import Progress
from training.config import TrainConfig
from training.processes import is_main
from training.run_folder import report_unwritable

logger = logging.getLogger(__name__)

WANDB_TIMEOUT_S = 30


class Metrics:
    """Logs the scalars of a run by name and optimizer step. Only the main process writes anything.

    The methods raise InputError if the disk is full.

    Args:
        run_folder: gets `tensorboard/` and, with W&B, `wandb/`.
        progress: where the run continues. Events after its step are from a process that was stopped before it saved
            them, and are discarded. Gets the id of the W&B run.
    """

    def __init__(self, run_folder: Path, config: TrainConfig, progress: Progress):
        self._tensorboard = self._wandb = None
        if not is_main():
            return
        self._folder = run_folder / "tensorboard"
        threading.excepthook = _print_unless_os_error
        self._tensorboard = SummaryWriter(str(self._folder), purge_step=progress.step + 1)
        if config.with_wandb:
            self._wandb = _start_wandb(run_folder, config, progress.wandb_id)
        progress.wandb_id = self._wandb.id if self._wandb else None

    def log(self, values: dict[str, float], step: int) -> None:
        if self._tensorboard:
            with report_unwritable(self._folder):
                for name, value in values.items():
                    self._tensorboard.add_scalar(name, value, step)
        if self._wandb:
            try:
                self._wandb.log(values, step=step)
            except Exception as error:  # the run matters more than its tracking, whatever W&B raises
                logger.warning("W&B: %s; tracking ends here; TensorBoard and the run continue", error)
                self._wandb = None

    def flush(self) -> None:
        if self._tensorboard:
            with report_unwritable(self._folder):
                self._tensorboard.flush()

    def close(self) -> None:
        if self._tensorboard:
            with report_unwritable(self._folder):
                self._tensorboard.close()
        if self._wandb:
            thread = threading.Thread(target=self._wandb.finish, daemon=True)
            thread.start()
            thread.join(WANDB_TIMEOUT_S)
            if thread.is_alive():
                logger.warning("W&B: the upload takes more than %d s; `wandb sync` can finish it", WANDB_TIMEOUT_S)


def _print_unless_os_error(failure: threading.ExceptHookArgs) -> None:
    """Print a thread's error, except OSErrors: TensorBoard raises those again in the next call of `Metrics`."""
    if not isinstance(failure.exc_value, OSError):
        threading.__excepthook__(failure)


def check_wandb(project: str) -> None:
    """Raise InputError if W&B does not accept the project's name or a WANDB_... variable of the environment."""
    import wandb

    try:
        wandb.Settings(project=project).update_from_env_vars(os.environ)
    except (wandb.Error, ValueError) as error:
        raise InputError(
            f"--with_wandb: {' '.join(str(error).split())[:200]}; change --wandb_project_name or the "
            "environment's WANDB_... variable"
        ) from None


def _start_wandb(run_folder: Path, config: TrainConfig, run_id: str | None):
    """Start a W&B run, or continue `run_id`. Without a key it is kept offline, so W&B never asks for a login."""
    import wandb

    mode = os.environ.get("WANDB_MODE")
    if mode is None and not _has_key():
        mode = "offline"
        logger.warning("W&B: no key found, so this run is kept offline in %s; `wandb sync` uploads it", run_folder)
    project, settings = config.wandb_project_name, asdict(config)
    run = {"project": project, "name": run_folder.name, "dir": str(run_folder), "id": run_id, "config": settings}
    timeout = float(os.environ.get("WANDB_INIT_TIMEOUT", WANDB_TIMEOUT_S))
    try:
        settings = wandb.Settings(console="off", silent=mode == "offline", init_timeout=timeout)
        return wandb.init(**run, mode=mode, resume="allow" if run_id else None, settings=settings)
    except wandb.Error as error:  # no answer, or a key that is not valid
        logger.warning("W&B: %s; the run is kept offline in %s, `wandb sync` uploads it", first_line(error), run_folder)
        return wandb.init(**run, mode="offline", settings=wandb.Settings(console="off", silent=True))


def _has_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return any("wandb" in host for host in netrc.netrc().hosts)
    except (OSError, netrc.NetrcParseError):
        return False
