"""The arithmetic of a comparison of drivers, without torch and without files.

A feature that is taken out leaves the hook point with ``y − a_f d_f`` (the delta form: what the
transcoder does not explain stays as it is). The policy's head is linear there, so each feature has
an exact share of every action value, and sets of features need no forward of their own.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from scipy import stats

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

NEIGHBOURS: Final = 5
"""A control is drawn among so many features of the nearest density."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean with its 95 % interval."""

    value: float
    low: float
    high: float

    def apart(self, other: Estimate) -> bool:
        """Whether the two intervals do not touch."""
        return self.high < other.low or other.high < self.low


@dataclass(frozen=True, slots=True)
class RankCorrelation:
    """Spearman's ρ with its exact permutation p; None where one side is constant."""

    rho: float | None
    p_greater: float | None
    """Share of all orders of one side whose ρ is at least as large, this one among them."""
    p_two_sided: float | None
    orders: int


@dataclass(frozen=True, slots=True)
class Agreement:
    """How many of the pairs that the measured intervals tell apart a score orders alike."""

    pairs: int
    """With disjoint intervals."""
    agree: int
    of: int
    """All pairs."""


def mean_over_episodes(values: NDArray[np.float64]) -> Estimate:
    """Student's interval of the mean of one value [n] per episode, n ≥ 2."""
    mean, error = float(values.mean()), float(stats.sem(values))
    half = float(stats.t.ppf(0.975, len(values) - 1)) * error
    return Estimate(mean, mean - half, mean + half)


def rank_correlation(
    score: Sequence[float] | NDArray[np.float64], measured: Sequence[float] | NDArray[np.float64]
) -> RankCorrelation:
    """Spearman's ρ of m pairs and where it stands among all m! orders (ties share their rank).

    For the m ≤ 9 of a comparison every order is looked at (8! = 40,320), so the p is exact.

    Raises:
        ValueError: for more than 9 pairs.
    """
    if len(score) > 9:
        raise ValueError(f"{len(score)} pairs have too many orders to look at each")
    a, b = (stats.rankdata(side) - (len(score) + 1) / 2 for side in (score, measured))
    scale = float(np.sqrt((a @ a) * (b @ b)))
    orders = np.array(list(itertools.permutations(range(len(a)))))
    if scale == 0:
        return RankCorrelation(None, None, None, len(orders))
    every = a[orders] @ b / scale
    rho = float(a @ b / scale)
    return RankCorrelation(
        rho,
        float((every >= rho - 1e-9).mean()),
        float((np.abs(every) >= abs(rho) - 1e-9).mean()),
        len(orders),
    )


def agreement(score: Sequence[float], measured: Sequence[Estimate]) -> Agreement:
    """Only pairs whose measured intervals are disjoint must agree; a tied score does not."""
    pairs = agree = 0
    indices = list(itertools.combinations(range(len(score)), 2))
    for i, j in indices:
        if not measured[i].apart(measured[j]):
            continue
        pairs += 1
        agree += (score[i] - score[j]) * (measured[i].value - measured[j].value) > 0
    return Agreement(pairs, agree, len(indices))


@dataclass(frozen=True, slots=True, eq=False)
class Head:
    """A linear head's view of one driver's features on n states with F features and A actions."""

    values: NDArray[np.float64]
    """[n, A] action values as the driver has them."""
    codes: NDArray[np.float32]
    """[n, F] feature activations."""
    effects: NDArray[np.float64]
    """[F, A] what one unit of each feature adds to each action value."""
    faster: int
    """Number of the action."""

    @property
    def advantages(self) -> NDArray[np.float64]:
        """[n] value of FASTER minus the mean over the actions."""
        return np.asarray(self.values[:, self.faster] - self.values.mean(1))

    @property
    def spread(self) -> float:
        """Root mean square of all advantages: the driver's own unit.

        Which action is taken does not change when all values are scaled, so neither must a score.
        """
        centred = self.values - self.values.mean(1, keepdims=True)
        return float(np.sqrt(np.mean(centred**2)))

    def shares(self) -> NDArray[np.float64]:
        """[F] mean over the states of what each feature adds to the advantage of FASTER."""
        push = self.effects[:, self.faster] - self.effects.mean(1)
        return np.asarray(self.codes.mean(0, dtype=np.float64) * push)

    def given(self, features: Sequence[int]) -> NDArray[np.float64]:
        """[n] what a set of features adds to the advantage of FASTER in each state."""
        chosen = list(features)
        push = self.effects[chosen, self.faster] - self.effects[chosen].mean(1)
        return np.asarray(self.codes[:, chosen].astype(np.float64) @ push)

    def actions(self, without: Sequence[int] = ()) -> NDArray[np.intp]:
        """[n] greedy actions with a set of features taken out."""
        chosen = list(without)
        left = self.values - self.codes[:, chosen].astype(np.float64) @ self.effects[chosen]
        return np.asarray(left.argmax(1))


def matched_sets(
    chosen: Sequence[int],
    pool: Sequence[int],
    density: NDArray[np.float64],
    *,
    draws: int,
    seed: int,
) -> list[list[int]]:
    """As many other features of about the same density, ``draws`` times.

    For each chosen feature one of the :data:`NEIGHBOURS` features of the pool that are nearest in
    log density and not yet drawn; a pool smaller than the set is used up.
    """
    random = np.random.default_rng(seed)
    free = np.array(sorted(set(pool) - set(chosen)), np.intp)
    log_density = np.log(np.maximum(density, 1e-9))  # a feature that is never on is in no pool
    sets = []
    for _ in range(draws):
        left, drawn = free, []
        for feature in random.permutation(np.asarray(chosen, np.intp)):
            if not len(left):
                break
            order = np.argsort(np.abs(log_density[left] - log_density[feature]), kind="stable")
            pick = left[random.choice(order[:NEIGHBOURS])]
            drawn.append(int(pick))
            left = left[left != pick]
        sets.append(drawn)
    return sets


def clustered_mean(
    values: NDArray[np.float64], cluster: NDArray[np.integer], *, draws: int = 2000, seed: int = 0
) -> Estimate:
    """Mean of values [n] with a percentile bootstrap over whole clusters [n]."""
    _, place = np.unique(cluster, return_inverse=True)
    sums, counts = np.bincount(place, values), np.bincount(place).astype(np.float64)
    picks = np.random.default_rng(seed).integers(0, len(sums), (draws, len(sums)))
    means = sums[picks].sum(1) / counts[picks].sum(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return Estimate(float(values.mean()), float(low), float(high))
