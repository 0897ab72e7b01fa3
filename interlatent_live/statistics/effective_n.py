"""How many independent observations a correlation rests on, and the interval that follows.

Neighbouring steps repeat each other, so n steps are far fewer observations. Two estimates are made
and the wider interval is shown (definitions, "Effective n"): the delete-one-episode jackknife,
which is right whatever the dependence within an episode, and Bartlett's sum over autocovariances
(Bartlett 1935; Bayley & Hammersley 1946), n / Σ_ℓ ρ_a(ℓ) ρ_d(ℓ).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
from scipy import special

if TYPE_CHECKING:
    from interlatent_live.statistics.moments import Floats, Ints
    from interlatent_live.statistics.serial import Autocovariances
    from interlatent_live.statistics.units import UnitSums

MIN_EPISODES: Final = 8
"""Fewer episodes than this speak of themselves only ("within-episode only")."""
_BATCH: Final = 512
_LARGEST_Z: Final = 18.0


def t_quantile(confidence: float, freedom: Floats | float) -> Floats:
    """Two-sided Student t quantile for ``confidence``."""
    return np.asarray(special.stdtrit(freedom, 0.5 + confidence / 2), np.float64)


def safe_atanh(r: Floats) -> Floats:
    """Atanh with |r| = 1 at ±18 rather than infinity; NaN stays."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.clip(np.arctanh(np.clip(r, -1.0, 1.0)), -_LARGEST_Z, _LARGEST_Z)


def jackknife_groups(units: UnitSums) -> tuple[Ints, int, bool]:
    """Group of each unit, the number of groups, and whether groups are episodes (else blocks)."""
    by_episode = units.by_episode()
    count = int(by_episode.max()) + 1 if len(by_episode) else 0
    if count >= MIN_EPISODES or count == len(by_episode):
        return by_episode, count, True
    return np.arange(len(by_episode)), len(by_episode), False


def gather(table: Floats, groups: Ints, count: int) -> Floats:
    """[count, …] sums of a table's units by group; the table itself when each is its own."""
    if count == len(groups):
        return table[: len(groups)]
    out = np.zeros((count, *table.shape[1:]))
    np.add.at(out, groups, table[: len(groups)])
    return out


def jackknife_se(units: UnitSums, features: Ints) -> tuple[Floats, Floats, Floats, int]:
    """Standard error of Fisher's z per feature × metric from leaving out one group at a time.

    Delete-m_j jackknife for groups of unequal size: with h_j = N / n_j and pseudo-values
    h_j θ − (h_j − 1) θ_(−j), var = (1/g) Σ_j (pseudo_j − θ_J)² / (h_j − 1) (Busing, Meijer &
    van der Leeden 1999, eq. 8).

    Groups that hold little of a feature's variation say little about its spread, so the degrees of
    freedom follow from the effective number of groups (Σ v)² / Σ v², v a group's share of SS(a)
    (Carter, Schnepel & Steigerwald 2017).

    Returns:
        se [features, M], r over the closed units [features, M], degrees of freedom [features], and
        the number of groups.
    """
    groups, count, _ = jackknife_groups(units)
    m = units.n_metrics
    se = np.full((len(features), m), np.nan)
    r_all = np.full((len(features), m), np.nan)
    freedom = np.ones(len(features))
    if count < 2:
        return se, r_all, freedom, count
    n = gather(units.rows, groups, count)
    total, square = gather(units.total, groups, count), gather(units.square, groups, count)
    keep = n > 0
    n, total, square = n[keep], total[keep], square[keep]
    if len(n) < 2:
        return se, r_all, freedom, len(n)
    h = n.sum() / n
    for low in range(0, len(features), _BATCH):
        chosen = features[low : low + _BATCH]
        a = gather(units.linear[:, chosen], groups, count)[keep]
        power = gather(units.power[:, chosen], groups, count)[keep]
        whole = _pearson(
            n.sum(), a.sum(0)[None], power.sum(0)[None], total.sum(0)[None], square.sum(0)[None]
        )[0]
        left = _pearson(
            (n.sum() - n)[:, None, None],
            a.sum(0) - a,
            power.sum(0) - power,
            total.sum(0) - total,
            square.sum(0) - square,
        )
        theta = safe_atanh(whole)
        minus = safe_atanh(np.where(np.isfinite(left), left, 0.0))
        weight = h[:, None, None]
        pseudo = weight * theta - (weight - 1) * minus
        centre = len(n) * theta - ((1 - 1 / weight) * minus).sum(0)
        var = ((pseudo - centre) ** 2 / (weight - 1)).mean(0)
        se[low : low + _BATCH] = np.sqrt(var)
        r_all[low : low + _BATCH] = whole
        mean = a[:, :, 0].sum(0) / n.sum()
        v = np.maximum(power - 2 * mean * a[:, :, 0] + n[:, None] * mean**2, 0.0)
        total_v = v.sum(0)
        effective = total_v**2 / np.maximum((v * v).sum(0), 1e-300)
        freedom[low : low + _BATCH] = np.where(total_v > 0, np.maximum(effective - 1, 1.0), 1.0)
    return se, r_all, freedom, len(n)


