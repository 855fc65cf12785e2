"""Logical lines of Python source that a model or a person is still writing, so it may be unfinished or wrong."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

HEADS = {
    "def", "class", "if", "elif", "else", "for", "while", "with", "try", "except", "finally", "async", "match", "case",
}  # fmt: skip


@dataclass
class Line:
    """A logical line, which may span several rows, or a row with only a comment.

    Attributes:
        start, end: the offsets of its first row, and of its end without the line break.
        indent: columns of indentation.
        word: its first token; "#" for a comment.
        colon: whether the colon of a head was read, outside brackets and lambdas.
        inline: whether something follows that colon.
        closed: whether its last line break was read.
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
        """Whether it ends with the colon that opens a block."""
        return self.word in HEADS and self.colon and not self.inline


@dataclass
class LineReader:
    """Reads Python row by row, and remembers open brackets and strings from one row to the next."""

    line: Line | None = None  # the logical line that is not closed yet
    _open: list[str] = field(default_factory=list)  # brackets, prefixes with quotes of strings, ":" for a format
    _lambdas: int = 0
    _joined: bool = False  # whether the last row ends with a backslash that joins it to the next
    _checked: int = 0  # how many of the open ones are known to be able to stay open at the end of a row

    def read(self, row: str, start: int) -> Line | None:
        """Return the logical line that this row begins or continues. The row includes its line break, if any."""
        if self.line is None:
            word = FIRST_WORD.match(row)
            if word is None:
                return None
            self.line, self._lambdas = Line(start, start, width(row), word[1]), 0
        line = self.line
        self._tokens(row)
        line.end = start + len(row.rstrip("\r\n"))
        if row.endswith("\n"):
            self._drop_broken_strings()
            line.closed = not self._open and not self._joined
        if line.closed:
            self.line = None
        return line

    def _tokens(self, row: str) -> None:
        at, self._joined = 0, False
        while at < len(row):
            self._checked = min(self._checked, len(self._open))
            top = self._open[-1] if self._open else ""
            if top and top not in "([{":
                at = self._text(row, at, top)
                continue
            match = _TOKEN.search(row, at)
            if match is None:
                break
            at, token = match.end(), match[0]
            self._joined = match.lastgroup == "join"
            if match.lastgroup != "comment" and not self._joined:
                self._token(token, match.lastgroup == "string")

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
        """Note whether a token outside brackets and strings is the colon of a head, or comes after it."""
        if self.line.colon:
            self.line.inline = True
        elif token == "lambda":
            self._lambdas += 1
        elif token == ":" and self._lambdas:
            self._lambdas -= 1
        elif token == ":":
            self.line.colon = True

    def _text(self, row: str, at: int, top: str) -> int:
        """Read on in a string, or in the format of an f-string's field. Return the place where to continue."""
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
        self._joined = match[0][0] == "\\" and match[0][-1] == "\n"
        return match.end()

    def _drop_broken_strings(self) -> None:
        """Forget strings in single quotes that the row left open: only after a backslash could they go on."""
        if self._joined:
            return
        for place in range(self._checked, len(self._open)):
            opened = self._open[place]
            if opened[-1] in "\"'" and opened[-3:] not in ("'''", '"""'):
                del self._open[place:]
                break
        self._checked = len(self._open)


FIRST_WORD = re.compile(r"[ \t\f\r]*(\w+|[^\s])")
_TOKEN = re.compile(
    r"""(?P<comment>\#[^\n]*)|(?P<string>(?i:[rbuft]{0,2})(?:'{3}|"{3}|'|"))|(?P<join>\\\r?\n?\Z)|\w+|:=|\S"""
)


def rows_of(source: str, begin: int = 0) -> Iterator[tuple[int, str]]:
    """Yield rows and their offsets. A row includes its line break, if it has one."""
    while begin < len(source):
        end = source.find("\n", begin) + 1 or len(source)
        yield begin, source[begin:end]
        begin = end


def logical_lines(source: str) -> Iterator[Line]:
    """Yield all logical lines of a source. The last one may not be closed."""
    reader, line = LineReader(), None
    for start, row in rows_of(source):
        line = reader.read(row, start)
        if line and line.closed:
            yield line
    if reader.line:
        yield reader.line


def width(row: str) -> int:
    """Return the columns of indentation. After a form feed Python counts them from 0 again."""
    return len(row[: len(row) - len(row.lstrip(" \t\f"))].rpartition("\f")[2].expandtabs())


def after_cut_string(source: str) -> str:
    """Return the source without the end of a string in triple quotes that began before it, if it begins with one.

    An editor sends only some lines before the cursor, and often the first of them is inside a docstring. Then the first
    triple quotes close a string. They open one if they come after code such as `x = ` or `return `, or begin their line
    and text follows them, or are alone on it and the line before is the head of a block, or the next line is prose.
    """
    for quotes in _TRIPLE_QUOTES.finditer(source):
        before, _, line = source[: quotes.start()].rpartition("\n")
        if line.lstrip().startswith("#"):
            continue
        rest, _, below = source[quotes.end() :].partition("\n")
        if line.strip():
            opens = _BEFORE_STRING.search(line)
        elif rest.strip():
            opens = rest.strip()[0] not in ").,]}:%#"
        else:
            opens = not before.strip() or before.rstrip()[-1] in ":(=,[" or _PROSE.match(below)
        return source if opens else source[quotes.end() :]
    return source


_TRIPLE_QUOTES = re.compile(r"""(?:\b[rbuft]{1,2})?("{3}|'{3})""", re.IGNORECASE)
_BEFORE_STRING = re.compile(r"([=(,\[{+%|]|[\"'\w\])]: |\b(return|yield|in|and|or|not|assert|raise|else|if))\s*\Z")
_PROSE = re.compile(r"\s*[A-Z][\w'-]*[ ,:.]+(?!=)[\w`(]")  # a sentence, unlike `Name = 1`
