"""Whether something grows: a slope that a few bursts cannot bend, with its interval.

Samples a second apart are far from independent (an allocator gives memory back in lumps, a table
fills in bursts), so their medians over blocks are what a line is put through: the median of the
slopes of all pairs (Theil 1950), with the interval of Sen (1968), which counts on blocks that are
independent of each other and needs no normal errors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from scipy import stats

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

BLOCK_S: Final = 15.0
LEAST_BLOCKS: Final = 4
CONFIDENCE: Final = 0.95


@dataclass(frozen=True, slots=True)
class Slope:
    """Growth per second; ``low`` and ``high`` are the ends of the 95 % interval."""

    value: float
    low: float
    high: float
    blocks: int


def slope(
    seconds: NDArray[np.float64],
    values: NDArray[np.float64],
    *,
    block_s: float = BLOCK_S,
    of_block: Callable[[NDArray[np.float64]], np.float64] = np.median,
) -> Slope:
    """Growth of ``values`` [n] per second over the times ``seconds`` [n], ascending.

    ``of_block`` says what stands for a block: its median, or its least where what comes and goes
    within a block is no growth.

    Raises:
        ValueError: when the samples span fewer than four blocks.
    """
    block = np.floor((seconds - seconds[0]) / block_s).astype(np.intp) if len(seconds) else seconds
    # The last block is cut short by the end; what is left of it weighs as much as a whole one.
    numbers = np.unique(block)[:-1]
    if len(numbers) < LEAST_BLOCKS:
        raise ValueError(f"{len(numbers)} blocks of {block_s:g} s are too few for a slope")
    at = np.array([np.mean(seconds[block == number]) for number in numbers])
    middle = np.array([of_block(values[block == number]) for number in numbers])
    found = stats.theilslopes(middle, at, CONFIDENCE)
    return Slope(float(found.slope), float(found.low_slope), float(found.high_slope), len(numbers))
