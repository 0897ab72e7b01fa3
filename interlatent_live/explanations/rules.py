"""The best shallow rule for each feature: the ceiling for every writer, and the built-in's source.

A tree found by :mod:`search` on episodes A and chosen on episodes B becomes a union of boxes; its
thresholds are refined between the bins, rounded to as few digits as cost nothing, and conditions
that do not help on B are dropped. The result is an ordinary predicate, scored again as it is
written.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import numpy as np

from interlatent_live.explanations.predicates import (
    Between,
    Comparison,
    Operator,
    Predicate,
    Quantity,
    Term,
    all_of,
    any_of,
    leaf_count,
    term_values,
)
from interlatent_live.explanations.search import (
    BINS,
    Binned,
    TermFamilies,
    Trees,
    bin_terms,
    choose_leaves,
    grow,
    leaf_counts,
    pair,
    worth,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from interlatent_live.explanations.evidence import Evidence
    from interlatent_live.stream import MetricSpec

MAX_ROWS: Final = 8192
"""Rows per side that the search looks at; neighbours in time say little that is new."""

LEAST_SKILL: Final = 0.65
"""Balanced accuracy on B below which there is no rule to speak of."""

_TOLERANCE: Final = 0.01

_DEPTHS: Final = (1, 2, 3)


@dataclass(frozen=True, slots=True)
class Fit:
    """How well a predicate fits rows: plain counts and what follows from them."""

    balanced_accuracy: float
    precision: float
    recall: float

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall."""
        total = self.precision + self.recall
        return 2 * self.precision * self.recall / total if total else 0.0

    @property
    def worth(self) -> float:
        """See :func:`interlatent_live.explanations.search.worth`."""
        one = np.array([self.balanced_accuracy, self.precision, self.f1])
        return float(worth(one[:1], one[1:2], one[2:])[0])


@dataclass(frozen=True, slots=True)
class Rule:
    """The best shallow rule of a feature; ``predicate`` is None where nothing helps."""

    feature: int
    predicate: Predicate | None
    fit_a: Fit
    fit_b: Fit
    by_size: tuple[Predicate | None, ...] = ()
    """Best rules of the trees cut at depth 1, 2 and 3, to hold beside claims of their size."""

    @property
    def size(self) -> int:
        """Number of comparisons."""
        return 0 if self.predicate is None else leaf_count(self.predicate)

    def of_size(self, comparisons: int) -> Predicate | None:
        """The best of the rules with at most so many comparisons."""
        fitting = [p for p in self.by_size if p is not None and leaf_count(p) <= comparisons]
        return fitting[-1] if fitting else None


@dataclass(frozen=True, slots=True)
class _Bound:
    """lower < term ≤ upper; infinite where open."""

    term: int
    lower: float
    upper: float


_Box = tuple[_Bound, ...]


def induce_rules(
    a: Evidence,
    b: Evidence,
    features: Sequence[int] | NDArray[np.integer],
    *,
    families: TermFamilies | None = None,
    max_rows: int = MAX_ROWS,
) -> tuple[Rule, ...]:
    """One rule per feature, proposed on A and chosen on B.

    A rule needs some skill on B: below a balanced accuracy of .65 there is none.
    """
    terms = (families or TermFamilies()).terms(a.specs)
    wanted = np.asarray(features, np.int64)
    if len(wanted) == 0 or not terms:
        return tuple(Rule(int(f), None, _NO_FIT, _NO_FIT) for f in wanted)
    binned_a = bin_terms(a, terms, max_rows=max_rows)
    binned_b = bin_terms(b, terms, edges=binned_a.edges, max_rows=max_rows)
    on_a, on_b = pair(a, wanted, binned_a), pair(b, wanted, binned_b)
    trees = grow(binned_a, on_a)
    counts = leaf_counts(trees, binned_a, on_a), leaf_counts(trees, binned_b, on_b)
    masks = {depth: choose_leaves(*counts, depths=(depth,)) for depth in _DEPTHS}
    masks[0] = choose_leaves(*counts)
    shop = _Workshop(a, b, binned_a)
    out = []
    for index, feature in enumerate(wanted):
        rows = shop.rows(int(feature))
        best = shop.rule(rows, _boxes(trees, binned_a, masks[0], index))
        sizes: list[list[_Box] | None] = []
        for depth in _DEPTHS:
            if best is None:
                sizes.append(None)
            elif np.array_equal(masks[depth][index], masks[0][index]):
                sizes.append(best)
            else:
                sizes.append(shop.rule(rows, _boxes(trees, binned_a, masks[depth], index)))
        predicate, by_size = shop.predicate(best), tuple(shop.predicate(boxes) for boxes in sizes)
        fit_a, fit_b = shop.fits(rows, best)
        if predicate is None or fit_b.balanced_accuracy < LEAST_SKILL:
            out.append(Rule(int(feature), None, _NO_FIT, _NO_FIT))
        else:
            out.append(Rule(int(feature), predicate, fit_a, fit_b, by_size))
    return tuple(out)


