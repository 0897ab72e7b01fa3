"""What one way of stepping adds to another, from interleaved blocks that are compared in pairs.

Rounds and not steps are resampled: steps of one block share whatever the machine did meanwhile.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Added = Callable[[NDArray[np.float64], NDArray[np.float64]], float]

RESAMPLES: Final = 400


def added_median(with_it: NDArray[np.float64], without: NDArray[np.float64]) -> float:
    """Median over rounds of the difference of the block medians; both [rounds, steps], µs."""
    return float(np.median(np.median(with_it, axis=1) - np.median(without, axis=1)))


def added_p99(with_it: NDArray[np.float64], without: NDArray[np.float64]) -> float:
    """Difference of the 99th percentiles over all rounds; both [rounds, steps], µs."""
    return float(np.percentile(with_it, 99) - np.percentile(without, 99))


def upper_bound(
    with_it: NDArray[np.float64],
    without: NDArray[np.float64],
    added: Added,
    resamples: int = RESAMPLES,
) -> float:
    """Upper end of the 95 % bootstrap interval of ``added``, resampling paired rounds."""
    random = np.random.default_rng(0)
    draws = []
    for _ in range(resamples):
        chosen = random.integers(0, len(with_it), len(with_it))
        draws.append(added(with_it[chosen], without[chosen]))
    return float(np.percentile(draws, 97.5))
