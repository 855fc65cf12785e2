"""Stop rules: where a completion ends, decided while it is being generated.

A rule is called with the completion so far, which only grows, and answers (safe, done): how many of its characters
surely belong to the completion, and whether it ends there. What is not sure yet (a line break after which the block
may be over) is neither shown nor kept. `safe` never shrinks. Each row or token is read once.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

StopRule = Callable[[str], tuple[int, bool]]

STOPS = ("block", "blank", "line", "none")


def make_stop_rule(stop: str, prompt: str, language: str) -> StopRule:
    """The rule named `stop` (one of STOPS) for one completion of `prompt`."""
    if stop == "block":
        return JavaBlock(prompt) if language == "java" else PythonBlock(prompt)
    if stop == "none":
        return never
    return FirstBreak(r"\n" if stop == "line" else r"\n[ \t]*\r?\n", prompt, language)


def unfinished(text: str, language: str) -> bool:
    """Whether somebody who types this text surely has more to say: a block, bracket or comment is open."""
    if language == "java":
        return JavaBlock(text).is_open
    last = _last_statement(text + "\n")
    return last is not None and (not last.closed or last.is_head or last.word == "@" or last.indent > 0)


def lacks_body(source: str, language: str) -> bool:
    """Whether source ends in a block without a statement: it must not end here, whatever a model wishes."""
    if language == "java":
        return JavaBlock(source).is_empty
    last = _last_statement(source)
    return last is not None and last.is_head


def never(text: str) -> tuple[int, bool]:
    return len(text), False


class FirstBreak:
    """Ends at the first line break (or blank line) after some text, and after the first statement of an open block."""

    def __init__(self, pattern: str, prompt: str, language: str):
        self._break, self._prompt, self._language = re.compile(r"[ \t]*\r?" + pattern), prompt, language
        self._lacks_body = lacks_body(prompt, language)
        self._from = 0

    def __call__(self, text: str) -> tuple[int, bool]:
        begin = max(self._from, len(text) - len(text.lstrip()))
        while match := self._break.search(text, begin):
            if not self._lacks_body or not lacks_body(self._prompt + text[: match.start()], self._language):
                return match.start(), True
            self._from = begin = match.end()
        return len(text.rstrip()), False


HEADS = {
    "def", "class", "if", "elif", "else", "for", "while", "with", "try", "except", "finally", "async", "match", "case",
}  # fmt: skip
_SOFT = {"match", "case"}  # these are also names
_DEFINITIONS = {"def", "class", "async"}
# What may follow a clause at its own column as a part of the same statement.
_CLAUSES = {
    "if": {"elif", "else"}, "elif": {"elif", "else"}, "for": {"else"}, "while": {"else"}, "async": {"else"},
    "try": {"except", "finally"}, "except": {"except", "else", "finally"}, "else": {"finally"}, "case": {"case"},
}  # fmt: skip


@dataclass
class Line:
    """A logical line (it may span several rows), or a row that holds a comment alone.

    Attributes:
        start, end: offsets of its first row and past its last character, the line break left out.
        indent: columns of indentation.
        word: its first token; "#" for a comment.
        colon: whether the colon of a head was read, outside brackets and lambdas.
        inline: whether something follows that colon.
        closed: whether its line break has been seen.
    """

    start: int
    end: int
    indent: int
    word: str
    colon: bool = False
    inline: bool = False
    closed: bool = False

    @property
    def is_head(self) -> bool:
        """Whether it ends in the colon that opens a block."""
        return self.word in HEADS and self.colon and not self.inline


@dataclass
class LineReader:
    """Reads Python row by row, unfinished or wrong as it may be; what is open is carried from one row to the next."""

    line: Line | None = None  # the logical line that is not closed yet
    _open: list[str] = field(default_factory=list)  # brackets, strings by prefix and quotes, ":" for a format
    _lambdas: int = 0

    def read(self, row: str, start: int) -> Line | None:
        """The logical line that this row, with its line break if it has one, begins or goes on with."""
        if self.line is None:
            word = _FIRST.match(row)
            if word is None:
                return None
            self.line, self._lambdas = Line(start, start, _width(row), word[1]), 0
        line, goes_on = self.line, self._tokens(row)
        line.end = start + len(row.rstrip("\r\n"))
        if row.endswith("\n"):
            self._drop_broken_strings(goes_on)
            line.closed = not self._open and not goes_on
        if line.closed:
            self.line = None
        return line

    def _tokens(self, row: str) -> bool:
        """Take in the row's tokens; whether it ends in a backslash that joins it to the next."""
        at, joined = 0, False
        while at < len(row):
            top = self._open[-1] if self._open else ""
            if top and top not in "([{":
                at = self._text(row, at, top)
                continue
            match = _TOKEN.search(row, at)
            if match is None:
                break
            at, token = match.end(), match[0]
            joined = match.lastgroup == "join"
            if match.lastgroup != "comment" and not joined:
                self._token(token, match.lastgroup == "string")
        return joined

    def _token(self, token: str, is_string: bool) -> None:
        if not self._open:
            self._note(token)
        if is_string or token in ("(", "[", "{"):
            self._open.append(token)
        elif token in (")", "]", "}") and self._open:
            self._open.pop()
        elif token == ":" and self._open[-1:] == ["{"] and len(self._open) > 1 and self._open[-2][-1] in "\"':":
            self._open.append(":")  # the format of an f-string's field

    def _note(self, token: str) -> None:
        """A token outside brackets and strings: is it the head's colon, or does it follow that?"""
        if self.line.colon:
            self.line.inline = True
        elif token == "lambda":
            self._lambdas += 1
        elif token == ":" and self._lambdas:
            self._lambdas -= 1
        elif token == ":":
            self.line.colon = True

    def _text(self, row: str, at: int, top: str) -> int:
        """Read on inside a string, or inside the format of a field; where that leaves off."""
        quotes = top.lstrip("rRbBuUfFtT")
        fields = top == ":" or "f" in top.lower() or "t" in top.lower()
        end = "[}]" if top == ":" else quotes
        pattern = rf"\\N\{{[^}}]*\}}|\\(?:\r\n|[^{{])|{end}" if fields else rf"\\(?:\r\n|[\s\S])|{end}"
        match = re.compile(pattern + (r"|\{\{|\{" if fields else "")).search(row, at)
        if match is None:
            return len(row)
        if match[0] == "{":
            self._open.append("{")
        elif match[0] == "}" and top == ":":
            del self._open[-2:]
        elif match[0] == quotes:
            self._open.pop()
        return match.end()

    def _drop_broken_strings(self, goes_on: bool) -> None:
        """A string in single quotes ends with its row: unless a backslash joins the next, somebody forgot to close."""
        for place, opened in enumerate(self._open):
            if opened[-1] in "\"'" and opened[-3:] not in ("'''", '"""') and not goes_on:
                del self._open[place:]
                return


