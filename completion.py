"""Complete source code with a causal language model: one prompt in, ranked candidates out."""

import ast
import textwrap
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from math import exp, inf
from typing import TYPE_CHECKING

from common import InputError, flag
from stopping import STOPS, StopRule, make_stop_rule

if TYPE_CHECKING:
    from model import GPTSingleHead


@dataclass(frozen=True)
class Settings:
    """How to complete; the fields are flags of interact.py too.

    Raises:
        InputError: a value outside its range.
    """

    max_new_tokens: int = flag(128, "most tokens to generate", "--max_length")
    temperature: float = flag(0.7, "divides the logits before sampling; 0 takes the likeliest token every time")
    top_k: int = flag(0, "sample from this many likeliest tokens only; 0: from all")
    top_p: float = flag(1.0, "sample from the likeliest tokens that together hold this probability")
    repetition_penalty: float = flag(1.0, "above 1, tokens that were seen before become less likely")
    num_return_sequences: int = flag(1, "candidates, decoded as one batch", "--n")
    seed: int | None = flag(None, "makes sampling repeatable", type=int)
    stop: str = flag("block", "where a completion ends: with the block, at a blank line, with the line", choices=STOPS)
    min_probability: float = flag(0.0, "leave out candidates whose joint probability is lower")

    def __post_init__(self) -> None:
        for name, valid, wanted in (
            ("max_new_tokens", self.max_new_tokens >= 1, "1 or more"),
            ("temperature", 0 <= self.temperature < inf, "0 or more"),
            ("top_k", self.top_k >= 0, "0 or more"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("repetition_penalty", 0 < self.repetition_penalty < inf, "above 0"),
            ("num_return_sequences", self.num_return_sequences >= 1, "1 or more"),
            ("seed", self.seed is None or 0 <= self.seed < 2**63, "0 or more, below 2**63"),
            ("stop", self.stop in STOPS, f"one of {', '.join(STOPS)}"),
            ("min_probability", 0 <= self.min_probability <= 1, "between 0 and 1"),
        ):
            if not valid:
                raise InputError(f"{name} {getattr(self, name)}: must be {wanted}")

    @property
    def candidates(self) -> int:
        """How many to decode: at temperature 0 they would all be the same."""
        return self.num_return_sequences if self.temperature else 1


@dataclass(frozen=True)
class Completion:
    """One candidate.

    Attributes:
        text: what follows the prompt.
        tokens: the ids that spell it.
        mean_log_prob: mean log-probability of these tokens under the model, in nats.
        probability: joint probability of these tokens under the model.
        stop_reason: the stop rule's name; "eos" (the model ended the file); "length" (max_new_tokens reached) or
            "context" (the model's context is full) or "interrupted", where the last line may be unfinished.
        parses: whether prompt and text together are valid Python; None for other languages.
        prompt_tokens_dropped: tokens of the prompt's beginning for which the model's context had no room.
    """

    text: str
    tokens: list[int]
    mean_log_prob: float
    probability: float
    stop_reason: str
    parses: bool | None = None
    prompt_tokens_dropped: int = 0

    @property
    def finished(self) -> bool:
        return self.stop_reason not in ("length", "context", "interrupted")


def complete(
    model: "GPTSingleHead",
    prompt: str,
    language: str = "python",
    *,
    on_text: Callable[[str], None] | None = None,
    cancelled: Callable[[], bool] = lambda: False,
    **settings,
) -> list[Completion]:
    """Complete a prompt. The candidates come best first (see `rank`).

    Args:
        model: in evaluation mode.
        on_text: called with each further piece of the first candidate's text, in whole characters, once it surely
            belongs to the completion.
        cancelled: asked after each token; once it is true, what there is becomes the result.
        settings: the fields of `Settings`.
    Raises:
        InputError: a setting outside its range.
    """
    from decoding import decode, encode_prompt

    options = Settings(**settings)
    encoded = encode_prompt(model, prompt, language, options.max_new_tokens)
    candidates = [
        _Candidate(model, options, make_stop_rule(options.stop, prompt, language), len(encoded.again))
        for _ in range(options.candidates)
    ]
    reason, shown = "context", 0
    for tokens, log_probs in decode(model, encoded, options):
        for candidate, token, log_prob in zip(candidates, tokens, log_probs, strict=True):
            if not candidate.stop_reason:
                candidate.add(token, log_prob)
        if on_text and (piece := candidates[0].text[shown:]):
            shown += len(piece)
            on_text(piece)
        if all(candidate.stop_reason for candidate in candidates):
            break
        if cancelled():
            reason = "interrupted"
            break
    completions = [candidate.finish(prompt, language, reason, encoded.dropped) for candidate in candidates]
    return [completion for completion in rank(completions) if completion.probability >= options.min_probability]


def rank(completions: list[Completion]) -> list[Completion]:
    """Those that parse first, then by mean log-probability, empty ones last; of equal texts the likeliest stays."""
    ranked = sorted(completions, key=lambda c: (not c.text, not c.parses, -c.mean_log_prob))
    likeliest: dict[str, Completion] = {}
    for completion in ranked:
        likeliest.setdefault(completion.text, completion)
    return list(likeliest.values())


class _Candidate:
    """One completion in the making."""

    def __init__(self, model: "GPTSingleHead", options: Settings, rule: StopRule, skipped: int):
        from tokenizers.decoders import DecodeStream

        self.text = ""  # what surely belongs to the completion
        self.stop_reason = ""
        self._options, self._rule = options, rule
        self._skipped = skipped  # the first characters repeat the end of the prompt
        self._tokenizer, self._special = model.tokenizer.backend_tokenizer, set(model.tokenizer.all_special_ids)
        self._stream = DecodeStream(skip_special_tokens=False)
        self._decoded = ""
        self._tokens: list[int] = []
        self._log_probs: list[float] = []
        self._starts: list[int] = []  # where in the decoded text each token begins

    def add(self, token: int, log_prob: float) -> None:
        if token in self._special:
            self.stop_reason = "eos"
            self._log_probs.append(log_prob)
            return
        start = len(self._decoded)
        self._decoded += self._stream.step(self._tokenizer, token) or ""  # None while a character is incomplete
        if start < len(self._decoded) <= self._skipped:
            return
        self._tokens.append(token)
        self._log_probs.append(log_prob)
        self._starts.append(start)
        text = self._decoded[self._skipped :]
        safe, done = self._rule(text)
        self.text = text[:safe]
        if done:
            self.stop_reason = self._options.stop
        elif len(self._tokens) == self._options.max_new_tokens:
            self.stop_reason = "length"

    def finish(self, prompt: str, language: str, reason: str, dropped: int) -> Completion:
        kept = sum(start < self._skipped + len(self.text) for start in self._starts)
        # The end of the file is a token of its own; and a text that ended at once still has its first token's score.
        scored = self._log_probs[: max(1, kept + (self.stop_reason == "eos"))] or [0.0]
        return Completion(
            text=self.text,
            tokens=self._tokens[:kept],
            mean_log_prob=sum(scored) / len(scored),
            probability=exp(sum(scored)),
            stop_reason=self.stop_reason or reason,
            parses=parses(prompt + self.text) if language == "python" else None,
            prompt_tokens_dropped=dropped,
        )


def parses(source: str) -> bool:
    """Whether the text is valid Python; it is read, never run."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # for instance about an invalid escape in a string
        try:
            ast.parse(textwrap.dedent(source))
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return False
    return True
