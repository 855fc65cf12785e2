"""Fill-in-the-middle training: rows are cut at two random places and reordered as prefix, suffix, middle.

After Bavarian et al. 2022 (arXiv:2207.14255): cuts between characters, on the row as the model sees it, half of the
rows as prefix-suffix-middle and half as suffix-prefix-middle, at no cost to completion from left to right.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from common.command import InputError
from common.devices import autocast
from common.fim_words import FAMILIES, FimWords, known_fim_words
from common.loss import IGNORED
from data import SrcCodeDataset, TokenBatches
from training.processes import all_sum, rank, world_size

if TYPE_CHECKING:
    from model import GPTSingleHead
    from training.context import RowContext

ROWS_AT_ONCE = 4096
DEV_WINDOWS = 512  # the loss of middles is measured on at most this many
PROBE = " if x:\n\ty = '_'  # ä\n"


@dataclass(frozen=True)
class FimRows:
    """A dataset's rows for one epoch: the attributes that TokenBatches needs.

    Attributes:
        tokens: [N, max_seq_length], as SrcCodeDataset's.
        lengths: [N] int32, tokens of each row before its padding.
        middles: [N] int32, where the middle begins; 0 in rows that are not cut.
        firsts: [N] int32, the place of the first target: 1, or after the context of other files.
    """

    tokens: np.ndarray
    lengths: np.ndarray
    middles: np.ndarray
    firsts: np.ndarray

    @property
    def max_seq_length(self) -> int:
        return self.tokens.shape[1]


def learn_fim_words(model: "GPTSingleHead") -> FimWords:
    """Return the model's own FIM marker words; if it has none, add StarCoder's.

    Raises:
        InputError: a tokenizer that does not give a text back as it was, as those of SentencePiece's kind, or that has
            no word for the end of a text.
    """
    tokenizer = model.tokenizer.backend_tokenizer
    if tokenizer.decode(tokenizer.encode(PROBE, add_special_tokens=False).ids) != PROBE:
        raise InputError("--fim_rate needs a byte-level tokenizer, whose tokens spell a text exactly; leave it out")
    if model.eos_token_id is None:
        raise InputError("--fim_rate needs a tokenizer with a word for the end of a text (eos_token); leave it out")
    words = known_fim_words(tokenizer.token_to_id)
    if words is None:
        words = FAMILIES[0]
        model.add_special_words({"additional_special_tokens": list(words)})
    return words


def fim_rows(
    dataset: SrcCodeDataset,
    model: "GPTSingleHead",
    rate: float,
    seed: int,
    epoch: int,
    wanted: np.ndarray | None = None,
    context: "RowContext | None" = None,
) -> FimRows:
    """Cut about `rate` of the rows in three, and put context before some. Depends only on seed, epoch and row.

    A row that would become too long loses the end of its suffix, then the beginning of its prefix. A row whose tokens
    do not spell valid text (it begins or ends inside a character) stays as it is, as does one whose middle alone is
    too long.

    Args:
        wanted: row numbers that will be read, in any order; the others need not be cut.
        context: gives rows their context, for which the text makes room; None: no row has any.
    """
    tokenizer = model.tokenizer.backend_tokenizer
    tokenizer.encode_special_tokens = True  # control words in a text are ordinary text
    words = known_fim_words(tokenizer.token_to_id)
    markers = tuple(tokenizer.token_to_id(word) for word in words or ())
    eos, head = model.eos_token_id, dataset.head_length
    draws = np.random.default_rng([seed, epoch]).random((len(dataset), 4))
    rows = FimRows(
        np.array(dataset.tokens),
        np.array(dataset.lengths),
        np.zeros(len(dataset), np.int32),
        np.ones(len(dataset), np.int32),
    )
    wanted = np.arange(len(dataset)) if wanted is None else wanted[wanted >= 0]
    contexts = {int(i): ids for i in wanted if (ids := context.ids_for(int(i), epoch))} if context else {}
    chosen = wanted[draws[wanted, 0] < rate]
    for start in range(0, len(chosen), ROWS_AT_ONCE):
        numbers = chosen[start : start + ROWS_AT_ONCE]
        bodies = [dataset.tokens[i, head : dataset.lengths[i]].tolist() for i in numbers]
        texts = tokenizer.decode_batch([body[:-1] if body[-1] == eos else body for body in bodies], False)
        pieces = [_cut(text, *draw) for text, draw in zip(texts, draws[numbers, 1:3], strict=True)]
        encodings = tokenizer.encode_batch_fast(
            [piece for three in pieces for piece in three], add_special_tokens=False
        )
        for k, i in enumerate(numbers):
            parts = [encoding.ids for encoding in encodings[3 * k : 3 * k + 3]]
            if "\ufffd" not in texts[k]:
                room = rows.max_seq_length - len(contexts.get(i, ()))
                _arrange(rows, i, head, parts, markers, eos, draws[i, 3] < 0.5, model.pad_id, room)
    for i, ids in contexts.items():
        _put_before(rows, i, ids, len(model.start_ids("")), head)
    return rows


def _put_before(rows: FimRows, i: int, context: list[int], begin: int, head: int) -> None:
    """Put context between what begins every row and the language's control word; a row that is too long is cut."""
    old = rows.tokens[i, : rows.lengths[i]].tolist()
    ids = [*old[:begin], *context, *old[begin:]][: rows.max_seq_length]
    rows.tokens[i, : len(ids)] = ids
    rows.lengths[i] = len(ids)
    rows.firsts[i] = head + len(context)
    rows.middles[i] += len(context) * bool(rows.middles[i])