_FIRST = re.compile(r"[ \t\f\r]*(\w+|[^\s])")
_TOKEN = re.compile(
    r"""(?P<comment>\#[^\n]*)|(?P<string>(?i:[rbuft]{0,2})(?:'{3}|"{3}|'|"))|(?P<join>\\\r?\n?\Z)|\w+|:=|\S"""
)


def _rows(source: str, begin: int = 0) -> Iterator[tuple[int, str]]:
    """Offsets and rows, each with its line break; the last one, if it is not empty, without."""
    while begin < len(source):
        end = source.find("\n", begin) + 1 or len(source)
        yield begin, source[begin:end]
        begin = end


def logical_lines(source: str) -> Iterator[Line]:
    """The logical lines of Python source that may be unfinished or wrong."""
    reader, line = LineReader(), None
    for start, row in _rows(source):
        line = reader.read(row, start)
        if line and line.closed:
            yield line
    if reader.line:
        yield reader.line


def _last_statement(source: str) -> Line | None:
    last = None
    for line in logical_lines(source):
        last = line if line.word != "#" else last
    return last


def _width(row: str) -> int:
    return len(row[: len(row) - len(row.lstrip(" \t\f"))].rpartition("\f")[2].expandtabs())


class PythonBlock:
    """Ends with the statement whose block the prompt opened, else with the innermost definition around the cursor.

    The prompt's last line opens a block if it ends in the colon of its head, or is not finished and turns out so. A
    statement's later clauses (`else`, `except`, ...) belong to it. Where no definition is around, the outermost compound
    statement counts; outside any block the completion ends at the first blank line between two statements. A
    definition that begins a completion among a class's or a module's statements ends it.
    """

    def __init__(self, prompt: str):
        self._statements = [line for line in logical_lines(prompt) if line.word != "#"]
        begin = prompt.rfind("\n") + 1
        self._reader = LineReader()
        for start, row in _rows(prompt[:begin]):
            self._reader.read(row, start)
        self._row_start, self._row = begin - len(prompt), prompt[begin:]
        self._accepted = bool(self._row.strip()) or self._reader.line is not None
        self._end, self._done = 0, False
        self._blank = self._started = False
        self._block: tuple[int, str] | None = None  # column and latest clause of the statement to complete
        self._pending = True  # whether the next statement tells which it is
        self._wanted = False  # whether that statement was begun in the prompt, so that it is the one if it can be
        last = self._statements[-1] if self._statements else None
        if last is None:
            return
        if last.is_head:
            self._block, self._pending = (last.indent, last.word), False
        elif last.word == "@":
            self._wanted = True
        elif not last.closed:
            self._statements.pop()
            self._wanted = not last.inline
            if last.inline and last.word in HEADS:
                self._block, self._pending = self._around(last.indent), False

    def __call__(self, text: str) -> tuple[int, bool]:
        while not self._done and (at := text.find("\n", max(0, self._row_start))) >= 0:
            self._finish_row(self._row + text[max(0, self._row_start) : at + 1], at + 1)
        if self._done:
            return self._end, True
        row = self._row + text[max(0, self._row_start) :]
        if not self._accepted and (word := _FIRST.match(row)):
            self._begin(_width(row), word[1], word.end() < len(row))
        return (self._end, self._done) if not self._accepted or self._done else (len(text) - row.endswith("\r"), False)

    def _finish_row(self, row: str, after: int) -> None:
        word = _FIRST.match(row)
        if word and not self._accepted:
            self._begin(_width(row), word[1], True)
            if self._done:
                return
        self._blank |= word is None and self._reader.line is None
        line = self._reader.read(row, self._row_start)
        if line and self._accepted:
            self._end = max(self._end, after - (len(row) - len(row.rstrip("\r\n"))))
            if line.closed and line.word != "#":
                self._take(line)
        self._row_start, self._row = after, ""
        self._accepted = self._reader.line is not None

    def _begin(self, indent: int, word: str, whole: bool) -> None:
        """A row begins a logical line: does it belong to the completion? If `word` is not whole, that may stay open."""
        if self._block is None:
            ends = not self._pending and self._started and indent == 0 and self._blank
        else:
            column, clause = self._block
            ends = indent < column or (indent == column and word not in _CLAUSES.get(clause, ()))
            if ends and indent == column and not whole and any(c.startswith(word) for c in _CLAUSES.get(clause, ())):
                return
        if ends and word != "#" and not self._started:  # nothing to end yet: the next block it is, then
            self._block, self._pending, self._wanted, ends = None, True, False, False
        if not ends:
            self._accepted = True
        elif word != "#":  # a comment belongs to whatever the next statement belongs to
            self._done = True

    def _take(self, line: Line) -> None:
        self._blank = False
        if line.word == "@" and self._pending:
            self._wanted = True
            return
        if self._pending:
            self._choose(line)
        elif self._block and line.indent <= self._block[0]:
            self._block = (line.indent, line.word)
        self._started |= not (line.is_head and self._block == (line.indent, line.word))  # its head is no body

    def _choose(self, line: Line) -> None:
        """The first statement is known: it is the block, or stands in the one that is to be completed."""
        self._pending = False
        self._block = self._around(line.indent)
        among = self._block is None or self._block[1] == "class"
        opens = line.is_head or (line.word in HEADS - _SOFT and line.colon)
        if opens and (self._wanted or (among and line.word in _DEFINITIONS)):
            self._block = (line.indent, line.word)

    def _around(self, position: int) -> tuple[int, str] | None:
        """The innermost definition, else the outermost compound statement, around a line in this column."""
        outermost = None
        for line in reversed(self._statements):
            if line.indent < position:
                position = line.indent
                if line.is_head:
                    outermost = line.indent, line.word
                    if line.word in _DEFINITIONS:
                        return outermost
        return outermost


