"""Complete source code: from a prompt to ranked candidates."""

import ast
import codecs
import random
import textwrap
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from math import exp, inf

from completion.engines.engine import Engine, Step
from completion.infill import read_infill
from completion.prompt import Prompt, read_prompt
from completion.repository.chunks import Chunk
from completion.repository.form import with_context
from completion.settings import Completion, CompletionSettings
from completion.stop_rules.repetition import before_repetition
from completion.stop_rules.stop_rule import StopRule, make_stop_rule
from completion.stop_rules.suffix_rule import before_suffix
from completion.tokens import Vocabulary


def complete(
    engine: Engine,
    prompt: str,
    language: str = "python",
    *,
    suffix: str = "",
    context: Sequence[Chunk] = (),
    path: str = "",
    on_text: Callable[[str], None] | None = None,
    cancelled: Callable[[], bool] = lambda: False,
    **settings,
) -> list[Completion]:
    """Complete a prompt. The candidates come best first (see `rank`).

    Args:
        suffix: the code after the cursor. A model that knows FIM marker words infills between prompt and suffix. Any
            other model completes the prompt alone. In both cases the completion does not repeat the suffix.
        context: chunks of the project. The model reads as many of them as fit before the prompt.
        path: of the completed file, below the project's folder. Some models' prompts contain it.
        on_text: called with each new piece of the first candidate's text, in whole characters, as soon as the piece is
            certain to be part of the completion.
        cancelled: called after each token. When it returns true, the text so far becomes the result.
        settings: the fields of `CompletionSettings`.
    Raises:
        InputError: a setting outside its range.
    """
    places = {"suffixes": [suffix], "contexts": [context], "paths": [path]}
    ((_, completions),) = complete_all(
        engine, [prompt], language, on_text=on_text, cancelled=cancelled, **places, **settings
    )
    return completions


def complete_all(
    engine: Engine,
    prompts: Sequence[str],
    language: str = "python",
    *,
    on_text: Callable[[str], None] | None = None,
    cancelled: Callable[[], bool] = lambda: False,
    suffixes: Sequence[str] = (),
    contexts: Sequence[Sequence[Chunk]] = (),
    paths: Sequence[str] = (),
    seeds: Sequence[int] = (),
    rule_of: Callable[[str], StopRule] | None = None,
    **settings,
) -> Iterator[tuple[int, list[Completion]]]:
    """Complete many prompts, several at once. Yield each prompt's index and candidates as soon as they are complete.

    Arguments and errors are those of `complete`; `on_text` is called for the first prompt only.

    Args:
        suffixes, contexts, paths: one for each prompt, as in `complete`; or empty.
        seeds: one for each prompt, from `seed_of`. If empty, they are made from the setting `seed` and the indices.
        rule_of: makes the stop rule for a prompt, instead of the setting `stop`.
    """
    options = CompletionSettings(**settings)
    suffixes = suffixes or [""] * len(prompts)
    if options.seed is not None:
        seeds = seeds or [seed_of(options.seed, place) for place in range(len(prompts))]
    rule_of = rule_of or (lambda text: make_stop_rule(options.stop, text, language))

    def rule(prompt: str, suffix: str) -> StopRule:
        return before_suffix(rule_of(prompt), prompt, suffix, language) if suffix else rule_of(prompt)

    places = zip(prompts, suffixes, contexts or [()] * len(prompts), paths or [""] * len(prompts), strict=True)
    read = [read_place(engine, *place, language, options.max_new_tokens) for place in places]
    if seeds:
        read = [replace(prompt, seed=seed) for prompt, seed in zip(read, seeds, strict=True)]
    candidates = [
        [_Candidate(engine.vocabulary, options, rule(text, suffix), prompt) for _ in range(options.candidates)]
        for text, suffix, prompt in zip(prompts, suffixes, read, strict=True)
    ]
    over: set[int] = set()
    left, reason, shown = dict(enumerate(prompts)), "context", 0

    def result(place: int) -> tuple[int, list[Completion]]:
        found = [candidate.finish(left[place], suffixes[place], language, reason) for candidate in candidates[place]]
        if on_text and place == 0 and (piece := candidates[0][0].text[shown:]):
            on_text(piece)
        del left[place]
        return place, [completion for completion in rank(found) if completion.probability >= options.min_probability]

    with closing(engine.stream(read, options, over)) as steps:
        for step in steps:
            place, number = divmod(step.candidate, options.candidates)
            candidate = candidates[place][number]
            if step.candidate in over:
                continue
            candidate.add(step)
            if candidate.stop_reason:
                over.add(step.candidate)
            if on_text and (piece := candidates[0][0].text[shown:]):
                shown += len(piece)
                on_text(piece)
            if all(candidate.stop_reason for candidate in candidates[place]):
                yield result(place)
            if not left:
                break
            if cancelled():
                reason = "interrupted"
                break
    for place in list(left):
        yield result(place)


