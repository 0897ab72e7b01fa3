"""Step times with and without a fault, and what "unchanged" means for them.

A *round* is one block of steps with the tap at hand, one with a tap that nobody listens to and one
with another such tap, right after each other and in changing order, so that whatever else the
machine does falls on all three. Unchanged (docs/faults.md): the upper end of the 95 % interval of
the added median is at most 5 µs, that of the added 99th percentile at most 50 µs. The *floor* is
the same figure of the two taps that nobody listens to: what the machine alone makes of "unchanged".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from interlatent_live.bench.paired import added_median, added_p99, upper_bound

if TYPE_CHECKING:
    from numpy.typing import NDArray

BLOCK: Final = 50
"""Steps of one block: long enough for a sender turn or two, short enough to pair."""
RESAMPLES: Final = 300
MEDIAN_BOUND_US: Final = 5.0
P99_BOUND_US: Final = 50.0


@dataclass(frozen=True, slots=True)
class StepTimes:
    """Step times of one case beside a tap with nobody listening, in µs."""

    rounds: int
    nobody_us: float
    fault_us: float
    nobody_p99_us: float
    fault_p99_us: float
    added_median_upper_us: float
    """Upper end of the 95 % interval of the added median."""
    added_p99_upper_us: float
    """Upper end of the 95 % interval of the added 99th percentile."""
    floor_median_upper_us: float
    """The same of one tap with nobody listening over another."""
    floor_p99_upper_us: float
    """Likewise."""

    @property
    def ratio(self) -> float:
        """Median step with the fault over the median step with nobody listening."""
        return self.fault_us / self.nobody_us if self.nobody_us else float("inf")


def summarise(
    fault: NDArray[np.float64], nobody: NDArray[np.float64], again: NDArray[np.float64]
) -> StepTimes:
    """Times [rounds, BLOCK] in µs of rounds; ``nobody`` and ``again`` are the two idle taps.

    The interval is the percentile bootstrap over rounds (Efron 1979), 300 draws.

    Raises:
        ValueError: when there is no round, or their blocks do not belong together.
    """
    if not fault.shape == nobody.shape == again.shape or not len(fault):
        raise ValueError(f"step times {fault.shape}, {nobody.shape}, {again.shape} are no rounds")
    return StepTimes(
        rounds=len(fault),
        nobody_us=float(np.median(nobody)),
        fault_us=float(np.median(fault)),
        nobody_p99_us=float(np.percentile(nobody, 99)),
        fault_p99_us=float(np.percentile(fault, 99)),
        added_median_upper_us=upper_bound(fault, nobody, added_median, RESAMPLES),
        added_p99_upper_us=upper_bound(fault, nobody, added_p99, RESAMPLES),
        floor_median_upper_us=upper_bound(again, nobody, added_median, RESAMPLES),
        floor_p99_upper_us=upper_bound(again, nobody, added_p99, RESAMPLES),
    )
