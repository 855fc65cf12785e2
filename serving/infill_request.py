"""What an editor asks at the cursor (llama.cpp's /infill), and the answer in llama.cpp's form.

The text is made by the rules of interact.py: `complete_all` decides where it ends.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from common.command import InputError
from completion.complete import complete_all
from completion.settings import Completion, Settings
from completion.stop_rules.stop_rule import StopRule, make_stop_rule
from serving.served_engine import REQUESTS_AT_ONCE, ServedEngine

# Fields of a request that are settings of `complete`, by their names there.
SETTINGS = {
    "n_predict": "max_new_tokens",
    "n_cmpl": "num_return_sequences",
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "repeat_penalty": "repetition_penalty",
    "seed": "seed",
}
STOP_TYPES = {"eos": "eos", "length": "limit", "context": "limit", "interrupted": "limit"}


@dataclass(frozen=True)
class InfillRequest:
    """One request to /infill.

    Attributes:
        prefix, suffix: the code before and after the cursor.
        chunks: code of other files, (file name, text).
        settings: for `complete`.
        stop_words: the text ends before any of them.
        milliseconds: after this time the text ends with its line; 0: no limit.
        is_warm_up: the editor wants no text, only that the prompt has been read.
        fields: names of those parts of the answer that the client wants, such as `timings/prompt_n`; None: all.
    """

    prefix: str
    suffix: str
    chunks: list[tuple[str, str]]
    settings: dict[str, Any]
    stop_words: list[str]
    milliseconds: float
    stream: bool
    is_warm_up: bool
    fields: list[str] | None

    @classmethod
    def read(cls, body: bytes) -> "InfillRequest":
        """Raises InputError where it is no such request; says what is wrong."""
        try:
            content = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise InputError(f"the request is not JSON ({error})") from None
        if not isinstance(content, dict):
            raise InputError("the request must be a JSON object")
        chunks = [
            (_text(chunk, "filename", "", "input_extra: "), _text(chunk, "text", place="input_extra: "))
            for chunk in _list(content, "input_extra", dict, "objects with `text` and `filename`")
        ]
        settings = {ours: content[name] for name, ours in SETTINGS.items() if content.get(name) is not None}
        warm_up = settings.get("max_new_tokens") == 0
        for name, none in (("max_new_tokens", -1), ("seed", -1), ("top_k", -1), ("max_new_tokens", 0)):
            if settings.get(name) == none:  # llama.cpp's word for "no limit" or "any"
                del settings[name]
        if warm_up:
            settings["max_new_tokens"] = 1
        request = cls(
            prefix=_text(content, "input_prefix") + _text(content, "prompt", ""),
            suffix=_text(content, "input_suffix"),
            chunks=chunks,
            settings=settings,
            stop_words=[word for word in _list(content, "stop", str, "texts") if word],
            milliseconds=_number(content, "t_max_predict_ms"),
            stream=content.get("stream") is True,
            is_warm_up=warm_up,
            fields=_list(content, "response_fields", str, "texts") if content.get("response_fields") else None,
        )
        request.check()
        return request

    def check(self) -> None:
        """Raises InputError for a setting outside its range."""
        names = {ours: name for name, ours in SETTINGS.items()}
        try:
            options = Settings(**self.settings)
        except InputError as error:
            flag, _, reason = str(error).partition(" ")
            raise InputError(f"{names.get(flag.removeprefix('--'), flag)} {reason}") from None
        count = options.num_return_sequences
        if count > REQUESTS_AT_ONCE:  # llama.vscode looks for this sentence
            raise InputError(f"Field 'n_cmpl': Value must be between 1 <= value <= {REQUESTS_AT_ONCE}, but got {count}")
        if count > 1 and self.stream:
            raise InputError("n_cmpl: several answers cannot be streamed")

    def answer(self, engine: ServedEngine, on_text: Callable[[str], None] | None = None) -> str:
        """The answer, as JSON. With `on_text`, which gets the text piece by piece, it holds what else there is to say.

        Args:
            engine: of this request alone (`ServedEngine.for_client`).
        """
        language = guess_language(self.prefix + self.suffix)

        def rule(prompt: str) -> StopRule:
            return with_limits(make_stop_rule("block", prompt, language), self.stop_words, self.milliseconds)

        ((_, completions),) = complete_all(
            engine,
            [self.prefix],
            language,
            suffixes=[self.suffix],
            on_text=on_text,
            rule_of=rule,
            **self.settings,
        )
        answers = [self._describe(engine, number, found) for number, found in enumerate(completions)]
        for answer in answers:
            if on_text or self.is_warm_up:
                answer["content"] = ""
        if self.fields is not None:
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
    """`rule`, which also ends the text before one of `words` and, some time after its first token, with the line."""
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
        elif not done:  # what may become one of the words is not shown yet
            begun = (n for word in words for n in range(1, len(word)) if text.endswith(word[:n]))
            safe = min(safe, len(text) - max(begun, default=0))
        shown = safe
        return safe, done

    return limited


def guess_language(text: str) -> str:
    """Java or Python, which editors do not say. Right for 98 of 100 pieces of 40 lines of TheAlgorithms, of either."""
    lines = [line for line in map(str.rstrip, text.splitlines()) if line]
    return "java" if sum(line.endswith((";", "{", "}")) for line in lines) > len(lines) / 10 else "python"


def _text(content: dict, name: str, default: str | None = None, place: str = "") -> str:
    value = content.get(name, default)
    if not isinstance(value, str):
        raise InputError(f"{place}{name} must be a text")
    return value.encode(errors="replace").decode()  # half of a character, where an editor has cut between two


def _number(content: dict, name: str) -> float:
    value = content.get(name) or 0
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value < 1e9:
        raise InputError(f"{name} must be a number below 1e9")
    return max(0, value)


def _list(content: dict, name: str, kind: type, wanted: str) -> list:
    value = content.get(name) or []
    if not isinstance(value, list) or not all(isinstance(item, kind) for item in value):
        raise InputError(f"{name} must be a list of {wanted}")
    return value


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
