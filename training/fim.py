"""Rows for infilling (fill-in-the-middle, FIM): cut at two random places, then ordered as prefix, suffix, middle.

After Bavarian et al. 2022 (arXiv:2207.14255): cuts are between characters, in the row as the model sees it. Half of the
rows are prefix-suffix-middle and half suffix-prefix-middle. Completion from left to right loses nothing.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch

from common.command import InputError
from common.devices import autocast
from common.model_files import FIM_FAMILIES, FimWords, known_fim_words
from data import SrcCodeDataset, TokenBatches
from model import GPTSingleHead
from training.config import TrainConfig
from training.context import RowContext
from training.processes import all_sum, rank, world_size

ROWS_AT_ONCE = 4096
DEV_WINDOWS = 512  # most windows on which the loss of middles is measured
PROBE = " if x:\n\ty = '_'  # ä\n"


@dataclass(frozen=True)
class FimRows:
    """A dataset's rows for one epoch, with the attributes that TokenBatches needs.

    Attributes:
        tokens: [N, max_seq_length], as SrcCodeDataset's.
        lengths: [N] int32, tokens of each row before its padding.
        middles: [N] int32, where the middle begins; 0 in rows that are not cut.
        firsts: [N] int32, the place of the first target: 1, or later in a row that begins with repository context.
    """

    tokens: np.ndarray
    lengths: np.ndarray
    middles: np.ndarray
    firsts: np.ndarray

    @property
    def max_seq_length(self) -> int:
        return self.tokens.shape[1]


def learn_fim_words(model: GPTSingleHead) -> FimWords:
    """Return the model's own FIM marker words; if it has none, add StarCoder's.

    Raises:
        InputError: the tokenizer does not give every text back exactly (SentencePiece's do not), or has no word for
            the end of a text.
    """
    tokenizer = model.tokenizer.backend_tokenizer
    if tokenizer.decode(tokenizer.encode(PROBE, add_special_tokens=False).ids) != PROBE:
        raise InputError("infilling (--fim_rate) needs a byte-level tokenizer, whose tokens spell a text exactly")
    if model.eos_token_id is None:
        raise InputError("infilling (--fim_rate) needs a tokenizer with a word for the end of a text (eos_token)")
    words = known_fim_words(tokenizer.token_to_id)
    if words is None:
        words = FIM_FAMILIES[0]
        model.add_special_words({"additional_special_tokens": list(words)})
    return words


def fim_rows(
    dataset: SrcCodeDataset,
    model: GPTSingleHead,
    fim_rate: float,
    seed: int,
    epoch: int,
    wanted: np.ndarray | None = None,
    context: RowContext | None = None,
) -> FimRows:
    """Cut about `fim_rate` of the rows in three, and put context before some.

    The result for a row depends only on seed, epoch and row number. A row that would become too long loses the end of
    its suffix, then the beginning of its prefix. A row stays as it is if its middle alone is too long, or if it begins
    or ends inside a character, so that it does not spell a text.

    Args:
        wanted: row numbers that will be read, in any order, with -1 for none; other rows need not be cut.
        context: finds the context of rows; None: no row has any.
    """
    tokenizer = model.tokenizer.backend_tokenizer
    tokenizer.encode_special_tokens = True  # control words in a text are ordinary text
    words = known_fim_words(tokenizer.token_to_id)
    markers = [tokenizer.token_to_id(word) for word in words or ()]
    head, n = dataset.head_length, len(dataset)
    draws = np.random.default_rng([seed, epoch]).random((n, 4))
    rows = FimRows(np.array(dataset.tokens), np.array(dataset.lengths), np.zeros(n, np.int32), np.ones(n, np.int32))
    wanted = np.arange(n) if wanted is None else wanted[wanted >= 0]
    contexts = {int(i): ids for i in wanted if (ids := context.ids_for(int(i), epoch))} if context else {}
    for i, (prefix, middle, suffix) in _pieces(dataset, model, wanted[draws[wanted, 0] < fim_rate], draws[:, 1:3]):
        room = rows.max_seq_length - len(contexts.get(i, ())) - head - len(markers) - len(middle) - 1
        if room < 0:
            continue
        before = _before_middle(prefix, suffix, markers, draws[i, 3] < 0.5, room)
        end = head + len(before) + len(middle) + 1
        rows.tokens[i, head:end] = [*before, *middle, model.eos_token_id]
        rows.tokens[i, end:] = model.pad_id
        rows.lengths[i] = end
        rows.middles[i] = head + len(before)
    for i, ids in contexts.items():
        _insert_context(rows, i, ids, len(model.start_ids("")), head)
    return rows


def _pieces(
    dataset: SrcCodeDataset, model: GPTSingleHead, numbers: np.ndarray, cuts: np.ndarray
) -> Iterator[tuple[int, list[list[int]]]]:
    """Yield the number of each row that spells a text, and the tokens of its prefix, middle and suffix.

    Args:
        numbers: of the rows to cut.
        cuts: [N, 2] float64, where to cut each row of the dataset, as `_cut` takes it.
    """
    tokenizer = model.tokenizer.backend_tokenizer
    for start in range(0, len(numbers), ROWS_AT_ONCE):
        some = numbers[start : start + ROWS_AT_ONCE].tolist()
        bodies = [dataset.tokens[i, dataset.head_length : dataset.lengths[i]].tolist() for i in some]
        texts = tokenizer.decode_batch(
            [body[:-1] if body[-1] == model.eos_token_id else body for body in bodies], False
        )
        pieces = [piece for text, i in zip(texts, some, strict=True) for piece in _cut(text, *cuts[i])]
        encoded = [encoding.ids for encoding in tokenizer.encode_batch_fast(pieces, add_special_tokens=False)]
        for k, i in enumerate(some):
            if "\ufffd" not in texts[k]:  # which stands for a part of a character
                yield i, encoded[3 * k : 3 * k + 3]


def _insert_context(rows: FimRows, i: int, ids: list[int], begin: int, head: int) -> None:
    """Put context into row `i`, after the tokens that the tokenizer puts before every text (`begin` tokens).

    Args:
        head: tokens before the row's own text; with a control word one more than `begin`.
    """
    old = rows.tokens[i, : rows.lengths[i]].tolist()
    new = [*old[:begin], *ids, *old[begin:]][: rows.max_seq_length]
    rows.tokens[i, : len(new)] = new
    rows.lengths[i] = len(new)
    rows.firsts[i] = head + len(ids)
    rows.middles[i] += len(ids) * bool(rows.middles[i])


def _cut(text: str, first: float, second: float) -> tuple[str, str, str]:
    """Prefix, middle and suffix; the two cuts are numbers from 0 (before the text) to 1 (after it), in any order."""
    a, b = sorted(int(share * (len(text) + 1)) for share in (first, second))
    return text[:a], text[a:b], text[b:]


def _before_middle(
    prefix: list[int], suffix: list[int], markers: list[int], suffix_first: bool, room: int
) -> list[int]:
    """Prefix and suffix, cut to `room` tokens together, with the three marker words."""
    suffix = suffix[: max(0, room - len(prefix))]
    prefix = prefix[max(0, len(prefix) + len(suffix) - room) :]
    prefix_word, suffix_word, middle_word = markers
    if suffix_first:  # the paper's variant, in which the middle directly follows its prefix
        return [prefix_word, suffix_word, *suffix, middle_word, *prefix]
    return [prefix_word, *prefix, suffix_word, *suffix, middle_word]


class FimEpochs:
    """The training batches of each epoch. A thread prepares the next epoch's rows during the training steps.

    Args:
        rows_of: an epoch's number -> row numbers, of any shape, that the run will read in it, if any.
    """

    def __init__(
        self,
        dataset: SrcCodeDataset,
        model: GPTSingleHead,
        config: TrainConfig,
        rows_of: Callable[[int], torch.Tensor],
    ):
        context = RowContext(dataset, model, config.context_rate, config.seed) if config.context_rate else None
        self._rows = partial(fim_rows, dataset, model, config.fim_rate, config.seed, context=context)
        self._model, self._rows_of = model, rows_of
        self._thread = ThreadPoolExecutor(1)
        self._ahead: dict[int, Future[FimRows]] = {}

    def batches(self, epoch: int) -> TokenBatches:
        for number in (epoch, epoch + 1):
            if number not in self._ahead:
                wanted = self._rows_of(number).flatten().numpy()
                self._ahead[number] = self._thread.submit(self._rows, number, wanted)
        return TokenBatches(self._ahead.pop(epoch).result(), self._model.pad_id, self._model.device)


class MiddleEvaluator:
    """Measures the mean nats per token of the middles of dev rows, which are always cut at the same places.

    Args:
        windows: on at most this many rows, always the same ones; 0 and numbers above DEV_WINDOWS mean DEV_WINDOWS.
    """

    def __init__(self, dataset: SrcCodeDataset, model: GPTSingleHead, windows: int = 0):
        rows = fim_rows(dataset, model, fim_rate=1, seed=0, epoch=0)
        numbers = np.random.default_rng(0).permutation(np.flatnonzero(rows.middles))
        self._numbers = torch.from_numpy(np.sort(numbers[: min(windows or DEV_WINDOWS, DEV_WINDOWS)]))
        self._batches = TokenBatches(replace(rows, firsts=rows.middles), model.pad_id, model.device)

    @torch.inference_mode()
    def __call__(self, model: GPTSingleHead, batch_size: int, dtype: torch.dtype) -> float:
        """Measure `model`, and leave it in its mode (train or eval)."""
        was_training = model.training
        model.eval()
        sums = torch.zeros(2, dtype=torch.float64, device=model.device)
        for rows in self._numbers[rank() :: world_size()].to(model.device).split(batch_size):
            ids, labels = self._batches.gather(rows)
            with autocast(model.device, dtype):
                nats, _ = model.scores(ids, labels)
            sums += torch.stack([nats.sum(dtype=torch.float64), self._batches.count_targets(rows)])
        model.train(was_training)
        nats, tokens = all_sum(sums).tolist()
        return nats / max(tokens, 1)
