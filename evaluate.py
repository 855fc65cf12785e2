"""Measure a model on a jsonl file: loss, perplexity, bits per byte and next-token accuracy.

python evaluate.py --model_path model/distilgpt2_fine_tuned_coder --dataset_name source_code
python evaluate.py --model_path tiny --dataset_name stdlib --output result.json
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from common import atomic_write, dataset_file, flag, keep_freed_memory, parse_flags, run_command
from config import PRECISIONS

if TYPE_CHECKING:
    import torch

    from data import SrcCodeDataset
    from model import GPTSingleHead


class SingleCLMEvaluator:
    """Calls on a model measure it on a dataset; the trainer stops early on `early_stop_on`.

    Args:
        dataset: what to measure on. The trainer sets it to its dev dataset where it is None.
        data_tag: the name of the split, as in the logged `loss_dev`.
        early_stop_on: "perplexity" or "loss": which result the best model is chosen by.
        batch_size: sequences per forward pass; on a GPU as many more as fit. The results do not depend on it.
        precision: as `model.choose_dtype` takes it.
        windows: measure on that many rows alone, always the same ones; 0 for all.
    """

    def __init__(
        self,
        dataset: "SrcCodeDataset | None" = None,
        data_tag: str = "dev",
        early_stop_on: str = "perplexity",
        batch_size: int = 8,
        precision: str = "auto",
        windows: int = 0,
    ):
        if early_stop_on not in ("loss", "perplexity"):
            raise ValueError(f"early_stop_on has to be loss or perplexity, not {early_stop_on!r}")
        self.dataset = dataset
        self.data_tag = data_tag
        self.early_stop_on = early_stop_on
        self.batch_size = batch_size
        self.precision = precision
        self.windows = windows

    def __call__(self, model: "GPTSingleHead") -> dict[str, float]:
        """Measure `model`; leaves it in the mode (train or eval) that it was in.

        Returns:
            loss: mean nats per target token; every token counts once, padding never.
            perplexity: exp(loss).
            perplexity_padded: what the 2020 reference reported, whose mean runs over the padding too, which its
                model, trained on padding, predicts at no loss. For comparison with the lab report only.
            bits_per_byte: bits per byte of source text, comparable between vocabularies; <eos> is left out.
            accuracy: share of targets that are the model's first choice.
            tokens: number of targets.
        """
        import torch

        from data import TokenBatches, pad_id
        from model import autocast, choose_dtype
        from parallel import all_sum, rank, world_size

        device = model.device
        dtype = choose_dtype(self.precision, device)
        batches = TokenBatches(self.dataset, pad_id(model), device)
        rows = torch.randperm(len(batches), generator=torch.Generator().manual_seed(0))
        rows = rows[: self.windows or None].to(device)
        # Longest first: a batch is as wide as its first row, so that next to no padding is computed.
        lengths, order = torch.sort(batches.lengths[rows], descending=True, stable=True)
        longest = int(lengths[0])
        positions = len(rows) * (longest - 1)  # with every window padded to the longest
        own = slice(rank(), None, world_size())
        lengths, rows = lengths[own], rows[order][own]
        batch_size = max(self.batch_size, fitting_windows(model, longest))
        widths = lengths[::batch_size].tolist()
        bytes_of = token_bytes(model).to(device)
        sums = torch.zeros(5, dtype=torch.float64, device=device)
        was_training = model.training
        model.eval()
        with torch.inference_mode(), autocast(device, dtype):  # which keeps the weights that it has cast to the end
            for i, width in enumerate(widths):
                ids, labels = batches.gather(rows[i * batch_size : (i + 1) * batch_size])
                ids, labels = ids[:, :width], labels[:, :width]
                nats, hits = model.scores(ids, labels)  # [B, width - 1]
                targets = labels[:, 1:]
                target_bytes = bytes_of[targets.clamp(min=0)] * (targets >= 0)
                values = nats, targets >= 0, nats * (target_bytes > 0), target_bytes, hits
                sums += torch.stack([value.sum(dtype=torch.float64) for value in values])
        model.train(was_training)
        return _results(*all_sum(sums).tolist(), positions)


def _results(
    nats: float, tokens: float, text_nats: float, text_bytes: float, hits: float, positions: int
) -> dict[str, float]:
    return {
        "loss": nats / tokens,
        "perplexity": math.exp(min(nats / tokens, 700)),  # beyond 700 a float overflows
        "perplexity_padded": math.exp(min(nats / positions, 700)),
        "bits_per_byte": text_nats / max(text_bytes, 1) / math.log(2),
        "accuracy": hits / tokens,
        "tokens": int(tokens),
    }


def fitting_windows(model: "GPTSingleHead", length: int) -> int:
    """Windows whose forward pass takes a quarter of the GPU's free memory, at most 256; 0 on a CPU."""
    import torch

    if model.device.type != "cuda":
        return 0
    config = model.gpt.config
    # About 16 activations of the width at a time; logits of all positions where the last layer is not taken in slices.
    floats = 16 * config.hidden_size + (0 if model.has_plain_head else 3 * config.vocab_size)
    return min(256, torch.cuda.mem_get_info(model.device)[0] // 4 // (4 * floats * length))


def token_bytes(model: "GPTSingleHead") -> "torch.Tensor":
    """Bytes of text that each token id stands for, [vocabulary] int64; 0 for control words."""
    import torch

    tokenizer = model.tokenizer
    special = set(tokenizer.all_special_ids)
    words = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    if "ByteLevel" in str(tokenizer.backend_tokenizer.decoder):  # there, one character of a token is one byte
        sizes = [len(word) for word in words]
    else:
        sizes = [len(tokenizer.decode([i]).encode()) for i in range(len(words))]
    return torch.tensor([0 if i in special else size for i, size in enumerate(sizes)])


@dataclass
class EvaluateFlags:
    """Flags of evaluate.py."""

    model_path: str = flag("tiny", "a run folder, a model folder, a name as train.py's --model_select, or a Hub id")
    dataset_name: str = flag("source_code", "folder below dataset/ that convert.py has written")
    split: str = flag("dev", "which of its files", choices=("dev", "train"))
    file_path: str = flag("", "measure on this jsonl file instead")
    max_seq_length: int = flag(0, "tokens per sequence; 0: as the model was trained")
    dev_batch_size: int = flag(
        8, "sequences per forward pass; on a GPU as many more as fit; the result does not depend on it"
    )
    dev_windows: int = flag(0, "measure on that many windows, always the same ones; 0: all")
    precision: str = flag(
        "auto",
        "auto: bf16 or fp16 where the hardware is fast at it; int8: on the CPU, as interact.py completes there",
        choices=(*PRECISIONS, "int8"),
    )
    output: str = flag("", "write the results as JSON to this file too")


def main() -> None:
    flags = parse_flags(EvaluateFlags, __doc__)
    file_path = Path(flags.file_path) if flags.file_path else dataset_file(flags.dataset_name, flags.split)

    import torch

    from data import SrcCodeDataset
    from hub import SPECIAL_WORDS
    from inference import prepare
    from model import GPTSingleHead, choose_device, fuse_activations

    keep_freed_memory()
    torch.manual_seed(0)  # the rows of control words that a base model lacks
    model = GPTSingleHead.load(flags.model_path)
    model.add_special_words(SPECIAL_WORDS)
    if flags.max_seq_length:
        model.max_seq_length = flags.max_seq_length
    dataset = SrcCodeDataset(file_path, model)
    precision = flags.precision
    if precision == "int8":
        prepare(model, "int8", torch.device("cpu"))
        precision = "fp32"  # of what is not a linear layer
    else:
        model.to(choose_device())
        fuse_activations(model.gpt)
    evaluator = SingleCLMEvaluator(
        dataset, flags.split, batch_size=flags.dev_batch_size, precision=precision, windows=flags.dev_windows
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