_NO_FIT: Final = Fit(0.5, 0.0, 0.0)


def fit(holds: NDArray[np.bool_], on: NDArray[np.bool_]) -> Fit:
    """Counts of a predicate against a feature on the same rows."""
    hit = int((holds & on).sum())
    positives, said = int(on.sum()), int(holds.sum())
    negatives = len(on) - positives
    recall = hit / positives if positives else 0.0
    false = (said - hit) / negatives if negatives else 0.0
    return Fit((recall + 1 - false) / 2, hit / said if said else 0.0, recall)


def round_to(value: float, digits: int) -> float:
    """``value`` with so many significant digits."""
    return float(f"{value:.{digits - 1}e}")


def _boxes(trees: Trees, binned: Binned, mask: NDArray[np.bool_], feature: int) -> list[_Box]:
    """The positive leaves as boxes; siblings that are both positive are their parent."""
    term, edge, leaves = trees.term[feature], trees.edge[feature], mask[feature]

    def positive(node: int) -> bool | None:
        """Whether all leaves below say on (True), none (False), or some (None)."""
        if node >= len(term):
            return bool(leaves[node - len(term)])
        if edge[node] == BINS - 1:
            return positive(2 * node + 1)
        left, right = positive(2 * node + 1), positive(2 * node + 2)
        return left if left == right else None

    def visit(node: int, bounds: dict[int, tuple[float, float]]) -> list[_Box]:
        state = positive(node)
        if state is not None:
            box = tuple(_Bound(t, low, high) for t, (low, high) in bounds.items())
            return [box] if state else []
        if edge[node] == BINS - 1:
            return visit(2 * node + 1, bounds)
        which, cut = int(term[node]), float(binned.edges[term[node], edge[node]])
        low, high = bounds.get(which, (-np.inf, np.inf))
        left = visit(2 * node + 1, {**bounds, which: (low, min(high, cut))})
        return left + visit(2 * node + 2, {**bounds, which: (max(low, cut), high)})

    return visit(0, {})


@dataclass(frozen=True, slots=True, eq=False)
class _FeatureRows:
    on: NDArray[np.bool_]
    """[A + B] scored rows of A, then of B."""


