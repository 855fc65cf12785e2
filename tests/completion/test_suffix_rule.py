"""Where completions end that stand in front of other code, fed character by character."""

import pytest

from completion.stopping import make_stop_rule
from completion.suffix_rule import before_suffix

# name: stop, prefix, suffix, what a model writes, what is kept
CASES = {
    "the rest of a line is not repeated": ("block", "x = compute(", "first, second)\n", "a, first, second)\n", "a, "),
    "a bracket that the suffix closes": ("block", "print(", ")\n", "total)\nprint(1)\n", "total"),
    "a bracket of its own": ("block", "print(", ")\n", "len(items))\n", "len(items)"),
    "a bracket in a string": ("block", "print(", ")\n", "':)')\n", "':)'"),
    "a bracket closed in a later line": ("none", "x = [\n    1,\n", "]\n", "    2,\n]\ny = 3\n", "    2,\n"),
    "inside a line it ends with the line": ("block", "for i in ", ":\n    pass\n", "range(3)\n    x\n", "range(3)"),
    "a colon that stands there": ("block", "for i in ", ":\n    pass\n", "range(3):\n    x\n", "range(3)"),
    "the next line is not written again": (
        "block",
        "def add(a, b):\n    total = 0\n",
        "    return total\n",
        "    total = a + b\n    return total\n\n\ndef",
        "    total = a + b",
    ),
    "a line that begins as the next one": (
        "none",
        "def add(a, b):\n",
        "    return total\n",
        "    return total + 1\nx = 1",
        "    return total + 1\nx = 1",
    ),
    "nothing follows": ("line", "x = ", "", "1 + 2\ny = 3\n", "1 + 2"),
}


@pytest.mark.parametrize("case", CASES)
def test_ends_before_the_suffix(case):
    stop, prefix, suffix, written, kept = CASES[case]
    rule = before_suffix(make_stop_rule(stop, prefix, "python"), prefix, suffix)
    shown, done = "", False
    for length in range(1, len(written) + 1):
        safe, done = rule(written[:length])
        assert written[:safe].startswith(shown), "what was shown was taken away"
        shown = written[:safe]
        if done:
            break
    if not done:
        safe, _ = rule(written + "\n")  # as where the model ends
        shown = written[:safe]
    assert shown.rstrip("\n") == kept.rstrip("\n")
