"""Training in one process or in several: start, sums over all of them, and stopping them together."""

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from common.command import InputError, first_line
from common.gpu import usable_gpu

logger = logging.getLogger(__name__)

CONNECT_TIMEOUT = timedelta(minutes=2)  # torchrun has the meeting point ready before it starts the processes


def start(n_gpu: int, visible_device: str, deterministic: bool = False) -> torch.device:
    """Join the other processes if torchrun started several. Return the device that this process trains on.

    `n_gpu` above 1 without torchrun starts this program again under torchrun, once for each GPU. float32 matrix
    products on a GPU may use TF32, which has ten bits of mantissa where bf16 has seven.

    Raises:
        InputError: this machine does not have these GPUs, or the processes cannot connect.
    """
    gpus = [int(gpu) for gpu in visible_device.split(",")]
    on_gpu = usable_gpu()
    if on_gpu:
        torch.set_float32_matmul_precision("high")
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it is first used
        torch.use_deterministic_algorithms(True)
    local_rank = os.environ.get("LOCAL_RANK")  # set by torchrun
    if n_gpu > 1 and local_rank is None:
        _start_again_under_torchrun(n_gpu, gpus)
    if local_rank is not None and not local_rank.isdecimal():
        raise InputError(f"LOCAL_RANK {local_rank}: must be a number, as torchrun sets it; unset it")
    device = torch.device("cpu")
    if on_gpu:
        device = torch.device("cuda", gpus[0] if local_rank is None else int(local_rank))
        if device.index >= (there := torch.cuda.device_count()):
            raise InputError(
                f"GPU {device.index}: this machine has {there}, numbered from 0; choose others with --visiable_device"
            )
        torch.cuda.set_device(device)
    if local_rank is not None:
        _connect("nccl" if on_gpu else "gloo")
    return device


def _connect(backend: str) -> None:
    try:
        store, own_rank, processes = next(dist.rendezvous("env://", timeout=CONNECT_TIMEOUT))
        # A process may wait long while another packs the dataset or completes problems; NCCL's default limit is ten
        # minutes. If one process ends, torchrun ends the others.
        limit = timedelta(days=1)
        store.set_timeout(limit)
        dist.init_process_group(backend, store=store, rank=own_rank, world_size=processes, timeout=limit)
    except (ValueError, RuntimeError) as error:
        raise InputError(
            f"LOCAL_RANK is set, as torchrun does, but the processes cannot connect ({first_line(error)}); start with "
            "torchrun, or unset LOCAL_RANK"
        ) from None


def _start_again_under_torchrun(n_gpu: int, gpus: list[int]) -> None:
    there, given = torch.cuda.device_count(), ",".join(map(str, gpus))
    if n_gpu > there:
        raise InputError(
            f"--n_gpu {n_gpu}: this machine has {there}; use fewer, or for processes on the CPU "
            f"`torchrun --nproc_per_node {n_gpu} train.py ...`"
        )
    if len(gpus) not in (1, n_gpu):
        raise InputError(f"--n_gpu {n_gpu} and --visiable_device {given}: name as many GPUs")
    if len(gpus) == n_gpu:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")  # the numbers of `gpus` count these
        names = visible.split(",") if visible else list(map(str, range(there)))
        if max(gpus) >= len(names):
            raise InputError(f"--visiable_device {given}: this machine has {there}, numbered from 0")
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(names[gpu] for gpu in gpus)
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={n_gpu}"]
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, *torchrun, *sys.argv])


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this is the process that writes files and logs."""
    return rank() == 0


@contextmanager
def main_first() -> Iterator[None]:
    """Run the block first in the main process, then in one process on each other machine, then in the others.

    If the block makes a missing file, it is made once on each disk, whether or not the machines share one.
    """
    turn = 0 if is_main() else 1 if os.environ["LOCAL_RANK"] == "0" else 2
    for now in range(3):
        if now == turn:
            yield
        if world_size() > 1:
            dist.barrier()


def all_sum(values: Tensor) -> Tensor:
    """The sum of `values` over all processes, as a new tensor of the same shape."""
    total = values.clone()
    if world_size() > 1:
        dist.all_reduce(total)
    return total


class StopSignal:
    """In this context, a first SIGINT or SIGTERM is only noted; a second one ends the process immediately.

    Attributes:
        noted: the signal that this process got.
        signal: the signal that all processes have agreed to stop for.
    """

    def __init__(self) -> None:
        self.noted: signal.Signals | None = None
        self.signal: signal.Signals | None = None
        self._handlers_before: dict = {}
        self._asked: tuple[dist.Work, Tensor] | None = None
        self._noted_at = 0.0

    def __enter__(self) -> "StopSignal":
        # A group of their own, so that this never delays gradients.
        self._group = dist.new_group(backend="gloo") if world_size() > 1 else None
        if threading.current_thread() is threading.main_thread():  # other threads cannot set handlers
            self._handlers_before = {s: signal.signal(s, self._note) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_exception: object) -> None:
        for number, handler in self._handlers_before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: object) -> None:
        if self.noted is None:
            self.noted, self._noted_at = signal.Signals(number), time.monotonic()
            logger.warning("%s: saving after this step; once more to stop at once", self.noted.name)
        elif world_size() == 1 or number != self.noted or time.monotonic() - self._noted_at > 1:
            # Within a second it may be the same signal twice: from a scheduler, and forwarded by torchrun.
            signal.signal(number, self._handlers_before[number])
            signal.raise_signal(number)

    def agreed(self) -> bool:
        """Whether to stop now. All processes call this after each step and get the same answer.

        The processes exchange what they have noted while the next step runs, so that none waits for another.
        """
        if world_size() == 1:
            self.signal = self.noted
            return self.noted is not None
        if self._asked is not None:
            work, number = self._asked
            work.wait()
            self.signal = signal.Signals(number.item()) if number else None
        if self.signal is None:
            number = torch.tensor(self.noted or 0)
            self._asked = dist.all_reduce(number, dist.ReduceOp.MAX, self._group, async_op=True), number
        return self.signal is not None


@contextmanager
def others_needed() -> Iterator[None]:
    """Report a lost connection as an InputError; the process that has ended prints its own error."""
    try:
        yield
    except RuntimeError as error:  # gloo's errors have no class of their own
        if world_size() == 1 or not (isinstance(error, dist.DistError) or "gloo" in str(error)):
            raise
        raise InputError(
            f"process {rank()}: another of the {world_size()} processes has ended; what was saved is kept, "
            "--restore_training goes on"
        ) from None


def finish() -> None:
    """Wait until all processes are done, because torchrun ends the others as soon as one exits with an error code."""
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()
