"""Today beside yesterday: what changed between two profiles of the same features.

Two tables come from two snapshots, two windows or two slices. They are compared on Fisher's z
scale with both effective sizes; rows that both share make them dependent and the interval too
wide, never too narrow, as long as their association has the same sign.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from interlatent_live.errors import UserError
from interlatent_live.statistics.effective_n import safe_atanh, t_quantile

if TYPE_CHECKING:
    from interlatent_live.statistics.moments import Floats
    from interlatent_live.statistics.profile import ProfileTable


@dataclass(frozen=True, slots=True)
class Change:
    """One pair in two tables; ``None`` where either has no r or no effective n."""

    feature: int
    metric: str
    r_before: float | None
    r_after: float | None
    z_difference: float | None
    """atanh r after − atanh r before."""
    lo: float | None
    hi: float | None
    density_before: float | None
    density_after: float | None


def compare_tables(
    before: ProfileTable, after: ProfileTable, *, confidence: float = 0.95
) -> tuple[Change, ...]:
    """Every pair of the two tables, the clearest changes first; undefined ones last.

    Raises:
        UserError: when the tables are not of the same features and metrics.
    """
    if not np.array_equal(before.features, after.features) or before.specs != after.specs:
        raise UserError("only tables of the same features and metrics can be compared")
    z = safe_atanh(after.r) - safe_atanh(before.r)
    with np.errstate(divide="ignore", invalid="ignore"):
        enough = (before.n_eff > 4) & (after.n_eff > 4)
        spread = np.sqrt(1 / (before.n_eff - 3) + 1 / (after.n_eff - 3))
        spread = np.where(enough, spread, np.nan)
        clear = np.abs(z) / spread
    half = t_quantile(confidence, np.maximum(np.fmin(before.n_eff, after.n_eff) - 2, 1.0)) * spread
    order = np.argsort(-np.nan_to_num(clear.ravel(), nan=-1.0), kind="stable")
    out = []
    for flat in order.tolist():
        i, m = divmod(flat, z.shape[1])
        out.append(
            Change(
                feature=int(after.features[i]),
                metric=after.specs[m].name,
                r_before=_known(before.r, i, m),
                r_after=_known(after.r, i, m),
                z_difference=_known(z, i, m),
                lo=_known(z - half, i, m),
                hi=_known(z + half, i, m),
                density_before=_number(before.density[i]),
                density_after=_number(after.density[i]),
            )
        )
    return tuple(out)


def _known(column: Floats, i: int, m: int) -> float | None:
    return _number(column[i, m])


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
