"""pass@k without bias, and how sure it is."""

from collections.abc import Sequence

import numpy as np

RESAMPLES = 10_000


def pass_at_k(n: int, c: int, k: int) -> float:
    """The probability that one of k samples is right, estimated from n samples of which c are.

    1 - C(n - c, k) / C(n, k) as a product, which neither overflows nor cancels (Chen et al. 2021, equation 1).
    """
    if n - c < k:
        return 1.0
    return 1.0 - float(np.prod(1.0 - k / np.arange(n - c + 1, n + 1)))


def interval(values: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """The 95 % interval of the mean of problems' values, by the percentile bootstrap over problems."""
    values = np.asarray(values, dtype=np.float64)
    chosen = np.random.default_rng(seed).integers(len(values), size=(RESAMPLES, len(values)))
    low, high = np.quantile(values[chosen].mean(axis=1), (0.025, 0.975))
    return float(low), float(high)
