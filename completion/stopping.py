"""Stop rules: where a completion ends, decided while it is being generated.

A rule is called with the completion so far, which only grows, and answers (safe, done): how many of its characters
surely belong to the completion, and whether it ends there. What is not sure yet (a line break after which the block
may be over) is neither shown nor kept.
"""

import re
import tokenize
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import accumulate

StopRule = Callable[[str], tuple[int, bool]]

STOPS = ("block", "blank", "line", "none")


def make_stop_rule(stop: str, prompt: str, language: str) -> StopRule:
    """The rule named `stop` (one of STOPS) for one completion of `prompt`."""
    if stop == "block":
        return JavaBlock(prompt) if language == "java" else PythonBlock(prompt)
    return {"blank": blank_line, "line": one_line, "none": never}[stop]


def unfinished(text: str, language: str) -> bool:
    """Whether somebody who types this text surely has more to say: a block, bracket or comment is open."""
    if language == "java":
        return JavaBlock(text).is_open
    last = None
    for line in logical_lines(text + "\n"):
        last = line if line.word != "#" else last
    return last is not None and (not last.closed or last.colon or last.word == "@" or last.indent > 0)


def never(text: str) -> tuple[int, bool]:
    return len(text), False


def one_line(text: str) -> tuple[int, bool]:
    """Ends where the first line that is not blank ends."""
    return _before("\n", text)


def blank_line(text: str) -> tuple[int, bool]:
    """Ends at the first blank line that follows some text, as the 2020 reference does."""
    return _before("\n\n", text)


def _before(mark: str, text: str) -> tuple[int, bool]:
    end = text.find(mark, len(text) - len(text.lstrip()))
    return (end, True) if end >= 0 else (len(text.rstrip("\n")), False)


class PythonBlock:
    """Ends before the first line indented no deeper than the line that opened the prompt's block.

    That line is the prompt's last statement if it is the head of a compound one (`if x:`, or `def f(` still to be
    finished), else the innermost def or class around it, else the outermost compound statement around it. Outside any
    block the completion ends at the first blank line between two statements. Strings, brackets and line
    continuations are read by the standard library's tokenizer.
    """

    def __init__(self, prompt: str):
        statements = [line for line in logical_lines(prompt) if line.word != "#"]
        last = statements[-1] if statements else None
        row = prompt[prompt.rfind("\n") + 1 :]
        self._opening = last is not None and (not last.closed or last.is_head or last.word == "@")
        self._context = prompt[last.start :] if self._opening else row
        position = last.indent if last else 0
        if last and last.closed and (row or prompt.endswith("\n\n")):  # where the cursor stands says more
            position = _width(row)
        around = list(_around(statements, position))
        definitions = [line for line in around if line.word in ("def", "class", "async")]
        innermost = definitions[:1] or around[-1:]
        self._enclosing = innermost[0].indent if innermost else None
        self._seen, self._safe = 0, -1

    def __call__(self, text: str) -> tuple[int, bool]:
        done = False
        if self._safe == self._seen and "\n" not in text[self._seen :]:
            self._safe = len(text)  # the line goes on; only a new one can end the block
        else:
            self._safe, done = self._scan(text)
        self._seen = len(text)
        return self._safe, done

    def _scan(self, text: str) -> tuple[int, bool]:
        source, given = self._context + text, len(self._context)
        opening, depth, end, started = self._opening, self._enclosing, 0, False
        for line in logical_lines(source):
            ends = False
            if opening:
                if line.word not in ("#", "@"):
                    opening, depth = False, line.indent if line.is_head else depth
            elif depth is not None:
                ends = line.indent <= depth
                if ends and not started and line.word != "#":  # nothing to end yet: the next block it is, then
                    ends, depth = False, line.indent if line.is_head else None
            else:
                ends = started and line.indent == 0 and _BLANK.search(source, end, line.start) is not None
            if ends and line.start >= given:
                if line.word == "#":  # a comment belongs to whatever the next statement belongs to
                    continue
                return max(0, end - given), True
            started |= line.word != "#"
            end = line.end
        return max(0, end - given), False


_BLANK = re.compile(r"\n[ \t\f\r]*\n")
_COMPOUND = {"def", "class", "if", "elif", "else", "for", "while", "with", "try", "except", "finally", "async"}
_OPEN, _CLOSE = ("(", "[", "{"), (")", "]", "}")
_LAYOUT = {tokenize.INDENT, tokenize.DEDENT, tokenize.NL, tokenize.ENDMARKER}


@dataclass(frozen=True)
class Line:
    """A logical line (it may span several rows), or a row that holds a comment alone.

    Attributes:
        start: offset of the first row's first character.
        end: offset past the last character, the line break left out; the source's end if the line is unfinished.
        indent: columns of indentation.
        word: its first token; "#" for a comment.
        colon: whether it ends in a colon.
        closed: whether its line break has been seen.
    """

    start: int
    end: int
    indent: int
    word: str
    colon: bool
    closed: bool

    @property
    def is_head(self) -> bool:
        return self.colon or self.word in _COMPOUND


