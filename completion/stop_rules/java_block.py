"""Where a completion of Java ends with its block."""

import re
from dataclasses import dataclass

_PAIRS = {"(": ")", "[": "]", "{": "}"}
_WHOLE = {*_PAIRS, *_PAIRS.values(), ";", ","}
_TYPES = {"class", "interface", "enum"}
_EXPRESSION = {"=", "return", "yield", "throw", "new", "->", "+=", "assert"}
_CARRY_ON = {
    "if": {"else"}, "do": {"while"}, "try": {"catch", "finally"}, "catch": {"catch", "finally"},
}  # fmt: skip
_JAVA = re.compile(
    r'''(?P<comment>//[^\n]*|/\*.*?(?:\*/|\Z))|"""(?:\\(?:.|\Z)|[^\\])*?(?:"""|\Z)|"(?:\\(?:.|\Z)|[^"\\\n])*"?|'(?:\\(?:.|\Z)|[^'\\\n])*'?|[\w$]+|->|::|\+=|[=!<>]=|\S''',
    re.DOTALL,
)
_JAVA_COMMENT = re.compile(r"//[^\n]*|/\*.*?(?:\*/|\Z)", re.DOTALL)


def _declares_type(head: list[str]) -> bool:
    """Whether a brace behind this head holds members; `record` is also a name, as in `void record(`."""
    is_record = "record" in head and head[head.index("record") + 1 :][:1] not in ([], [")"])
    return is_record or bool(_TYPES & set(head))


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
        in_arguments = bool(self._open) and self._open[-1].sign != "{"
        self._choose(in_arguments or bool(self._head or _JAVA_COMMENT.sub("", self._rest).strip()))
        self._held, self._done = None, -1

    @property
    def is_open(self) -> bool:
        """Whether the prompt leaves a brace, a parenthesis or a comment open."""
        rest = self._rest.strip()
        return bool(self._open) or (rest.startswith("/*") and not (rest.endswith("*/") and len(rest) > 3))

    @property
    def is_empty(self) -> bool:
        """Whether the prompt's last token opens a block of members or statements."""
        blank = not _JAVA_COMMENT.sub("", self._rest).strip()
        return self._last == "{" and self._open[-1].holds != "values" and blank

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
        elif _declares_type(head):
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
