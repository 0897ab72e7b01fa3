"""What is known of one feature with one metric: one type from the tables to who asks over a socket.

It imports nothing that computes, so that a client of the statistics does not either.
"""

from __future__ import annotations

from collections.abc import Mapping  # noqa: TC003 - msgspec reads the annotation when it decodes
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class MetricAssociation:
    """One feature with one metric in one window. ``None`` has its reason in ``reasons[field]``."""

    name: str
    unit: str
    role: str
    window: str
    n: float
    """Rows with a known metric; weighted in an exponential window."""
    n_eff: float | None
    r: float | None
    lo: float | None
    hi: float | None
    mean_on: float | None
    mean_off: float | None
    effect_size: float | None
    """Hedges' g: (mean on − mean off) / pooled standard deviation, small-sample corrected."""
    auroc: float | None
    """P(metric when on > metric when off), ties ½, over all closed episodes."""
    auroc_error: float | None
    """Greatest error the bins can cause."""
    auroc_lo: float | None
    auroc_hi: float | None
    rank_biserial: float | None
    """2 AUROC − 1, the rank correlation of on/off with the metric."""
    method: str
    """What the interval rests on: ``jackknife``, ``acf``, or empty."""
    reasons: Mapping[str, str] = field(default_factory=dict)

    @property
    def null(self) -> str | None:
        """Why there is no r, or ``None`` when there is one."""
        return self.reasons.get("r")
