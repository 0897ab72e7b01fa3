"""Association of a feature with one metric given the others: a property of the data, not an effect.

Standardised ridge regression of the activation on the state metrics, from second moments per unit
alone, so that the clustered bootstrap (Efron & Tibshirani 1993, §8) re-weights units instead of
reading rows again. Where the metrics nearly determine each other (variance inflation above 30) the
question has no answer in the data, and the answer is null.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np

from interlatent_live.errors import UserError
from interlatent_live.statistics.effective_n import MIN_EPISODES, gather, jackknife_groups
from interlatent_live.stream import Role

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from interlatent_live.statistics.correlator import Correlator
    from interlatent_live.statistics.moments import Floats, Ints
    from interlatent_live.statistics.units import UnitSums

MAX_VIF: Final = 30.0


@dataclass(frozen=True, slots=True)
class PartialAssociation:
    """Standardised coefficient of one metric, the other state metrics held."""

    metric: str
    beta: float | None
    lo: float | None
    hi: float | None
    vif: float | None
    """Variance inflation: 1 / (1 − R² of this metric on the others)."""
    reasons: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PartialProfile:
    """Partial associations of one feature with every state metric."""

    feature: int
    ridge: float
    condition_number: float | None
    """Of the metrics' correlation matrix."""
    episodes: int
    metrics: tuple[PartialAssociation, ...]


def partial_associations(
    correlator: Correlator,
    features: Sequence[int],
    *,
    ridge: float = 1e-3,
    draws: int = 400,
    confidence: float = 0.95,
    seed: int = 0,
) -> tuple[PartialProfile, ...]:
    """Partial associations of ``features``, with clustered bootstrap intervals; no p-values.

    Raises:
        UserError: when no episodes are kept, a feature is not deep, or ``ridge`` is negative.
    """
    correlator.finish()
    deep = correlator.deep
    if deep is None:
        raise UserError("partial associations need the episodic part, which is off")
    if ridge < 0:
        raise UserError("ridge must be ≥ 0")
    slots = deep.slot[np.asarray(features, np.intp)].astype(np.intp)
    if (slots < 0).any():
        raise UserError("partial associations need features of the deep set")
    columns = np.array(
        [i for i, spec in enumerate(correlator.specs) if spec.role == Role.STATE], np.intp
    )
    names = [correlator.specs[i].name for i in columns]
    return _solve(deep.units, list(features), slots, columns, names, ridge, draws, confidence, seed)


def _solve(  # noqa: PLR0917 - one caller
    units: UnitSums,
    features: list[int],
    slots: Ints,
    columns: Ints,
    names: list[str],
    ridge: float,
    draws: int,
    confidence: float,
    seed: int,
) -> tuple[PartialProfile, ...]:
    groups, count, _ = jackknife_groups(units)
    k = len(units.keys)
    reasons = _refusals(units, columns, k)
    usable = np.array([not reason for reason in reasons], bool)
    kept = columns[usable]
    if not len(kept) or count == 0:
        return tuple(
            PartialProfile(
                feature, ridge, None, units.episodes,
                tuple(
                    PartialAssociation(name, None, None, None, None, _all(reason or "no rows"))
                    for name, reason in zip(names, reasons, strict=True)
                ),
            )
            for feature in features
        )  # fmt: skip
    sums = _GroupSums.of(units, groups, count, slots, kept)
    ones = np.ones((1, count))
    correlation, beta, spread = sums.solve(ones, ridge)
    vif = np.diag(np.linalg.pinv(correlation[0]))
    condition = float(np.linalg.cond(correlation[0]))
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(count, np.full(count, 1 / count), size=draws).astype(np.float64)
    boot = sums.solve(weights, ridge)[1] if count >= MIN_EPISODES else None
    tail = (1 - confidence) / 2
    out = []
    for j, feature in enumerate(features):
        items = []
        position = 0
        for name, reason in zip(names, reasons, strict=True):
            if reason:
                items.append(PartialAssociation(name, None, None, None, None, _all(reason)))
                continue
            inflation = float(vif[position])
            why = ""
            if not spread[0, j] > 0:
                why = "the activation did not vary"
            elif inflation > MAX_VIF:
                why = f"the other state metrics nearly determine it (VIF {inflation:.3g} > 30)"
            if why:
                items.append(PartialAssociation(name, None, None, None, inflation, _all(why)))
            elif boot is None:
                few = f"fewer than {MIN_EPISODES} episodes"
                items.append(
                    PartialAssociation(
                        name, float(beta[0, position, j]), None, None, inflation,
                        {"lo": few, "hi": few},
                    )
                )  # fmt: skip
            else:
                lo, hi = np.nanquantile(boot[:, position, j], [tail, 1 - tail])
                items.append(
                    PartialAssociation(
                        name, float(beta[0, position, j]), float(lo), float(hi), inflation
                    )
                )
            position += 1
        out.append(PartialProfile(feature, ridge, condition, units.episodes, tuple(items)))
    return tuple(out)


