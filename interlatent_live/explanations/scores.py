"""Scores of a predicate against a feature, with intervals clustered by episode.

The episode (or block) is the unit of resampling: steps within one are far from independent.
Balanced accuracy and precision are ratios of sums over units, so their variance is the sandwich
form of the linearised ratio (Cochran, *Sampling Techniques*, 1977, §6.3; Cameron & Miller, 2015,
§II.B), with Student's t on the number of units in which the feature was on, less one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import stdtrit
from scipy.stats import rankdata

from interlatent_live.explanations.predicates import evaluate

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from interlatent_live.explanations.evidence import Evidence
    from interlatent_live.explanations.predicates import Predicate


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with its clustered 95 % interval; ``None`` where it cannot be had."""

    value: float | None
    low: float | None = None
    high: float | None = None
    reason: str = ""
    """Why a value or its bounds are missing."""
    error: float | None = None
    """Clustered standard error, where it can be had."""


@dataclass(frozen=True, slots=True)
class Scores:
    """What the held-out rows say of one predicate for one feature."""

    balanced_accuracy: Interval
    precision: Interval
    recall: float | None
    lift: float | None
    """Precision over density."""
    auc: float | None
    """P(activation where the predicate holds > where it does not), ties ½."""
    rows: int
    on_rows: int
    firings: int
    """Rows in which the predicate holds."""
    undefined: int
    """Rows in which it could not be told; they count as not holding."""
    bouts: int
    episodes: int
    """Held-out units (episodes or blocks)."""
    episodes_on: int
    """Units in which the feature was on."""


@dataclass(frozen=True, slots=True, eq=False)
class UnitCounts:
    """Confusion counts by unit, the sufficient statistics of every score but AUC: four [U]."""

    hit: NDArray[np.float64]
    said: NDArray[np.float64]
    on: NDArray[np.float64]
    rows: NDArray[np.float64]


def unit_counts(
    holds: NDArray[np.bool_], on: NDArray[np.bool_], unit: NDArray[np.integer], n_units: int
) -> UnitCounts:
    """Count by unit; all rows given are scored."""

    def count(which: NDArray[np.bool_] | None) -> NDArray[np.float64]:
        rows = unit if which is None else unit[which]
        return np.bincount(rows, minlength=n_units).astype(np.float64)

    return UnitCounts(count(holds & on), count(holds), count(on), count(None))


def balanced_accuracy_interval(counts: UnitCounts, level: float = 0.95) -> Interval:
    """(recall + specificity) / 2 with its clustered interval, clipped to [0, 1]."""
    value, influence = _influence(counts)
    if value is None:
        return Interval(None, reason="the feature was never, or always, on")
    return _student(value, influence, counts.on, level)


def precision_interval(counts: UnitCounts, level: float = 0.95) -> Interval:
    """Share of the predicate's firings in which the feature is on, clustered."""
    said = float(counts.said.sum())
    if said == 0:
        return Interval(None, reason="the predicate never held")
    precision = float(counts.hit.sum()) / said
    influence = (counts.hit - precision * counts.said) / said
    return _student(precision, influence, counts.said, level)


def balanced_accuracy_difference(first: UnitCounts, second: UnitCounts) -> Interval:
    """Balanced accuracy of the first minus that of the second, on the same rows, clustered."""
    values, influences = [], []
    for counts in (first, second):
        value, influence = _influence(counts)
        if value is None:
            return Interval(None, reason="the feature was never, or always, on")
        values.append(value)
        influences.append(influence)
    return _student(values[0] - values[1], influences[0] - influences[1], first.on, 0.95, -1.0)


def _influence(counts: UnitCounts) -> tuple[float | None, NDArray[np.float64]]:
    """Balanced accuracy and what each unit moves it by, to first order."""
    positives, rows = float(counts.on.sum()), float(counts.rows.sum())
    negatives = rows - positives
    if positives == 0 or negatives == 0:
        return None, np.zeros(len(counts.on))
    recall = counts.hit.sum() / positives
    off = counts.rows - counts.on
    quiet = off - (counts.said - counts.hit)
    specificity = quiet.sum() / negatives
    influence = 0.5 * (
        (counts.hit - recall * counts.on) / positives + (quiet - specificity * off) / negatives
    )
    return float(recall + specificity) / 2, influence


