"""Before and after: intervals, the table and the sentence that says whether it may be chance."""

import pytest

from adaptation.comparison import compare, tell


def places(exact, exact_with_context):
    return [
        {
            "kind": "rest of a line",
            "file": f"{number % 10}.py",
            "answers": {"prefix, suffix": {"exact": one}, "prefix, suffix, context": {"exact": other}},
        }
        for number, (one, other) in enumerate(zip(exact, exact_with_context, strict=True))
    ]


def result(before, after):
    losses = {part: {"bits_per_byte": bits} for part, bits in (("project", 1.0), ("library", 0.9))}
    adapted = {part: {"bits_per_byte": bits} for part, bits in (("project", 0.8), ("library", 0.909))}
    return {"places": compare(before, after), "losses": {"before": losses, "after": adapted}}


def test_a_gain_at_most_places_is_better_and_none_is_said_to_be_chance():
    before = places([False] * 100, [False] * 100)
    after = places([False] * 50 + [True] * 50, [number % 3 > 0 for number in range(100)])
    told = tell(result(before, after))
    assert "Better, and not by chance" in told
    assert "-20.0%" in told  # bits per byte
    assert "(+1.0%)" in told  # of the library
    figures = result(before, after)["places"]["rest of a line"]
    assert figures["exact"]["adapted"]["mean"] == pytest.approx(50)
    gain = figures["differences"]["adapted, with context - base"]
    assert gain["low"] < gain["mean"] < gain["high"]
    assert gain["mean"] == pytest.approx(66)
    assert "Worse, and not by chance" in tell(result(after, before))
    mixed = places([False] * 100, [number == 3 for number in range(100)])
    assert "Not shown to be better: though bits per byte fell by 20%" in tell(result(before, mixed))
