"""The null anybody can run: shift the metrics in time and see what correlations are left.

A circular shift longer than the memory of the series keeps each series' own dependence and breaks
the relation between them. Where episodes restart the dynamics, whole episodes are reassigned
instead. The largest |r| over all pairs in each draw gives p-values that hold for the whole table
at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.sparse import csr_array

from interlatent_live.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from interlatent_live.statistics.moments import Floats
    from interlatent_live.stream import SparseCodes


@dataclass(frozen=True, slots=True, eq=False)
class NullAudit:
    """Observed correlations beside what shifting leaves."""

    r: Floats
    """[F, M] observed; NaN where undefined."""
    null_95: Floats
    """[F, M] 95th percentile of |r| under the null, pair by pair."""
    p_pair: Floats
    """[F, M] (1 + #{null ≥ observed}) / (B + 1), pair by pair."""
    p_adjusted: Floats
    """[F, M] the same against the largest |r| over all pairs."""
    draws: int
    kind: str
    naive_error: float
    """Share of null draws × pairs beyond the naive 5 % bound 1.96/√n; 0.05 if rows were free."""


def audit(
    codes: SparseCodes,
    metrics: Floats,
    *,
    env: NDArray[np.integer] | None = None,
    episode: NDArray[np.integer] | None = None,
    draws: int = 999,
    min_shift: int = 1000,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> NullAudit:
    """Audit rows in order of time.

    Args:
        codes: features of n rows.
        metrics: [n, M]; every value finite.
        env: [n] agent copy; each copy's timeline is shifted on its own.
        episode: [n] episode number, unique over copies; given, whole episodes are reassigned (cut
            or repeated to the length of the one they replace) instead of shifted.
        draws: null draws B.
        min_shift: least shift in rows; should exceed the autocorrelation time.
        seed: of the draws.
        progress: called with the number of draws done.

    Raises:
        UserError: when rows do not fit, a metric is not finite or a timeline is too short to shift.
    """
    n = len(codes)
    if metrics.shape[0] != n:
        raise UserError(f"{metrics.shape[0]} rows of metrics do not fit {n} rows of features")
    if not np.isfinite(metrics).all():
        raise UserError("the null audit needs finite metrics; leave out rows where one is absent")
    copies = np.zeros(n, np.int64) if env is None else np.asarray(env)
    groups = [np.flatnonzero(copies == c) for c in np.unique(copies)]
    if episode is None and any(len(g) < 3 * min_shift for g in groups):
        raise UserError(
            f"a timeline of {min(len(g) for g in groups)} rows is too short for shifts beyond "
            f"{min_shift}; give episodes instead"
        )
    a = csr_array(
        (codes.value.astype(np.float64), codes.index.astype(np.int32),
        codes.indptr.astype(np.int32)), shape=(n, codes.n_features),
    ).T.tocsr()  # fmt: skip
    sums = np.asarray(a.sum(axis=1)).ravel()
    power = np.asarray(a.multiply(a).sum(axis=1)).ravel()
    spread_a = np.sqrt(np.maximum(power - sums**2 / n, 0.0))
    bad = (spread_a <= 1e-7 * np.sqrt(np.maximum(power, 1e-300)))[:, None] | (
        metrics.std(axis=0) == 0
    )
    rng = np.random.default_rng(seed)

    def correlate(d: Floats) -> Floats:
        centred = d - d.mean(axis=0)
        spread = np.sqrt((centred**2).sum(axis=0))
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(bad, np.nan, (a @ centred) / (spread_a[:, None] * spread))

    observed = correlate(metrics)
    shape = observed.shape
    exceed_pair, exceed_max = np.zeros(shape), np.zeros(shape)
    sample = np.empty((draws, *shape), np.float32)
    beyond = 0
    shuffle = _reassign(episode) if episode is not None else _shift(groups, min_shift)
    size = np.abs(observed)
    for b in range(draws):
        null = np.abs(correlate(metrics[shuffle(rng)]))
        sample[b] = null
        with np.errstate(invalid="ignore"):
            exceed_pair += null >= size
            exceed_max += np.nanmax(null, initial=0.0) >= size
            beyond += int((null > 1.96 / np.sqrt(n)).sum())
        if progress is not None:
            progress(b + 1)
    defined = np.isfinite(observed)
    return NullAudit(
        r=observed,
        null_95=np.where(defined, np.quantile(np.nan_to_num(sample), 0.95, axis=0), np.nan),
        p_pair=np.where(defined, (1 + exceed_pair) / (draws + 1), np.nan),
        p_adjusted=np.where(defined, (1 + exceed_max) / (draws + 1), np.nan),
        draws=draws,
        kind="circular shift" if episode is None else "whole-episode reassignment",
        naive_error=beyond / max(draws * int(defined.sum()), 1),
    )


def _shift(
    groups: list[NDArray[np.intp]], min_shift: int
) -> Callable[[np.random.Generator], NDArray[np.intp]]:
    def draw(rng: np.random.Generator) -> NDArray[np.intp]:
        out = np.empty(sum(len(g) for g in groups), np.intp)
        for rows in groups:
            by = int(rng.integers(min_shift, len(rows) - min_shift + 1))
            out[rows] = np.roll(rows, by)
        return out

    return draw


def _reassign(
    episode: NDArray[np.integer],
) -> Callable[[np.random.Generator], NDArray[np.intp]]:
    numbers = np.unique(episode)
    rows = [np.flatnonzero(episode == number) for number in numbers]

    def draw(rng: np.random.Generator) -> NDArray[np.intp]:
        out = np.empty(len(episode), np.intp)
        for target, source in zip(rows, rng.permutation(len(rows)).tolist(), strict=True):
            out[target] = np.resize(rows[source], len(target))
        return out

    return draw
