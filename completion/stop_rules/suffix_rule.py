"""Where a completion ends that stands in front of other code: before it repeats, closes or cuts off what follows."""

import re
from collections.abc import Iterator

from completion.stop_rules.stop_rule import StopRule

OPENERS, CLOSERS = "([{", ")]}"
FENCE = "```"  # with it models that were trained to chat end their code, and begin to explain
LEAVES = ("return", "raise", "break", "continue")
MORE_LINES = 4  # in which the rest of the cursor's line may come again

# How much of a text surely stays, and whether it ends there.
Place = tuple[int, bool]


def before_suffix(rule: StopRule, prefix: str, suffix: str) -> StopRule:
    """A stop rule as `rule`, which also ends a completion where it goes on as the suffix does, or against it.

    - In the middle of a line it ends with the line, or before that line's rest comes again, now or in a later line.
    - A bracket that the text has not opened is left to the suffix, where that closes it first.
    - A line that is the suffix's next line, blank ones apart, is not written again.
    - No `return` or the like in front of code of the same block, which could not be reached.
    - No Markdown fence, unless the file has some itself.
    - No blanks and line breaks at the end, where the suffix begins with a line break.

    What may yet turn out to be such an end is held back, so that nothing is shown and then taken away.
    """
    begun = prefix.rpartition("\n")[2]
    at_line_start = not begun
    rest, _, below = ("", "", suffix) if at_line_start else suffix.partition("\n")
    at_line_end = not suffix.partition("\n")[0].strip()
    rest = rest.rstrip()
    following = next((line.rstrip() for line in below.split("\n") if line.strip()), "")
    closer = suffix.lstrip()[:1] if suffix.lstrip()[:1] in tuple(CLOSERS) else ""
    has_fences = FENCE in prefix or FENCE in suffix
    is_code = all(prefix.count(quotes) % 2 == 0 for quotes in ('"""', "'''"))

    def both(text: str) -> Place:
        safe, done = rule(text)
        found = [_extra_closer(text, closer)]
        for start, line, is_whole in _lines(text, begun):
            before = max(0, start if at_line_start else start - 1)  # the break before a line goes with it
            found += [(before, over) for over in _line_ends(line, is_whole, following, is_code, has_fences)]
        if rest:
            found.append(_repeated_rest(text, rest))
        ends = [place for place, over in found if over]
        safe = min(safe, *ends) if ends else safe if done else min([safe, *(place for place, _ in found)])
        return len(text[:safe].rstrip()) if at_line_end else safe, done or bool(ends)

    return both


def _lines(text: str, begun: str) -> Iterator[tuple[int, str, bool]]:
    """Where in a text each of its lines begins, the line, and whether it is over; not the first line, if code stands
    before it.

    Args:
        begun: what stands before the text in its first line.
    """
    start = 0
    for line in text.splitlines(keepends=True):
        if start or not begun.strip():
            yield start, (line if start else begun + line).rstrip("\r\n"), line.endswith("\n")
        start += len(line)


def _line_ends(line: str, is_whole: bool, following: str, is_code: bool, has_fences: bool) -> Iterator[bool]:
    """For each reason why the text has to end before this line: True; False for what may become one."""
    if following and (line.rstrip() == following if is_whole else following.startswith(line)):
        yield is_whole
    if not has_fences and (line.startswith(FENCE) or (not is_whole and line and FENCE.startswith(line))):
        yield line.startswith(FENCE)
    indent = len(line) - len(line.lstrip())
    if is_code and following and indent == len(following) - len(following.lstrip()):
        word = re.match(r"\w*", line[indent:])[0]
        if word in LEAVES and (is_whole or len(line) > indent + len(word)):
            yield True
        elif not is_whole and indent + len(word) == len(line) and any(leave.startswith(word) for leave in LEAVES):
            yield False


def _repeated_rest(text: str, rest: str) -> Place:
    """Where the rest of the cursor's line comes again, or may be about to; else the end of the text's first line.

    A rest of one or two signs, such as `)` or `:`, stands in the middle of many a line; brackets have a rule of their
    own.
    """
    first, line_break, more = text.partition("\n")
    again = rest.lstrip()
    is_short = len(again) <= 2 and not re.search(r"\w", again)
    if not is_short and (found := first.find(again)) >= 0:
        return found, True
    if not line_break:
        held = next((n for n in range(min(len(again), len(text)), 0, -1) if text.endswith(again[:n])), 0)
        return len(text) - held, False
    if is_short:  # once the line is over, it can be told
        end = len(first.rstrip())
        return (end - len(again), True) if first.rstrip().endswith(again) else (len(first), True)
    start = len(first) + 1
    over = more.split("\n")[:-1][:MORE_LINES]
    for line in over:
        if line.rstrip().endswith(rest):
            return start + len(line.rstrip()) - len(rest), True
        start += len(line) + 1
    return len(first), len(over) == MORE_LINES


def _extra_closer(text: str, closer: str) -> Place:
    """Where the text closes a bracket that stood open before it, if the suffix does that itself."""
    depth, quote = 0, ""
    for place, character in enumerate(text if closer else ""):
        if quote:
            quote = "" if character in (quote, "\n") else quote
        elif character in "'\"":
            quote = character
        elif character in OPENERS:
            depth += 1
        elif character in CLOSERS:
            depth -= 1
            if depth < 0 and character == closer:
                return len(text[:place].rstrip(" ")), True
    return len(text), False
