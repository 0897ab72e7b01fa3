"""Dropping what a claim does not need: a clause that held-out episodes do not support is not said.

A clause is an operand of the outermost *and* or *or*. It stays only if leaving it out lowers the
balanced accuracy on held-out episodes, the clustered interval of the paired difference being clear
of 0, or if precision would fall through .5 without it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from interlatent_live.explanations.claims import Clause, Support
from interlatent_live.explanations.predicates import (
    And,
    Or,
    Predicate,
    all_of,
    any_of,
    evaluate,
    to_text,
)
from interlatent_live.explanations.scores import (
    Interval,
    UnitCounts,
    balanced_accuracy_difference,
    unit_counts,
)

if TYPE_CHECKING:
    from interlatent_live.explanations.evidence import Evidence


@dataclass(frozen=True, slots=True)
class DroppedClause:
    """A clause without support, with what its removal cost."""

    predicate: Predicate
    loss: Interval
    """Balanced accuracy with the clause minus without it."""


@dataclass(frozen=True, slots=True)
class Pruned:
    """What is left of a predicate."""

    predicate: Predicate
    dropped: tuple[DroppedClause, ...]


def prune(predicate: Predicate, held_out: Evidence, feature: int) -> Pruned:
    """Drop unsupported clauses one by one, the least missed first.

    At least one clause stays; a predicate that is one comparison is returned as it is.
    """
    dropped: list[DroppedClause] = []
    while isinstance(predicate, And | Or):
        whole = _counts(predicate, held_out, feature)
        options = []
        for place, operand in enumerate(predicate.operands):
            rest = predicate.operands[:place] + predicate.operands[place + 1 :]
            shorter = all_of(rest) if isinstance(predicate, And) else any_of(rest)
            counts = _counts(shorter, held_out, feature)
            loss = balanced_accuracy_difference(whole, counts)
            needed = loss.low is not None and loss.low > 0
            guards = _precision(whole) >= 0.5 > _precision(counts)
            if not needed and not guards and loss.value is not None:
                options.append((loss.value, place, operand, shorter, loss))
        if not options:
            break
        _, _, operand, shorter, loss = min(options, key=lambda option: option[:2])
        dropped.append(DroppedClause(operand, loss))
        predicate = shorter
    return Pruned(predicate, tuple(dropped))


def kept_clauses(clauses: tuple[Clause, ...], pruned: Pruned) -> tuple[Clause, ...]:
    """The clauses of a description that the pruned predicate still carries.

    Clauses bound to a dropped sub-predicate go; unbound wording stays, marked as such.
    """
    gone = {to_text(dropped.predicate) for dropped in pruned.dropped}
    return tuple(
        clause
        for clause in clauses
        if clause.support is not Support.PREDICATE
        or clause.predicate is None
        or to_text(clause.predicate) not in gone
    )


def _counts(predicate: Predicate, evidence: Evidence, feature: int) -> UnitCounts:
    rows = evidence.scored
    holds = evaluate(predicate, evidence.columns()).holds[rows]
    return unit_counts(holds, evidence.on(feature)[rows], evidence.unit[rows], evidence.n_units)


def _precision(counts: UnitCounts) -> float:
    said = float(counts.said.sum())
    return float(counts.hit.sum()) / said if said else 0.0
