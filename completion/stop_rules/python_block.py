"""Stop rule for Python: a completion ends with its block."""

from completion.stop_rules.python_lines import FIRST_WORD, HEADS, Line, LineReader, logical_lines, rows_of, width

_SOFT_KEYWORDS = {"match", "case"}  # they are also names
_DEFINITIONS = {"def", "class", "async"}
# A clause -> the clauses that may follow it, in the same column, as part of the same statement.
_CLAUSES = {
    "if": {"elif", "else"}, "elif": {"elif", "else"}, "for": {"else"}, "while": {"else"}, "async": {"else"},
    "try": {"except", "finally"}, "except": {"except", "else", "finally"}, "else": {"finally"}, "case": {"case"},
}  # fmt: skip


class PythonBlock:
    """A completion ends with the statement whose block the prompt opened.

    The prompt opens a block if its last line ends with the colon of a compound statement, or if that line is unfinished
    and the completion adds such a colon. Later clauses (`else`, `except`, ...) belong to their statement.

    If the prompt opens no block, the completion ends with the first of these that exists: the definition with which it
    begins, in a class or module; the innermost definition around the cursor; the outermost compound statement around
    it; the first blank line between two statements.

    A completion also ends before a line with a wrong indentation: less than the block's other statements but more than
    its head, or more than the statement before it, if that opened no block.
    """

    def __init__(self, prompt: str):
        self._statements = [line for line in logical_lines(prompt) if line.word != "#"]
        begin = prompt.rfind("\n") + 1
        self._reader = LineReader()
        for start, row in rows_of(prompt[:begin]):
            self._reader.read(row, start)
        self._row_start, self._row = begin - len(prompt), prompt[begin:]
        self._belongs = bool(self._row.strip()) or self._reader.line is not None
        self._end, self._done = 0, False
        self._after_blank_line = self._started = False
        self._block: tuple[int, str] | None = None  # of the statement to complete: its column and latest clause
        self._body_column: int | None = None  # of the statements in that block
        self._undecided = True  # whether the next complete statement decides which block is the one to complete
        self._begun = False  # whether the prompt began that statement; its block, if it opens one, is the one
        self._previous: Line | None = None  # the latest complete statement
        last = self._statements[-1] if self._statements else None
        if last is None:
            return
        if last.is_head:
            self._block, self._undecided = (last.indent, last.word), False
        elif last.word == "@":
            self._begun = True
        elif not last.closed:
            self._statements.pop()
            self._begun = not last.inline
            if last.inline and last.word in HEADS:
                self._block, self._undecided = self._around(last.indent), False
                self._body_column = self._column_of_body()
        self._previous = next(reversed(self._statements), None)

    def __call__(self, text: str) -> tuple[int, bool]:
        while not self._done and (at := text.find("\n", max(0, self._row_start))) >= 0:
            self._finish_row(self._row + text[max(0, self._row_start) : at + 1], at + 1)
        if self._done:
            return self._end, True
        row = self._row + text[max(0, self._row_start) :]
        if not self._belongs and (word := FIRST_WORD.match(row)):
            self._begin(width(row), word[1], word.end() < len(row))
        return (self._end, self._done) if not self._belongs or self._done else (len(text) - row.endswith("\r"), False)

    def _finish_row(self, row: str, after: int) -> None:
        word = FIRST_WORD.match(row)
        if word and not self._belongs:
            self._begin(width(row), word[1], True)
            if self._done:
                return
        self._after_blank_line |= word is None and self._reader.line is None
        line = self._reader.read(row, self._row_start)
        if line and self._belongs:
            self._end = max(self._end, after - (len(row) - len(row.rstrip("\r\n"))))
            if line.closed and line.word != "#":
                self._take(line)
        self._row_start, self._row = after, ""
        self._belongs = self._reader.line is not None

    def _begin(self, indent: int, word: str, whole: bool) -> None:
        """Decide by its indentation and first word whether a logical line belongs to the completion.

        Nothing is decided if the word is not whole yet and may still become a clause.
        """
        if self._block is None:
            ends = not self._undecided and self._started and indent == 0 and self._after_blank_line
        else:
            column, clause = self._block
            ends = indent < column or (indent == column and word not in _CLAUSES.get(clause, ()))
            ends |= self._body_column is not None and column < indent < self._body_column
            if ends and indent == column and not whole and any(c.startswith(word) for c in _CLAUSES.get(clause, ())):
                return
        ends |= self._previous is not None and indent > self._previous.indent and not self._previous.is_head
        if ends and word != "#" and not self._started:  # nothing can end yet: the next block is the one
            self._block, self._undecided, self._begun, ends = None, True, False, False
        if not ends:
            self._belongs = True
        elif word != "#":  # a comment belongs to the statement after it
            self._done = True

    def _take(self, line: Line) -> None:
        self._after_blank_line, self._previous = False, line
        if line.word == "@" and self._undecided:
            self._begun = True
            return
        if self._undecided:
            self._choose(line)
        elif self._block and line.indent <= self._block[0]:
            self._block, self._body_column = (line.indent, line.word), None
        own_head = line.is_head and self._block == (line.indent, line.word)
        if self._block and self._body_column is None and line.indent > self._block[0]:
            self._body_column = line.indent
        self._started |= not own_head and (self._block is not None or self._end > 0)

    def _choose(self, line: Line) -> None:
        """Choose the block to complete, now that the first statement is known: its own block, or one around it."""
        self._undecided = False
        self._block = self._around(line.indent)
        self._body_column = self._column_of_body()
        among = self._block is None or self._block[1] == "class"
        opens = line.is_head or (line.word in HEADS - _SOFT_KEYWORDS and line.colon)
        if opens and (self._begun or (among and line.word in _DEFINITIONS)):
            self._block, self._body_column = (line.indent, line.word), None

    def _column_of_body(self) -> int | None:
        """Return the column of the block's statements, if the prompt contains any."""
        body = None
        for line in reversed(self._statements):
            if self._block is None or line.indent <= self._block[0]:
                break
            body = line.indent
        return body

    def _around(self, position: int) -> tuple[int, str] | None:
        """Return the innermost definition around a line in this column, else the outermost compound statement."""
        outermost = None
        for line in reversed(self._statements):
            if line.indent < position:
                position = line.indent
                if line.is_head:
                    outermost = line.indent, line.word
                    if line.word in _DEFINITIONS:
                        return outermost
        return outermost
