"""Stop rule for a completion that repeats itself, as those of small models do."""

import math

MAX_LINES = 4  # the longest group of lines whose repetition is noticed
TIMES = 3  # how often a group of lines has to come
TIMES_IN_LINE, LENGTH_IN_LINE = 5, 40  # how often a piece of a line has to come, and how many characters that fills
LONGEST_PIECE = 200  # characters
READ_LINES = 2 * TIMES * MAX_LINES  # at the end of the text


def before_repetition(text: str) -> tuple[int, bool]:
    """How many characters of a growing text surely repeat nothing, and whether the text repeats itself.

    Lines that are repeated are held back until another line comes, so that only their first occurrence is kept. Blank
    lines do not count. A repeated piece of a line is noticed, but kept.
    """
    found = _last_lines(text)
    lines = [line for _, line in found]
    held, is_open = len(text.rstrip()), bool(text[text.rfind("\n") + 1 :].strip())
    for period in range(1, MAX_LINES + 1):
        repeated = _repeated_lines(lines, period, is_open)
        if repeated:
            first = len(lines) - repeated
            while first < len(lines) - is_open and lines[first - 1].rstrip().endswith((":", "{")):
                first += 1  # a line that opens a block keeps the block's first line
            if first < len(lines):
                held = min(held, len(text[: found[first][0]].rstrip()))
        if repeated >= (TIMES - 1) * period + is_open:
            return held, True
    return held, bool(lines) and _repeats_a_piece(lines[-1])


def _last_lines(text: str) -> list[tuple[int, str]]:
    """The last lines that are not blank, each with the place of its first character after the indentation."""
    found, rest = [], text.rstrip()
    while rest and len(found) < READ_LINES:
        line = rest[rest.rfind("\n") + 1 :]
        found.append((len(rest) - len(line.lstrip()), line))
        rest = rest[: len(rest) - len(line)].rstrip()
    return found[::-1]


def _repeated_lines(lines: list[str], period: int, is_last_open: bool) -> int:
    """How many lines at the end equal the one `period` lines before; an open last line only has to begin like it."""
    repeated = 0
    for number in range(len(lines) - 1, period - 1, -1):
        line, earlier = lines[number], lines[number - period]
        is_open = is_last_open and number == len(lines) - 1
        if not (earlier.startswith(line) if is_open else line == earlier):
            break
        repeated += 1
    return repeated


def _repeats_a_piece(line: str) -> bool:
    """Whether a line ends in the same piece again and again; a row of dashes is no such piece."""
    line = line[-LONGEST_PIECE * TIMES_IN_LINE :]
    shortest = next((length for length, c in enumerate(reversed(line), 1) if c.isalnum()), len(line))
    return any(
        line.endswith(line[-length:] * max(TIMES_IN_LINE, math.ceil(LENGTH_IN_LINE / length)))
        for length in range(shortest, len(line) // TIMES_IN_LINE + 1)
    )