class _Workshop:
    """Refines, rounds and prunes boxes on the exact values of A and B."""

    def __init__(self, a: Evidence, b: Evidence, binned: Binned) -> None:
        self._sides = (a, b)
        self._binned = binned
        self._specs: dict[str, MetricSpec] = {spec.name: spec for spec in a.specs}
        self._scored = tuple(np.flatnonzero(side.scored) for side in self._sides)
        self._n_a = len(self._scored[0])
        self._values: dict[int, NDArray[np.float64]] = {}

    def rows(self, feature: int) -> _FeatureRows:
        on = [
            side.on(feature)[scored] for side, scored in zip(self._sides, self._scored, strict=True)
        ]
        return _FeatureRows(np.concatenate(on))

    def rule(self, rows: _FeatureRows, boxes: list[_Box]) -> list[_Box] | None:
        """Refined, pruned and rounded boxes; None where none is left."""
        boxes = [box for box in boxes if box]
        if not boxes or not rows.on.any():
            return None
        start = self._fit_b(rows, boxes)
        refined = self._refine(rows, boxes)
        if self._good(self._fit_b(rows, refined), start, slack=0.0):
            boxes = refined
        return _absorbed(self._round(rows, self._prune(rows, boxes)))

    def fits(self, rows: _FeatureRows, boxes: list[_Box] | None) -> tuple[Fit, Fit]:
        if boxes is None:
            return _NO_FIT, _NO_FIT
        holds = self._holds(boxes)
        cut = self._n_a
        return fit(holds[:cut], rows.on[:cut]), fit(holds[cut:], rows.on[cut:])

    def predicate(self, boxes: list[_Box] | None) -> Predicate | None:
        if not boxes:
            return None
        return any_of(tuple(all_of(tuple(self._relation(bound) for bound in box)) for box in boxes))

    def _relation(self, bound: _Bound) -> Predicate:
        term = self._binned.terms[bound.term]
        unit = self._specs[term.name].unit
        if np.isinf(bound.lower):
            return Comparison(term, Operator.LT, Quantity(bound.upper, unit))
        if np.isinf(bound.upper):
            return Comparison(term, Operator.GT, Quantity(bound.lower, unit))
        return Between(term, Quantity(bound.lower, unit), Quantity(bound.upper, unit))

    def _term(self, index: int) -> NDArray[np.float64]:
        if index not in self._values:
            term: Term = self._binned.terms[index]
            self._values[index] = np.concatenate(
                [
                    term_values(term, side.columns())[scored]
                    for side, scored in zip(self._sides, self._scored, strict=True)
                ]
            )
        return self._values[index]

    def _inside(self, bound: _Bound) -> NDArray[np.bool_]:
        """As :meth:`_relation` says it, so that what is scored is what is written."""
        values = self._term(bound.term)
        if np.isinf(bound.lower):
            return np.asarray(values < bound.upper)
        if np.isinf(bound.upper):
            return np.asarray(values > bound.lower)
        return np.asarray((values >= bound.lower) & (values <= bound.upper))

    def _holds(self, boxes: Sequence[_Box]) -> NDArray[np.bool_]:
        out = np.zeros(len(self._scored[0]) + len(self._scored[1]), bool)
        for box in boxes:
            inside = np.ones(len(out), bool)
            for bound in box:
                inside &= self._inside(bound)
            out |= inside
        return out

    def _fit_b(self, rows: _FeatureRows, boxes: Sequence[_Box]) -> Fit:
        return fit(self._holds(boxes)[self._n_a :], rows.on[self._n_a :])

    def _good(self, new: Fit, old: Fit, slack: float) -> bool:
        return new.worth >= old.worth - slack

    def _refine(self, rows: _FeatureRows, boxes: list[_Box]) -> list[_Box]:
        """Move each bound to the best exact value of A within its neighbouring bins."""
        out = list(boxes)
        for place, box in enumerate(boxes):
            for slot, bound in enumerate(box):
                for side in ("lower", "upper"):
                    value = getattr(bound, side)
                    if np.isinf(value):
                        continue
                    best = self._best_value(rows, out, place, slot, side)
                    out = _with(out, place, slot, side, best)
        return out

    def _best_value(
        self, rows: _FeatureRows, boxes: list[_Box], place: int, slot: int, side: str
    ) -> float:
        bound = boxes[place][slot]
        value: float = getattr(bound, side)
        edges = self._binned.edges[bound.term]
        at = int(np.searchsorted(edges, value))
        low = edges[at - 1] if at > 0 else -np.inf
        high = edges[at + 1] if at + 1 < len(edges) else np.inf
        if side == "lower":
            high = min(high, bound.upper)
        else:
            low = max(low, bound.lower)
        # Only rows whose verdict this bound decides: inside its box but for it, in no other box.
        free = np.ones(len(rows.on), bool)
        for other, condition in enumerate(boxes[place]):
            if other != slot:
                free &= self._inside(condition)
        free &= ~self._holds([box for other, box in enumerate(boxes) if other != place])
        free[self._n_a :] = False
        values = self._term(bound.term)
        free &= (values > low) & (values <= high)
        if free.sum() < 2:
            return value
        order = np.argsort(values[free], kind="stable")
        sorted_values, sorted_on = values[free][order], rows.on[free][order]
        # A bound can only lie between two different values.
        allowed = np.concatenate([[True], sorted_values[1:] > sorted_values[:-1], [True]])
        found = [value]
        for off_weight in self._off_weights(rows, boxes):
            gain = np.where(sorted_on, 1.0, -off_weight)
            run = np.concatenate([[0.0], np.cumsum(gain if side == "upper" else -gain)])
            best = int(np.argmax(np.where(allowed, run, -np.inf)))
            left = sorted_values[best - 1] if best else low
            right = sorted_values[best] if best < len(sorted_values) else high
            middle = (left + right) / 2
            if np.isfinite(middle):
                found.append(float(middle))
        trials = [
            fit(
                self._holds(_with(boxes, place, slot, side, cut))[: self._n_a], rows.on[: self._n_a]
            )
            for cut in found
        ]
        return found[int(np.argmax([trial.worth for trial in trials]))]

    def _off_weights(self, rows: _FeatureRows, boxes: list[_Box]) -> tuple[float, float]:
        """What an off-row costs against an on-row, for balanced accuracy and for F1.

        F1 = 2 TP / (P + said) is largest where TP − λ · said is, λ being half of the best F1.
        """
        on_a = rows.on[: self._n_a]
        positives = max(int(on_a.sum()), 1)
        half = fit(self._holds(boxes)[: self._n_a], on_a).f1 / 2
        return positives / max(len(on_a) - positives, 1), half / (1 - half)

    def _prune(self, rows: _FeatureRows, boxes: list[_Box]) -> list[_Box]:
        """Drop boxes, then bounds, whose loss on B stays within the tolerance."""
        current = self._fit_b(rows, boxes)
        place = 0
        while place < len(boxes) and len(boxes) > 1:
            fewer = boxes[:place] + boxes[place + 1 :]
            trial = self._fit_b(rows, fewer)
            if self._good(trial, current, slack=_TOLERANCE):
                boxes, current = fewer, trial
            else:
                place += 1
        for place in range(len(boxes)):
            slot = 0
            while slot < len(boxes[place]):
                found = False
                for weaker in _weaker(boxes[place], slot):
                    if not weaker:
                        continue
                    changed = [*boxes[:place], weaker, *boxes[place + 1 :]]
                    trial = self._fit_b(rows, changed)
                    if self._good(trial, current, slack=_TOLERANCE):
                        boxes, current, found = changed, trial, True
                        break
                slot += not found
        return boxes

    def _round(self, rows: _FeatureRows, boxes: list[_Box]) -> list[_Box]:
        """Round each bound to the fewest digits that cost no more than the tolerance."""
        everything = fit(self._holds(boxes), rows.on)
        for place, box in enumerate(boxes):
            for slot in range(len(box)):
                for side in ("lower", "upper"):
                    bound = boxes[place][slot]
                    value: float = getattr(bound, side)
                    if np.isinf(value):
                        continue
                    for digits in range(1, 7):
                        rounded = round_to(value, digits)
                        moved = _moved(bound, side, rounded)
                        if moved.lower >= moved.upper:
                            continue
                        trial = _with(boxes, place, slot, side, rounded)
                        if self._good(fit(self._holds(trial), rows.on), everything, _TOLERANCE / 2):
                            boxes = trial
                            break
        return boxes


