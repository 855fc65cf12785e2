"""Where a completion ends that stands in front of other code: before it repeats or closes what the suffix does."""

from completion.stopping import StopRule

OPENERS, CLOSERS = "([{", ")]}"


def before_suffix(rule: StopRule, prefix: str, suffix: str) -> StopRule:
    """A stop rule as `rule`, which also ends a completion where it begins to say what the suffix says.

    - In the middle of a line it ends with the line, and before the rest of the line comes again.
    - A bracket that the text has not opened is left to the suffix, where that closes it first.
    - A line that is the suffix's next line, blank ones apart, is not written again.

    What may yet turn out to be such a repetition is held back, so that nothing is shown and then taken away.
    """
    at_line_start = prefix.endswith("\n") or not prefix
    rest, _, below = ("", "", suffix) if at_line_start else suffix.partition("\n")
    rest = rest.strip()
    following = next((line.rstrip() for line in below.split("\n") if line.strip()), "")
    closer = suffix.lstrip()[:1] if suffix.lstrip()[:1] in tuple(CLOSERS) else ""

    def both(text: str) -> tuple[int, bool]:
        safe, done = rule(text)
        found = [_extra_closer(text, closer), _same_line(text, following, at_line_start)]
        if rest:
            found += [_repeated_rest(text, rest), _end_of_line(text)]
        if ends := [place for place, over in found if over]:
            return min(safe, *ends), True
        return (safe, True) if done else (min(safe, *(place for place, _ in found)), False)

    return both


def _end_of_line(text: str) -> tuple[int, bool]:
    end = text.find("\n")
    return (len(text), False) if end < 0 else (end, True)


def _repeated_rest(text: str, rest: str) -> tuple[int, bool]:
    """Where the rest of the cursor's line comes again, or may be about to.

    A rest of one or two characters, such as `)` or `:`, stands in the middle of many a line; brackets have a rule of
    their own.
    """
    line = text.partition("\n")[0]
    if len(rest) > 2 and (found := line.find(rest)) >= 0:
        return found, True
    if len(rest) <= 2 and line != text and line.rstrip().endswith(rest):  # once the line is over, it can be told
        return len(line.rstrip()) - len(rest), True
    held = next((n for n in range(min(len(rest), len(text)), 0, -1) if text.endswith(rest[:n])), 0)
    return len(text) - held, False


def _extra_closer(text: str, closer: str) -> tuple[int, bool]:
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


def _same_line(text: str, following: str, at_line_start: bool) -> tuple[int, bool]:
    """Before a line that is the suffix's next one, or whose beginning could become it.

    Args:
        at_line_start: whether the text's first line is a whole one.
    """
    start = 0 if at_line_start else text.find("\n") + 1 or len(text)
    while start < len(text) and following:
        end = text.find("\n", start)
        line = text[start : end if end >= 0 else len(text)]
        before = start if at_line_start else start - 1  # the line break belongs to what is not written again
        if end < 0:
            return (before, False) if following.startswith(line) else (len(text), False)
        if line.rstrip() == following:
            return before, True
        start = end + 1
    return len(text), False