def seed_of(*parts: object) -> int:
    """Return a seed that depends only on these parts.

    Seeds of similar parts are far apart, because llama.cpp uses a prompt's seed and the numbers after it for its
    candidates.
    """
    return random.Random(" ".join(map(str, parts))).getrandbits(31)


def read_place(
    engine: Engine,
    prefix: str,
    suffix: str,
    context: Sequence[Chunk],
    path: str,
    language: str,
    max_new_tokens: int,
) -> Prompt:
    """Return what the model reads: the chunks that fit, the prefix and, if the model can infill, the suffix."""
    vocabulary, length = engine.vocabulary, engine.context_length
    if suffix and vocabulary.fim_words:
        prompt = read_infill(vocabulary, vocabulary.fim_words, prefix, suffix, language, length, max_new_tokens)
    else:
        prompt = read_prompt(vocabulary, prefix, language, length, max_new_tokens)
    room = length - len(prompt.ids) - max_new_tokens - len(prompt.end.text)
    return with_context(prompt, vocabulary, context, language, path, room)


def rank(completions: list[Completion]) -> list[Completion]:
    """Sort candidates, best first. Of candidates with equal text, only the most likely one is kept.

    Those that parse come first, then those that do not, those that repeat themselves, and empty ones. Within each group
    the mean log-probability decides.
    """
    unique: dict[str, Completion] = {}
    for c in sorted(
        completions, key=lambda c: (not c.text, c.stop_reason == "loop", c.parses is False, -c.mean_log_prob)
    ):
        unique.setdefault(c.text, c)
    return list(unique.values())


class _Candidate:
    """A completion that is being generated."""

    def __init__(self, vocabulary: Vocabulary, options: CompletionSettings, rule: StopRule, prompt: Prompt):
        self.text = ""  # the part that is certain to belong to the completion
        self.stop_reason = ""
        self._vocabulary, self._options, self._rule, self._prompt = vocabulary, options, rule, prompt
        self._given = len(prompt.end.text)  # bytes that the model still has to generate of the prompt's end
        self._characters = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._decoded = ""
        self._tokens: list[int] = []
        self._log_probs: list[float | None] = []
        self._starts: list[int] = []  # where in the decoded text each token begins

    def add(self, step: Step) -> None:
        if step.token in self._vocabulary.end_ids:
            self.stop_reason = "eos"
            self._log_probs.append(step.log_prob)
            return
        content = self._vocabulary.bytes_of(step.token)
        again, content = content[: self._given], content[self._given :]
        self._given -= len(again)
        if again and not content:
            return
        self._tokens.append(step.token)
        self._log_probs.append(step.log_prob)
        self._starts.append(len(self._decoded))
        self._decoded += self._characters.decode(content)  # nothing while a character is incomplete
        safe, done = self._rule(self._decoded)
        unrepeated, repeats = before_repetition(self._decoded) if self._options.stop != "none" else (safe, False)
        self.text = self._decoded[: safe if done else max(len(self.text), min(safe, unrepeated))]
        if done:
            self.stop_reason = self._options.stop
        elif repeats:
            self.stop_reason = "loop"
        elif len(self._tokens) == self._options.max_new_tokens:
            self.stop_reason = "length"

    def finish(self, prompt: str, suffix: str, language: str, reason: str) -> Completion:
        if self.stop_reason in ("", "eos", "length"):  # no more text comes, so the rule need not hold any back
            safe, _ = self._rule(self._decoded + "\n")
            self.text = self._decoded[: max(safe, len(self.text))]
        kept = sum(start < len(self.text) for start in self._starts)
        # The end-of-text token counts if nothing before it was cut. An empty text has the score of its first token.
        ends = self.stop_reason == "eos" and kept == len(self._tokens)
        scored = self._log_probs[: max(1, kept + ends)]
        known = [log_prob for log_prob in scored if log_prob is not None] or [-inf]
        return Completion(
            text=self.text,
            tokens=self._tokens[:kept],
            mean_log_prob=sum(known) / len(known),
            probability=exp(sum(known)),
            stop_reason=self.stop_reason or reason,
            parses=parses(prompt + self.text + suffix) if language == "python" else None,
            prompt_tokens_dropped=self._prompt.dropped,
        )


def parses(source: str) -> bool:
    """Whether the text is valid Python. It is parsed, never run."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # for example about an invalid escape in a string
        try:
            ast.parse(textwrap.dedent(source))
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return False
    return True
