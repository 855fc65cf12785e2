"""Complete source code with a causal language model: one prompt in, ranked candidates out."""

import ast
import textwrap
import warnings
from collections.abc import Callable
from math import exp
from typing import TYPE_CHECKING

from completion.settings import Completion, Settings
from completion.stopping import StopRule, make_stop_rule

if TYPE_CHECKING:
    from model import GPTSingleHead


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
    from completion.decoding import decode, encode_prompt

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
