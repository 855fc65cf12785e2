"""An editor's request at the cursor (llama.cpp's /infill), and the answer in llama.cpp's format.

`complete_all` decides where the text ends, as in interact.py.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypedDict

from common.command import InputError
from common.json_files import parse_json
from completion.complete import complete_all
from completion.repository.choice import choose_context
from completion.repository.chunks import Chunk, cut_chunks
from completion.repository.repository import Repository
from completion.settings import Completion, CompletionSettings
from completion.stop_rules.stop_rule import StopRule, make_stop_rule
from serving.served_engine import REQUESTS_AT_ONCE, ServedEngine

# Fields of a request, and the settings of `complete` that they set.
SETTINGS = {
    "n_predict": "max_new_tokens",
    "n_cmpl": "num_return_sequences",
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "repeat_penalty": "repetition_penalty",
    "seed": "seed",
}
# At most this many characters of a text and texts of other files are used: the model sees less, and more is slow.
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
    """The fields of a request; all others are ignored."""

    prompt: str
    input_extra: list[EditorChunk]
    n_predict: int
    n_cmpl: int
    temperature: float
    top_k: int
    top_p: float
    repeat_penalty: float
    seed: int
    stop: list[str]
    stream: bool
    t_max_predict_ms: float
    response_fields: list[str]


@dataclass(frozen=True)
class InfillRequest:
    """One request to /infill.

    Attributes:
        prefix, suffix: the code before and after the cursor.
        extra: names and texts of pieces of other files.
        settings: for `complete`.
        stop_words: the text ends before any of them.
        milliseconds: after this time the text ends with the current line; 0: no limit.
        is_warm_up: the editor wants no text; the prompt should only be processed.
        fields: names of the parts of the answer that the client wants, such as `timings/prompt_n`; empty: all.
    """

    prefix: str
    suffix: str
    extra: list[tuple[str, str]]
    settings: dict[str, Any]
    stop_words: list[str]
    milliseconds: float
    stream: bool
    is_warm_up: bool
    fields: list[str]

    @classmethod
    def read(cls, body: bytes) -> "InfillRequest":
        """Read a request. Raises InputError, with what is wrong, if it is not a valid one."""
        content = parse_json(body, Fields, "the request", "see docs/completion.md")
        settings = {ours: content[name] for name, ours in SETTINGS.items() if name in content}
        warm_up = settings.get("max_new_tokens") == 0
        no_limit = {"max_new_tokens": -1, "seed": -1, "top_k": -1}  # llama.cpp's values for "no limit"
        settings = {name: value for name, value in settings.items() if value != no_limit.get(name)}
        request = cls(
            prefix=last_lines(_text(content["input_prefix"] + content.get("prompt", ""))),
            suffix=_text(content["input_suffix"])[:MOST_CHARACTERS],
            extra=[
                (_text(chunk.get("filename", "")), _text(chunk["text"])[:MOST_CHARACTERS])
                for chunk in content.get("input_extra", [])[-MOST_EXTRA:]
            ],
            settings=settings | ({"max_new_tokens": 1} if warm_up else {}),
            stop_words=[word for word in content.get("stop", []) if word],
            milliseconds=max(0, content.get("t_max_predict_ms", 0)),
            stream=content.get("stream", False),
            is_warm_up=warm_up,
            fields=content.get("response_fields", []),
        )
        request.check()
        return request

    def check(self) -> None:
        """Raises InputError for a setting outside its range."""
        try:
            options = CompletionSettings(**self.settings)
        except InputError as error:
            flag, _, reason = str(error).partition(" ")
            names = {f"--{ours}": name for name, ours in SETTINGS.items()}
            raise InputError(f"{names.get(flag, flag)} {reason}") from None
        count = options.num_return_sequences
        if count > REQUESTS_AT_ONCE:  # llama.vscode looks for this sentence
            raise InputError(f"Field 'n_cmpl': Value must be between 1 <= value <= {REQUESTS_AT_ONCE}, but got {count}")
        if count > 1 and self.stream:
            raise InputError("n_cmpl: several answers cannot be streamed")

    def context(self, engine: ServedEngine, repository: Repository, max_tokens: int, language: str) -> list[Chunk]:
        """Choose the chunks that the model sees, from the repository's files and from what the editor sent."""
        extra = [chunk for name, text in self.extra for chunk in cut_chunks(path_in(repository, name), text)]
        most = {"max_tokens": max_tokens, "max_new_tokens": CompletionSettings(**self.settings).max_new_tokens}
        if not max_tokens:
            return []
        return choose_context(repository, engine, self.prefix, self.suffix, language, "", extra, **most)

    def answer(
        self,
        engine: ServedEngine,
        repository: Repository,
        context_tokens: int,
        on_text: Callable[[str], None] | None = None,
    ) -> str:
        """The answer, as JSON.

        Args:
            engine: used only by this request (`ServedEngine.for_client`).
            context_tokens: the most tokens of other files that the model sees.
            on_text: called with each new piece of the text; the answer then leaves the text out.
        """
        language = guess_language(self.prefix + self.suffix)

        def rule(prompt: str) -> StopRule:
            return with_limits(make_stop_rule("block", prompt, language), self.stop_words, self.milliseconds)

        ((_, completions),) = complete_all(
            engine,
            [self.prefix],
            language,
            suffixes=[self.suffix],
            contexts=[self.context(engine, repository, context_tokens, language)],
            on_text=on_text,
            rule_of=rule,
            **self.settings,
        )
        answers = [self._describe(engine, number, found) for number, found in enumerate(completions)]
        for answer in answers:
            if on_text or self.is_warm_up:
                answer["content"] = ""
        if self.fields:
            answers = [_select(answer, self.fields) for answer in answers]
        return to_json(answers if self.settings.get("num_return_sequences", 1) > 1 else answers[0])

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
            "generation_settings": self.settings,
            "has_new_line": "\n" in completion.text,
            "truncated": completion.prompt_tokens_dropped > 0,
            "stop_type": STOP_TYPES.get(completion.stop_reason, "word"),
            "stopping_word": "",
            "tokens_cached": evaluated + len(completion.tokens),
            "timings": timings,
        }


