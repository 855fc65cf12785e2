"""Where completions end that stand in front of other code, fed character by character."""

import pytest

from completion.stop_rules.stop_rule import make_stop_rule
from completion.stop_rules.suffix_rule import before_suffix

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
        "    total = a + b\n",
    ),
    "a line that begins as the next one": (
        "none",
        "def add(a, b):\n",
        "    total += 1\n",
        "    total += 1 + b\nx = 1",
        "    total += 1 + b\nx = 1",
    ),
    "a line that begins behind its indentation": (
        "block",
        "def add(a, b):\n    ",
        "\n    return total\n",
        "total = a + b\n    return total\n",
        "total = a + b",
    ),
    "the next line at once, behind the indentation": (
        "block",
        "def f():\n    ",
        "\n    x = 1\n",
        "x = 1\n    y = 2\n",
        "",
    ),
    "blank lines at the end": (
        "block",
        "def f():\n    x = 1",
        "\n\n    z = 3\n",
        "\n    y = 2\n\n    z = 3\n",
        "\n    y = 2",
    ),
    "the rest of the line in a later line": (
        "block",
        "for name in n",
        "(name)\n    close()\n",
        "ames:\n    print(name)\n    close()\n",
        "ames:\n    print",
    ),
    "the end of a word": ("block", "f(self.na", "e)\n", "me)\nx = 1\n", "m"),
    "the rest of the line never": (
        "block",
        "x = len(",
        "items) + 1\n",
        "a)\ny = 2\nz = 3\nz = 4\nz = 5\nz = 6\n",
        "a)",
    ),
    "the rest of the line, indented otherwise": ("block", "for i in n", "        i += 1\n", "s:\n    i += 1\n", "s:"),
    "a fence": ("none", "x = 1", "\ny = 2\n", " + 1\n```\nThis code adds.\n", " + 1"),
    "a fence at once": ("none", "x = 1\n", "y = 2\n", "```\nThis code adds.\n", ""),
    "a fence in a text that has some": ("none", "# A\n```\nx = 1", "\n\nB\n", "\n```\nmore\n", "\n```\nmore"),
    "code that could not be reached": (
        "block",
        "def f(n):\n    x = 1",
        "\n    return x + n\n",
        "\n    x = 2\n    return x\n",
        "\n    x = 2",
    ),
    "a way out in a deeper block": (
        "block",
        "def f(n):\n    if n:",
        "\n    return 1\n",
        "\n        return 2\n    x = 1",
        "\n        return 2",
    ),
    "a name that begins as a way out": (
        "block",
        "def f(n):\n    x = 1",
        "\n    print(returned)\n",
        "\n    returned = n",
        "\n    returned = n",
    ),
    "prose": (
        "none",
        'def f(n):\n    """Let it\n',
        "    be.\n",
        "    return what it may\n",
        "    return what it may\n",
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
    assert shown == kept
