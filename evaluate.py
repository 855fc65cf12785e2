"""Measure a model on a jsonl file: loss, perplexity, bits per byte and next-token accuracy.

python evaluate.py --model_path model/distilgpt2_fine_tuned_coder --dataset_name source_code
python evaluate.py --model_path tiny --dataset_name stdlib --output result.json
"""

import json
from dataclasses import dataclass
from pathlib import Path

from common.command import Flags, flag, folder_name, output_file, parse_flags, run_command
from common.files import atomic_write, dataset_file
from training.config import PRECISIONS
from training.evaluator import SingleCLMEvaluator


@dataclass
class EvaluateFlags(Flags):
    """Flags of evaluate.py."""

    model_path: str = flag("tiny", "a run folder, a model folder, a name as train.py's --model_select, or a Hub id")
    dataset_name: str = flag("source_code", "folder below dataset/ that convert.py has written", type=folder_name)
    split: str = flag("dev", "which of its files", choices=("dev", "train"))
    file_path: str = flag("", "measure on this jsonl file instead")
    max_seq_length: int | None = flag(
        None, "tokens per sequence; else as the model was trained", type=int, at_least=2, at_most=1_000_000
    )
    dev_batch_size: int = flag(
        8,
        "sequences per forward pass; on a GPU as many more as fit; the result does not depend on it",
        at_least=1,
        at_most=1_000_000,
    )
    dev_windows: int = flag(0, "measure on that many windows, always the same ones; 0: all", at_least=0, at_most=10**12)
    precision: str = flag(
        "auto",
        "auto: bf16 or fp16 where the hardware is fast at it",
        choices=PRECISIONS,
    )
    output: str | None = flag(None, "write the results as JSON to this file too", type=output_file())


def main() -> None:
    flags = parse_flags(EvaluateFlags, __doc__)
    file_path = Path(flags.file_path) if flags.file_path else dataset_file(flags.dataset_name, flags.split)

    from common.devices import choose_device, keep_freed_memory
    from data import SrcCodeDataset
    from model import GPTSingleHead, fuse_activations

    keep_freed_memory()
    model = GPTSingleHead.load(flags.model_path)
    if flags.max_seq_length:
        model.max_seq_length = flags.max_seq_length
    dataset = SrcCodeDataset(file_path, model)
    model.to(choose_device())
    fuse_activations(model.gpt)
    evaluator = SingleCLMEvaluator(
        dataset, flags.split, batch_size=flags.dev_batch_size, precision=flags.precision, windows=flags.dev_windows
    )
    results = evaluator(model)
    windows = min(flags.dev_windows or len(dataset), len(dataset))
    print(f"{flags.model_path} on {windows} windows of {file_path}")
    for name, value in results.items():
        print(f"  {name:<18} {value:>14,}" if name == "tokens" else f"  {name:<18} {value:>14.4f}")
    if flags.output:
        with atomic_write(Path(flags.output)) as file:
            json.dump(
                {"model": flags.model_path, "file": str(file_path), "windows": windows, **results}, file, indent=2
            )
            file.write("\n")


if __name__ == "__main__":
    run_command(main)
