"""Stop rule for a completion that repeats itself, as small models often do."""

import math

MAX_LINES = 4  # the longest group of lines whose repetition is noticed
TIMES = 3  # how often a group of lines must occur
TIMES_IN_LINE, LENGTH_IN_LINE = 5, 40  # how often a piece of a line must occur, and over how many characters at least
LONGEST_PIECE = 200  # characters
READ_LINES = 2 * TIMES * MAX_LINES  # how many lines at the end of the text are read


def before_repetition(text: str) -> tuple[int, bool]:
    """Return how many characters of a growing text surely repeat nothing, and whether the text repeats itself.

    Repeated lines are held back until a different line comes, so that only their first occurrence is kept. Blank lines
    do not count. A repeated piece of a line is kept.
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
    """Return the last lines that are not blank, each with the place where its indentation ends."""
    found, rest = [], text.rstrip()
    while rest and len(found) < READ_LINES:
        line = rest[rest.rfind("\n") + 1 :]
        found.append((len(rest) - len(line.lstrip()), line))
        rest = rest[: len(rest) - len(line)].rstrip()
    return found[::-1]


def _repeated_lines(lines: list[str], period: int, is_last_open: bool) -> int:
    """Count the last lines that equal the line `period` lines before them.

    An unfinished last line counts if the earlier line begins with it.
    """
    repeated = 0
    for number in range(len(lines) - 1, period - 1, -1):
        line, earlier = lines[number], lines[number - period]
        is_open = is_last_open and number == len(lines) - 1
        if not (earlier.startswith(line) if is_open else line == earlier):
            break
        repeated += 1
    return repeated


def _repeats_a_piece(line: str) -> bool:
    """Whether a line ends with the same piece again and again. The piece contains a letter or digit."""
    line = line[-LONGEST_PIECE * TIMES_IN_LINE :]
    shortest = next((length for length, c in enumerate(reversed(line), 1) if c.isalnum()), len(line))
    return any(
        line.endswith(line[-length:] * max(TIMES_IN_LINE, math.ceil(LENGTH_IN_LINE / length)))
        for length in range(shortest, len(line) // TIMES_IN_LINE + 1)
    )
