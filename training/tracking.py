"""The log of a run's numbers: always TensorBoard, and Weights & Biases if asked."""

import logging
import os
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from common.command import InputError, first_line
from training.checkpoint import one_line_when_full

logger = logging.getLogger(__name__)

WANDB_TIMEOUT_S = 30


class Metrics:
    """Logs the scalars of a run by name and optimizer step.

    Args:
        run_folder: gets `tensorboard/` and, with W&B, `wandb/`.
        first_step: events of an earlier process at this step or later are discarded, because its run was stopped
            after its last saved state.
        wandb_project: None for no W&B. Without a key W&B runs offline; it never asks for a login.
        wandb_id: the W&B run to continue.
        config: recorded with the W&B run.
        enabled: False in processes that write nothing.

    Its methods raise InputError if the disk is full.
    """

    def __init__(
        self,
        run_folder: Path,
        first_step: int,
        wandb_project: str | None = None,
        wandb_id: str | None = None,
        config: dict | None = None,
        enabled: bool = True,
    ):
        self._tensorboard = self._wandb = None
        if not enabled:
            return
        self._folder = run_folder / "tensorboard"
        threading.excepthook = _say_all_but_os_errors
        self._tensorboard = SummaryWriter(str(self._folder), purge_step=first_step)
        if wandb_project is not None:
            self._wandb = _start_wandb(run_folder, wandb_project, wandb_id, config)

    @property
    def wandb_id(self) -> str | None:
        return self._wandb.id if self._wandb else None

    def log(self, values: dict[str, float], step: int) -> None:
        if self._tensorboard:
            with one_line_when_full(self._folder):
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
            with one_line_when_full(self._folder):
                self._tensorboard.flush()

    def close(self) -> None:
        if self._tensorboard:
            with one_line_when_full(self._folder):
                self._tensorboard.close()
        if self._wandb:
            _within(WANDB_TIMEOUT_S, self._wandb.finish)


def _say_all_but_os_errors(thread_error: threading.ExceptHookArgs) -> None:
    """Print a thread's error, except OSErrors: TensorBoard raises those again in the next call of `Metrics`."""
    if not isinstance(thread_error.exc_value, OSError):
        threading.__excepthook__(thread_error)


def check_wandb(project: str) -> None:
    """Raises InputError where W&B does not take the project's name, or what the environment says of it."""
    import wandb

    try:
        wandb.Settings(project=project).update_from_env_vars(os.environ)
    except (wandb.Error, ValueError) as error:
        raise InputError(
            f"--with_wandb: {' '.join(str(error).split())[:200]}; change --wandb_project_name or the "
            "environment's WANDB_... variable"
        ) from None


def _start_wandb(run_folder: Path, project: str, run_id: str | None, config: dict | None):
    import wandb

    mode = os.environ.get("WANDB_MODE")
    if mode is None and not _has_key():
        mode = "offline"
        logger.warning("W&B: no key found, so this run is kept offline in %s; `wandb sync` uploads it", run_folder)
    start = partial(wandb.init, project=project, name=run_folder.name, dir=str(run_folder), id=run_id, config=config)
    timeout = float(os.environ.get("WANDB_INIT_TIMEOUT", WANDB_TIMEOUT_S))
    try:
        settings = wandb.Settings(console="off", silent=mode == "offline", init_timeout=timeout)
        return start(mode=mode, resume="allow" if run_id else None, settings=settings)
    except wandb.Error as error:  # no answer, or a key that is not valid
        logger.warning("W&B: %s; the run is kept offline in %s, `wandb sync` uploads it", first_line(error), run_folder)
        return start(mode="offline", settings=wandb.Settings(console="off", silent=True))


def _within(seconds: float, work: Callable[[], None]) -> None:
    """Run `work`, but wait for it at most `seconds`."""
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        logger.warning("W&B: the upload takes more than %d s; `wandb sync` can finish it later", seconds)


def _has_key() -> bool:
    import netrc

    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return any("wandb" in host for host in netrc.netrc().hosts)
    except (OSError, netrc.NetrcParseError):
        return False
