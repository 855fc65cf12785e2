"""Where a completion of Python ends with its block."""

from completion.stop_rules.python_lines import FIRST_WORD, HEADS, Line, LineReader, logical_lines, rows_of, width

_SOFT = {"match", "case"}  # these are also names
_DEFINITIONS = {"def", "class", "async"}
# What may follow a clause at its own column as a part of the same statement.
_CLAUSES = {
    "if": {"elif", "else"}, "elif": {"elif", "else"}, "for": {"else"}, "while": {"else"}, "async": {"else"},
    "try": {"except", "finally"}, "except": {"except", "else", "finally"}, "else": {"finally"}, "case": {"case"},
}  # fmt: skip


class PythonBlock:
    """Ends with the statement whose block the prompt opened, else with the innermost definition around the cursor.

    The prompt's last line opens a block if it ends in the colon of its head, or is not finished and turns out so. A
    statement's later clauses (`else`, `except`, ...) belong to it. Where no definition is around, the outermost
    compound statement counts; outside any block the completion ends at the first blank line between two statements.
    So does a line that would not be Python there: between the column of a block and that of its statements, or further
    in than the statement before it, which opened no block.
    A definition that begins a completion among a class's or a module's statements ends it.
    """

    def __init__(self, prompt: str):
        self._statements = [line for line in logical_lines(prompt) if line.word != "#"]
        begin = prompt.rfind("\n") + 1
        self._reader = LineReader()
        for start, row in rows_of(prompt[:begin]):
            self._reader.read(row, start)
        self._row_start, self._row = begin - len(prompt), prompt[begin:]
        self._accepted = bool(self._row.strip()) or self._reader.line is not None
        self._end, self._done = 0, False
        self._blank = self._started = False
        self._block: tuple[int, str] | None = None  # column and latest clause of the statement to complete
        self._body: int | None = None  # column of the first statement in that block
        self._pending = True  # whether the next statement tells which it is
        self._wanted = False  # whether that statement was begun in the prompt, so that it is the one if it can be
        self._before: Line | None = None  # the latest whole statement
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
                self._body = self._begun_body()
        self._before = next(reversed(self._statements), None)

    def __call__(self, text: str) -> tuple[int, bool]:
        while not self._done and (at := text.find("\n", max(0, self._row_start))) >= 0:
            self._finish_row(self._row + text[max(0, self._row_start) : at + 1], at + 1)
        if self._done:
            return self._end, True
        row = self._row + text[max(0, self._row_start) :]
        if not self._accepted and (word := FIRST_WORD.match(row)):
            self._begin(width(row), word[1], word.end() < len(row))
        return (self._end, self._done) if not self._accepted or self._done else (len(text) - row.endswith("\r"), False)

    def _finish_row(self, row: str, after: int) -> None:
        word = FIRST_WORD.match(row)
        if word and not self._accepted:
            self._begin(width(row), word[1], True)
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
            ends |= self._body is not None and column < indent < self._body
            if ends and indent == column and not whole and any(c.startswith(word) for c in _CLAUSES.get(clause, ())):
                return
        ends |= self._before is not None and indent > self._before.indent and not self._before.is_head
        if ends and word != "#" and not self._started:  # nothing to end yet: the next block it is, then
            self._block, self._pending, self._wanted, ends = None, True, False, False
        if not ends:
            self._accepted = True
        elif word != "#":  # a comment belongs to whatever the next statement belongs to
            self._done = True

    def _take(self, line: Line) -> None:
        self._blank, self._before = False, line
        if line.word == "@" and self._pending:
            self._wanted = True
            return
        if self._pending:
            self._choose(line)
        elif self._block and line.indent <= self._block[0]:
            self._block, self._body = (line.indent, line.word), None
        own_head = line.is_head and self._block == (line.indent, line.word)
        if self._block and self._body is None and line.indent > self._block[0]:
            self._body = line.indent
        self._started |= not own_head and (self._block is not None or self._end > 0)

    def _choose(self, line: Line) -> None:
        """The first statement is known: it is the block, or stands in the one that is to be completed."""
        self._pending = False
        self._block = self._around(line.indent)
        self._body = self._begun_body()
        among = self._block is None or self._block[1] == "class"
        opens = line.is_head or (line.word in HEADS - _SOFT and line.colon)
        if opens and (self._wanted or (among and line.word in _DEFINITIONS)):
            self._block, self._body = (line.indent, line.word), None

    def _begun_body(self) -> int | None:
        """The column of the block's statements, if the prompt has any."""
        body = None
        for line in reversed(self._statements):
            if self._block is None or line.indent <= self._block[0]:
                break
            body = line.indent
        return body

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