@dataclass
class _Bracket:
    """An open bracket of Java: what it holds, and the statement it stands in."""

    sign: str
    holds: str  # "members", "statements" or "values"
    in_expression: bool
    head: list[str]  # the statement's words and brackets before it


class JavaBlock:
    """Ends with the statement whose block the prompt opened; a brace inside an expression ends with its `;`.

    Clauses (`else`, `catch`, `while` of a `do`) belong to their statement. Without a block that was just opened: in a
    class or outside, the completion is one member or declaration; in a block, it goes to the block's end.
    """

    def __init__(self, prompt: str):
        self._open: list[_Bracket] = []
        self._head: list[str] = []  # the words of the statement so far
        self._target, self._opening = -1, False
        self._held: tuple[int, set[str]] | None = None  # a possible end, and the words that would carry on
        self._done, self._last, self._at = -1, "", 0
        self._read(prompt)
        self._rest = prompt[self._at :]
        self._at = 0
        self._choose(bool(self._head or (self._rest.strip() and not self._rest.lstrip().startswith(("//", "/*")))))
        self._held, self._done = None, -1

    @property
    def is_open(self) -> bool:
        """Whether the prompt leaves a brace, a parenthesis or a comment open."""
        rest = self._rest.strip()
        return bool(self._open) or (rest.startswith("/*") and not (rest.endswith("*/") and len(rest) > 3))

    @property
    def is_empty(self) -> bool:
        """Whether the prompt's last token opens a block of members or statements."""
        return self._last == "{" and self._open[-1].holds != "values" and not self._head

    def __call__(self, text: str) -> tuple[int, bool]:
        given = len(self._rest)
        if self._done < 0:
            self._read(self._rest + text)
        if self._done >= 0:
            return max(0, self._done - given), True
        safe = self._held[0] - given if self._held else len(text.rstrip())
        return max(0, safe), False

    def _choose(self, begun: bool) -> None:
        """Which statement to complete, as the number of brackets around it."""
        level = self._statement_level(len(self._open)) if begun else len(self._open)
        in_members = level == 0 or self._open[level - 1].holds == "members"
        if (begun or self._last != "{") and in_members:
            self._target = level
        else:
            self._opening = begun
            self._target = level if begun else self._statement_level(level - 1)

    def _statement_level(self, level: int) -> int:
        while level and (self._open[level - 1].holds == "values"):
            level -= 1
        return level

    def _read(self, source: str) -> None:
        """Take in the tokens of source from where the last call left off; the last one may not be whole yet."""
        for token in _JAVA.finditer(source, self._at):
            word = token[0]
            if token.end() == len(source) and word not in _WHOLE:
                return
            self._at = token.end()
            if token.lastgroup == "comment":
                continue
            if self._held:
                end, words = self._held
                self._held = None
                if word not in words:
                    self._done = end
                    return
            self._last = word
            self._token(word, token.end())
            if self._done >= 0:
                return

    def _token(self, word: str, end: int) -> None:
        if word in _PAIRS:
            self._open.append(self._bracket(word))
            if word == "{" and self._opening and len(self._open) - 1 == self._target:
                self._opening = self._open[-1].in_expression
            self._head = []
        elif word in _PAIRS.values():
            self._close(word, end)
        elif word == ";" and not (self._open and self._open[-1].holds == "values"):
            self._finish(self._head, end, ";")
        elif word in (":", "->") and self._head and (self._head[0] in ("case", "default") or self._is_label(word)):
            self._head = []
        else:
            self._head.append(word)

    def _is_label(self, word: str) -> bool:
        return word == ":" and len(self._head) == 1

    def _bracket(self, sign: str) -> _Bracket:
        head, parent = self._head, self._open[-1].holds if self._open else "members"
        if sign != "{":
            return _Bracket(sign, "values", True, head)
        before = head[-1] if head else ""
        in_expression = parent == "values" or bool(_EXPRESSION & set(head))
        if before == "->":
            holds = "statements"
        elif "new" in head and before == ")":
            holds = "members"
        elif before in ("=", "]", "default", ",") or (parent == "values" and not head):
            holds, in_expression = "values", True
        elif _TYPES & set(head) and before != ")" or ("record" in head and parent != "values"):
            holds = "members"
        elif before == ")" and "switch" not in head and in_expression and "new" in head:
            holds = "members"
        else:
            holds = "statements"
        return _Bracket(sign, holds, in_expression, head)

    def _close(self, word: str, end: int) -> None:
        sign = next(opening for opening, closing in _PAIRS.items() if closing == word)
        if not any(bracket.sign == sign for bracket in self._open):
            if word == "}" and not self._open:
                self._done = end
            return
        while (bracket := self._open.pop()).sign != sign:
            pass
        if sign == "{" and len(self._open) < self._target:  # the block around is over
            self._done = end
        elif sign != "{" or bracket.in_expression:
            self._head = [*bracket.head, word]
        else:
            self._finish(bracket.head, end, word)

    def _finish(self, head: list[str], end: int, sign: str) -> None:
        """A statement ends here, unless a clause carries it on."""
        self._head = []
        if len(self._open) != self._target:
            return
        if self._opening:  # it opened no block, so the one around it is to be completed
            self._opening = False
            self._target = self._statement_level(self._target - 1)
            return
        words = set().union(*(_CARRY_ON.get(word, set()) for word in head)) if sign == "}" or "if" in head else set()
        if words:
            self._held = end, words
        else:
            self._done = end


_PAIRS = {"(": ")", "[": "]", "{": "}"}
_WHOLE = {*_PAIRS, *_PAIRS.values(), ";", ","}
_TYPES = {"class", "interface", "enum"}
_EXPRESSION = {"=", "return", "yield", "throw", "new", "->", "+=", "assert"}
_CARRY_ON = {
    "if": {"else"}, "do": {"while"}, "try": {"catch", "finally"}, "catch": {"catch", "finally"},
}  # fmt: skip
_JAVA = re.compile(
    r'''(?P<comment>//[^\n]*|/\*.*?(?:\*/|\Z))|"""(?:\\.|[^\\])*?(?:"""|\Z)|"(?:\\.|[^"\\\n])*"?|'(?:\\.|[^'\\\n])*'?|[\w$]+|->|::|\+=|[=!<>]=|\S''',
    re.DOTALL,
)
