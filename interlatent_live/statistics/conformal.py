"""Alarms with a stated rate on any score: reconstruction error, novelty, a probe's output.

Split conformal prediction (Vovk, Gammerman & Shafer 2005; Lei et al. 2018): a new score's p-value
is its rank among calibration scores, so under exchangeability an alarm at level α has rate ≤ α
whatever the scores' distribution. Neighbouring steps are not exchangeable, blocks longer than the
memory of the stream nearly are: the unit here is the largest score of a block (or episode).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from interlatent_live.errors import UserError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from interlatent_live.statistics.moments import Floats


def block_maxima(scores: Floats, units: NDArray[np.integer]) -> Floats:
    """[distinct units] largest finite score of each unit [n], NaN for units without one."""
    _, number = np.unique(units, return_inverse=True)
    out = np.full(int(number.max()) + 1 if len(number) else 0, -np.inf)
    finite = np.isfinite(scores)
    np.maximum.at(out, number[finite], scores[finite])
    return np.where(out > -np.inf, out, np.nan)


@dataclass(frozen=True, slots=True)
class ConformalVerdict:
    """What one unit's score says."""

    score: float | None
    p: float | None
    """Share of calibration units at least as extreme, itself included; ``None`` without a score."""
    alarm: bool
    level: float
    """Alarm level in force; differs from the configured one only when adaptive."""


@dataclass(slots=True)
class ConformalAlarm:
    """Alarm when a unit's score is among the largest ``level`` of calibration units.

    ``adapt`` > 0 moves the level after each unit so that the long-run alarm rate stays at ``level``
    even when the scores drift (adaptive conformal inference; Gibbs & Candès 2021, eq. 2): that
    keeps the rate and gives up the meaning of a single alarm, so it is off by default.
    """

    calibration: Floats
    """[c] unit scores, ascending, finite."""
    level: float
    adapt: float = 0.0
    current: float = field(init=False)
    units: int = 0
    alarms: int = 0

    def __post_init__(self) -> None:
        self.current = self.level

    @classmethod
    def calibrate(cls, scores: Floats, *, level: float, adapt: float = 0.0) -> ConformalAlarm:
        """From unit scores of normal operation; non-finite ones are ignored.

        Raises:
            UserError: when there are too few of them for any alarm at this level.
        """
        kept = np.sort(scores[np.isfinite(scores)])
        if not 0 < level < 1:
            raise UserError("a conformal alarm's level must lie in (0, 1)")
        if (len(kept) + 1) * level < 1:
            raise UserError(
                f"an alarm rate of {level:g} per unit needs at least {int(np.ceil(1 / level)) - 1} "
                f"calibration units; there are {len(kept)}"
            )
        return cls(kept, level, adapt)

    @property
    def threshold(self) -> float:
        """Smallest calibration score above which a unit alarms at the configured level."""
        allowed = int(np.floor(self.level * (len(self.calibration) + 1))) - 1
        return float(self.calibration[len(self.calibration) - 1 - allowed])

    def p_value(self, score: float) -> float:
        """(1 + #{calibration ≥ score}) / (c + 1)."""
        c = len(self.calibration)
        above = c - int(np.searchsorted(self.calibration, score, side="left"))
        return (1 + above) / (c + 1)

    def update(self, score: float | None) -> ConformalVerdict:
        """Judge one unit; a missing score never alarms and is not counted."""
        if score is None or not np.isfinite(score):
            return ConformalVerdict(None, None, False, self.current)
        p = self.p_value(score)
        alarm = p <= self.current
        self.units += 1
        self.alarms += alarm
        verdict = ConformalVerdict(float(score), p, alarm, self.current)
        if self.adapt:
            moved = self.current + self.adapt * (self.level - alarm)
            self.current = float(np.clip(moved, 0.0, 1.0))
        return verdict


def novelty(features: Floats, mean: Floats, spread: Floats) -> Floats:
    """[n] root mean square of standardised values [n, K]: how unlike the calibration a row is.

    Columns with zero ``spread`` count only when they move at all, as 10 standard deviations.
    """
    delta = features - mean
    still = spread <= 0
    with np.errstate(divide="ignore", invalid="ignore"):
        z = np.where(still, np.where(delta != 0, 10.0, 0.0), delta / np.where(still, 1.0, spread))
    with np.errstate(invalid="ignore"):
        return np.asarray(np.sqrt(np.nanmean(z * z, axis=1)), np.float64)