def _all(reason: str) -> dict[str, str]:
    return dict.fromkeys(("beta", "lo", "hi"), reason)


def _refusals(units: UnitSums, columns: Ints, k: int) -> list[str]:
    """Why a metric cannot take part, "" where it can."""
    rows = float(units.rows[:k].sum())
    out = []
    for m in columns.tolist():
        known = float(units.valid[:k, m].sum())
        square = float(units.square[:k, m].sum())
        total = float(units.total[:k, m].sum())
        if not known:
            out.append("the metric was never known")
        elif known < rows:
            out.append("the metric was unknown in some rows, which breaks joint moments")
        elif square - total**2 / known <= 1e-12 * square:
            out.append("the metric did not vary")
        else:
            out.append("")
    return out


@dataclass(slots=True)
class _GroupSums:
    """Second moments per group of units, for chosen features and metrics."""

    n: Floats
    """[groups]."""
    d: Floats
    """[groups, M]."""
    dd: Floats
    """[groups, M, M]."""
    a: Floats
    """[groups, features]."""
    aa: Floats
    """[groups, features]."""
    ad: Floats
    """[groups, M, features]."""

    @classmethod
    def of(cls, units: UnitSums, groups: Ints, count: int, slots: Ints, kept: Ints) -> _GroupSums:
        """Sum the units of each group."""

        def total(table: Floats) -> Floats:
            return gather(table, groups, count)

        linear = total(units.linear[:, slots])
        return cls(
            n=total(units.rows),
            d=total(units.total[:, kept]),
            dd=total(units.product[:, kept[:, None], kept]),
            a=linear[:, :, 0],
            aa=total(units.power[:, slots]),
            ad=np.swapaxes(linear[:, :, 1 + kept], 1, 2),
        )

    def solve(self, weights: Floats, ridge: float) -> tuple[Floats, Floats, Floats]:
        """Correlation matrix [B, M, M], coefficients [B, M, features], SS of a [B, features]."""
        n = weights @ self.n
        d = weights @ self.d
        a = weights @ self.a
        cov = np.tensordot(weights, self.dd, 1) - d[:, :, None] * d[:, None, :] / n[:, None, None]
        cross = np.tensordot(weights, self.ad, 1) - d[:, :, None] * a[:, None, :] / n[:, None, None]
        ss_a = weights @ self.aa - a * a / n[:, None]
        spread = np.sqrt(np.maximum(np.einsum("bmm->bm", cov), 0.0))
        with np.errstate(divide="ignore", invalid="ignore"):
            correlation = cov / (spread[:, :, None] * spread[:, None, :])
            target = cross / (spread[:, :, None] * np.sqrt(np.maximum(ss_a, 0.0))[:, None, :])
        correlation = np.nan_to_num(correlation)
        diagonal = np.arange(correlation.shape[1])
        correlation[:, diagonal, diagonal] = 1.0
        damped = correlation.copy()
        damped[:, diagonal, diagonal] += ridge
        beta = (
            np.linalg.solve(damped, np.nan_to_num(target))
            if ridge
            else np.einsum("bij,bjf->bif", np.linalg.pinv(damped), np.nan_to_num(target))
        )
        return correlation, beta, ss_a
