"""Means with intervals, paired differences and Holm's correction: all that the table needs.

The unit is the episode. Two arms play the same episodes with the same luck, so their difference is
taken episode by episode; with 2,000 of them the normal interval is as good as any.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import norm

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

Z95 = float(norm.ppf(0.975))


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over n episodes with its 95 % interval."""

    mean: float
    low: float
    high: float
    n: int

    @property
    def standard_error(self) -> float:
        """Half the interval over 1.96."""
        return (self.high - self.low) / 2 / Z95


def estimate(values: NDArray[np.number]) -> Estimate:
    """Mean and normal 95 % interval of independent values [n], n ≥ 2."""
    array = np.asarray(values, np.float64)
    mean = float(array.mean())
    half = Z95 * float(array.std(ddof=1)) / np.sqrt(len(array))
    return Estimate(mean, mean - half, mean + half, len(array))


def paired(a: NDArray[np.number], b: NDArray[np.number]) -> Estimate:
    """Mean of a − b, episode by episode."""
    return estimate(np.asarray(a, np.float64) - np.asarray(b, np.float64))


def p_greater(difference: Estimate) -> float:
    """One-sided p of "the difference is not above 0"."""
    error = difference.standard_error
    if error == 0.0:
        return 0.0 if difference.mean > 0 else 1.0
    return float(norm.sf(difference.mean / error))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the given order (Holm 1979)."""
    order = np.argsort(p_values, kind="stable")
    adjusted = np.empty(len(p_values))
    running = 0.0
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = running
    return [float(value) for value in adjusted]


def over_policies(differences: Sequence[Estimate]) -> Estimate:
    """Mean of independent estimates with the interval of their mean, policies held fixed."""
    mean = float(np.mean([item.mean for item in differences]))
    error = float(np.sqrt(np.sum([item.standard_error**2 for item in differences])))
    half = Z95 * error / len(differences)
    return Estimate(mean, mean - half, mean + half, sum(item.n for item in differences))
