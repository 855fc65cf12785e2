"""Milliseconds a token: interact.py's engine, raw llama.cpp on the same ids, and transformers' `generate`, in turns.

python -m benchmarks.completion_speed --model_path tiny
"""

import multiprocessing
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from common.command import Flags, flag, parse_flags, run_command
from common.model_files import find_pretrained

SOURCE = "import os\n\n\ndef read_lines(path, encoding='utf-8'):\n    with open(path, encoding=encoding) as file:\n"
NEW_TOKENS, QUICK_TOKENS, SEVERAL = 48, 8, 5


@dataclass
class SpeedFlags(Flags):
    model_path: str = flag("tiny", "a run folder, a model folder, a known name or a Hub id")
    repeats: int = flag(5, "turns of each contender; their median counts", at_least=1, at_most=1000)


def main() -> None:
    flags = parse_flags(SpeedFlags, __doc__)
    print(completion_table(time_completion(find_pretrained(flags.model_path), flags.repeats, NEW_TOKENS)))


def time_completion(folder: Path, repeats: int, new: int) -> list[dict]:
    """Median milliseconds a token of contenders that take turns; for five candidates, of all five together.

    `generate` and raw llama.cpp take the likeliest token; ours also heals the prompt's end, samples, reads and scores.
    PyTorch has a process of its own: interact.py does not load it, and its threads would slow those of llama.cpp.
    """
    seconds: dict[str, list[float]] = {}
    processes = multiprocessing.get_context("spawn")
    with (
        ProcessPoolExecutor(1, processes, _prepare, (_in_pytorch, folder, new)) as pytorch,
        ProcessPoolExecutor(1, processes, _prepare, (_in_engine, folder, new)) as engine,
    ):
        for turn in range(repeats + 1):  # the first warms up
            for process in (pytorch, engine):
                for name, value in process.submit(_turn).result().items():
                    seconds.setdefault(name, []).extend([value] * (turn > 0))
    medians = {name: 1000 * statistics.median(values) for name, values in seconds.items()}
    first = next(iter(medians.values()))
    return [
        {"name": name, "ms_per_token": ms, "times_generate": first / ms, "seconds_all": seconds[name]}
        for name, ms in medians.items()
    ]


def completion_table(rows: list[dict]) -> str:
    lines = [f"\n{'completion':<42}{'ms/token':>10}{'x generate':>12}"]
    lines += [f"{row['name']:<42}{row['ms_per_token']:>10.2f}{row['times_generate']:>12.2f}" for row in rows]
    return "\n".join(lines)


_runs: dict[str, Callable[[], int]] = {}  # of this process: each generates, and says how many tokens


def _prepare(make: Callable[[Path, int], dict[str, Callable[[], int]]], folder: Path, new: int) -> None:
    _runs.update(make(folder, new))


def _turn() -> dict[str, float]:
    """Seconds a token of each contender in this process."""
    found = {}
    for name, run in _runs.items():
        began = time.perf_counter()
        tokens = run()
        found[name] = (time.perf_counter() - began) / tokens
    return found


def _in_pytorch(folder: Path, new: int) -> dict[str, Callable[[], int]]:
    import torch
    from transformers import GenerationConfig

    from common.devices import choose_device, choose_dtype
    from model import GPTSingleHead

    device = choose_device()  # as ours: on a GPU in 16 bits
    dtype = choose_dtype("auto", device) if device.type == "cuda" else torch.float32
    model = GPTSingleHead.load(folder).eval().to(device, dtype)
    ids = torch.tensor([[*model.start_ids("python"), *model.tokenize(SOURCE)]], device=device)
    config = GenerationConfig(max_new_tokens=new, do_sample=False, pad_token_id=0)  # without a token that ends the text

    def generate() -> int:
        model.gpt.generate(ids, generation_config=config)
        return new

    return {f"generate, {str(dtype).removeprefix('torch.')}": generate}


def _in_engine(folder: Path, new: int) -> dict[str, Callable[[], int]]:
    from completion.complete import complete
    from completion.engines.llama_engine import LlamaEngine
    from completion.engines.load_engine import load_engine

    engine = load_engine(str(folder))
    ids = [*engine.vocabulary.start("python"), *engine.vocabulary.encode(SOURCE)]

    def raw(candidates: int) -> int:
        engine.answer(
            {"prompt": ids, "n_predict": new, "temperature": 0.0, "ignore_eos": True, "n": candidates}, candidates
        )
        return new

    def ours(candidates: int) -> int:
        settings = {"stop": "none", "max_new_tokens": new, "num_return_sequences": candidates}
        found = complete(engine, SOURCE, temperature=0.2, on_text=len, **settings)
        return max(len(completion.tokens) for completion in found) or 1

    runs: dict[str, Callable[[], int]] = {}
    for candidates, words in ((1, ""), (SEVERAL, ", five candidates")):
        if isinstance(engine, LlamaEngine):
            runs[f"raw llama.cpp{words}"] = lambda n=candidates: raw(n)
        runs[f"ours{words}"] = lambda n=candidates: ours(n)
    return runs


if __name__ == "__main__":
    run_command(main)
