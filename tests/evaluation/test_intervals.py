"""The bootstrap interval of a mean, over values and over groups of them."""

from evaluation.intervals import bootstrap_interval, figure, paired_difference


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


def test_places_of_few_files_are_drawn_one_by_one():
    """As those of HumanEval-Infilling, which all have one path."""
    values, nothing = [1.0] * 30 + [0.0] * 70, [0.0] * 100
    alone = figure(values, range(100))
    assert alone["low"] < alone["mean"] < alone["high"]
    assert figure(values, ["main.py"] * 100) == alone
    assert paired_difference(values, nothing, ["main.py"] * 100) == alone
    files = [place // 10 for place in range(100)]
    assert figure(values, files)["low"] < alone["low"]  # ten files are drawn whole
