"""Commands in processes forked from one with the large libraries loaded, for loading takes most of a command's time."""

import atexit
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

LIBRARIES = [
    "torch._dynamo",
    "torch.utils.tensorboard",
    "transformers.models.gpt2.modeling_gpt2",
    "transformers.models.auto.modeling_auto",
    "matplotlib.figure",
    "tqdm.auto",
]
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(LIBRARIES)


def run_forked(arguments: Sequence[str | bytes], folder: Path, timeout: float) -> subprocess.CompletedProcess:
    """Run a Python script with its arguments as `subprocess.run` would, in `folder` and without an input.

    Raises:
        subprocess.TimeoutExpired: after `timeout` seconds; the process is killed.
    """
    with tempfile.TemporaryDirectory() as scratch:
        streams = [Path(scratch) / name for name in ("stdout", "stderr")]
        process = _context.Process(target=_run_script, args=(arguments, folder, streams, dict(os.environ)))
        process.start()
        process.join(timeout)
        if process.is_alive():
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(arguments, timeout)
        output, said = (stream.read_text(encoding="utf-8") for stream in streams)
    return subprocess.CompletedProcess(arguments, process.exitcode, output, said)


def _run_script(
    arguments: Sequence[str | bytes], folder: Path, streams: Sequence[Path], environment: dict[str, str]
) -> None:
    for number, stream in enumerate(streams, start=1):
        os.dup2(os.open(stream, os.O_WRONLY | os.O_CREAT), number)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv = [os.fsdecode(argument) for argument in arguments]
    sys.path.insert(0, str((folder / arguments[0]).parent))
    try:
        runpy.run_path(arguments[0], run_name="__main__")
    finally:
        atexit._run_exitfuncs()  # which a forked process leaves out
