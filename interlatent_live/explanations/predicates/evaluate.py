"""A predicate over columns: vectorised, and nothing leaks from one episode into the next.

Truth has three values (Kleene, *Introduction to Metamathematics*, 1952, §64): a comparison of a
missing metric, or of a window that reaches behind the start of its episode, is undefined, and stays
so through ``not``. In the end an undefined row counts as "does not hold", and is counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from interlatent_live.explanations.predicates.tree import (
    And,
    Between,
    Comparison,
    Delta,
    Lag,
    Metric,
    Near,
    Not,
    Operator,
    Or,
    Predicate,
    Quantity,
    Reduction,
    Term,
    Window,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class Columns:
    """Metrics of n steps, rows of one episode side by side in time order."""

    names: tuple[str, ...]
    values: NDArray[np.float64]
    """[n, M]; NaN where a metric was absent."""
    past: NDArray[np.int64]
    """[n] how many rows directly above belong to the same episode without a hole."""

    def column(self, name: str) -> NDArray[np.float64]:
        """One metric, [n].

        Raises:
            KeyError: when there is no such metric.
        """
        try:
            return self.values[:, self.names.index(name)]
        except ValueError:
            raise KeyError(name) from None


@dataclass(frozen=True, slots=True, eq=False)
class Truth:
    """Where a predicate holds, and where it could not be told."""

    holds: NDArray[np.bool_]
    """[n] known to hold."""
    undefined: NDArray[np.bool_]
    """[n] missing value or not enough history."""

    @property
    def undefined_count(self) -> int:
        """Rows that count as "does not hold" because nothing was known."""
        return int(self.undefined.sum())


def past_of(group: NDArray[np.integer], t: NDArray[np.integer]) -> NDArray[np.int64]:
    """Length of the unbroken history above each row.

    ``group`` [n] names the episode, rows of one episode side by side; ``t`` [n] is the step within
    it, ascending. A hole in t starts the count anew.
    """
    count = len(group)
    if count == 0:
        return np.zeros(0, np.int64)
    starts = np.ones(count, bool)
    starts[1:] = (group[1:] != group[:-1]) | (np.diff(t.astype(np.int64)) != 1)
    rows = np.arange(count)
    return rows - np.maximum.accumulate(np.where(starts, rows, 0))


def term_values(term: Term, columns: Columns) -> NDArray[np.float64]:
    """A term's value per row, [n] float64; NaN where it is undefined."""
    values = columns.column(term.name)
    match term:
        case Metric():
            return values
        case Delta():
            return values - _shifted(values, columns.past, 1)
        case Lag(steps=steps):
            return _shifted(values, columns.past, steps)
        case Window(reduction=reduction, steps=steps):
            return _reduced(values, columns.past, steps, reduction)


def evaluate(predicate: Predicate, columns: Columns) -> Truth:
    """Where the predicate holds.

    Raises:
        KeyError: when it speaks of a metric that the columns lack.
    """
    known_true, known_false = _kleene(predicate, columns, {})
    return Truth(known_true, ~(known_true | known_false))


def _kleene(
    predicate: Predicate, columns: Columns, cache: dict[Term, NDArray[np.float64]]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    match predicate:
        case Not(operand):
            true, false = _kleene(operand, columns, cache)
            return false, true
        case And(operands) | Or(operands):
            sides = [_kleene(operand, columns, cache) for operand in operands]
            trues = np.stack([side[0] for side in sides])
            falses = np.stack([side[1] for side in sides])
            if isinstance(predicate, And):
                return np.all(trues, axis=0), np.any(falses, axis=0)
            return np.any(trues, axis=0), np.all(falses, axis=0)
        case Comparison(term, operator, other):
            left = _cached(term, columns, cache)
            right = (
                np.float64(other.value)
                if isinstance(other, Quantity)
                else _cached(other, columns, cache)
            )
            defined = ~(np.isnan(left) | np.isnan(right))
            true = _OPERATIONS[operator](left, right) & defined
        case Between(term, lower, upper):
            left = _cached(term, columns, cache)
            defined = ~np.isnan(left)
            true = (left >= lower.value) & (left <= upper.value)
        case Near(term, centre, tolerance):
            left = _cached(term, columns, cache)
            defined = ~np.isnan(left)
            true = np.abs(left - centre.value) <= tolerance.value
    return true, defined & ~true


_OPERATIONS = {
    Operator.LT: np.less,
    Operator.LE: np.less_equal,
    Operator.GT: np.greater,
    Operator.GE: np.greater_equal,
    Operator.EQ: np.equal,
    Operator.NE: np.not_equal,
}


def _cached(
    term: Term, columns: Columns, cache: dict[Term, NDArray[np.float64]]
) -> NDArray[np.float64]:
    if term not in cache:
        cache[term] = term_values(term, columns)
    return cache[term]


def _shifted(
    values: NDArray[np.float64], past: NDArray[np.int64], steps: int
) -> NDArray[np.float64]:
    out = np.full(len(values), np.nan)
    if steps < len(values):
        out[steps:] = np.where(past[steps:] >= steps, values[:-steps], np.nan)
    return out


def _reduced(
    values: NDArray[np.float64], past: NDArray[np.int64], steps: int, reduction: Reduction
) -> NDArray[np.float64]:
    count = len(values)
    out = np.full(count, np.nan)
    if steps > count:
        return out
    enough = past[steps - 1 :] >= steps - 1
    # Doubling: a window's value is combined from its own rows only, in an order that depends on its
    # length alone, so that the same episode gives the same bits whatever else is in the columns.
    # NaN spreads through all three operations, which is what an undefined window should do.
    if reduction is Reduction.MEAN:
        window = _window_sum(values, steps) / steps
    else:
        combine = np.minimum if reduction is Reduction.MIN else np.maximum
        reach, best = 1, values
        while reach * 2 <= steps:
            best = combine(best[:-reach], best[reach:])
            reach *= 2
        window = combine(best[: count - steps + 1], best[steps - reach :])
    out[steps - 1 :] = np.where(enough, window, np.nan)
    return out


def _window_sum(values: NDArray[np.float64], steps: int) -> NDArray[np.float64]:
    """Sums of all windows of ``steps`` rows, from sums of 1, 2, 4 … rows."""
    count = len(values) - steps + 1
    total = np.zeros(count)
    power, part, start = 1, values, 0
    while power <= steps:
        if steps & power:
            total = total + part[start : start + count]
            start += power
        if power * 2 <= steps:
            part = part[:-power] + part[power:]
        power *= 2
    return total
