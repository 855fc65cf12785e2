"""Measure training, evaluation, completion and data: this project beside a plain PyTorch loop and Hugging Face's ways.

python -m benchmarks --quick                                     (the embedded model's shape, under a minute)
python -m benchmarks --model distilgpt2 --output bench.json --chart bench.png

All train the same shape from random weights on the same random tokens, taking turns; the numbers are medians over
turns. A turn's clock stops when the device has finished. Peak memory on a CPU is that of the process, libraries left
out; on a GPU that of tensors. On a GPU all contenders' float32 products may take TF32.
"""

import gc
import importlib.util
import json
import logging
import os
import platform
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from common.command import Flags, flag, output_file, parse_flags, run_command
from common.files import atomic_write

if TYPE_CHECKING:
    import torch

    from model import GPTSingleHead


@dataclass
class BenchmarkFlags(Flags):
    """Flags of `python -m benchmarks`."""

    model: str = flag("tiny", "whose shape: distilgpt2, tiny or a folder with a config.json; weights are random")
    tokenizer: str = flag("tiny", "vocabulary for conversion and loading: a name, a Hub id or a folder")
    repeats: int = flag(5, "turns of each contender; their median counts", at_least=1, at_most=1000)
    quick: bool = flag(False, "two turns, batch 4 alone, nothing compiled, a small source: whether it all runs")
    output: str | None = flag(None, "write all numbers as JSON to this file", type=output_file())
    chart: str | None = flag(None, "draw the rates as bars into this PNG file", type=output_file(".png"))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.quick:
            self.repeats = 2


def main() -> None:
    flags = parse_flags(BenchmarkFlags, __doc__)
    logging.disable(logging.WARNING)
    has_trainer = importlib.util.find_spec("accelerate") is not None
    if not has_trainer:
        print("left out: Hugging Face Trainer, as it needs `pip install accelerate`", file=sys.stderr)
    import torch
    import transformers

    from benchmarks.completion_speed import NEW_TOKENS, QUICK_TOKENS, completion_table, time_completion
    from benchmarks.contenders import large_batch, new_model, shape_folder
    from benchmarks.speed import (
        evaluation_table,
        time_data,
        time_evaluation,
        time_training,
        training_table,
    )
    from common.devices import choose_device

    transformers.utils.logging.set_verbosity_error()
    device = choose_device()
    torch.set_float32_matmul_precision("high")  # as train.py does; the Trainer would set it for those after it
    can_compile = not flags.quick and (device.type == "cuda" or any(map(shutil.which, ("c++", "g++", "clang++"))))
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = scratch  # so that a first step shows what compilation takes
        folder = shape_folder(flags.model, flags.tokenizer, Path(scratch) / "shape")
        shape = new_model(folder, torch.device("cpu"))
        results = describe(flags, shape, device)
        print(headline(results))
        batches = [4] if flags.quick else sorted({4, large_batch(shape, device)})
        results["training"] = []
        for batch in batches:
            results["training"] += time_training(folder, device, batch, flags.repeats, can_compile, has_trainer)
            gc.collect()  # the Trainer and its model refer to each other
        print(training_table(results["training"]))
        results["evaluation"] = time_evaluation(folder, device, flags.repeats, flags.quick)
        print(evaluation_table(results["evaluation"]))
        new_model(folder, torch.device("cpu")).save(Path(scratch) / "random")
        new_tokens = QUICK_TOKENS if flags.quick else NEW_TOKENS
        if importlib.util.find_spec("xllamacpp") or device.type == "cuda":
            results["completion"] = time_completion(Path(scratch) / "random", flags.repeats, new_tokens)
            print(completion_table(results["completion"]) + "\n")
        results["data"] = time_data(folder, Path(scratch), flags.repeats, flags.quick)
        print("\n".join(f"{name:<42}{seconds:>10.2f} s" for name, seconds in results["data"].items()))
    if flags.output:
        with atomic_write(Path(flags.output)) as file:
            json.dump(results, file, indent=2)
    if flags.chart:
        draw(results, Path(flags.chart))


def describe(flags: BenchmarkFlags, model: "GPTSingleHead", device: "torch.device") -> dict:
    import torch
    import transformers

    name = torch.cuda.get_device_name() if device.type == "cuda" else cpu_name()
    return {
        "model": flags.model,
        "parameters": sum(p.numel() for p in model.parameters()),
        "window": model.max_seq_length,
        "device": name,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "repeats": flags.repeats,
    }


def cpu_name() -> str:
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.is_file() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def headline(results: dict) -> str:
    return (
        "{model}: {parameters:,} parameters, windows of {window} random tokens; {device}, {threads} CPU threads, "
        "torch {torch}, transformers {transformers}; medians of {repeats} turns".format(**results)
    )


def draw(results: dict, path: Path) -> None:
    """Bars of the training rates, one panel for each batch, and of the evaluation rates."""
    from matplotlib.figure import Figure

    panels = {
        f"training, batch {batch}: tokens/s": {
            row["name"]: row["tokens_per_second"] for row in results["training"] if row["batch"] == batch
        }
        for batch in sorted({row["batch"] for row in results["training"]})
    }
    panels["evaluation: windows/s"] = {row["name"]: row["windows_per_second"] for row in results["evaluation"]}
    figure = Figure(figsize=(7, 2.2 * len(panels)), layout="constrained")
    for axes, (title, rates) in zip(figure.subplots(len(panels), squeeze=False)[:, 0], panels.items(), strict=True):
        colours = ["#0072B2" if name.startswith("ours") else "#999999" for name in rates]
        bars = axes.barh(list(rates), list(rates.values()), color=colours)
        axes.bar_label(bars, fmt=lambda rate: f"{rate:,.{0 if rate >= 100 else 2}f}", padding=3)
        axes.xaxis.set_major_formatter("{x:,g}")
        axes.invert_yaxis()
        axes.margins(x=0.12)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_title(title, loc="left", fontsize=10)
    figure.suptitle(f"{results['model']}, {results['device']}", fontsize=10)
    with atomic_write(path, "wb") as file:
        figure.savefig(file, format="png", dpi=150)


if __name__ == "__main__":
    run_command(main)
