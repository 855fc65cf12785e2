"""An editor's request at the cursor, and the answer to it, in the format of llama.cpp's /infill.

`complete_at` decides where the text ends, as in interact.py.
"""

import json
import time
from collections.abc import Callable
from typing import Any, TypedDict

from common.command import InputError
from common.json_files import parse_json
from completion.complete import complete_at
from completion.cursor import Cursor
from completion.repository.choice import choose_context
from completion.repository.chunks import Chunk, cut_chunks
from completion.repository.repository import Repository
from completion.settings import Completion, CompletionSettings
from completion.stop_rules.stop_rule import StopRule, make_stop_rule
from serving.served_engine import REQUESTS_AT_ONCE, ServedEngine

# Fields of a request, and the completion settings that they set.
SETTING_FIELDS = {
    "n_predict": "max_new_tokens",
    "n_cmpl": "num_return_sequences",
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "repeat_penalty": "repetition_penalty",
    "seed": "seed",
}
UNSET = {"n_predict": -1, "seed": -1, "top_k": -1}  # in llama.cpp's protocol these mean: use the default
# Longer texts are cut, and more chunks ignored: the model would not see the rest, and reading it takes time.
MOST_CHARACTERS, MOST_EXTRA = 20_000, 32
STOP_TYPES = {"eos": "eos", "length": "limit", "context": "limit", "interrupted": "limit"}


class ChunkText(TypedDict):
    text: str


class EditorChunk(ChunkText, total=False):
    """A part of a file that is open in the editor."""

    filename: str


class Needed(TypedDict):
    input_prefix: str
    input_suffix: str


class Fields(Needed, total=False):
    """The fields of a request, besides SETTING_FIELDS. All others are ignored."""

    prompt: str  # comes after input_prefix
    input_extra: list[EditorChunk]
    stop: list[str]  # the text ends before any of these
    stream: bool
    t_max_predict_ms: float  # after this time the text ends with the current line; 0: no limit
    response_fields: list[str]  # the parts of the answer that the client wants, such as `timings/prompt_n`


class InfillRequest:
    """One request to /infill.

    Raises:
        InputError: the request is not valid; the message says why.
    """

    def __init__(self, body: bytes):
        self._fields = parse_json(body.decode(errors="replace"), Fields, "the request", "see docs/completion.md")
        self.stream = self._fields.get("stream", False)
        self._prefix = self._fields["input_prefix"] + self._fields.get("prompt", "")
        if len(self._prefix) > MOST_CHARACTERS:
            end = self._prefix[-MOST_CHARACTERS:]
            self._prefix = end[end.find("\n") + 1 :]  # whole lines, because stop rules read them
        self._suffix = self._fields["input_suffix"][:MOST_CHARACTERS]
        given = {
            name: self._fields[name] for name in SETTING_FIELDS if self._fields.get(name) not in (None, UNSET.get(name))
        }
        self._is_warm_up = given.get("n_predict") == 0  # the editor only wants the prompt to be processed
        if self._is_warm_up:
            given["n_predict"] = 1
        self._settings = {SETTING_FIELDS[name]: value for name, value in given.items()}
        try:
            self._options = CompletionSettings(**self._settings)
        except InputError as error:
            flag, _, reason = str(error).partition(" ")
            names = {f"--{ours}": name for name, ours in SETTING_FIELDS.items()}
            raise InputError(f"{names[flag]} {reason}") from None
        count = self._options.num_return_sequences
        if count > REQUESTS_AT_ONCE:  # llama.vscode searches error messages for this sentence
            raise InputError(f"Field 'n_cmpl': Value must be between 1 <= value <= {REQUESTS_AT_ONCE}, but got {count}")
        if count > 1 and self.stream:
            raise InputError("n_cmpl: several answers cannot be streamed")

    def answer(
        self,
        engine: ServedEngine,
        repository: Repository,
        context_tokens: int,
        on_text: Callable[[str], None] | None = None,
    ) -> str:
        """Return the answer as JSON.

        Args:
            engine: used only by this request (`ServedEngine.for_client`).
            context_tokens: the most tokens of other files that the model sees.
            on_text: called with each new piece of the text; the answer then leaves the text out.
        """
        language = guess_language(self._prefix + self._suffix)
        words = [word for word in self._fields.get("stop", []) if word]
        milliseconds = max(0, self._fields.get("t_max_predict_ms", 0))

        def rule(prompt: str) -> StopRule:
            return with_limits(make_stop_rule("block", prompt, language), words, milliseconds)

        cursor = Cursor(self._prefix, self._suffix, language)
        if context_tokens:
            cursor = self._add_context(cursor, engine, repository, context_tokens)
        completions = complete_at(engine, cursor, on_text=on_text, rule_of=rule, **self._settings)
        answers = [self._describe(engine, number, found) for number, found in enumerate(completions)]
        for answer in answers:
            if on_text or self._is_warm_up:
                answer["content"] = ""
        if wanted := self._fields.get("response_fields"):
            answers = [_select(answer, wanted) for answer in answers]
        return to_json(answers if self._options.num_return_sequences > 1 else answers[0])

    def _add_context(self, cursor: Cursor, engine: ServedEngine, repository: Repository, max_tokens: int) -> Cursor:
        """Add the chunks that the model sees, from the repository's files and from what the editor sent."""
        extra: list[Chunk] = []
        for sent in self._fields.get("input_extra", [])[-MOST_EXTRA:]:
            extra += cut_chunks(path_in(repository, sent.get("filename", "")), sent["text"][:MOST_CHARACTERS])
        most = {"max_tokens": max_tokens, "max_new_tokens": self._options.max_new_tokens}
        return choose_context(repository, engine, cursor, extra, **most)

    def _describe(self, engine: ServedEngine, number: int, completion: Completion) -> dict:
        timings = engine.timings
        evaluated = timings.get("cache_n", 0) + timings.get("prompt_n", 0)
        return {
            "index": number,
            "content": completion.text,
            "tokens": [],
            "stop": True,
            "model": engine.model_name,
            "tokens_predicted": len(completion.tokens),
            "tokens_evaluated": evaluated,
            "generation_settings": self._settings,
            "has_new_line": "\n" in completion.text,
            "truncated": completion.prompt_tokens_dropped > 0,
            "stop_type": STOP_TYPES.get(completion.stop_reason, "word"),
            "stopping_word": "",
            "tokens_cached": evaluated + len(completion.tokens),
            "timings": timings,
        }


