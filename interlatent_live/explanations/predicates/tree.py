"""The predicate language as values: a small typed tree, nothing callable.

A predicate is what makes an explanation checkable, and it often comes from a language model or a
stranger; so it is data that is walked, never code that is run. Nodes are frozen and compare by
value: parsing a rendered predicate gives an equal tree.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


class Reduction(StrEnum):
    """How a window of the last steps becomes one number."""

    MEAN = "mean"
    MIN = "min"
    MAX = "max"


class Operator(StrEnum):
    """Comparisons of the language."""

    LT = "<"
    LE = "<="
    GT = ">"
    GE = ">="
    EQ = "=="
    NE = "!="


NEGATED = {
    Operator.LT: Operator.GE,
    Operator.LE: Operator.GT,
    Operator.GT: Operator.LE,
    Operator.GE: Operator.LT,
    Operator.EQ: Operator.NE,
    Operator.NE: Operator.EQ,
}
MIRRORED = {
    Operator.LT: Operator.GT,
    Operator.LE: Operator.GE,
    Operator.GT: Operator.LT,
    Operator.GE: Operator.LE,
    Operator.EQ: Operator.EQ,
    Operator.NE: Operator.NE,
}


@dataclass(frozen=True, slots=True)
class Metric:
    """The metric's value at this step."""

    name: str


@dataclass(frozen=True, slots=True)
class Delta:
    """The metric's value at this step minus that of one step before."""

    name: str


@dataclass(frozen=True, slots=True)
class Lag:
    """The metric's value ``steps`` steps ago, steps ≥ 1."""

    name: str
    steps: int


@dataclass(frozen=True, slots=True)
class Window:
    """A reduction of the last ``steps`` values, this step's included; steps ≥ 2."""

    reduction: Reduction
    name: str
    steps: int


Term = Metric | Delta | Lag | Window


@dataclass(frozen=True, slots=True)
class Quantity:
    """A finite number with the unit it was written in, ``""`` for a bare number.

    A bare number is in the unit of the term it is compared with.
    """

    value: float
    unit: str = ""


@dataclass(frozen=True, slots=True)
class Comparison:
    """``term operator other``; the left side always is a term."""

    term: Term
    operator: Operator
    other: Quantity | Term


@dataclass(frozen=True, slots=True)
class Between:
    """lower ≤ term ≤ upper."""

    term: Term
    lower: Quantity
    upper: Quantity


@dataclass(frozen=True, slots=True)
class Near:
    """The term is within the tolerance of the centre, bounds included."""

    term: Term
    centre: Quantity
    tolerance: Quantity


@dataclass(frozen=True, slots=True)
class Not:
    """The operand is known to be false."""

    operand: Predicate


@dataclass(frozen=True, slots=True)
class And:
    """All operands hold; at least two."""

    operands: tuple[Predicate, ...]


@dataclass(frozen=True, slots=True)
class Or:
    """At least one operand holds; at least two."""

    operands: tuple[Predicate, ...]


Predicate = Comparison | Between | Near | Not | And | Or


def all_of(operands: tuple[Predicate, ...]) -> Predicate:
    """Conjunction without nesting; one operand stands for itself."""
    flat: list[Predicate] = []
    for operand in operands:
        flat.extend(operand.operands if isinstance(operand, And) else (operand,))
    return flat[0] if len(flat) == 1 else And(tuple(flat))


def any_of(operands: tuple[Predicate, ...]) -> Predicate:
    """Disjunction without nesting; one operand stands for itself."""
    flat: list[Predicate] = []
    for operand in operands:
        flat.extend(operand.operands if isinstance(operand, Or) else (operand,))
    return flat[0] if len(flat) == 1 else Or(tuple(flat))


def walk(predicate: Predicate) -> Iterator[Predicate]:
    """Every node, parents before children."""
    yield predicate
    if isinstance(predicate, And | Or):
        for operand in predicate.operands:
            yield from walk(operand)
    elif isinstance(predicate, Not):
        yield from walk(predicate.operand)


def terms_of(predicate: Predicate) -> tuple[Term, ...]:
    """Distinct terms in order of appearance."""
    found: dict[Term, None] = {}
    for node in walk(predicate):
        if isinstance(node, Comparison):
            found[node.term] = None
            if not isinstance(node.other, Quantity):
                found[node.other] = None
        elif isinstance(node, Between | Near):
            found[node.term] = None
    return tuple(found)


def metric_names(predicate: Predicate) -> tuple[str, ...]:
    """Distinct metric names in order of appearance."""
    return tuple(dict.fromkeys(term.name for term in terms_of(predicate)))


def leaf_count(predicate: Predicate) -> int:
    """Number of comparisons, the size by which rules are matched with rules."""
    return sum(isinstance(node, Comparison | Between | Near) for node in walk(predicate))


def depth(predicate: Predicate) -> int:
    """Levels of the tree; a single comparison has 1."""
    if isinstance(predicate, And | Or):
        return 1 + max(depth(operand) for operand in predicate.operands)
    if isinstance(predicate, Not):
        return 1 + depth(predicate.operand)
    return 1


def history(term: Term) -> int:
    """How many earlier steps of the same episode a term needs."""
    match term:
        case Metric():
            return 0
        case Delta():
            return 1
        case Lag(steps=steps):
            return steps
        case Window(steps=steps):
            return steps - 1
