"""pass@k without bias."""

import numpy as np


def pass_at_k(n: int, c: int, k: int) -> float:
    """The probability that one of k samples is right, estimated from n samples of which c are.

    1 - C(n - c, k) / C(n, k) as a product, which neither overflows nor cancels (Chen et al. 2021, equation 1).
    """
    if n - c < k:
        return 1.0
    return 1.0 - float(np.prod(1.0 - k / np.arange(n - c + 1, n + 1)))
