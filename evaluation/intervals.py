"""How sure a mean or a difference is: the 95 % bootstrap interval."""

from collections.abc import Hashable, Sequence

import numpy as np

RESAMPLES = 10_000
FEW_FILES = 5
DRAWN_AT_ONCE = 1_000_000  # limits the memory


def bootstrap_interval(
    values: Sequence[float], groups: Sequence[Hashable] | None = None, seed: int = 0
) -> tuple[float, float]:
    """Return the 95 % interval of the values' mean, from the percentile bootstrap.

    Args:
        values: one or more numbers.
        groups: the group of each value, such as the file that it comes from. Values of one group resemble each other,
            so whole groups are drawn, each with all of its values. None: each value is a group of its own.
        seed: of the random draws; the same seed gives the same interval.
    """
    values = np.asarray(values, dtype=np.float64)
    places: dict[Hashable, int] = {}
    group_of = np.arange(len(values)) if groups is None else [places.setdefault(g, len(places)) for g in groups]
    sums, sizes = np.bincount(group_of, values), np.bincount(group_of)  # [groups]
    rng = np.random.default_rng(seed)
    means = []
    block = max(1, DRAWN_AT_ONCE // len(sums))  # resamples
    for left in range(RESAMPLES, 0, -block):
        drawn = rng.integers(len(sums), size=(min(block, left), len(sums)))
        means.append(sums[drawn].sum(1) / sizes[drawn].sum(1))
    low, high = np.quantile(np.concatenate(means), (0.025, 0.975))
    return float(low), float(high)


def figure(values: Sequence[float], files: Sequence[Hashable], unit: float = 1.0) -> dict[str, float]:
    """Return the mean of a value for each place, and the ends of its interval, times `unit`.

    Files are drawn, because places in one file resemble each other. A draw from fewer than FEW_FILES would say nothing,
    so then the places are drawn one by one.
    """
    low, high = bootstrap_interval(values, files if len(set(files)) >= FEW_FILES else None)
    return {"mean": unit * sum(values) / len(values), "low": unit * low, "high": unit * high}


def paired_difference(
    new: Sequence[float],
    old: Sequence[float],
    files: Sequence[Hashable],
    unit: float = 1.0,
    relative: bool = False,
) -> dict[str, float]:
    """As `figure`, of the differences between values at the same places; `relative` to the mean of the old ones."""
    unit *= len(old) / max(sum(old), 1e-9) if relative else 1.0
    return figure([a - b for a, b in zip(new, old, strict=True)], files, unit)
