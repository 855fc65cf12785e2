"""Stop rule for Java: a completion ends with its block."""

import re
from dataclasses import dataclass

_PAIRS = {"(": ")", "[": "]", "{": "}"}
_WHOLE = {*_PAIRS, *_PAIRS.values(), ";", ","}  # tokens that no following character can change
_TYPES = {"class", "interface", "enum"}
_EXPRESSION = {"=", "return", "yield", "throw", "new", "->", "+=", "assert"}
# The first word of a statement -> words that may continue the statement after its block.
_CLAUSES = {
    "if": {"else"}, "do": {"while"}, "try": {"catch", "finally"}, "catch": {"catch", "finally"},
}  # fmt: skip
_TOKEN = re.compile(
    r'''(?P<comment>//[^\n]*|/\*.*?(?:\*/|\Z))|"""(?:\\(?:.|\Z)|[^\\])*?(?:"""|\Z)|"(?:\\(?:.|\Z)|[^"\\\n])*"?|'(?:\\(?:.|\Z)|[^'\\\n])*'?|[\w$]+|->|::|\+=|[=!<>]=|\S''',
    re.DOTALL,
)
_COMMENT = re.compile(r"//[^\n]*|/\*.*?(?:\*/|\Z)", re.DOTALL)


@dataclass
class _Bracket:
    """An open bracket."""

    sign: str
    contains: str  # "members", "statements" or "values"
    in_expression: bool
    statement: list[str]  # the words and closing brackets of its statement, before the bracket


class JavaBlock:
    """A completion ends with the statement whose block the prompt opened.

    If that block is in an expression, the statement ends with its `;`. Clauses (`else`, `catch`, the `while` of a `do`)
    belong to their statement. If the prompt has not just opened a block, it depends on the place: among the members of
    a class, or outside of classes, the completion is one member or declaration; among statements, it goes to the end of
    the block around them.
    """

    def __init__(self, prompt: str):
        self._open: list[_Bracket] = []
        self._statement: list[str] = []  # the words of the statement so far
        self._level = -1  # how many brackets are open around the statement to complete
        self._may_open = False  # the prompt began a statement, which is the one to complete if it opens a block
        self._possible_end: tuple[int, set[str]] | None = None  # a place, and the words after it that would go on
        self._end, self._last, self._read_to = -1, "", 0
        self._read(prompt)
        self._unread = prompt[self._read_to :]
        self._read_to = 0
        self._choose_statement()
        self._possible_end, self._end = None, -1

    @property
    def is_open(self) -> bool:
        """Whether the prompt leaves a brace, a parenthesis or a comment open."""
        rest = self._unread.strip()
        return bool(self._open) or (rest.startswith("/*") and not (rest.endswith("*/") and len(rest) > 3))

    @property
    def is_empty(self) -> bool:
        """Whether the prompt's last token opens a block of members or statements."""
        return self._last == "{" and self._open[-1].contains != "values" and not self._has_unread_word()

    def __call__(self, text: str) -> tuple[int, bool]:
        before = len(self._unread)
        if self._end < 0:
            self._read(self._unread + text)
        if self._end >= 0:
            return max(0, self._end - before), True
        safe = self._possible_end[0] - before if self._possible_end else len(text.rstrip())
        return max(0, safe), False

    def _has_unread_word(self) -> bool:
        return bool(_COMMENT.sub("", self._unread).strip())

    def _choose_statement(self) -> None:
        in_arguments = bool(self._open) and self._open[-1].sign != "{"
        begun = in_arguments or bool(self._statement) or self._has_unread_word()
        level = self._level_of_statement(len(self._open)) if begun else len(self._open)
        among_members = level == 0 or self._open[level - 1].contains == "members"
        if among_members and (begun or self._last != "{"):
            self._level = level
        else:
            self._may_open = begun
            self._level = level if begun else self._level_of_statement(level - 1)

    def _level_of_statement(self, level: int) -> int:
        while level and self._open[level - 1].contains == "values":
            level -= 1
        return level

    def _read(self, source: str) -> None:
        """Read on after the last call's end. The last token is left unread if following characters may change it."""
        for token in _TOKEN.finditer(source, self._read_to):
            word = token[0]
            if token.end() == len(source) and word not in _WHOLE:
                return
            self._read_to = token.end()
            if token.lastgroup == "comment":
                continue
            if self._possible_end:
                end, clauses = self._possible_end
                self._possible_end = None
                if word not in clauses:
                    self._end = end
                    return
            self._last = word
            self._take(word, token.end())
            if self._end >= 0:
                return

    def _take(self, word: str, end: int) -> None:
        statement = self._statement
        if word in _PAIRS:
            self._open.append(self._bracket(word))
            if word == "{" and self._may_open and len(self._open) - 1 == self._level:
                self._may_open = self._open[-1].in_expression
            self._statement = []
        elif word in _PAIRS.values():
            self._close(word, end)
        elif word == ";" and not (self._open and self._open[-1].contains == "values"):
            self._finish(statement, end, ";")
        elif word in (":", "->") and (
            statement[:1] in (["case"], ["default"]) or (word == ":" and len(statement) == 1)
        ):
            self._statement = []  # after the head of a case, or a label
        else:
            statement.append(word)

    def _bracket(self, sign: str) -> _Bracket:
        statement, around = self._statement, self._open[-1].contains if self._open else "members"
        if sign != "{":
            return _Bracket(sign, "values", True, statement)
        before = statement[-1] if statement else ""
        in_expression = around == "values" or bool(_EXPRESSION & set(statement))
        # `record` is also a name, as in `void record(`.
        is_record = "record" in statement and statement[statement.index("record") + 1 :][:1] not in ([], [")"])
        if before == "->":
            contains = "statements"
        elif "new" in statement and before == ")":
            contains = "members"
        elif before in ("=", "]", "default", ",") or (around == "values" and not statement):
            contains, in_expression = "values", True
        elif is_record or _TYPES & set(statement):
            contains = "members"
        else:
            contains = "statements"
        return _Bracket(sign, contains, in_expression, statement)

    def _close(self, word: str, end: int) -> None:
        sign = next(opening for opening, closing in _PAIRS.items() if closing == word)
        if not any(bracket.sign == sign for bracket in self._open):
            if word == "}" and not self._open:
                self._end = end
            return
        while (bracket := self._open.pop()).sign != sign:
            pass
        if sign == "{" and len(self._open) < self._level:  # the block around the statement ends
            self._end = end
        elif sign != "{" or bracket.in_expression:
            self._statement = [*bracket.statement, word]
        else:
            self._finish(bracket.statement, end, word)

    def _finish(self, statement: list[str], end: int, sign: str) -> None:
        """End the statement here, unless a clause may continue it."""
        self._statement = []
        if len(self._open) != self._level:
            return
        if self._may_open:  # it opened no block, so the block around it is the one to complete
            self._may_open = False
            self._level = self._level_of_statement(self._level - 1)
            return
        clauses = set()
        if sign == "}" or "if" in statement:
            clauses.update(*(_CLAUSES.get(word, ()) for word in statement))
        if clauses:
            self._possible_end = end, clauses
        else:
            self._end = end
