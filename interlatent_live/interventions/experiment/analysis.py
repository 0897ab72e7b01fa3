"""From what the arms measured to what the experiment shows; numbers in, numbers out.

The unit is the episode, or the cloned state with all of its branches: means are taken within units
first, intervals and p-values over units (Student's t), and Holm's correction over every test that
the plan promises.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from scipy import stats

from interlatent_live.interventions.reproduction.paired import holm

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

RESAMPLES: Final = 1000
BAR: Final = 0.95
ALPHA: Final = 0.05


@dataclass(frozen=True, slots=True)
class Difference:
    """A paired difference over units: mean, 95 % interval, one-sided p."""

    mean: float
    low: float
    high: float
    p: float
    """Of "it is not in the predicted direction"."""
    units: int


@dataclass(frozen=True, slots=True)
class Place:
    """Where an effect lies among controls."""

    share: float
    """Share of the controls whose effect in the predicted direction is smaller."""
    low: float
    high: float
    """95 % interval, by resampling units."""
    controls: int
    bar: float
    """The 95th percentile of the controls' effects."""
    effect: float
    """The treatment's on the same starts."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a hypothesis came to."""

    supported: bool
    p_untouched: float
    """Holm's."""
    p_bias: float
    reasons: tuple[str, ...]
    """Why not; empty when supported."""


def by_unit(values: NDArray[np.float64], units: NDArray[np.integer]) -> NDArray[np.float64]:
    """Means [U] of values [n] within units [n], in the units' order."""
    _, where = np.unique(units, return_inverse=True)
    return np.bincount(where, values) / np.bincount(where)


def paired(
    a: NDArray[np.float64], b: NDArray[np.float64], units: NDArray[np.integer], direction: int = 1
) -> Difference:
    """Mean of a − b [n] over units [n]."""
    means = by_unit(np.asarray(a, np.float64) - np.asarray(b, np.float64), units)
    n = len(means)
    mean = float(means.mean())
    error = float(means.std(ddof=1) / np.sqrt(n)) if n > 1 else float("inf")
    if error == 0.0:
        return Difference(mean, mean, mean, 0.0 if direction * mean > 0 else 1.0, n)
    half = float(stats.t.ppf(0.975, n - 1)) * error
    p = float(stats.t.sf(direction * mean / error, n - 1))
    return Difference(mean, mean - half, mean + half, p, n)


def place(
    treatment: NDArray[np.float64],
    controls: NDArray[np.float64],
    untouched: NDArray[np.float64],
    units: NDArray[np.integer],
    *,
    direction: int,
    seed: int,
) -> Place:
    """Where the treatment lies among its controls.

    Args:
        treatment: [n] of the metric.
        controls: [C, n].
        untouched: [n].
        units: [n].
        direction: the predicted one.
        seed: of the resampling.
    """
    own = direction * by_unit(treatment - untouched, units)
    others = direction * np.array([by_unit(one - untouched, units) for one in controls])
    # How often each unit is drawn decides a resampled mean.
    n = len(own)
    drawn = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), RESAMPLES).T / n
    shares = (others @ drawn < own @ drawn).mean(axis=0)
    effects = others.mean(axis=1)
    low, high = (float(np.quantile(shares, q)) for q in (0.025, 0.975))
    return Place(
        float((effects < own.mean()).mean()), low, high, len(controls),
        direction * float(np.quantile(effects, BAR)), direction * float(own.mean()),
    )  # fmt: skip


def judge(
    untouched: Sequence[Difference], bias: Sequence[Difference], places: Sequence[Place]
) -> list[Verdict]:
    """One verdict for each hypothesis; Holm over both tests of all of them."""
    adjusted = holm([one.p for one in (*untouched, *bias)])
    verdicts = []
    for i, where in enumerate(places):
        p_untouched, p_bias = adjusted[i], adjusted[len(untouched) + i]
        reasons = []
        if p_untouched > ALPHA:
            reasons.append("no difference to the untouched agent in the predicted direction")
        if where.share < BAR:
            reasons.append("not above the 95th percentile of the controls")
        if p_bias > ALPHA:
            reasons.append("not better than the best constant bias")
        verdicts.append(Verdict(not reasons, p_untouched, p_bias, tuple(reasons)))
    return verdicts


def lower_bound(
    values: NDArray[np.float64],
    untouched: NDArray[np.float64],
    units: NDArray[np.integer],
    direction: int,
) -> float:
    """Lower 95 % bound of the effect in a direction: what selection sorts by."""
    found = paired(values, untouched, units, direction)
    return found.low if direction > 0 else -found.high


def columns(names: Sequence[str], values: NDArray[np.float64]) -> Mapping[str, NDArray[np.float64]]:
    """Columns [n] of values [n, M] by name."""
    return dict(zip(names, values.T, strict=True))
