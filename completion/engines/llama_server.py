"""llama.cpp's server: how the library is loaded, and how a server starts with the right number of threads."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SMALL = 40_000_000  # bytes; with a smaller model, several threads would wait longer than they compute
SPINS = 2000  # about 0.1 ms


def load_library():
    """Import xllamacpp, and have its threads wait for each other first actively, for a moment, and then asleep.

    The threads meet hundreds of times for each token. OpenMP's threads by default wait actively (they spin) for about
    10 ms. If another program, such as a training, also uses the cores, a spinning thread takes the core away from
    the thread that it waits for. Measured with 24 tokens of SmolLM2 on two cores: 0.80 s alone (0.83 s if they always
    spin, 1.03 s if they sleep at once), and 1.9 s beside a training of distilgpt2's shape (1.4 to 15 s if they always
    spin).

    Raises:
        ImportError: xllamacpp is not installed, or does not work on this machine.
    """
    os.environ.pop("OMP_WAIT_POLICY", None)  # `run_command` sets it for torch
    os.environ.setdefault("GOMP_SPINCOUNT", str(SPINS))  # is read once, when the library is loaded
    import xllamacpp

    return xllamacpp


def start_server(library, file: Path, **settings: Any):
    """Start llama.cpp's server with the model in `file`. `settings` are fields of llama.cpp's CommonParams."""
    params = library.CommonParams()
    params.model.path = str(file)
    params.warmup = params.fit_params = params.ui = params.endpoint_slots = False
    params.verbosity = 0
    params.cache_ram_mib = 0  # otherwise the server keeps earlier prompts, up to 8 GiB of them
    threads = 1 if file.stat().st_size < SMALL else physical_cores()
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    for name, value in settings.items():
        setattr(params, name, value)
    with own_signals():
        return library.Server(params)


def physical_cores() -> int:
    """Return the number of cores that this process may use.

    Hyper-threads of one core count once. Where the system does not say which these are, more than four processors are
    taken for half as many cores.
    """
    usable = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    siblings = [Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list") for cpu in usable]
    if all(path.is_file() for path in siblings):
        return len({path.read_text() for path in siblings})
    return len(usable) if len(usable) <= 4 else len(usable) // 2


@contextmanager
def own_signals() -> Iterator[None]:
    """Keep this program's signal handlers, which the server replaces with its own. A signal waits until the end."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
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
