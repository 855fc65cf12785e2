"""A completion that repeats itself is ended, and the repeated lines are kept once."""

import pytest

from completion.complete import complete
from completion.engines.load_engine import load_engine
from completion.stop_rules.repetition import before_repetition

BODY = "    total = 0\n    for x in items:\n        total += x\n"


def grown(text):
    """The text that the rule, called after every character, has shown, and where it ended the text, if it did."""
    shown = 0
    for end in range(1, len(text) + 1):
        safe, over = before_repetition(text[:end])
        assert safe >= len(text[:shown].rstrip()), "what has been shown was taken back"
        shown = max(shown, safe)
        if over:
            return text[:shown], end
    return text[:shown], None


@pytest.mark.parametrize(
    "lines", [["    x = f(x)"], ["a = 1", "b = 2"], ["def f():", "", "    return f()"], ["1", "2", "3", "4"]]
)
def test_repeated_lines_are_kept_once(lines):
    once = "\n".join(lines) + "\n"
    shown, end = grown("y = 0\n" + once * 5)
    assert end is not None
    assert shown == "y = 0\n" + once.rstrip()
    assert end <= len("y = 0\n" + once * 3) + 1


def test_a_head_keeps_the_first_line_of_its_body():
    skip = "    if line.startswith('0'):\n        continue\n"
    shown, end = grown("for line in file:\n    if not line:\n        continue\n" + skip * 5)
    assert end is not None
    assert shown.endswith(":\n        continue")


@pytest.mark.parametrize("piece", ["x, ", "self.", "--path', '", "_parse", "of the minimum "])
def test_a_repeated_piece_of_a_line_is_noticed(piece):
    _, end = grown("    return " + piece * 60)
    assert end is not None and end < len("    return ") + max(5 * len(piece), 40) + len(piece) + 1


@pytest.mark.parametrize(
    "code",
    [
        BODY,
        BODY * 2,  # twice is not enough
        "# " + "-" * 100 + "\n",
        "    [0, 0, 0, 0, 0, 0, 0, 0],\n",
        "print()\nprint(x)\nprint()\nprint(y)\nprint()\nprint(z)\n",
        "    }\n  }\n}\n",
        "if a:\n    pass\nelif b:\n    pass\nelif c:\n    pass\nelse:\n    pass\n",
    ],
)
def test_ordinary_code_is_no_repetition(code):
    shown, end = grown(code + "end = True\n")
    assert (shown.rstrip(), end) == ((code + "end = True").rstrip(), None)


def test_a_model_that_repeats_itself_is_stopped():
    prompt = "def f(items):\n" + "    items.append(0)\n" * 12
    pieces: list[str] = []
    (found,) = complete(load_engine("tiny"), prompt, temperature=0, max_new_tokens=100, on_text=pieces.append)
    assert (found.text.strip(), found.stop_reason) == ("items.append(0)", "loop")
    assert "".join(pieces) == found.text
    assert not found.finished
    (endless,) = complete(load_engine("tiny"), prompt, temperature=0, max_new_tokens=100, stop="none")
    assert (len(endless.tokens), endless.stop_reason) == (100, "length")
