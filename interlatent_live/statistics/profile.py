"""What is known of a feature at a moment: frozen values in which nothing undefined is a number.

Inside, profiles are columns (:class:`ProfileTable`), NaN where undefined; outside, a
:class:`FeatureProfile` holds ``None`` and says why in ``reasons``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from interlatent_live.statistics.association import MetricAssociation

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from interlatent_live.statistics.moments import Floats, Ints
    from interlatent_live.stream import MetricSpec

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True, slots=True)
class FeatureProfile:
    """All that the statistics know of a feature in one window."""

    feature: int
    window: str
    n: float
    """Rows; weighted in an exponential window."""
    n_on: float
    density: float | None
    mean_activation: float | None
    """Mean of the activation over on-rows."""
    quantiles: Mapping[float, float] | None
    """Of the on-activations, over all closed episodes."""
    episodes: int | None
    """Episodes (blocks of long ones) the feature fired in."""
    episodes_total: int | None
    bouts: int | None
    dwell_mean: float | None
    """Mean bout length in steps."""
    dwell_longest: int | None
    scope: str
    """``episodes``, or ``within-episode only`` when there are fewer than 8."""
    metrics: tuple[MetricAssociation, ...]
    reasons: Mapping[str, str] = field(default_factory=dict)

    def metric(self, name: str) -> MetricAssociation:
        """The association with one metric.

        Raises:
            KeyError: when there is no such metric.
        """
        for item in self.metrics:
            if item.name == name:
                return item
        raise KeyError(name)


@dataclass(frozen=True, slots=True, eq=False)
class ProfileTable:
    """Profiles of many features as columns; NaN (or −1 for counts) where undefined."""

    window: str
    specs: tuple[MetricSpec, ...]
    features: Ints
    """[U]."""
    n: float
    n_on: Floats
    """[U]."""
    mean_activation: Floats
    """[U]."""
    rows: Floats
    """[M] rows with a known metric."""
    r: Floats
    """[U, M], as all of the following."""
    lo: Floats
    hi: Floats
    n_eff: Floats
    mean_on: Floats
    mean_off: Floats
    effect_size: Floats
    auroc: Floats
    auroc_error: Floats
    auroc_lo: Floats
    auroc_hi: Floats
    by_jackknife: NDArray[np.bool_]
    constant: NDArray[np.bool_]
    """[M] the metric did not vary."""
    still: NDArray[np.bool_]
    """[U, M] the activation did not vary over the metric's rows."""
    quantiles: Floats
    """[U, len(QUANTILES)]."""
    episodes: NDArray[np.int64]
    """[U]."""
    bouts: NDArray[np.int64]
    on_steps: NDArray[np.int64]
    longest: NDArray[np.int64]
    episodes_total: int
    scope: str
    interval_reason: str
    """Why intervals are missing, where they are."""
    sketch_reason: str
    """Why AUROC and quantiles are missing, where they are."""

    def __len__(self) -> int:
        return len(self.features)

    @property
    def density(self) -> Floats:
        """[U] share of rows in which the feature was on."""
        return self.n_on / self.n if self.n else np.full(len(self.features), np.nan)

    def profile(self, i: int) -> FeatureProfile:
        """Row ``i`` as a value without NaN."""
        reasons: dict[str, str] = {}
        on = float(self.n_on[i])
        if not self.n:
            reasons["density"] = "no rows in this window"
        if not on:
            reasons["mean_activation"] = "the feature never fired in this window"
        deep = self.bouts[i] >= 0
        sketch = np.isfinite(self.quantiles[i]).all()
        if not deep:
            for name in ("episodes", "bouts", "dwell_mean", "dwell_longest"):
                reasons[name] = self.sketch_reason
        elif not self.bouts[i]:
            reasons["dwell_mean"] = "no bout in a closed episode yet"
        if not sketch:
            reasons["quantiles"] = (
                "the feature never fired in a closed episode" if deep else self.sketch_reason
            )
        quantiles = dict(zip(QUANTILES, self.quantiles[i].tolist(), strict=True))
        return FeatureProfile(
            feature=int(self.features[i]),
            window=self.window,
            n=self.n,
            n_on=on,
            density=on / self.n if self.n else None,
            mean_activation=float(self.mean_activation[i]) if on else None,
            quantiles=quantiles if sketch else None,
            episodes=int(self.episodes[i]) if deep else None,
            episodes_total=self.episodes_total if deep else None,
            bouts=int(self.bouts[i]) if deep else None,
            dwell_mean=float(self.on_steps[i] / self.bouts[i]) if self.bouts[i] > 0 else None,
            dwell_longest=int(self.longest[i]) if deep else None,
            scope=self.scope,
            metrics=tuple(self._association(i, m) for m in range(len(self.specs))),
            reasons=reasons,
        )

    def _association(self, i: int, m: int) -> MetricAssociation:
        spec = self.specs[m]
        reasons: dict[str, str] = {}
        rows = float(self.rows[m])

        def known(column: Floats, name: str, reason: str) -> float | None:
            value = float(column[i, m])
            if np.isfinite(value):
                return value
            reasons[name] = reason
            return None

        undefined = self.why(i, m)
        r = known(self.r, "r", undefined or "not defined")
        interval = undefined or self.interval_reason or "not defined"
        never = "the feature never fired while the metric was known"
        always = "the feature fired in every row in which the metric was known"
        missing = self._why_no_groups(i, m, rows)
        auroc = known(self.auroc, "auroc", missing or self.sketch_reason or "no closed episode yet")
        return MetricAssociation(
            name=spec.name,
            unit=spec.unit,
            role=str(spec.role),
            window=self.window,
            n=rows,
            n_eff=known(self.n_eff, "n_eff", interval),
            r=r,
            lo=known(self.lo, "lo", interval),
            hi=known(self.hi, "hi", interval),
            mean_on=known(self.mean_on, "mean_on", never if rows else "the metric was never known"),
            mean_off=known(
                self.mean_off, "mean_off", always if rows else "the metric was never known"
            ),
            effect_size=known(
                self.effect_size, "effect_size", missing or undefined or "not defined"
            ),
            auroc=auroc,
            auroc_error=known(self.auroc_error, "auroc_error", reasons.get("auroc", "")),
            auroc_lo=known(self.auroc_lo, "auroc_lo", reasons.get("auroc") or interval),
            auroc_hi=known(self.auroc_hi, "auroc_hi", reasons.get("auroc") or interval),
            rank_biserial=None if auroc is None else 2 * auroc - 1,
            method=self._method(i, m),
            reasons=reasons,
        )

    def _method(self, i: int, m: int) -> str:
        if not np.isfinite(self.lo[i, m]):
            return ""
        return "jackknife" if self.by_jackknife[i, m] else "acf"

    def why(self, i: int, m: int) -> str:
        """Why row ``i`` has no r with metric column ``m``; "" where it has one."""
        if not self.rows[m]:
            return "the metric was never known in this window"
        if self.constant[m]:
            return "the metric did not vary in this window"
        if not self.n_on[i]:
            return "the feature never fired in this window"
        if self.still[i, m]:
            return "the activation did not vary over the rows where the metric was known"
        return ""

    def _why_no_groups(self, i: int, m: int, rows: float) -> str:
        if not rows:
            return "the metric was never known in this window"
        if not np.isfinite(self.mean_on[i, m]):
            return "the feature never fired while the metric was known"
        if not np.isfinite(self.mean_off[i, m]):
            return "the feature fired in every row in which the metric was known"
        return ""

    def profiles(self) -> tuple[FeatureProfile, ...]:
        """Every row as a value."""
        return tuple(self.profile(i) for i in range(len(self.features)))

    def records(self) -> list[dict[str, Any]]:
        """One flat record per feature × metric, for exports; ``None`` where undefined."""
        return [
            self.record(i, m) for i in range(len(self.features)) for m in range(len(self.specs))
        ]

    def record(self, i: int, m: int) -> dict[str, Any]:
        """The flat record of row ``i`` and metric column ``m``."""
        spec = self.specs[m]
        record: dict[str, Any] = {
            "feature": int(self.features[i]),
            "metric": spec.name,
            "unit": spec.unit,
            "role": str(spec.role),
            "window": self.window,
            "n": float(self.rows[m]),
            "density": float(self.n_on[i] / self.n) if self.n else None,
        }
        for name in COLUMNS:
            value = float(getattr(self, name)[i, m])
            record[name] = value if np.isfinite(value) else None
        record["reason"] = self.why(i, m) or None
        return record


