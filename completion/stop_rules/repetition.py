"""Where a completion goes round in circles, as those of small models do."""

import math

LINES = 4  # that may come again in turn
TIMES = 3  # that they come until it is a circle
TIMES_IN_LINE, LENGTH_IN_LINE = 5, 40  # the same for a piece of a line, and the characters that it fills at least


def before_circle(text: str) -> tuple[int, bool]:
    """How much of a growing text surely is no repetition, and whether the text goes round in circles.

    Lines that come again are held back until another one follows, blank ones apart, so that all but their first
    appearance can be left out. A piece of a line is only noticed.
    """
    starts, lines, place = [], [], 0
    for line in text.split("\n"):
        if stripped := line.strip():
            starts.append(place + line.index(stripped[0]))
            lines.append(line)
        place += len(line) + 1
    held, is_open = len(text.rstrip()), bool(text[text.rfind("\n") + 1 :].strip())
    for period in range(1, LINES + 1):
        again = _lines_again(lines, period, is_open)
        if again:
            first = len(lines) - again
            while first < len(lines) - is_open and lines[first - 1].rstrip().endswith((":", "{")):
                first += 1  # the line that begins a block is not left without one
            if first < len(lines):
                held = min(held, len(text[: starts[first]].rstrip()))
        if again >= (TIMES - 1) * period + is_open:
            return held, True
    return held, bool(lines) and _repeats_a_piece(lines[-1])


def _lines_again(lines: list[str], period: int, is_last_open: bool) -> int:
    """How many lines at the end equal the one `period` lines before; of an open last line, as far as it goes."""
    again = 0
    for number in range(len(lines) - 1, period - 1, -1):
        line, earlier = lines[number], lines[number - period]
        is_open = is_last_open and number == len(lines) - 1
        if not (earlier.startswith(line) if is_open else line == earlier):
            break
        again += 1
    return again


def _repeats_a_piece(line: str) -> bool:
    return any(
        line.endswith(line[-length:] * max(TIMES_IN_LINE, math.ceil(LENGTH_IN_LINE / length)))
        for length in range(1, len(line) // TIMES_IN_LINE + 1)
        if any(map(str.isalnum, line[-length:]))  # a row of dashes is none
    )
