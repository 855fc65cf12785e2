"""The bootstrap interval of a mean, over values and over groups of them."""

from evaluation.intervals import bootstrap_interval


def test_interval_of_a_share():
    low, high = bootstrap_interval([1.0] * 30 + [0.0] * 70)
    assert 0.2 < low < 0.23 and 0.37 < high < 0.4
    assert bootstrap_interval([1.0] * 5) == (1.0, 1.0)


def test_groups_are_drawn_whole():
    values = [1.0] * 30 + [0.0] * 70
    low, high = bootstrap_interval(values)
    assert bootstrap_interval(values, range(100)) == (low, high)
    wider_low, wider_high = bootstrap_interval(values, [place // 10 for place in range(100)])
    assert wider_low < low and wider_high > high
    assert bootstrap_interval([0.0, 1.0, 1.0, 1.0], ["a", "b", "b", "b"], seed=1)[1] == 1.0
    assert bootstrap_interval([0.0, 1.0] * 20, [place // 2 for place in range(40)]) == (0.5, 0.5)
