"""Seconds until serve.py and interact.py's engine answer, on a quiet computer and during a training.

python dataset/convert.py --source stdlib --tokenizer tiny --dataset_name stdlib
python -m benchmarks.busy_computer --model_path Qwen/Qwen2.5-Coder-0.5B

The two take turns, first with the computer to themselves and then while train.py runs. Let no other program run at the
same time.
"""

import contextlib
import json
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
from functools import partial

from benchmarks.turns import take_turns
from charts.tables import text_table
from common.command import Flags, InputError, flag, folder_name, parse_flags, run_command
from common.files import ROOT

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
    repeats: int = flag(5, "turns of each contender; their median counts", at_least=1, at_most=1000)


def main() -> None:
    flags = parse_flags(BusyFlags, __doc__)
    with served(flags.model_path) as answer_served:
        contenders = {
            "serve.py": partial(type_words, answer_served),
            "interact.py": partial(type_words, in_this_process(flags.model_path)),
        }
        quiet = take_turns(contenders, flags.repeats)
        with training(flags) as process:
            busy = take_turns(contenders, flags.repeats)
            if process.poll() is not None:
                raise InputError(f"train.py ended too early; run it alone and see why: {shlex.join(process.args)}")
    rows = [["seconds until an answer", "alone", "during train.py", "times"]]
    for name in contenders:
        alone, during = (statistics.median(turns[name]) for turns in (quiet, busy))
        rows.append([name, f"{alone:.2f}", f"{during:.2f}", f"{during / alone:.1f}"])
    print(text_table(rows))


def type_words(answer: Callable[[str], None]) -> float:
    """Return the median seconds of an answer. The code begins with the time, so that no cache knows it."""
    prefix, seconds = f"# {time.time_ns()}\n{CODE}def main():\n    ", []
    for word in WORDS:
        prefix += word
        began = time.perf_counter()
        answer(prefix)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


@contextlib.contextmanager
def served(model_path: str) -> Iterator[Callable[[str], None]]:
    """Run serve.py, and give a function that asks it for a completion."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "serve.py", "--model_path", model_path, "--port", str(port)]
    with running(command, stdout=subprocess.PIPE) as process:
        if not process.stdout.readline():  # serve.py prints it when the model is loaded
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
    """Run train.py, and wait until its first steps are over."""
    command = [sys.executable, "train.py", "--model_select", flags.model_select, "--dataset_name", flags.dataset_name]
    command += ["--run_name", "busy_computer", "--overwrite", "--dev_windows", "8", "--evaluation_steps", "1000000"]
    log = ROOT / "model" / "busy_computer" / "log.out"
    shutil.rmtree(log.parent, ignore_errors=True)
    with running(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and not log.is_file():
            time.sleep(1)
        time.sleep(30)  # the first steps are slower
        yield process
    shutil.rmtree(log.parent, ignore_errors=True)


@contextlib.contextmanager
def running(command: list[str], **streams) -> Iterator[subprocess.Popen]:
    process = subprocess.Popen(command, cwd=ROOT, text=True, **streams)
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


if __name__ == "__main__":
    run_command(main)