def logical_lines(source: str) -> Iterator[Line]:
    """The logical lines of Python source that may be unfinished or wrong: after an error, reading starts afresh."""
    rows = source.split("\n")
    starts = list(accumulate((len(row) + 1 for row in rows), initial=0))
    begin = 0
    while begin < len(rows):
        feed = iter([f"{row}\n" for row in rows[begin:-1]] + rows[-1:])
        first, word, last, depth = None, "", "", 0  # row and first token of the line being read, its latest, brackets
        try:
            for token in tokenize.generate_tokens(partial(next, feed, "")):
                row = begin + token.start[0] - 1
                if token.type in _LAYOUT:
                    continue
                if token.type == tokenize.COMMENT:
                    if first is None:
                        yield Line(starts[row], starts[row] + token.end[1], _width(rows[row]), "#", False, True)
                elif token.type != tokenize.NEWLINE:
                    depth += (token.string in _OPEN) - (token.string in _CLOSE) if token.type == tokenize.OP else 0
                    if depth < 0:  # before Python 3.12 the tokenizer itself would wait for the end of the source
                        raise tokenize.TokenError("unmatched bracket", token.start)
                    first, word = (row, token.string) if first is None else (first, word)
                    last = token.string
                elif first is not None:
                    end = starts[row] + token.start[1] if token.string else len(source)
                    yield Line(starts[first], end, _width(rows[first]), word, last == ":", bool(token.string))
                    first = None
            return
        except IndentationError as error:  # a dedent to a level that was never opened: no mistake of the layout's here
            begin += error.lineno - 1
        except tokenize.TokenError as error:
            message, (number, _) = error.args
            row = min(begin + number, len(rows)) - 1
            unfinished = "EOF" in message or row == len(rows) - 1
            first, word = (row, rows[row].split()[0] if rows[row].strip() else "") if first is None else (first, word)
            end = len(source) if unfinished else starts[row + 1] - 1
            yield Line(starts[first], end, _width(rows[first]), word, False, not unfinished)
            if unfinished:
                return
            begin = row + 1


def _width(row: str) -> int:
    return len(row[: len(row) - len(row.lstrip(" \t\f"))].rpartition("\f")[2].expandtabs())


def _around(statements: list[Line], position: int) -> Iterator[Line]:
    """The heads of the blocks that a line indented by `position` after these statements is in, innermost first."""
    for line in reversed(statements):
        if line.indent < position:
            position = line.indent
            if line.colon:
                yield line


class JavaBlock:
    """Ends with the brace that closes the prompt's innermost open block, or the block its unfinished line opens.

    Outside any block the completion is one declaration. Strings and comments are left out of account.
    """

    def __init__(self, prompt: str):
        self._depth = self._parens = last_start = 0
        last = ";"
        for token in _JAVA.finditer(prompt):
            last_start = token.start()
            if token.lastgroup != "comment":
                last = token[0]
                self._depth = max(0, self._depth + _step(last, "{", "}"))
                self._parens = max(0, self._parens + _step(last, "(", ")"))
        self._opening = self._depth == 0 or self._parens > 0 or last not in ("{", "}", ";")
        self._context = prompt[last_start:]  # from here a string or comment that the prompt leaves open can be read

    @property
    def is_open(self) -> bool:
        """Whether the prompt leaves a brace, a parenthesis or a comment open."""
        return self._depth + self._parens > 0 or (self._context.startswith("/*") and not self._context.endswith("*/"))

    def __call__(self, text: str) -> tuple[int, bool]:
        given = len(self._context)
        depth, parens, opening, close = self._depth, self._parens, self._opening, self._depth - 1
        for token in _JAVA.finditer(self._context + text):
            if token.end() <= given or token.lastgroup == "comment":
                continue
            word = token[0]
            parens = max(0, parens + _step(word, "(", ")"))
            if opening and not parens and depth == self._depth and word in ("{", ";"):
                if word == ";" and depth == 0:
                    return token.end() - given, True
                opening, close = False, depth if word == "{" else close
            depth += _step(word, "{", "}")
            if word == "}" and depth <= close:
                return token.end() - given, True
        return len(text.rstrip()), False


_JAVA = re.compile(
    r'''(?P<comment>//[^\n]*|/\*.*?(?:\*/|\Z))|(?P<text>"""(?:\\.|[^\\])*?(?:"""|\Z)|"(?:\\.|[^"\\\n])*"?|'(?:\\.|[^'\\\n])*'?)|\S''',
    re.DOTALL,
)


def _step(word: str, up: str, down: str) -> int:
    return (word == up) - (word == down)