def _cut(text: str, first: float, second: float) -> tuple[str, str, str]:
    """Prefix, middle and suffix; the cuts are given as shares of the places between characters."""
    a, b = sorted(int(share * (len(text) + 1)) for share in (first, second))
    return text[:a], text[a:b], text[b:]


def _arrange(
    rows: FimRows, i: int, head: int, parts: list[list[int]], markers: tuple[int, ...], eos: int, suffix_first: bool,
    pad: int, room: int,
) -> None:  # fmt: skip
    prefix, middle, suffix = parts
    room = room - head - len(markers) - 1 - len(middle)
    if room < 0:
        return
    suffix = suffix[: max(0, room - len(prefix))]
    prefix = prefix[max(0, len(prefix) + len(suffix) - room) :]
    before, after, between = ([marker] for marker in markers)
    # With the suffix first (the paper's variant), the middle directly follows its prefix.
    start = (
        [*before, *after, *suffix, *between, *prefix] if suffix_first else [*before, *prefix, *after, *suffix, *between]
    )
    ids = start + middle + [eos]
    end = head + len(ids)
    rows.tokens[i, head:end] = ids
    rows.tokens[i, end:] = pad
    rows.lengths[i] = end
    rows.middles[i] = head + len(start)


class FimEpochs:
    """The training batches of each epoch. A thread prepares the next epoch's rows during the training steps.

    Args:
        rows_of: an epoch's number -> row numbers, of any shape, that the run will read in it, if any.
        context: as of `fim_rows`.
    """

    def __init__(
        self,
        dataset: SrcCodeDataset,
        model: "GPTSingleHead",
        rate: float,
        seed: int,
        rows_of: Callable[[int], torch.Tensor],
        context: "RowContext | None" = None,
    ):
        self._dataset, self._model, self._rate, self._seed = dataset, model, rate, seed
        self._rows_of, self._context = rows_of, context
        self._thread = ThreadPoolExecutor(1)
        self._ahead: dict[int, Future[FimRows]] = {}

    def batches(self, epoch: int) -> TokenBatches:
        self._start(epoch)
        rows = self._ahead.pop(epoch).result()
        self._start(epoch + 1)
        return TokenBatches(rows, self._model.pad_id, self._model.device)

    def _start(self, epoch: int) -> None:
        if epoch not in self._ahead:
            arguments = (
                self._dataset,
                self._model,
                self._rate,
                self._seed,
                epoch,
                self._rows_of(epoch).flatten().numpy(),
                self._context,
            )
            self._ahead[epoch] = self._thread.submit(fim_rows, *arguments)


class MiddleEvaluator:
    """Measures the mean nats per token of the middles of dev rows, which are always cut in the same way.

    Args:
        windows: on at most so many rows, always the same ones; 0, as more than DEV_WINDOWS, for DEV_WINDOWS.
    """

    def __init__(self, dataset: SrcCodeDataset, model: "GPTSingleHead", windows: int = 0):
        self._rows = fim_rows(dataset, model, rate=1, seed=0, epoch=0)
        numbers = np.flatnonzero(self._rows.middles)
        chosen = np.random.default_rng(0).permutation(numbers)[: min(windows or DEV_WINDOWS, DEV_WINDOWS)]
        self._numbers = torch.from_numpy(np.sort(chosen))
        self._batches = TokenBatches(self._rows, model.pad_id, model.device)

    @torch.inference_mode()
    def __call__(self, model: "GPTSingleHead", batch_size: int, dtype: torch.dtype) -> float:
        """Leaves the model in the mode, train or eval, that it was in."""
        was_training = model.training
        model.eval()
        sums = torch.zeros(2, dtype=torch.float64, device=model.device)
        for rows in self._numbers[rank() :: world_size()].to(model.device).split(batch_size):
            ids, labels = self._batches.gather(rows)
            middles = torch.from_numpy(self._rows.middles)[rows.cpu()].to(model.device)
            before = torch.arange(labels.shape[1], device=model.device) < middles[:, None]
            labels = labels.masked_fill(before, IGNORED)
            with autocast(model.device, dtype):
                nats, _ = model.scores(ids, labels)
            sums += torch.stack([nats.sum(dtype=torch.float64), (labels[:, 1:] != IGNORED).sum()])
        model.train(was_training)
        nats, tokens = all_sum(sums).tolist()
        return nats / max(tokens, 1)
