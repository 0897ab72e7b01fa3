"""Lead/lag profiles as values: who moves first, by how many steps, within episodes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    from interlatent_live.statistics.moments import Floats


@dataclass(frozen=True, slots=True, eq=False)
class LagProfile:
    """r of the activation at t with one metric at t + lag, pairs within an episode only.

    A positive lag: the feature leads the metric by so many steps.
    """

    feature: int
    metric: str
    lags: tuple[int, ...]
    r: Floats
    """[lags]; NaN where undefined."""
    pairs: Floats
    """[lags]."""
    peak: int | None
    """Lag of the largest |r|, the smallest |lag| of equals."""
    peak_r: float | None
    reasons: Mapping[str, str] = field(default_factory=dict)


def lag_profile(
    feature: int, metric: str, lags: tuple[int, ...], r: Floats, pairs: Floats
) -> LagProfile:
    """Find the peak of a profile."""
    if not np.isfinite(r).any():
        reason = "no closed episode in which both varied and the metric was known throughout"
        return LagProfile(
            feature, metric, lags, r, pairs, None, None, {"peak": reason, "peak_r": reason}
        )
    size = np.where(np.isfinite(r), np.abs(r), -1.0)
    order = np.lexsort((np.abs(np.array(lags)), -size))
    best = int(order[0])
    return LagProfile(feature, metric, lags, r, pairs, lags[best], float(r[best]))
