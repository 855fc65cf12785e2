"""Milliseconds per token: interact.py's engine, llama.cpp itself, and transformers' `generate`, which take turns.

python -m benchmarks.completion_speed --model_path tiny
"""

import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.turns import compare, speedup_table, take_turns
from common.command import Flags, flag, parse_flags, run_command
from common.model_files import find_pretrained

SOURCE = "import os\n\n\ndef read_lines(path, encoding='utf-8'):\n    with open(path, encoding=encoding) as file:\n"
NEW_TOKENS, QUICK_TOKENS = 48, 8
CANDIDATES = {1: "", 5: ", five candidates"}


@dataclass
class SpeedFlags(Flags):
    model_path: str = flag("tiny", "a run folder, a model folder, a known name or a Hub id")
    repeats: int = flag(5, "turns of each contender; their median counts", at_least=1, at_most=1000)


def main() -> None:
    flags = parse_flags(SpeedFlags, __doc__)
    print(completion_table(time_completion(find_pretrained(flags.model_path), flags.repeats, NEW_TOKENS)))


def completion_table(rows: list[dict]) -> str:
    return speedup_table(rows, "completion", "ms/token", lambda row: 1000 * row["seconds"])


def time_completion(folder: Path, repeats: int, new_tokens: int) -> list[dict]:
    """Return the seconds per token of each contender. Five candidates are counted together.

    `generate` and llama.cpp itself take the likeliest token. Ours also heals the end of the prompt, samples, applies
    stop rules and scores. PyTorch has a process of its own: interact.py does not load it, and its threads would slow
    llama.cpp's.
    """
    context = multiprocessing.get_context("spawn")
    with (
        ProcessPoolExecutor(1, context, _prepare, (_in_pytorch, folder, new_tokens)) as pytorch,
        ProcessPoolExecutor(1, context, _prepare, (_in_engine, folder, new_tokens)) as engine,
    ):
        contenders = {
            name: lambda process=process, name=name: process.submit(_seconds_per_token, name).result()
            for process in (pytorch, engine)
            for name in process.submit(_names).result()
        }
        return compare(take_turns(contenders, repeats))


_runs: dict[str, Callable[[], int]] = {}  # the contenders of this process: each generates and returns its tokens


def _prepare(make: Callable[[Path, int], dict[str, Callable[[], int]]], folder: Path, new_tokens: int) -> None:
    _runs.update(make(folder, new_tokens))


def _names() -> list[str]:
    return list(_runs)


def _seconds_per_token(name: str) -> float:
    began = time.perf_counter()
    tokens = _runs[name]()
    return (time.perf_counter() - began) / tokens


def _in_pytorch(folder: Path, new_tokens: int) -> dict[str, Callable[[], int]]:
    import torch
    from transformers import GenerationConfig

    from common.devices import choose_device, choose_dtype
    from model import GPTSingleHead

    device = choose_device()  # as ours: on a GPU in 16 bits
    dtype = choose_dtype("auto", device) if device.type == "cuda" else torch.float32
    model = GPTSingleHead.load(folder).eval().to(device, dtype)
    ids = torch.tensor([[*model.start_ids("python"), *model.tokenize(SOURCE)]], device=device)
    config = GenerationConfig(max_new_tokens=new_tokens, do_sample=False, pad_token_id=0)  # no token ends the text

    def generate() -> int:
        model.gpt.generate(ids, generation_config=config)
        return new_tokens

    return {f"generate, {str(dtype).removeprefix('torch.')}": generate}


def _in_engine(folder: Path, new_tokens: int) -> dict[str, Callable[[], int]]:
    from completion.complete import complete
    from completion.engines.llama_engine import LlamaEngine
    from completion.engines.load_engine import load_engine

    engine = load_engine(str(folder))
    ids = [*engine.vocabulary.start("python"), *engine.vocabulary.encode(SOURCE)]

    def raw(candidates: int) -> int:
        request = {"prompt": ids, "n_predict": new_tokens, "temperature": 0.0, "ignore_eos": True, "n": candidates}
        engine.answer(request, candidates)
        return new_tokens

    def ours(candidates: int) -> int:
        settings = {"stop": "none", "max_new_tokens": new_tokens, "num_return_sequences": candidates}
        found = complete(engine, SOURCE, temperature=0.2, on_text=len, **settings)
        return max(len(completion.tokens) for completion in found) or 1

    runs: dict[str, Callable[[], int]] = {}
    for candidates, words in CANDIDATES.items():
        if isinstance(engine, LlamaEngine):
            runs[f"raw llama.cpp{words}"] = partial(raw, candidates)
        runs[f"ours{words}"] = partial(ours, candidates)
    return runs


if __name__ == "__main__":
    run_command(main)
