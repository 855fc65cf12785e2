"""Stop rule for a prompt with a suffix: a completion ends before it repeats or contradicts the suffix."""

import re
from collections.abc import Iterator

from common.source_code import COMMENTS
from completion.stop_rules.python_lines import after_cut_string
from completion.stop_rules.stop_rule import Decision, StopRule

OPENING = {")": "(", "]": "[", "}": "{"}
# A bracket, or something whose brackets do not count: a comment, a string (in single quotes only up to the line's end);
# or other text.
_TEXT = r"""[^#/"'()\[\]{}]+|[()\[\]{}]|("{3}|'{3})(?:\\(?:.|\Z)|[^\\])*?(?:\1|\Z)"""
_STRING = r"""|"(?:\\.|[^"\\\n])*"?|'(?:\\.|[^'\\\n])*'?"""
_COMMENT = {"#": r"#[^\n]*|", "//": r"//[^\n]*|/\*.*?(?:\*/|\Z)|"}
_BRACKETS = {name: re.compile(_COMMENT[sign] + _TEXT + _STRING, re.DOTALL) for name, sign in COMMENTS.items()}
FENCE = "```"  # models that were trained to chat write it after the code; then they explain the code
LEAVES = ("return", "raise", "break", "continue")
MORE_LINES = 4  # the rest of the cursor's line may come again in one of this many lines after it


def before_suffix(rule: StopRule, prefix: str, suffix: str, language: str = "python") -> StopRule:
    """Return a stop rule that obeys `rule`, and also ends a completion before it repeats or contradicts the suffix.

    - In the middle of a line, a completion ends with the line, or before it repeats the rest of the line.
    - It does not close a bracket that the suffix closes.
    - It does not repeat the suffix's next line that is not blank.
    - It contains no `return` or the like before code of the same block, which would become unreachable.
    - It contains no Markdown fence, unless the file contains one.
    - It does not end with white space if the suffix begins with a line break.

    Text that may become such an end is held back, so that nothing is shown and then removed.
    """
    if language == "python":
        prefix = after_cut_string(prefix)
    begun = prefix.rpartition("\n")[2]
    rest, _, below = suffix.partition("\n") if begun else ("", "", suffix)
    at_line_end = not suffix.partition("\n")[0].strip()
    next_line = next((line.rstrip() for line in below.split("\n") if line.strip()), "")
    has_fences = FENCE in prefix or FENCE in suffix
    is_code = all(prefix.count(quotes) % 2 == 0 for quotes in ('"""', "'''"))
    checked = 0  # lines before this place are whole and end nothing
    to_close, closes_more = _brackets_to_close(prefix, suffix, language)

    def both(text: str) -> Decision:
        nonlocal checked
        safe, done = rule(text)
        depths, closing = _read_brackets(begun, text, language, to_close, closes_more)
        found = [(len(text[:closing].rstrip(" ")), closing is not None)] if closes_more else []
        for start, line, is_whole in _lines(text, begun, checked):
            before = max(0, start - 1) if begun else start  # the break before a line goes with it
            found += [(before, over) for over in _line_ends(line, is_whole, next_line, is_code, has_fences)]
            checked = start
        if rest.strip():
            read = text if closing is None else text[: closing + 1]
            place, over = _end_in_line(read, rest.rstrip(), depths)
            found.append((place, over or closing is not None))
        ends = [place for place, over in found if over]
        safe = min(safe, *ends) if ends else safe if done else min([safe, *(place for place, _ in found)])
        return len(text[:safe].rstrip()) if at_line_end else safe, done or bool(ends)

    return both


def _brackets_to_close(prefix: str, suffix: str, language: str) -> tuple[int, bool]:
    """Return how many open brackets of the prefix the completion may close, and whether the suffix closes any."""
    opened, _ = _unmatched(prefix, language)
    _, closed = _unmatched(suffix, language)
    # The suffix closes the outermost ones. If prefix or suffix is cut off or wrong, their kinds must match.
    whole = min(len(opened), len(closed))
    for kept in (*range(whole, len(opened) + 1), *range(whole - 1, -1, -1)):
        if all(OPENING[sign] == bracket for sign, bracket in zip(closed, reversed(opened[:kept]), strict=False)):
            break
    return len(opened) - kept, bool(closed)


