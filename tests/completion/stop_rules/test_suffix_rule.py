"""Where completions end that stand in front of other code, fed character by character."""

import random

import pytest

from common.source_code import LANGUAGES
from completion.stop_rules.stop_rule import STOPS, make_stop_rule
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
    "the rest of the line never": ("block", "x = ", "items + 1\n", "a\ny = 2\nz = 3\nz = 4\nz = 5\nz = 6\n", "a"),
    "a bracket of its own at the end": ("block", "print(", ")", "f(x)", "f(x)"),
    "a bracket of its own and a blank": ("block", "print(", ")", "f(x) \n", "f(x)"),
    "a blank before the suffix's bracket": ("block", "print(", ")\n", "f(x) )\n", "f(x)"),
    "one bracket of its own, one of the suffix": ("block", "print(f(", "))\n", "g(x)))\n", "g(x)"),
    "two brackets are open and one is closed": ("block", "print(f(", ")\n", "x))\n", "x)"),
    "a colon after a bracket": ("block", "for i in f(", "):\n    pass\n", "g(x):\n    x\n", "g(x)"),
    "the rest in a bracket of its own": ("block", "x = f(", "a, b)\n", "g(a, b), a, b)\n", "g(a, b), "),
    "the rest begins before its bracket": ("block", "f(g(", "x, y)) + 1\n", "x, y)\n", ""),
    "a bracket that the rest closes": ("block", "x = f(", "a) + 1\n", "b)\n", "b"),
    "a bracket that the next line closes": ("block", "f(\n    g(", "\n)\n", "x)\n)\n", "x)"),
    "a bracket in a comment": ("none", "x = [\n", "]\n", "    1,  # a) one\n    2,\n]\n", "    1,  # a) one\n    2,\n"),
    "a list in a line": ("block", "print(", ")\n", "[\n    1,\n])\n", "[\n    1,\n]"),
    "arguments on lines of their own": ("none", "print(", ")\n", "\n    a,\n    b,\n)\nx\n", "\n    a,\n    b,\n"),
    "a bracket too many far below": ("block", "f(", "\nx = 1\n}\n", "a)\n", "a)"),
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
    "the next line and a blank": ("none", "", "# a\nx = 1\n", "# a \n", ""),
    "a comment in a block whose body follows": ("line", "if n:\n    # as", "\n    f(n)\n", " g\n    # h\n", " g"),
    "a comment in a block without a body": ("line", "if n:\n    # as", "\nf(n)\n", " g\n    h()\n", " g\n    h()"),
    "no suffix": ("line", "x = ", "", "1 + 2\ny = 3\n", "1 + 2"),
}


CLASS = "class A {\n    void f() {\n"
END = "    }\n}\n"
JAVA_CASES = {
    "a comment where the body follows": ("line", CLASS + "    // as", "\n    a();\n" + END, " b\n    // c\n", " b"),
    "a statement's end that the rest has": ("block", CLASS + "        x = new T(", "a);\n" + END, ");\n", ""),
    "a brace that the rest opens": ("block", CLASS + "        for (T a : ", "b) {\n        }\n" + END, "c) {\n", "c"),
    "a call of its own": ("block", CLASS + "        g(", ");\n" + END, "h(a));\n", "h(a)"),
    "a block that the suffix closes": ("none", CLASS, "        a();\n" + END, "    b();\n    }\n", "    b();\n"),
    "a block of its own": ("none", CLASS, END, "        if (a) { b('}'); // }\n        }\n" + END,
                           "        if (a) { b('}'); // }\n        }\n"),
    "the suffix's end is missing": ("block", CLASS + "        g(", ");\n", "a);\n", "a"),
}  # fmt: skip


def kept_of(stop, prefix, suffix, written, language):
    """What a rule keeps of a text that comes character by character; it never takes back what it has let through."""
    rule = before_suffix(make_stop_rule(stop, prefix, language, suffix), prefix, suffix, language)
    shown, done = "", False
    for length in range(1, len(written) + 1):
        safe, done = rule(written[:length])
        assert written[:safe].startswith(shown), "what was shown was taken away"
        shown = written[:safe]
        if done:
            break
    if not done:
        safe, _ = rule(written + "\n")  # as where the model ends
        assert written[:safe].startswith(shown), "what was shown was taken away"
        shown = written[:safe]
    return shown


@pytest.mark.parametrize("case", CASES)
def test_ends_before_the_suffix(case):
    *given, kept = CASES[case]
    assert kept_of(*given, "python") == kept


@pytest.mark.parametrize("case", JAVA_CASES)
def test_ends_before_the_suffix_in_java(case):
    *given, kept = JAVA_CASES[case]
    assert kept_of(*given, "java") == kept


def test_what_was_shown_is_never_taken_back():
    pieces = [
        "f(",
        "x",
        ")",
        "]",
        "[",
        ":",
        " ",
        "\n",
        "\n    ",
        "return",
        "'",
        "# ",
        ", ",
        "{",
        "}",
        ";",
        "```",
        '"""',
    ]
    rng = random.Random(0)
    for _ in range(1500):
        prefix, suffix, written = ("".join(rng.choices(pieces, k=rng.randrange(9))) for _ in range(3))
        kept_of(rng.choice(STOPS), prefix, suffix, written, rng.choice(LANGUAGES))
