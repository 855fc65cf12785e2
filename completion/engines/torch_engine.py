"""Generate with PyTorch: on a GPU, and with models that llama.cpp or our converter does not know."""

import inspect
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from common.command import InputError
from completion.engines.engine import Step
from completion.prompt import Prompt, PromptEnd
from completion.settings import CompletionSettings
from completion.tokens import Vocabulary
from model import GPTSingleHead


class TorchEngine:
    """A model in PyTorch. The candidates of a prompt are one batch; the prompts come one after the other.

    Args:
        model: in evaluation mode.
    """

    def __init__(self, model: GPTSingleHead):
        self.model = model
        self.name = f"PyTorch, {str(model.gpt.dtype).removeprefix('torch.')}"
        self.vocabulary = vocabulary_of(model)
        self.context_length = getattr(model.gpt.config, "max_position_embeddings", model.max_seq_length)

    def stream(self, prompts: Sequence[Prompt], options: CompletionSettings, over: set[int]) -> Iterator[Step]:
        """See `Engine.stream`."""
        generator = torch.Generator(self.model.device)
        for place, prompt in enumerate(prompts):
            generator.seed() if prompt.seed is None else generator.manual_seed(prompt.seed)
            numbers = range(place * options.candidates, (place + 1) * options.candidates)
            for tokens, log_probs in self._decode(prompt, options, generator):
                yield from map(Step, numbers, tokens, log_probs)
                if over.issuperset(numbers):
                    break

    @torch.inference_mode()
    def _decode(
        self, prompt: Prompt, options: CompletionSettings, generator: torch.Generator
    ) -> Iterator[tuple[list[int], list[float]]]:
        """Yield the next token of each candidate and its log-probability. All candidates read the prompt once."""
        gpt, candidates = self.model.gpt, options.candidates
        most = min(self.context_length, len(prompt.ids) + len(prompt.end.text) + options.max_new_tokens)
        constraint = _EndConstraint(prompt.end, candidates)
        seen = torch.tensor([prompt.ids], device=self.model.device)  # [1, T]
        output = gpt(input_ids=seen, use_cache=True, logits_to_keep=1)
        # The name of the cache in a model's arguments and output; transformers 5.24 renamed `past_key_values`
        name = "cache" if "cache" in inspect.signature(gpt.forward).parameters else "past_key_values"
        cache = output[name]
        if candidates > 1:
            cache.batch_repeat_interleave(candidates)
        if not (output.logits < math.inf).all():  # false for NaN too
            raise InputError(f"the model's logits are not finite in {self.name}; try --precision fp32 or another model")
        seen = seen.expand(candidates, -1)  # [n, T]
        logits = output.logits.expand(candidates, -1, -1)  # [n, 1, V]
        words = self.vocabulary.largest_id + 1
        ends = [token for token in self.vocabulary.end_ids if token < words]
        texts = [b""] * candidates
        while seen.shape[1] < most:
            logits = logits[:, -1, :words].float()  # [n, V]
            logits = constraint.apply(logits)
            blank = [row for row, text in enumerate(texts) if prompt.needs_text and not text.strip()]
            for row in blank:
                logits[row, ends] = -torch.inf
            tokens = choose(logits, seen, options, generator)  # [n, 1]
            if candidates > 1:
                tokens[0] = logits[0].argmax()
            yield tokens[:, 0].tolist(), logits.log_softmax(-1).gather(1, tokens)[:, 0].tolist()
            constraint.advance(tokens[:, 0].tolist())
            for row in blank:
                texts[row] += self.vocabulary.bytes_of(tokens[row, 0].item())
            seen = torch.cat([seen, tokens], dim=1)
            logits = gpt(input_ids=tokens, use_cache=True, **{name: cache}).logits


def vocabulary_of(model: GPTSingleHead) -> Vocabulary:
    """Return the vocabulary of a loaded model."""
    settings = {
        "config.json": {"eos_token_id": model.gpt.config.eos_token_id},
        "generation_config.json": {"eos_token_id": getattr(model.gpt.generation_config, "eos_token_id", None)},
        "tokenizer_config.json": {"eos_token": model.tokenizer.eos_token},
        "gpt_sh_config.json": model.get_config_dict(),
    }
    return Vocabulary(model.tokenizer.backend_tokenizer, settings)


def choose(logits: Tensor, seen: Tensor, options: CompletionSettings, generator: torch.Generator) -> Tensor:
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
    logits = logits / max(options.temperature, 1e-6)  # smaller ones would make them infinite
    if 0 < options.top_k < logits.shape[1]:
        logits = logits.masked_fill(logits < logits.topk(options.top_k).values[:, -1:], -torch.inf)
    if options.top_p < 1:
        probabilities, order = logits.softmax(-1).sort(descending=True)
        beyond = probabilities.cumsum(-1) - probabilities >= options.top_p  # the most likely token always stays
        logits = logits.masked_fill(beyond.gather(1, order.argsort()), -torch.inf)
    # One random number for each row. torch.multinomial draws one for each word of the vocabulary, which takes long.
    cumulative = logits.double().softmax(-1).cumsum(-1)
    drawn = torch.rand(len(logits), 1, dtype=torch.double, device=logits.device, generator=generator)
    return torch.searchsorted(cumulative, drawn * cumulative[:, -1:], right=True).clamp(max=logits.shape[1] - 1)


class _EndConstraint:
    """Allows each candidate only tokens that spell the text with which it has to begin."""

    def __init__(self, end: PromptEnd, candidates: int):
        self._end = end
        self._chosen: list[tuple[int, ...]] = [()] * candidates
        self._active = bool(end.text)

    def apply(self, logits: Tensor) -> Tensor:
        """Return the logits [n, V], with -inf for the tokens that do not fit the text."""
        if not self._active:
            return logits
        mask = torch.zeros_like(logits, dtype=torch.bool)
        for chosen in set(self._chosen):
            if self._end.rest(chosen):
                fits = torch.tensor(self._end.allowed(chosen), device=mask.device)
                others = mask.new_ones(mask.shape[1]).index_fill(0, fits, False)
                mask[[row for row, own in enumerate(self._chosen) if own == chosen]] = others
        return logits.masked_fill(mask, -torch.inf)

    def advance(self, tokens: list[int]) -> None:
        if self._active:
            pairs = zip(self._chosen, tokens, strict=True)
            self._chosen = [(*own, token) if self._end.rest(own) else own for own, token in pairs]
            self._active = any(map(self._end.rest, self._chosen))
