"""Before and after: intervals, the table and the sentence that says whether it may be chance."""

import pytest

from adaptation.comparison import compare, tell


def places(exact, exact_with_context, bits=20.0):
    return [
        {
            "file": f"{number % 10}.py",
            "wanted": "é" * 10,
            "answers": {
                "prefix, suffix": {"exact": one, "bits": bits + number % 3},
                "prefix, suffix, context": {"exact": other, "bits": bits / 2 + number % 3},
            },
        }
        for number, (one, other) in enumerate(zip(exact, exact_with_context, strict=True))
    ]


def result(before, after):
    losses = {part: {"bits_per_byte": bits} for part, bits in (("project", 1.0), ("library", 0.9))}
    adapted = {part: {"bits_per_byte": bits} for part, bits in (("project", 0.8), ("library", 0.909))}
    return {"places": compare(before, after), "losses": {"before": losses, "after": adapted}, "share": 0.8}


def test_a_gain_at_most_places_is_better_and_none_is_said_to_be_chance():
    before = places([False] * 100, [False] * 100)
    after = places([False] * 50 + [True] * 50, [number % 3 > 0 for number in range(100)])
    told = tell(result(before, after))
    assert "Better, and not by chance" in told
    assert "1.000 bits per byte before, 0.800 after (-20.0%)" in told
    assert "(+1.0%)" in told  # of the library
    assert "keep 80% of their change" in told
    figures = result(before, after)["places"]
    assert figures["exact"]["adapted"]["mean"] == pytest.approx(50)
    gain = figures["differences"]["adapted + context - base"]["exact"]
    assert gain["low"] < gain["mean"] < gain["high"]
    assert gain["mean"] == pytest.approx(66)
    assert "Worse, and not by chance" in tell(result(after, before))
    same = places([False] * 100, [number == 3 for number in range(100)])
    assert "Not shown to be better: exact lines changed" in tell(result(before, same))
    likelier = places([False] * 100, [number == 3 for number in range(100)], bits=10.0)
    assert "bits per byte -45 %, not by chance" in tell(result(before, likelier))
    bits = result(before, likelier)["places"]["bits"]
    assert bits["base"]["mean"] == pytest.approx((20 + 0.99) / 20)  # 20 bytes
    assert bits["adapted + context"]["mean"] == pytest.approx((5 + 0.99) / 20)
