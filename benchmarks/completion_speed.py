"""How benchmark.py times completion: this project's beside transformers' `generate`, on random weights."""

import statistics
import time
from functools import partial
from pathlib import Path

import torch
from completion.precision import prepare
from transformers import GenerationConfig

from common.devices import choose_dtype
from common.source_code import SPECIAL_WORDS
from completion.complete import complete
from model import GPTSingleHead

SOURCE = "def read_lines(path, encoding='utf-8'):\n    with open(path, encoding=encoding) as file:\n"
PROMPT_TOKENS, NEW_TOKENS, QUICK_TOKENS = 10, 128, 8  # the control word is one of the prompt's


def time_completion(folder: Path, device: torch.device, repeats: int, quick: bool) -> list[dict]:
    """Median milliseconds a token (for all candidates together) of contenders that take turns, on equally many tokens.

    `generate` takes the likeliest token; ours also samples, reads and scores the text, with the threads it chooses.
    """
    available, runs = torch.get_num_threads(), {}
    for dtype in dict.fromkeys((torch.float32, choose_dtype("auto", device))):
        model = _random_model(folder).to(device=device, dtype=dtype).eval()
        runs[f"generate, {str(dtype).removeprefix('torch.')}"] = available, partial(_generate, model)
    ours = prepare(_random_model(folder), "auto", device)
    special = torch.tensor(ours.tokenizer.all_special_ids, device=device)

    def never_end(module, inputs, output) -> None:
        output.logits.index_fill_(-1, special, -1e4)

    ours.gpt.register_forward_hook(never_end)
    runs["ours"] = torch.get_num_threads(), partial(_complete, ours, 1)
    rows = _time(runs, 1, repeats, ", first token")
    runs["ours, five candidates at once"] = torch.get_num_threads(), partial(_complete, ours, 5)
    rows = _time(runs, QUICK_TOKENS if quick else NEW_TOKENS, repeats) + rows
    torch.set_num_threads(available)
    return rows


def completion_table(rows: list[dict]) -> str:
    lines = [f"\n{'completion':<42}{'ms/token':>10}{'x generate':>12}"]
    lines += [f"{row['name']:<42}{row['ms_per_token']:>10.2f}{row['times_generate']:>12.2f}" for row in rows]
    return "\n".join(lines)


def _random_model(folder: Path) -> GPTSingleHead:
    torch.manual_seed(0)
    return GPTSingleHead(str(folder), special_words_to_add=SPECIAL_WORDS, from_scratch=True)


def _generate(model: GPTSingleHead, new: int) -> None:
    ids = [model.control_id("python"), *model.tokenize(SOURCE)][:PROMPT_TOKENS]
    config = GenerationConfig(max_new_tokens=new, pad_token_id=0)  # without a token that ends the text
    model.gpt.generate(torch.tensor([ids], device=model.device), generation_config=config)[0].tolist()


def _complete(model: GPTSingleHead, candidates: int, new: int) -> None:
    prompt = model.tokenizer.decode(model.tokenize(SOURCE)[: PROMPT_TOKENS - 1])
    complete(model, prompt, stop="none", max_new_tokens=new, num_return_sequences=candidates, seed=0, on_text=len)


def _time(runs: dict, new: int, repeats: int, suffix: str = "") -> list[dict]:
    seconds = {name: [] for name in runs}
    for turn in range(repeats + 1):  # the first warms up
        for name, (threads, run) in runs.items():
            torch.set_num_threads(threads)
            began = time.perf_counter()
            run(new)
            seconds[name] += [time.perf_counter() - began] * (turn > 0)
    medians = {name: 1000 * statistics.median(values) / new for name, values in seconds.items()}
    first = next(iter(medians.values()))
    return [
        {"name": name + suffix, "ms_per_token": ms, "times_generate": first / ms, "seconds_all": seconds[name]}
        for name, ms in medians.items()
    ]
