"""Order-free randomness: a row's priority is a hash of who it is, never of when it was seen.

Samples chosen by smallest hash are uniform, the same under any sharding, and merge by keeping the
smallest of both (bottom-k sketches; Cohen & Kaplan 2007).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_A = np.uint64(0xBF58476D1CE4E5B9)
_B = np.uint64(0x94D049BB133111EB)


def mix(values: NDArray[np.uint64], seed: int = 0) -> NDArray[np.uint64]:
    """SplitMix64 finaliser (Steele, Lea & Flood 2014) of ``values`` under ``seed``, uint64 [n]."""
    start = np.uint64((seed * 0x9E3779B97F4A7C15 + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF)
    with np.errstate(over="ignore"):
        z = np.atleast_1d(values).astype(np.uint64) * _GOLDEN + start
        z = (z ^ (z >> np.uint64(30))) * _A
        z = (z ^ (z >> np.uint64(27))) * _B
    return np.asarray(z ^ (z >> np.uint64(31)), np.uint64)


def mix_all(columns: tuple[NDArray[np.uint64], ...], seed: int = 0) -> NDArray[np.uint64]:
    """Hash of several columns row by row, uint64 [n]."""
    out = mix(columns[0], seed)
    for column in columns[1:]:
        out = mix(out ^ mix(column, seed + 1), seed)
    return out
