"""Milliseconds a token: interact.py's engine, raw llama.cpp on the same ids, and transformers' `generate`, in turns.

python -m benchmarks.completion_speed --model_path tiny
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import GenerationConfig

from common.command import Flags, flag, parse_flags, run_command
from common.model_files import find_pretrained
from completion.complete import complete
from completion.llama_engine import LlamaEngine
from completion.load_engine import load_engine
from model import GPTSingleHead

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
    """
    engine = load_engine(str(folder))
    runs: dict[str, Callable[[], int]] = {}
    model = GPTSingleHead.load(folder).eval()
    ids = [*model.start_ids("python"), *model.tokenize(SOURCE)]
    runs["generate, float32"] = lambda: _generate(model, ids, new)
    for candidates, words in ((1, ""), (SEVERAL, ", five candidates")):
        if isinstance(engine, LlamaEngine):
            runs[f"raw llama.cpp{words}"] = lambda n=candidates: _raw(engine, ids, n, new)
        runs[f"ours{words}"] = lambda n=candidates: _ours(engine, n, new)
    seconds = {name: [] for name in runs}
    for turn in range(repeats + 1):  # the first warms up
        for name, run in runs.items():
            began = time.perf_counter()
            tokens = run()
            seconds[name] += [(time.perf_counter() - began) / tokens] * (turn > 0)
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


def _generate(model: GPTSingleHead, ids: list[int], new: int) -> int:
    config = GenerationConfig(max_new_tokens=new, do_sample=False, pad_token_id=0)  # without a token that ends the text
    model.gpt.generate(torch.tensor([ids], device=model.device), generation_config=config)
    return new


def _raw(engine: LlamaEngine, ids: list[int], candidates: int, new: int) -> int:
    request = {"prompt": ids, "n_predict": new, "temperature": 0.0, "ignore_eos": True, "n": candidates}
    engine.answer(request, candidates)
    return new


def _ours(engine, candidates: int, new: int) -> int:
    settings = {"stop": "none", "max_new_tokens": new, "num_return_sequences": candidates, "seed": 0}
    found = complete(engine, SOURCE, temperature=0.2, on_text=len, **settings)
    return max(len(completion.tokens) for completion in found) or 1


if __name__ == "__main__":
    run_command(main)