def _student(
    value: float,
    influence: NDArray[np.float64],
    weight: NDArray[np.float64],
    level: float,
    least: float = 0.0,
) -> Interval:
    units = int((weight > 0).sum())
    if units < 2:
        return Interval(value, reason="one episode alone gives no interval")
    taking_part = len(influence)
    error = math.sqrt(float((influence**2).sum()) * taking_part / (taking_part - 1))
    reach = float(stdtrit(units - 1, 0.5 + level / 2)) * error
    low, high = value - reach, value + reach
    if value >= 1.0 - 1e-12 and least == 0.0:
        # A perfect score shows no spread; the rule of three in units bounds it instead.
        low = min(low, 1.0 - 3.0 / (units + 3.0) / 2)
    return Interval(value, max(low, least), min(high, 1.0), error=error)


def score(evidence: Evidence, feature: int, predicate: Predicate) -> Scores:
    """Score a predicate on all scored rows of the evidence.

    Raises:
        KeyError: when the predicate speaks of a metric that the evidence lacks.
    """
    truth = evaluate(predicate, evidence.columns())
    return score_rows(evidence, feature, truth.holds, truth.undefined)


def balanced_accuracy_of(evidence: Evidence, feature: int, holds: NDArray[np.bool_]) -> Interval:
    """Only the balanced accuracy of a predicate already evaluated ([n]), for rivals of a claim."""
    rows = evidence.scored
    return balanced_accuracy_interval(
        unit_counts(holds[rows], evidence.on(feature)[rows], evidence.unit[rows], evidence.n_units)
    )


def score_rows(
    evidence: Evidence,
    feature: int,
    holds: NDArray[np.bool_],
    undefined: NDArray[np.bool_],
) -> Scores:
    """As :func:`score`, for a predicate already evaluated ([n] each)."""
    rows = evidence.scored
    on = evidence.on(feature)
    activation = evidence.activation(feature)[rows]
    n_units = evidence.n_units
    counts = unit_counts(holds[rows], on[rows], evidence.unit[rows], n_units)
    n_rows, on_rows, said = (int(x.sum()) for x in (counts.rows, counts.on, counts.said))
    precision = precision_interval(counts)
    density = on_rows / n_rows if n_rows else 0.0
    return Scores(
        balanced_accuracy=balanced_accuracy_interval(counts),
        precision=precision,
        recall=float(counts.hit.sum()) / on_rows if on_rows else None,
        lift=precision.value / density if precision.value is not None and density else None,
        auc=auroc(activation, holds[rows]),
        rows=n_rows,
        on_rows=on_rows,
        firings=said,
        undefined=int(undefined[rows].sum()),
        bouts=bouts(on, evidence.past),
        episodes=n_units,
        episodes_on=int((counts.on > 0).sum()),
    )


def bouts(on: NDArray[np.bool_], past: NDArray[np.integer]) -> int:
    """Runs of on-rows; a run ends with its episode."""
    starts = on.copy()
    starts[1:] &= ~(on[:-1] & (past[1:] > 0))
    return int(starts.sum())


def auroc(value: NDArray[np.floating], event: NDArray[np.bool_]) -> float | None:
    """P(value inside the event > outside), ties ½; None where a side is empty.

    Mann & Whitney, 1947, by mid-ranks. Activations are ≥ 0 and mostly 0: then only those above 0
    are ranked, and the zeros are one atom.
    """
    inside = int(event.sum())
    outside = len(event) - inside
    if inside == 0 or outside == 0:
        return None
    if float(value.min()) < 0:
        ranks = rankdata(value)
        return float((ranks[event].sum() - inside * (inside + 1) / 2) / (inside * outside))
    positive = value > 0
    ranked_event = event[positive]
    inside_on = int(ranked_event.sum())
    inside_off, outside_on = inside - inside_on, len(ranked_event) - inside_on
    outside_off = outside - outside_on
    ranks = rankdata(value[positive])
    wins = float(ranks[ranked_event].sum()) - inside_on * (inside_on + 1) / 2
    wins += inside_on * outside_off + 0.5 * inside_off * outside_off
    return wins / (inside * outside)
