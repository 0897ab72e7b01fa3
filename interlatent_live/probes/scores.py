"""How good a probe is, on episodes it never saw, with intervals that know about episodes.

AUROC and Brier score are of rows; their intervals resample whole episodes, because rows of one
episode are far from independent. Calibration is shown as the expected calibration error over ten
bins of equal count (Naeini et al. 2015, with equal-mass bins).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import rankdata

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

DRAWS = 500


@dataclass(frozen=True, slots=True)
class ScoreInterval:
    """A score with its 95 % interval over episodes; None where it cannot be had."""

    value: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class ProbeScores:
    """A probe on test rows."""

    auroc: ScoreInterval
    brier: float
    brier_constant: float
    """Of always saying the base rate of the test rows: what a probe must beat."""
    calibration_error: float
    balanced_accuracy: ScoreInterval
    """At the threshold chosen on the validation episodes."""
    rows: int
    positives: int
    episodes: int
    episodes_positive: int


def auroc(score: NDArray[np.floating], positive: NDArray[np.bool_]) -> float | None:
    """P(score when positive > score when not), ties ½; None when a class is empty."""
    n_positive = int(positive.sum())
    n_negative = len(positive) - n_positive
    if not n_positive or not n_negative:
        return None
    ranks = rankdata(score)
    rank_sum = float(ranks[positive].sum())
    return (rank_sum - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative)


def balanced_accuracy(said: NDArray[np.bool_], positive: NDArray[np.bool_]) -> float | None:
    """Mean of recall on positives and on negatives; None when a class is empty."""
    if positive.all() or not positive.any():
        return None
    return float((said[positive].mean() + (~said[~positive]).mean()) / 2)


def calibration_error(
    probability: NDArray[np.floating], positive: NDArray[np.bool_], bins: int = 10
) -> float:
    """Expected calibration error over bins of equal count."""
    order = np.argsort(probability, kind="stable")
    parts = np.array_split(order, min(bins, len(order)))
    gaps = [
        len(part) * abs(float(probability[part].mean()) - float(positive[part].mean()))
        for part in parts
        if len(part)
    ]
    return float(sum(gaps) / max(len(order), 1))


def best_threshold(score: NDArray[np.floating], positive: NDArray[np.bool_]) -> float:
    """The score above which saying "yes" has the best balanced accuracy on these rows."""
    order = np.argsort(-score, kind="stable")
    hits = np.cumsum(positive[order]) / max(int(positive.sum()), 1)
    alarms = np.cumsum(~positive[order]) / max(int((~positive).sum()), 1)
    ordered = score[order]
    # Only where the score changes can a threshold stand.
    ends = np.append(np.nonzero(np.diff(ordered))[0], len(ordered) - 1)
    best = ends[int(np.argmax((hits - alarms)[ends]))]
    after = ordered[best + 1] if best + 1 < len(ordered) else ordered[best] - 1.0
    return float((ordered[best] + after) / 2)


def score_probe(
    probability: NDArray[np.floating],
    positive: NDArray[np.bool_],
    episode: NDArray[np.integer],
    *,
    threshold: float,
    seed: int = 0,
) -> ProbeScores:
    """Scores of probabilities [n] on labelled rows [n]."""
    said = probability > threshold
    base = float(positive.mean()) if len(positive) else 0.0
    rows_of = _rows_by_episode(episode)
    with_positive = sum(bool(positive[rows].any()) for rows in rows_of)
    return ProbeScores(
        auroc=_interval(lambda rows: auroc(probability[rows], positive[rows]), rows_of, seed),
        brier=float(np.square(probability - positive).mean()),
        brier_constant=base * (1 - base),
        calibration_error=calibration_error(probability, positive),
        balanced_accuracy=_interval(
            lambda rows: balanced_accuracy(said[rows], positive[rows]), rows_of, seed
        ),
        rows=len(positive),
        positives=int(positive.sum()),
        episodes=len(rows_of),
        episodes_positive=with_positive,
    )


def paired_auroc(
    one: NDArray[np.floating],
    other: NDArray[np.floating],
    positive: NDArray[np.bool_],
    episode: NDArray[np.integer],
    *,
    seed: int = 0,
) -> ScoreInterval:
    """Difference of two scores' AUROC on the same rows, with its interval over episodes."""

    def difference(rows: NDArray[np.intp]) -> float | None:
        a, b = auroc(one[rows], positive[rows]), auroc(other[rows], positive[rows])
        return None if a is None or b is None else a - b

    return _interval(difference, _rows_by_episode(episode), seed)


def _rows_by_episode(episode: NDArray[np.integer]) -> list[NDArray[np.intp]]:
    order = np.argsort(episode, kind="stable")
    starts = np.nonzero(np.diff(episode[order]))[0] + 1
    return [rows for rows in np.split(order, starts) if len(rows)]


def _interval(
    statistic: Callable[[NDArray[np.intp]], float | None],
    rows_of: list[NDArray[np.intp]],
    seed: int,
) -> ScoreInterval:
    """Percentile bootstrap over whole episodes; no bounds under 8 episodes."""
    if not rows_of:
        return ScoreInterval(None)
    value = statistic(np.concatenate(rows_of))
    if value is None or len(rows_of) < 8:
        return ScoreInterval(value)
    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(DRAWS):
        picked = rng.integers(0, len(rows_of), len(rows_of))
        found = statistic(np.concatenate([rows_of[index] for index in picked]))
        if found is not None:
            drawn.append(found)
    if len(drawn) < DRAWS // 2:
        return ScoreInterval(value)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return ScoreInterval(value, float(low), float(high))
