"""llama.cpp's server: how the library is loaded, how many threads run a model, and a server for this process alone."""

import os
import secrets
import shutil
import signal
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

SMALL = 40_000_000  # bytes; the layers of a smaller model are so short that threads wait longer than they work
SPINS = 2000  # about 0.1 ms


def load_library():
    """Import xllamacpp, whose threads wait for each other awake for a moment and then asleep.

    They meet hundreds of times for each token. To stay awake, as OpenMP does for about 10 ms by default, keeps the
    processor from the very thread that is waited for wherever another program, such as a training, uses the cores too.
    Measured with 24 tokens of SmolLM2 on two cores: 0.80 s alone (0.83 s always awake, 1.03 s asleep at once), and
    1.9 s beside a training of distilgpt2's shape (1.4 to 15 s always awake).

    Raises:
        ImportError: xllamacpp is not installed, or does not work on this machine.
    """
    os.environ.pop("OMP_WAIT_POLICY", None)  # `run_command` sets it for torch
    os.environ.setdefault("GOMP_SPINCOUNT", str(SPINS))  # read once, when the library is loaded
    import xllamacpp

    return xllamacpp


def set_threads(params, file: Path) -> None:
    """Have a server with these CommonParams run the model in `file` on the right number of threads."""
    threads = 1 if file.stat().st_size < SMALL else physical_cores()
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads


def physical_cores() -> int:
    """Cores that this process may use; two that share a core's arithmetic count once (Linux; elsewhere half of more
    than four)."""
    usable = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    cores = set()
    for cpu in usable:
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        cores.add(siblings.read_text() if siblings.is_file() else cpu)
    known = Path("/sys/devices/system/cpu/cpu0/topology/thread_siblings_list").is_file()
    return len(cores) if known or len(cores) <= 4 else len(cores) // 2


def start_private(make: Callable, params) -> object:
    """Start llama.cpp's server on a private socket; only this process uses it, and not through the socket."""
    folder = Path(tempfile.mkdtemp(prefix="autocoder-"))  # nobody else may enter it
    try:
        if hasattr(socket, "AF_UNIX") and os.name != "nt":
            params.hostnames = [str(folder / "x.sock")]
        else:
            params.hostnames, params.port = ["127.0.0.1"], 0
            params.api_keys = [secrets.token_hex(32)]
        with own_signals():
            return make(params)
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # a socket without a name cannot be connected to


@contextmanager
def own_signals() -> Iterator[None]:
    """Keep this program's signal handlers, which the server replaces by its own; a signal waits until the end."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    if threading.current_thread() is not threading.main_thread():  # others may not set handlers
        yield
        return
    handlers = {number: signal.getsignal(number) for number in numbers}
    can_block = hasattr(signal, "pthread_sigmask")  # not on Windows
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, numbers) if can_block else None
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        if can_block:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
