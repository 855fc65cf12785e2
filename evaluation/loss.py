"""SingleCLMEvaluator: loss, perplexity, bits per byte and accuracy of a model on a dataset."""

import functools
import math
import re
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerFast

    from data import SrcCodeDataset
    from model import GPTSingleHead


LOGIT_BYTES = 1 << 30  # on a CPU; eight windows of Qwen2.5-Coder's vocabulary would take 7 GB
BYTE = re.compile("<0x[0-9A-F]{2}>")  # how SentencePiece spells a byte of a character that it has no token for


class SingleCLMEvaluator:
    """Calls on a model measure it on a dataset; the trainer stops early on `early_stop_on`.

    Args:
        dataset: what to measure on. The trainer sets it to its dev dataset where it is None.
        early_stop_on: "perplexity" or "loss": which result the best model is chosen by.
        batch_size: sequences per forward pass; on a GPU as many more as fit, and fewer where memory is short. The
            results do not depend on it.
        precision: as `common.devices.choose_dtype` takes it.
        windows: measure on this many rows only, always the same ones; 0 for all.
        pass_rate: called with (model, slice of the problems, whether to give up); returns how many of these problems
            the model solves, and their number. See evaluation.pass_rate.PassRate.
    """

    def __init__(
        self,
        dataset: "SrcCodeDataset | None" = None,
        early_stop_on: str = "perplexity",
        batch_size: int = 8,
        precision: str = "auto",
        windows: int = 0,
        pass_rate: "Callable[[GPTSingleHead, slice, Callable[[], bool]], tuple[int, int]] | None" = None,
    ):
        if early_stop_on not in ("loss", "perplexity"):
            raise ValueError(f"early_stop_on has to be loss or perplexity, not {early_stop_on!r}")
        self.dataset = dataset
        self.early_stop_on = early_stop_on
        self.batch_size = batch_size
        self.precision = precision
        self.windows = windows
        self.pass_rate = pass_rate

    def __call__(
        self, model: "GPTSingleHead", interrupted: Callable[[], bool] = lambda: False
    ) -> dict[str, float] | None:
        """Measure `model`, and leave it in its mode (train or eval).

        Args:
            interrupted: called before each batch; when it returns true, the measurement is given up.
        Returns:
            None if any process gave up, else
            loss: mean nats per target token; every token counts once, padding never.
            perplexity: exp(loss).
            perplexity_padded: the 2020 reference's perplexity, averaged over the padding too, which costs no loss
                there. For comparison with the lab report only.
            bits_per_byte: bits per byte of source text, comparable between vocabularies; <eos> is left out.
            accuracy: fraction of targets that are the model's first choice.
            tokens: number of targets.
            pass_at_1: fraction of the problems that the model solves, if there is a `pass_rate`.
        """
        import torch

        from training.processes import all_sum, rank, world_size

        own = slice(rank(), None, world_size())
        was_training = model.training
        model.eval()
        sums, positions, gave_up = self._sums(model, own, interrupted)
        model.train(was_training)
        solved = 0, 0  # and how many problems there were
        if self.pass_rate:
            solved = self.pass_rate(model, own, interrupted)
            gave_up |= interrupted()
        others = torch.tensor([gave_up, *solved], dtype=torch.float64, device=model.device)
        *sums, gave_up, right, asked = all_sum(torch.cat((sums, others))).tolist()
        if gave_up:
            return None
        return _results(*sums, positions) | ({"pass_at_1": right / asked} if self.pass_rate else {})

    def _sums(
        self, model: "GPTSingleHead", own: slice, interrupted: Callable[[], bool]
    ) -> "tuple[torch.Tensor, int, bool]":
        """Sums over this process's windows [5] float64, the positions of all windows, and whether it gave up."""
        import torch

        from common.devices import autocast, choose_dtype, is_out_of_memory
        from data import TokenBatches

        batches = TokenBatches(self.dataset, model.pad_id, model.device)
        rows = torch.randperm(len(batches), generator=torch.Generator().manual_seed(0))
        rows = rows[: self.windows or None].to(model.device)
        # Longest first: a batch is as wide as its first row, so almost no padding is computed.
        lengths, order = torch.sort(batches.lengths[rows], descending=True, stable=True)
        longest = int(lengths[0])
        positions = len(rows) * (longest - 1)  # with every window padded to the longest
        rows, widths = rows[order][own], lengths[own].tolist()
        batch_size, start = windows_at_once(model, longest, self.batch_size), 0
        bytes_of = token_bytes(model.tokenizer, model.vocabulary_size).to(model.device)
        sums = torch.zeros(5, dtype=torch.float64, device=model.device)
        # autocast keeps its casted weights until the end
        with torch.inference_mode(), autocast(model.device, choose_dtype(self.precision, model.device)):
            while start < len(rows) and not interrupted():
                try:
                    batch = batches.gather(rows[start : start + batch_size])
                    ids, labels = (values[:, : widths[start]] for values in batch)
                    sums += _sums_of_batch(model, ids, labels, bytes_of)
                    start += batch_size
                except (MemoryError, RuntimeError) as error:
                    if batch_size == 1 or not is_out_of_memory(error):
                        raise
                    batch_size //= 2
        return sums, positions, start < len(rows)


