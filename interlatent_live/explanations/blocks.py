"""How long a block must be where episodes never end.

The unit of resampling is the episode, and a run without ends has only one. It is cut into blocks of
at least 20 autocorrelation times of its slowest metric (definitions, "Units of evidence"), so that
one block says next to nothing about the next. Clocks are left out: they only ever grow.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from interlatent_live.stream import Role

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from interlatent_live.explanations.evidence import Evidence

TIMES: Final = 20
"""Autocorrelation times in a block."""
LEAST_STEPS: Final = 100
MOST_STEPS: Final = 10_000
"""A metric that drifts for longer than this over 20 is not waited for: nothing would be judged."""


def block_length(evidence: Evidence, units: int) -> int | None:
    """Steps of a block; ``None`` while the rows do not make ``units`` blocks of it."""
    slowest = autocorrelation_steps(evidence)
    steps = int(np.clip(TIMES * slowest, LEAST_STEPS, MOST_STEPS))
    lengths = np.bincount(evidence.unit, minlength=evidence.n_units)
    return steps if int((lengths // steps).sum()) >= units else None


def autocorrelation_steps(evidence: Evidence) -> int:
    """Steps after which the slowest metric's autocorrelation is below 1/e, in the longest unit."""
    longest = int(np.bincount(evidence.unit).argmax())
    rows = evidence.unit == longest
    columns = [
        evidence.metrics[rows, index]
        for index, spec in enumerate(evidence.specs)
        if spec.role is not Role.CLOCK
    ]
    return max((decorrelation_steps(column) for column in columns), default=1)


def decorrelation_steps(column: NDArray[np.float64]) -> int:
    """Steps [n] after which a metric's autocorrelation is below 1/e; 1 where it never varies."""
    known = np.isfinite(column)
    if not known.any():
        return 1
    values = np.where(known, column - column[known].mean(), 0.0)
    if not values.any():
        return 1
    power = np.abs(np.fft.rfft(values, 2 * len(values))) ** 2
    correlation = np.fft.irfft(power)[: len(values)]
    below = np.flatnonzero(correlation < correlation[0] / np.e)
    return int(below[0]) if len(below) else len(values)
