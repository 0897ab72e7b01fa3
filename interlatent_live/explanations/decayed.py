"""A claim's score as of late: beside the ledger, which remembers all since the text was fixed.

A ledger of a month hardly moves when a claim gets worse today. So the same counts are kept once
more, with each row's weight halved every ``half_life`` scored rows. They stay counts by unit
(episode or block), so that the interval is clustered as everywhere (:mod:`scores`); weights are
powers of the rows seen since, not of wall time, so that a replay gives the same numbers however it
is cut into batches. It is shown, never judged by: a verdict asks for a fresh ledger, and withdrawal
for a test that may be looked at all the time (:mod:`sequential`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np

from interlatent_live.explanations.scores import (
    Interval,
    UnitCounts,
    balanced_accuracy_interval,
    precision_interval,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from interlatent_live.explanations.evidence import Evidence

    Unit = tuple[int, ...]
    Sums = tuple[float, float, float, float]

DEFAULT_HALF_LIFE: Final = 20_000
"""Scored rows after which a row counts half."""
_NEGLIGIBLE: Final = 1e-3
"""Rows' worth of weight at which a unit is forgotten."""
_MOST_UNITS: Final = 4096


@dataclass(frozen=True, slots=True)
class RecentScores:
    """What the newest rows say of a claim."""

    balanced_accuracy: Interval
    precision: Interval
    half_life: float
    """In scored rows."""
    effective_rows: float
    """Sum of the rows' weights."""
    effective_units: float
    """(Σw)² / Σw² over the units' weights (Kish, *Survey Sampling*, 1965, §11.7)."""


@dataclass(frozen=True, slots=True)
class DecayedCounts:
    """Confusion counts by unit, decayed up to the newest row taken in."""

    half_life: float = DEFAULT_HALF_LIFE
    until_ns: int = -(2**63)
    """Rows up to this moment have been taken in."""
    units: Mapping[Unit, Sums] = field(default_factory=dict)
    """Unit key → decayed rows in which both hold, predicate holds, feature is on, all."""

    def __post_init__(self) -> None:
        if self.half_life <= 0:
            raise ValueError(f"a half-life is positive, not {self.half_life}")

    def after(
        self, evidence: Evidence, feature: int, holds: NDArray[np.bool_], until_ns: int
    ) -> DecayedCounts:
        """Take in the scored rows in (self.until_ns, until_ns]; ``holds`` is [n]."""
        fresh = evidence.scored & (evidence.time_ns > self.until_ns)
        rows = np.flatnonzero(fresh & (evidence.time_ns <= until_ns))
        if len(rows) == 0:
            return self
        time_ns = evidence.time_ns[rows]
        # Rows of one moment have one weight, whatever order the copies came in.
        later = len(rows) - np.searchsorted(np.sort(time_ns), time_ns, side="right")
        weight = np.exp2(-later / self.half_life)
        unit = evidence.unit[rows]
        on, said = evidence.on(feature)[rows], holds[rows]
        sums = [
            np.bincount(unit, weight * which, minlength=evidence.n_units)
            for which in (on & said, said, on, np.ones(len(rows), bool))
        ]
        faded = float(np.exp2(-len(rows) / self.half_life))
        units: dict[Unit, Sums] = {}
        for key, (hit, says, present, total) in self.units.items():
            units[key] = (hit * faded, says * faded, present * faded, total * faded)
        for number in np.unique(unit).tolist():
            key = tuple(evidence.unit_key[number].tolist())
            old = units.pop(key, (0.0, 0.0, 0.0, 0.0))
            hit, says, present, total = (
                before + float(new[number]) for before, new in zip(old, sums, strict=True)
            )
            units[key] = (hit, says, present, total)
        kept = [item for item in units.items() if item[1][3] >= _NEGLIGIBLE]
        return DecayedCounts(self.half_life, int(until_ns), dict(kept[-_MOST_UNITS:]))

    def scores(self) -> RecentScores:
        """The scores with their intervals; values are None where there is nothing to tell."""
        columns = np.array([*self.units.values()]).reshape(-1, 4).T
        counts = UnitCounts(*columns)
        total = float(counts.rows.sum())
        squares = float((counts.rows**2).sum())
        return RecentScores(
            balanced_accuracy_interval(counts),
            precision_interval(counts),
            self.half_life,
            total,
            total**2 / squares if squares else 0.0,
        )