def _sums_of_batch(
    model: "GPTSingleHead", ids: "torch.Tensor", labels: "torch.Tensor", bytes_of: "torch.Tensor"
) -> "torch.Tensor":
    """The first five arguments of `_results`, [5] float64, for ids and labels [B, T]."""
    import torch

    nats, hits = model.scores(ids, labels)  # [B, T - 1]
    targets = labels[:, 1:]
    target_bytes = bytes_of[targets.clamp(min=0)] * (targets >= 0)
    values = nats, targets >= 0, nats * (target_bytes > 0), target_bytes, hits
    return torch.stack([value.sum(dtype=torch.float64) for value in values])


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


def windows_at_once(model: "GPTSingleHead", length: int, asked: int) -> int:
    """How many windows a forward pass takes: on a GPU as many as fit a quarter of its free memory, from `asked` to 256.

    On a CPU at most `asked`, and fewer where their logits would take more than LOGIT_BYTES.
    """
    import torch

    config = model.gpt.config
    # Logits of all positions, three times, where the last layer is not taken in slices.
    logits = 0 if model.has_plain_head else 3 * config.vocab_size
    if model.device.type != "cuda":
        return min(asked, max(1, LOGIT_BYTES // (4 * logits * length))) if logits else asked
    floats = 16 * config.hidden_size + logits  # about 16 activations of the width at a time
    return max(asked, min(256, torch.cuda.mem_get_info(model.device)[0] // 4 // (4 * floats * length)))


@functools.lru_cache(maxsize=1)
def token_bytes(tokenizer: "PreTrainedTokenizerFast", vocabulary_size: int) -> "torch.Tensor":
    """Bytes of text for each token id, [vocabulary] int64; 0 for control words."""
    import torch

    special_ids, tokenizer = tokenizer.all_special_ids, tokenizer.backend_tokenizer
    words = {token: word for word, token in tokenizer.get_vocab().items()}
    if "ByteLevel" in str(tokenizer.decoder):  # there, one character of a token is one byte
        sizes = {token: len(word) for token, word in words.items()}
    else:  # others may drop a space at the beginning of a text, so each token is decoded after another one
        first = tokenizer.encode("x", add_special_tokens=False).ids
        texts = tokenizer.decode_batch([[*first, token] for token in words], skip_special_tokens=False)
        before = len(tokenizer.decode(first, skip_special_tokens=False).encode())
        sizes = {token: len(text.encode()) - before for token, text in zip(words, texts, strict=True)}
        sizes |= {token: 1 for token, word in words.items() if BYTE.fullmatch(word)}  # of a character in several
    sizes |= dict.fromkeys(special_ids, 0)
    return torch.tensor([sizes.get(token, 0) for token in range(vocabulary_size)])