def to_json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))  # llama.vim searches for `"content":"` without a space


def with_limits(rule: StopRule, words: list[str], milliseconds: float) -> StopRule:
    """Extend `rule`: the text also ends before any of `words`, and after `milliseconds` with the current line."""
    until, shown = 0.0, 0

    def limited(text: str) -> tuple[int, bool]:
        nonlocal until, shown
        until = until or time.monotonic() + milliseconds / 1000
        safe, done = rule(text)
        ends = [place for word in words if (place := text.find(word)) >= 0]
        if milliseconds and time.monotonic() > until:
            line_end = text.find("\n", max(shown, len(text) - len(text.lstrip())))
            ends += [line_end] * (line_end >= 0)
        if ends:
            safe, done = min(safe, *ends), True
        elif not done:  # hold back what may be the beginning of a stop word
            begun = (n for word in words for n in range(1, len(word)) if text.endswith(word[:n]))
            safe = min(safe, len(text) - max(begun, default=0))
        shown = safe
        return safe, done

    return limited


def path_in(repository: Repository, file: str) -> str:
    """Return a file's path below the repository's folder, or only its name if it is outside."""
    file = " ".join(file.replace("\\", "/").split())
    if repository.folder and file.startswith(folder := f"{repository.folder.resolve().as_posix()}/"):
        return file.removeprefix(folder)
    return file.rpartition("/")[2]


def guess_language(text: str) -> str:
    """Guess Java or Python, because editors do not say. Right for 98 of 100 pieces of 40 lines of TheAlgorithms."""
    lines = [line for line in map(str.rstrip, text.splitlines()) if line]
    return "java" if sum(line.endswith((";", "{", "}")) for line in lines) > len(lines) / 10 else "python"


def _select(answer: dict, fields: list[str]) -> dict:
    """Return the fields that a client asks for, under the client's names; `timings/prompt_n` is inside `timings`."""
    found = {}
    for field in fields:
        value: Any = answer
        for name in field.split("/"):
            value = value.get(name) if isinstance(value, dict) else None
        if value is not None:
            found[field] = value
    return found
