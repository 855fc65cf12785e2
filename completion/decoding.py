"""From a prompt to token ids: a generator that decodes several candidates as one batch over one prompt's cache."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from tokenizers import decoders, pre_tokenizers
from torch import Tensor

from completion.fixed_cache import FixedStep, cache_name
from completion.settings import Settings
from model import GPTSingleHead


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt as the model reads it.

    Attributes:
        ids: the language's control word and the prompt's tokens.
        again: the end of the prompt, left out of `ids`, with which the generated text has to begin.
        dropped: tokens left out at the beginning, for which the context has no room.
    """

    ids: list[int]
    again: str
    dropped: int


def encode_prompt(model: GPTSingleHead, prompt: str, language: str, max_new_tokens: int) -> EncodedPrompt:
    """Tokenize a prompt so that it ends where a token of the whole text would end.

    A prompt often ends inside what the tokenizer would cut as one token: `    ` before `return`, `ra` of `range`. The
    model has never seen such a cut, so the prompt's trailing blanks, or else its last token, are generated again.
    A long prompt keeps its control word and its end, with room for `max_new_tokens` or half of the context.
    """
    tokenizer = model.tokenizer.backend_tokenizer
    code = prompt.rstrip() if isinstance(tokenizer.decoder, decoders.ByteLevel) else prompt
    ids, again = model.tokenize(code), prompt[len(code) :]
    if ids and not again and isinstance(tokenizer.decoder, decoders.ByteLevel):
        last = tokenizer.decode(ids[-1:], skip_special_tokens=False)
        if code.endswith(last):  # not so if the token is a part of a character
            ids, again = ids[:-1], last
    first = model.control_id(language)
    if first is None:  # a model without control words: what its training texts began with
        first = model.tokenizer.bos_token_id if model.tokenizer.bos_token_id is not None else model.eos_token_id
    start = [] if first is None else [first]
    context = context_length(model)
    keep = context - len(start) - min(max_new_tokens + len(model.tokenize(again)), context // 2)
    dropped = max(0, len(ids) - keep)
    return EncodedPrompt(start + ids[dropped:], again, dropped)


def context_length(model: GPTSingleHead) -> int:
    """The most tokens, prompt and completion together, that the model has positions for."""
    return getattr(model.gpt.config, "max_position_embeddings", model.max_seq_length)


@torch.inference_mode()
def decode(
    model: GPTSingleHead, prompt: EncodedPrompt, options: Settings, fixed: bool | None = None
) -> Iterator[tuple[list[int], list[float]]]:
    """Yield the next token of each candidate and its log-probability under the model, position by position.

    It ends where the model's context is full, or after enough tokens for `max_new_tokens`. The candidates share one
    pass over the prompt. The log-probabilities are the model's own, before temperature, penalty, top-k and top-p.

    Args:
        fixed: decode with a cache of fixed length, where the model can do that; None: on a GPU.
    """
    most = min(context_length(model), len(prompt.ids) + len(prompt.again.encode()) + options.max_new_tokens)
    generator = torch.Generator(model.device)
    generator.seed() if options.seed is None else generator.manual_seed(options.seed)
    beginning = _Beginning(model, prompt.again, options.candidates)
    seen = torch.tensor([prompt.ids], device=model.device)  # [1, T]
    output = model.gpt(input_ids=seen, use_cache=True, logits_to_keep=1)
    name = cache_name(model.gpt)
    cache = output[name]
    if options.candidates > 1:
        cache.batch_repeat_interleave(options.candidates)
    fixed = model.device.type == "cuda" if fixed is None else fixed
    step = FixedStep(model.gpt, cache, most) if fixed and FixedStep.fits(model.gpt, cache) else None
    seen = seen.expand(options.candidates, -1)  # [n, T]
    logits = output.logits.expand(options.candidates, -1, -1)  # [n, 1, V]
    while seen.shape[1] < most:
        logits = logits[:, -1, : len(model.tokenizer)].float()  # [n, V]
        logits = logits.masked_fill(beginning.forbidden(logits), -torch.inf) if beginning.rests else logits
        tokens = choose(logits, seen, options, generator)  # [n, 1]
        yield tokens[:, 0].tolist(), logits.log_softmax(-1).gather(1, tokens)[:, 0].tolist()
        beginning.advance(tokens[:, 0].tolist())
        seen = torch.cat([seen, tokens], dim=1)
        logits = step(tokens) if step else model.gpt(input_ids=tokens, use_cache=True, **{name: cache}).logits


def choose(logits: Tensor, seen: Tensor, options: Settings, generator: torch.Generator) -> Tensor:
    """Choose a token for each row.

    Args:
        logits: [n, V] float32.
        seen: [n, T] int64, the tokens before.
    Returns:
        [n, 1] int64.
    """
    if options.repetition_penalty != 1:
        scores = logits.gather(1, seen)
        penalty = options.repetition_penalty
        logits = logits.scatter(1, seen, torch.where(scores > 0, scores / penalty, scores * penalty))
    if options.temperature == 0:
        return logits.argmax(-1, keepdim=True)
    logits = logits / max(options.temperature, 1e-6)  # below that they would no longer be finite
    if 0 < options.top_k < logits.shape[1]:
        logits = logits.masked_fill(logits < logits.topk(options.top_k).values[:, -1:], -torch.inf)
    if options.top_p < 1:
        probabilities, order = logits.softmax(-1).sort(descending=True)
        beyond = probabilities.cumsum(-1) - probabilities >= options.top_p  # the likeliest token always stays
        logits = logits.masked_fill(beyond.gather(1, order.argsort()), -torch.inf)
    # One random number a row; torch.multinomial draws one for every word of the vocabulary, which takes milliseconds.
    cumulative = logits.double().softmax(-1).cumsum(-1)
    drawn = torch.rand(len(logits), 1, dtype=torch.double, device=logits.device, generator=generator)
    return torch.searchsorted(cumulative, drawn * cumulative[:, -1:], right=True).clamp(max=logits.shape[1] - 1)


class _Beginning:
    """Holds each candidate to tokens that spell the text it has to begin with."""

    def __init__(self, model: GPTSingleHead, text: str, candidates: int):
        special = model.tokenizer.all_special_ids
        self._words = (
            {id: word for word, id in model.tokenizer.get_vocab().items() if id not in special} if text else {}
        )
        alphabet = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        rest = "".join(piece for piece, _ in alphabet.pre_tokenize_str(text))  # as the vocabulary spells these bytes
        self._in_pieces = text.isspace()  # else the text is one token, and cutting it smaller would be unnatural
        self.rests = [rest] * candidates if text else []

    def forbidden(self, logits: Tensor) -> Tensor:
        """[n, V] bool: the tokens that neither continue nor finish what is left of each candidate's beginning."""
        mask = torch.zeros_like(logits, dtype=torch.bool)
        for rest in filter(None, set(self.rests)):
            fits = [i for i, word in self._words.items() if word.startswith(rest)]
            if self._in_pieces:
                fits += [i for i, word in self._words.items() if rest.startswith(word)]
            others = mask.new_ones(mask.shape[1]).index_fill(0, torch.tensor(fits, device=mask.device), False)
            mask[[row for row, own in enumerate(self.rests) if own == rest]] = others
        return mask

    def advance(self, tokens: list[int]) -> None:
        if self.rests:
            rests = zip(self.rests, tokens, strict=True)
            self.rests = [rest[len(self._words[token]) :] if rest else "" for rest, token in rests]
            self.rests = self.rests if any(self.rests) else []
