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

from completion.cursor import Cursor
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
        context, path: as in `Cursor`.
        on_text: called with each new piece of the first candidate's text, in whole characters, as soon as the piece is
            certain to be part of the completion.
        cancelled: called after each token. When it returns true, the text so far becomes the result.
        settings: the fields of `CompletionSettings`.
    Raises:
        InputError: a setting outside its range.
    """
    cursor = Cursor(prompt, suffix, language, path, tuple(context))
    return complete_at(engine, cursor, on_text=on_text, cancelled=cancelled, **settings)


def complete_at(engine: Engine, cursor: Cursor, **arguments) -> list[Completion]:
    """Complete at a cursor, with the other arguments and the errors of `complete_all`."""
    ((_, completions),) = complete_all(engine, [cursor], **arguments)
    return completions


def complete_all(
    engine: Engine,
    cursors: Sequence[Cursor],
    *,
    on_text: Callable[[str], None] | None = None,
    cancelled: Callable[[], bool] = lambda: False,
    seeds: Sequence[int] = (),
    rule_of: Callable[[str], StopRule] | None = None,
    **settings,
) -> Iterator[tuple[int, list[Completion]]]:
    """Complete at many cursors, several at once. Yield each one's index and candidates as soon as they are complete.

    The other arguments and the errors are those of `complete`; `on_text` is called for the first cursor only.

    Args:
        seeds: one for each cursor, from `seed_of`. If empty, they are made from the setting `seed` and the indices.
        rule_of: makes the stop rule for a prefix, instead of the setting `stop`.
    """
    options = CompletionSettings(**settings)
    if options.seed is not None:
        seeds = seeds or [seed_of(options.seed, index) for index in range(len(cursors))]
    groups = [
        _Candidates(engine, cursor, options, rule_of, seed)
        for cursor, seed in zip(cursors, seeds or [None] * len(cursors), strict=True)
    ]
    left, over, reason = dict(enumerate(groups)), set(), "context"

    def result(index: int) -> tuple[int, list[Completion]]:
        found = left.pop(index).finish(reason)
        groups[0].show(on_text)
        return index, found

    with closing(engine.stream([group.prompt for group in groups], options, over)) as steps:
        for step in steps:
            index, number = divmod(step.candidate, options.candidates)
            if step.candidate in over:
                continue
            if groups[index].add(number, step):
                over.add(step.candidate)
            groups[0].show(on_text)
            if groups[index].are_complete:
                yield result(index)
            if not left:
                break
            if cancelled():
                reason = "interrupted"
                break
    for index in list(left):
        yield result(index)


def seed_of(*parts: object) -> int:
    """Return a seed that depends only on these parts.

    Seeds of similar parts are far apart, because llama.cpp uses a prompt's seed and the numbers after it for its
    candidates.
    """
    return random.Random(" ".join(map(str, parts))).getrandbits(31)


def read_cursor(engine: Engine, cursor: Cursor, max_new_tokens: int) -> Prompt:
    """Return what the model reads: the chunks that fit, the prefix and, if the model can infill, the suffix."""
    vocabulary, length = engine.vocabulary, engine.context_length
    if cursor.suffix and vocabulary.fim_words:
        prompt = read_infill(vocabulary, cursor, length, max_new_tokens)
    else:
        prompt = read_prompt(vocabulary, cursor.prefix, cursor.language, length, max_new_tokens)
    return with_context(prompt, vocabulary, cursor, length - len(prompt.ids) - max_new_tokens - len(prompt.end.text))


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


class _Candidates:
    """The candidates of one cursor, while they are generated."""

    def __init__(
        self,
        engine: Engine,
        cursor: Cursor,
        options: CompletionSettings,
        rule_of: Callable[[str], StopRule] | None,
        seed: int | None,
    ):
        self._cursor, self._options, self._shown = cursor, options, 0
        self.prompt = replace(read_cursor(engine, cursor, options.max_new_tokens), seed=seed)
        self._candidates = []
        rule_of = rule_of or (lambda prefix: make_stop_rule(options.stop, prefix, cursor.language, cursor.suffix))
        for _ in range(options.candidates):
            rule = rule_of(cursor.prefix)
            if cursor.suffix:
                rule = before_suffix(rule, cursor.prefix, cursor.suffix, cursor.language)
            self._candidates.append(_Candidate(engine.vocabulary, options, rule, self.prompt))

    def add(self, number: int, step: Step) -> bool:
        """Add a token to a candidate. Return whether that candidate is complete."""
        self._candidates[number].add(step)
        return bool(self._candidates[number].stop_reason)

    @property
    def are_complete(self) -> bool:
        return all(candidate.stop_reason for candidate in self._candidates)

    def show(self, on_text: Callable[[str], None] | None) -> None:
        """Call `on_text` with what is new in the first candidate's text."""
        if on_text and (piece := self._candidates[0].text[self._shown :]):
            self._shown += len(piece)
            on_text(piece)

    def finish(self, reason: str) -> list[Completion]:
        """Return the completions, best first. Those that have not ended by themselves get this stop reason."""
        found = rank([candidate.finish(self._cursor, reason) for candidate in self._candidates])
        return [completion for completion in found if completion.probability >= self._options.min_probability]


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

    def finish(self, cursor: Cursor, reason: str) -> Completion:
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
            parses=parses(cursor.prefix + self.text + cursor.suffix) if cursor.language == "python" else None,
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