def _with(boxes: list[_Box], place: int, slot: int, side: str, value: float) -> list[_Box]:
    """The boxes with one side of one bound moved."""
    box = boxes[place]
    moved = (*box[:slot], _moved(box[slot], side, value), *box[slot + 1 :])
    return [*boxes[:place], moved, *boxes[place + 1 :]]


def _absorbed(boxes: list[_Box]) -> list[_Box]:
    """Without boxes that lie in another: "x > 1 or x > 2" is "x > 1"."""
    kept: list[_Box] = []
    for place, box in enumerate(boxes):
        others = [*kept, *boxes[place + 1 :]]
        if not any(_inside_of(box, other) for other in others):
            kept.append(box)
    return kept


def _inside_of(box: _Box, other: _Box) -> bool:
    """Whether every point of ``box`` is in ``other``."""
    bounds = {bound.term: (bound.lower, bound.upper) for bound in box}
    return all(
        bound.term in bounds
        and bounds[bound.term][0] >= bound.lower
        and bounds[bound.term][1] <= bound.upper
        for bound in other
    )


def _moved(bound: _Bound, side: str, value: float) -> _Bound:
    return replace(bound, lower=value) if side == "lower" else replace(bound, upper=value)


def _weaker(box: _Box, slot: int) -> list[_Box]:
    """The box without the bound, and with one side of an interval opened."""
    bound = box[slot]
    out: list[_Box] = [box[:slot] + box[slot + 1 :]]
    if np.isfinite(bound.lower) and np.isfinite(bound.upper):
        for side, value in (("lower", -np.inf), ("upper", np.inf)):
            out.append((*box[:slot], _moved(bound, side, value), *box[slot + 1 :]))
    return out