COLUMNS = (
    "r", "lo", "hi", "n_eff", "mean_on", "mean_off", "effect_size", "auroc", "auroc_error",
    "auroc_lo", "auroc_hi",
)  # fmt: skip


def associations(  # noqa: PLR0917 - the columns of one table, in their order
    table: Floats, layout_groups: Ints, rows: Floats, mean: Floats, ss: Floats, reference: Floats
) -> dict[str, Floats]:
    """Pearson r, on/off means, Hedges' g from central moments of on-rows (see ``moments``).

    ``table`` [U, width]; ``rows`` [groups]; ``mean``, ``ss``, ``reference`` [M]. Returns columns
    [U, M], NaN where undefined, and ``constant`` [M] and ``still`` [U, M].
    """
    m = len(mean)
    g = (table.shape[1] - 2 * m) // 3
    of = layout_groups
    q = table[:, :g][:, of]
    mu = table[:, g : 2 * g][:, of]
    s = table[:, 2 * g : 3 * g][:, of]
    on_d = table[:, 3 * g : 3 * g + m]
    cross = table[:, 3 * g + m :]
    n = rows[of]
    with np.errstate(divide="ignore", invalid="ignore"):
        share = q / n
        ss_a = s + q * (1 - share) * mu * mu
        gap = on_d - mean
        cov = cross + q * mu * gap
        scale = np.abs(mean + reference)
        constant = ss <= n * (8 * np.finfo(float).eps * scale) ** 2
        still = ss_a <= q * (8 * np.finfo(float).eps * np.abs(mu)) ** 2
        r = np.clip(cov / np.sqrt(ss_a * ss), -1.0, 1.0)
        off = n - q
        # (mean on − mean off): the off-rows' deviation mirrors the on-rows'.
        difference = gap * n / off
        on_mean = np.where(q > 0, on_d + reference, np.nan)
        off_mean = np.where(off > 0.5e-9 * n, mean + reference - gap * q / off, np.nan)
        within = np.maximum(ss - q * off / n * difference**2, 0.0)
        freedom = n - 2
        pooled = np.sqrt(within / freedom)
        hedges = difference / pooled * (1 - 3 / (4 * freedom - 1))
        both = (q > 0) & (off > 0.5e-9 * n) & (freedom > 0) & (within > 1e-12 * ss)
    off_mean = np.where((q > 0) | (n > 0), off_mean, np.nan)
    off_mean = np.where(q > 0, off_mean, np.where(n > 0, mean + reference, np.nan))
    bad = constant | still | (q <= 0) | (n < 3)
    return {
        "r": np.where(bad, np.nan, r),
        "mean_on": on_mean,
        "mean_off": off_mean,
        "effect_size": np.where(both & ~constant, hedges, np.nan),
        "constant": np.broadcast_to(constant, (m,)),
        "still": still,
    }
