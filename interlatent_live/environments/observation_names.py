"""Which metric each number of an observation is, so that people can be told by name.

A family says how its metrics follow from an observation, not which of them *are* numbers of it.
That is found by trying: a metric that is one number of the observation times a constant, whatever
the other numbers are, is that number in its own unit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from interlatent_live.environments.families.family import Family

TRIED: Final = 16
_EXACT: Final = 1e-9


@dataclass(frozen=True, slots=True)
class ObservedNumber:
    """A number of the observation, as people know it."""

    name: str
    unit: str = ""
    scale: float = 1.0
    """What the number is multiplied by to be in that unit."""


def observed_numbers(family: Family) -> tuple[ObservedNumber, ...]:
    """One for each number of the family's observation; ``observation i`` where no metric is it."""
    seen = np.random.default_rng(0).uniform(0.2, 1.0, (TRIED, family.obs_dim))
    metrics = family.measure(seen)
    # [TRIED, M, d]: a metric over a number; the same in every row where it is that number.
    ratio = metrics[:, :, None] / seen[:, None, :]
    same = np.ptp(ratio, axis=0) <= _EXACT * np.abs(ratio[0])
    same &= ratio[0] != 0
    out = []
    for index in range(family.obs_dim):
        found = np.flatnonzero(same[:, index])
        if len(found) == 0:
            out.append(ObservedNumber(f"observation {index}"))
            continue
        spec = family.specs[found[0]]
        out.append(ObservedNumber(spec.name, spec.unit, float(ratio[0, found[0], index])))
    return tuple(out)