def _unmatched(source: str, language: str) -> tuple[list[str], list[str]]:
    """Return the brackets that a source leaves open, outermost first, and those that it closes but does not open."""
    opened, closed = [], []
    for match in _BRACKETS[language].finditer(source):
        sign = match[0]
        if sign in OPENING.values():
            opened.append(sign)
        elif sign in OPENING and OPENING[sign] not in opened:
            closed.append(sign)
        elif sign in OPENING:
            while opened.pop() != OPENING[sign]:
                pass
    return opened, closed


def _read_brackets(
    begun: str, text: str, language: str, to_close: int, closes_more: bool
) -> tuple[list[tuple[int, int]], int | None]:
    """Return how many of the text's own brackets are open from each place on, and where it closes the suffix's."""
    depths, depth = [(-1, 0)], 0
    for match in _BRACKETS[language].finditer(begun + text):
        place, sign = match.start() - len(begun), match[0]
        if place < 0:
            continue
        if sign in OPENING.values():
            depth += 1
        elif sign in OPENING and depth:
            depth -= 1
        elif sign in OPENING:
            to_close -= 1
            if to_close < 0 and closes_more:
                return depths, place
        depths.append((place, depth))
    return depths, None


def _depth(depths: list[tuple[int, int]], place: int) -> int:
    return next(depth for start, depth in reversed(depths) if start < place)


def _end_in_line(text: str, rest: str, depths: list[tuple[int, int]]) -> Decision:
    """Return where a completion in the middle of a line ends: before it repeats the line's rest, or with the line.

    What is inside the text's own brackets does not count. Of a rest such as `):` only the colon is searched, at the end
    of the line: such signs occur in many lines, and `_read_brackets` already takes care of the brackets.
    """
    again = rest.lstrip()
    signs = again.lstrip(")]} ")
    only_signs = len(signs) <= 2 and not re.search(r"\w", signs)
    if only_signs and again[0] in OPENING and text.lstrip(" ").startswith(("\n", "\r\n")):
        return len(text), False  # arguments on separate lines, which end with their bracket
    breaks = (match.start() for match in re.finditer("\n", text))
    end = next((place for place in breaks if not _depth(depths, place)), len(text))
    line = text[:end].rstrip() if only_signs else text[:end]
    if only_signs and end < len(text):
        return len(line) - len(signs) * line.endswith(signs), True
    if not only_signs and (place := _find(again, text[:end], depths)) >= 0:
        return place, True
    if end == len(text):
        wanted = signs if only_signs else again
        held = next((n for n in range(min(len(wanted), len(line)), 0, -1) if line.endswith(wanted[:n])), 0)
        return len(line) - held, False
    start = end + 1
    over = text[start:].split("\n", MORE_LINES)[:-1]
    for line in over:
        place = start + len(line.rstrip()) - len(rest)
        if line.rstrip().endswith(rest) and not _depth(depths, place):
            return place, True
        start += len(line) + 1
    return end, len(over) == MORE_LINES


def _find(wanted: str, text: str, depths: list[tuple[int, int]]) -> int:
    """Return where a text first occurs outside the brackets that the completion opened, or -1."""
    place = text.find(wanted)
    while place >= 0 and _depth(depths, place):
        place = text.find(wanted, place + 1)
    return place


def _lines(text: str, begun: str, start: int) -> Iterator[tuple[int, str, bool]]:
    """Yield the lines from a place on: place, line, whether it is whole. Without the first if code is before it."""
    for line in text[start:].split("\n"):
        is_whole = start + len(line) < len(text)
        if start or not begun.strip():
            yield start, (line if start else begun + line).rstrip("\r"), is_whole
        start += len(line) + 1


def _line_ends(line: str, is_whole: bool, next_line: str, is_code: bool, has_fences: bool) -> Iterator[bool]:
    """Yield True for each reason to end before this line, and False for each that the rest of the line may give."""
    if next_line and (line.rstrip() == next_line or (not is_whole and next_line.startswith(line))):
        yield is_whole
    if not has_fences and (line.startswith(FENCE) or (not is_whole and FENCE.startswith(line))):
        yield line.startswith(FENCE)
    indent = len(line) - len(line.lstrip())
    if is_code and next_line and indent == len(next_line) - len(next_line.lstrip()):
        word = re.match(r"\w*", line[indent:])[0]
        if word in LEAVES and (is_whole or len(line) > indent + len(word)):
            yield True
        elif not is_whole and indent + len(word) == len(line) and any(leave.startswith(word) for leave in LEAVES):
            yield False