def _pearson(n: Floats | float, a: Floats, power: Floats, total: Floats, square: Floats) -> Floats:
    """Pearson [groups, features, M] from a[..., 0] = Σa, a[..., 1:] = Σ a d; NaN if undefined."""
    with np.errstate(divide="ignore", invalid="ignore"):
        cov = a[..., 1:] - a[..., :1] * total[:, None, :] / n
        ss_a = power[..., None] - a[..., :1] ** 2 / n
        ss_d = (square - total * total / np.asarray(n).reshape(-1, 1))[:, None, :]
        r = cov / np.sqrt(ss_a * ss_d)
    bad = (ss_a <= 1e-13 * power[..., None]) | (ss_d <= 1e-13 * square[:, None, :])
    return np.where(bad, np.nan, np.clip(r, -1.0, 1.0))


def lag_weights(lags: tuple[int, ...]) -> Floats:
    """Steps that each summed lag stands for: trapezoids between lags that are not neighbours."""
    grid = np.array([0, *lags], np.float64)
    upper = np.r_[(grid[2:] - grid[1:-1]) / 2, 0.5]
    lower = (grid[1:] - grid[:-1]) / 2
    return np.asarray(upper + lower, np.float64)


def autocorrelations(
    acf: Autocovariances, units: UnitSums, features: Ints
) -> tuple[Floats, Floats]:
    """ρ_a [lags, features] and ρ_d [lags, M] of the closed rows; 0 where there are no pairs."""
    n = max(float(units.rows.sum()), 1.0)
    mean_a = units.linear[:, features, 0].sum(0) / n
    var_a = units.power[:, features].sum(0) / n - mean_a**2
    known = np.maximum(units.valid.sum(0), 1.0)
    mean_d = units.total.sum(0) / known
    var_d = units.square.sum(0) / known - mean_d**2
    with np.errstate(divide="ignore", invalid="ignore"):
        rho_a = (acf.features[:, features] / acf.pairs[:, None] - mean_a**2) / var_a
        # Exactly centred: Σ (d − μ)(d' − μ) = Σ d d' − μ (Σ d + Σ d') + n μ².
        lagged = acf.metrics / acf.pairs_known - mean_d * acf.margins / acf.pairs_known
        rho_d = (lagged + mean_d**2) / var_d
    rho_a = np.where(np.isfinite(rho_a), np.clip(rho_a, -1, 1), 0.0)
    rho_d = np.where(np.isfinite(rho_d), np.clip(rho_d, -1, 1), 0.0)
    few = acf.pairs < 0.05 * n
    rho_a[few] = 0.0
    rho_d[few] = 0.0
    return rho_a, rho_d


def bartlett_factor(
    lags: tuple[int, ...], rho_a: Floats, rho_d: Floats, pairs: Floats, decay: float = 1.0
) -> Floats:
    """[features, M] Σ over all ℓ of ρ_a ρ_d decay^|ℓ|, products below 4/pairs being noise; ≥ 1.

    ``decay`` < 1 is the weight ratio of neighbouring steps of one copy in an exponential window:
    n_eff = (Σw)² / (Σw² · factor), the double sum of the definitions.
    """
    weights = lag_weights(lags) * decay ** np.array(lags, np.float64)
    product = rho_a[:, :, None] * rho_d[:, None, :]
    noise = 4.0 / np.maximum(pairs, 1.0)
    product[np.abs(product) < noise[:, None, None]] = 0.0
    total = 1.0 + 2.0 * np.einsum("l,lfm->fm", weights, product)
    return np.asarray(np.maximum(total, 1.0), np.float64)


def interval(
    r: Floats, se: Floats, confidence: float, freedom: Floats | float
) -> tuple[Floats, Floats]:
    """Interval of r from a standard error on Fisher's z scale."""
    z = safe_atanh(r)
    half = t_quantile(confidence, freedom) * se
    return np.tanh(z - half), np.tanh(z + half)


def rank_difference_se(units: UnitSums, features: Ints) -> tuple[Floats, int]:
    """Standard error [features, M] of AUROC_m, leaving out one group at a time.

    AUROC − ½ = mean rank when on − mean rank when off, with ranks in the pooled rows; the grid's
    frozen ranks stand in for the pooled ones, which matters to the value but little to its spread.

    Returns:
        se, NaN where undefined, and the number of groups.
    """
    groups, count, _ = jackknife_groups(units)
    m = units.n_metrics
    se = np.full((len(features), m), np.nan)
    if count < 2:
        return se, count
    n, rank = gather(units.rows, groups, count), gather(units.rank, groups, count)
    keep = n > 0
    n, rank = n[keep], rank[keep]
    g = len(n)
    if g < 2:
        return se, g
    h = (n.sum() / n)[:, None, None]

    def difference(rows: Floats, on: Floats, whole: Floats) -> Floats:
        q = on[..., :1]
        off = np.asarray(rows).reshape(-1, 1, 1) - q
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(on[..., 1:] / q - (whole[:, None, :] - on[..., 1:]) / off)

    for low in range(0, len(features), _BATCH):
        chosen = features[low : low + _BATCH]
        on = gather(units.ranks[:, chosen], groups, count)[keep]
        theta = difference(n.sum(), on.sum(0)[None], rank.sum(0)[None])[0]
        minus = difference(n.sum() - n, on.sum(0) - on, rank.sum(0) - rank)
        minus = np.where(np.isfinite(minus), minus, 0.0)
        pseudo = h * theta - (h - 1) * minus
        centre = g * theta - ((1 - 1 / h) * minus).sum(0)
        se[low : low + _BATCH] = np.sqrt(((pseudo - centre) ** 2 / (h - 1)).mean(0))
    return se, g
