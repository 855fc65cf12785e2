"""Seconds for an answer of serve.py and of interact.py's engine, on a quiet computer and during a training.

python dataset/convert.py --source stdlib --tokenizer tiny --dataset_name stdlib
python -m benchmarks.busy_computer --model_path Qwen/Qwen2.5-Coder-0.5B

Three contenders take turns: serve.py, serve.py with OpenMP's default of threads that spin while they wait, and
interact.py's engine. The first and the last then take the same turns while train.py runs (spinning threads would take
up to a minute for an answer). Nothing else may run at the same time.
"""

import contextlib
import json
import os
import shlex
import shutil
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from common.command import Flags, InputError, flag, folder_name, parse_flags, run_command
from common.files import ROOT

SPINNING = "serve.py, spinning threads"
SPIN = {"GOMP_SPINCOUNT": "300000"}  # libgomp's own default
CODE = "".join(f"def area_{n}(width, height):\n    return width * height + {n}\n\n\n" for n in range(8))
SUFFIX = "\n\n\nif __name__ == '__main__':\n    main()\n"
WORDS = ("total", " =", " area_1(", "2, ", "3)", "\n    print(")  # typed one after the other; each is answered
NEW_TOKENS = 16


@dataclass
class BusyFlags(Flags):
    """Flags of this benchmark."""

    model_path: str = flag("tiny", "a run folder, a model folder, a known name or a Hub id")
    model_select: str = flag("tiny", "the model that train.py trains")
    dataset_name: str = flag("stdlib", "the dataset that train.py trains on", type=folder_name)
    repeats: int = flag(5, "turns of each contender; the median of all answers counts", at_least=1, at_most=1000)


def main() -> None:
    flags = parse_flags(BusyFlags, __doc__)
    with contextlib.ExitStack() as stack:
        contenders = {
            "serve.py": stack.enter_context(served(flags.model_path, {})),
            SPINNING: stack.enter_context(served(flags.model_path, SPIN)),
            "interact.py": in_this_process(flags.model_path),
        }
        quiet = take_turns(contenders, flags.repeats)
        with training(flags) as process:
            shipped = {name: answer for name, answer in contenders.items() if name != SPINNING}
            busy = take_turns(shipped, flags.repeats)
            if process.poll() is not None:
                raise InputError(f"train.py ended too early; what does it say? {shlex.join(process.args)}")
    print(f"{'seconds for an answer':<26}{'alone':>8}{'during train.py':>17}{'times':>7}")
    for name in busy:
        print(f"{name:<26}{quiet[name]:>8.2f}{busy[name]:>17.2f}{busy[name] / quiet[name]:>7.1f}")
    ratio = quiet["serve.py"] / quiet[SPINNING]
    print(f"Alone, serve.py takes {ratio:.3f} times as long as with spinning threads.")


def take_turns(contenders: dict[str, Callable[[str], None]], repeats: int) -> dict[str, float]:
    """The median seconds of an answer. Every turn has new code, so that no contender knows its beginning."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(repeats + 1):  # the first warms up
        for name, answer in contenders.items():
            prefix = f"# {time.time_ns()}\n{CODE}def main():\n    "
            for word in WORDS:
                prefix += word
                started = time.perf_counter()
                answer(prefix)
                seconds[name] += [time.perf_counter() - started] * (turn > 0)
    return {name: statistics.median(values) for name, values in seconds.items()}


@contextlib.contextmanager
def served(model_path: str, environment: dict[str, str]) -> Iterator[Callable[[str], None]]:
    """What asks a serve.py that runs meanwhile."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "serve.py", "--model_path", model_path, "--port", str(port)]
    with running(command, environment, stdout=subprocess.PIPE) as process:
        if not process.stdout.readline():  # which it prints once the model is loaded
            raise InputError("serve.py ended; see its message above")

        def answer(prefix: str) -> None:
            body = {"input_prefix": prefix, "input_suffix": SUFFIX, "n_predict": NEW_TOKENS, "temperature": 0}
            urllib.request.urlopen(f"http://127.0.0.1:{port}/infill", json.dumps(body).encode()).read()

        yield answer


def in_this_process(model_path: str) -> Callable[[str], None]:
    from completion.complete import complete
    from completion.engines.load_engine import load_engine

    engine = load_engine(model_path)
    return lambda prefix: complete(engine, prefix, suffix=SUFFIX, temperature=0, max_new_tokens=NEW_TOKENS)


@contextlib.contextmanager
def training(flags: BusyFlags) -> Iterator[subprocess.Popen]:
    """train.py, once it has logged a step."""
    command = [sys.executable, "train.py", "--model_select", flags.model_select, "--dataset_name", flags.dataset_name]
    command += ["--run_name", "busy_computer", "--overwrite", "--dev_windows", "8", "--evaluation_steps", "1000000"]
    log = ROOT / "model" / "busy_computer" / "log.out"
    with running(command, {}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and not (log.is_file() and log.stat().st_mtime > time.time() - 5):
            time.sleep(1)
        time.sleep(30)  # its first steps are slower than the others
        yield process
    shutil.rmtree(log.parent, ignore_errors=True)


@contextlib.contextmanager
def running(command: list[str], environment: dict[str, str], **streams) -> Iterator[subprocess.Popen]:
    process = subprocess.Popen(command, cwd=ROOT, env=os.environ | environment, text=True, **streams)
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


if __name__ == "__main__":
    run_command(main)
