"""Measure training, evaluation, completion and data: this project beside a plain PyTorch loop and Hugging Face.

python -m benchmarks --quick                                     (the shape of the embedded model, under a minute)
python -m benchmarks --model distilgpt2 --output bench.json --chart bench.png

All contenders train the same shape from random weights on the same random tokens. They take turns, and the medians
over the turns are compared. A turn ends when the device has finished its work. Peak memory is that of the tensors on
a GPU; on a CPU it is that of the process, without the loaded libraries. On a GPU, all contenders may use TF32 for
products in float32.
"""

import gc
import importlib.util
import json
import logging
import os
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from common.command import Flags, flag, output_file, parse_flags, run_command
from common.files import atomic_write


@dataclass
class BenchmarkFlags(Flags):
    """Flags of `python -m benchmarks`."""

    model: str = flag("tiny", "the shape to train: distilgpt2, tiny or a folder with a config.json")
    tokenizer: str = flag("tiny", "vocabulary for conversion and loading: a name, a Hub id or a folder")
    repeats: int = flag(5, "turns of each contender; their median counts", at_least=1, at_most=1000)
    quick: bool = flag(False, "try everything: two turns, only batch 4, nothing compiled, a small source")
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
        print("left out: Hugging Face Trainer, which needs `pip install accelerate`", file=sys.stderr)
    import torch
    import transformers

    from benchmarks.completion_speed import NEW_TOKENS, QUICK_TOKENS, completion_table, time_completion
    from benchmarks.contenders import large_batch, new_model, shape_folder
    from benchmarks.speed import time_data, time_evaluation, time_training, training_table
    from benchmarks.turns import describe_machine, speedup_table
    from common.devices import choose_device

    transformers.utils.logging.set_verbosity_error()
    device = choose_device()
    torch.set_float32_matmul_precision("high")  # as train.py does; the Trainer would set it for those after it
    can_compile = not flags.quick and (device.type == "cuda" or any(map(shutil.which, ("c++", "g++", "clang++"))))
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = scratch  # empty, so that the first step includes the compilation
        folder = shape_folder(flags.model, flags.tokenizer, Path(scratch) / "shape")
        model = new_model(folder, torch.device("cpu"))
        results = {
            "model": flags.model,
            "parameters": sum(p.numel() for p in model.parameters()),
            "window": model.max_seq_length,
            "repeats": flags.repeats,
            **describe_machine(),
        }
        print(
            "{model}: {parameters:,} parameters, windows of {window} random tokens; {device}, {threads} CPU threads, "
            "torch {torch}, transformers {transformers}; medians of {repeats} turns".format(**results)
        )
        results["training"] = []
        for batch in [4] if flags.quick else sorted({4, large_batch(model, device)}):
            results["training"] += time_training(folder, device, batch, flags.repeats, can_compile, has_trainer)
            gc.collect()  # the Trainer and its model refer to each other
        print(training_table(results["training"]))
        results["evaluation"] = time_evaluation(folder, device, flags.repeats, flags.quick)
        print(speedup_table(results["evaluation"], "evaluation", "windows/s", lambda row: row["windows_per_second"]))
        if importlib.util.find_spec("xllamacpp") or device.type == "cuda":
            model.save(Path(scratch) / "random")
            new_tokens = QUICK_TOKENS if flags.quick else NEW_TOKENS
            results["completion"] = time_completion(Path(scratch) / "random", flags.repeats, new_tokens)
            print(completion_table(results["completion"]))
        results["data"] = time_data(folder, Path(scratch), flags.quick)
        print(*(f"{name}: {seconds:.2f} s" for name, seconds in results["data"].items()), sep="\n")
    if flags.output:
        with atomic_write(Path(flags.output)) as file:
            json.dump(results, file, indent=2)
    if flags.chart:
        draw(results, Path(flags.chart))


def draw(results: dict, path: Path) -> None:
    """Draw the rates of training, with a panel for each batch size, and of evaluation."""
    from charts.drawing import bars, save

    panels: dict[str, list[tuple[str, float]]] = {}
    for row in results["training"]:
        title = f"training, batch {row['batch']}: tokens/s"
        panels.setdefault(title, []).append((row["name"], row["tokens_per_second"]))
    panels["evaluation: windows/s"] = [(row["name"], row["windows_per_second"]) for row in results["evaluation"]]
    save(bars(panels, f"{results['model']}, {results['device']}"), path)


if __name__ == "__main__":
    run_command(main)