def piece_of_answer(text: str) -> str:
    """A part of a streamed answer, as JSON."""
    return to_json({"index": 0, "content": text, "tokens": [], "stop": False})


def to_json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))  # llama.vim looks for `"content":"`, without a blank


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
        elif not done:  # the beginning of a stop word is not shown yet
            begun = (n for word in words for n in range(1, len(word)) if text.endswith(word[:n]))
            safe = min(safe, len(text) - max(begun, default=0))
        shown = safe
        return safe, done

    return limited


def last_lines(text: str) -> str:
    """Return whole lines from the end of a text, at most MOST_CHARACTERS."""
    if len(text) <= MOST_CHARACTERS:
        return text
    text = text[-MOST_CHARACTERS:]
    return text[text.find("\n") + 1 :]


def path_in(repository: Repository, file: str) -> str:
    """Return a file's path below the repository's folder, or only its name if it is outside."""
    file = " ".join(file.replace("\\", "/").split())
    folder = f"{repository.folder.resolve().as_posix()}/" if repository.folder else "/"
    return file.removeprefix(folder) if folder != "/" and file.startswith(folder) else file.rpartition("/")[2]


def guess_language(text: str) -> str:
    """Guess Java or Python, because editors do not say. Right for 98 of 100 pieces of 40 lines of TheAlgorithms."""
    lines = [line for line in map(str.rstrip, text.splitlines()) if line]
    return "java" if sum(line.endswith((";", "{", "}")) for line in lines) > len(lines) / 10 else "python"


def _text(text: str) -> str:
    return text.encode(errors="replace").decode()  # an editor may cut a character in two


def _select(answer: dict, fields: list[str]) -> dict:
    """The fields that a client asks for, under the names it gives them: `timings/prompt_n` is inside `timings`."""
    found = {}
    for field in fields:
        value: Any = answer
        for name in field.split("/"):
            value = value.get(name) if isinstance(value, dict) else None
        if value is not None:
            found[field] = value
    return found
