"""Stop rules decide where a completion ends, while it is being generated.

A rule is called again and again with the text so far, which only grows. It returns (safe, done): how many characters
surely belong to the completion, and whether the completion ends there. The rest, such as a line break after which the
block may be over, is neither shown nor kept yet. `safe` never shrinks.
"""

import re
from collections.abc import Callable

from completion.stop_rules.java_block import JavaBlock
from completion.stop_rules.python_block import PythonBlock
from completion.stop_rules.python_lines import Line, after_cut_string, logical_lines, width

Decision = tuple[int, bool]  # safe, done
StopRule = Callable[[str], Decision]

STOPS = ("block", "blank", "line", "none")


def make_stop_rule(stop: str, prompt: str, language: str, suffix: str = "") -> StopRule:
    """Return the rule named `stop`, one of STOPS, for one completion of `prompt`, which has `suffix` after it."""
    if stop == "block":
        return JavaBlock(prompt) if language == "java" else PythonBlock(after_cut_string(prompt))
    if stop == "none":
        return lambda text: (len(text), False)
    return FirstBreak(r"\n" if stop == "line" else r"\n[ \t]*\r?\n", prompt, language, suffix)


def unfinished(text: str, language: str) -> bool:
    """Whether this text is unfinished, because a block, bracket or comment is open."""
    if language == "java":
        return JavaBlock(text).is_open
    last = _last_statement(text + "\n")
    return last is not None and (not last.closed or last.is_head or last.word == "@" or last.indent > 0)


def lacks_body(source: str, language: str) -> bool:
    """Whether the source ends with a block that has no statement yet. A completion must not end there."""
    if language == "java":
        return JavaBlock(source).is_empty
    last = _last_statement(source)
    return last is not None and last.is_head


class FirstBreak:
    """A completion ends at the first line break, or blank line, after some text.

    If the prompt opens a block whose body is not in the suffix, the text must contain a statement.
    """

    def __init__(self, pattern: str, prompt: str, language: str, suffix: str):
        self._break, self._prompt, self._language = re.compile(r"[ \t]*\r?" + pattern), prompt, language
        self._lacks_body = lacks_body(prompt, language) and not _begins_with_body(prompt, suffix, language)
        self._from = 0

    def __call__(self, text: str) -> Decision:
        begin = max(self._from, len(text) - len(text.lstrip()))
        while match := self._break.search(text, begin):
            if not self._lacks_body or not lacks_body(self._prompt + text[: match.start()], self._language):
                return match.start(), True
            self._from = begin = match.end()
        return len(text.rstrip()), False


def _begins_with_body(source: str, suffix: str, language: str) -> bool:
    """Whether the lines after the cursor are the body of the block that the source has opened."""
    line = next((line for line in suffix.split("\n")[1:] if line.strip()), "")
    if language == "java":
        return bool(line) and not line.lstrip().startswith("}")
    return width(line) > _last_statement(source).indent


def _last_statement(source: str) -> Line | None:
    last = None
    for line in logical_lines(after_cut_string(source)):
        last = line if line.word != "#" else last
    return last
