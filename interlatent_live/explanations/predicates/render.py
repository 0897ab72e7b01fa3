"""From a predicate back to text: the canonical form, which parses to an equal tree, and English."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from interlatent_live.explanations.predicates.tree import (
    NEGATED,
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
    Term,
    Window,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

_BARE: Final = re.compile(r"[^\W\d][\w.]*\Z")
_RESERVED: Final = frozenset({"and", "or", "not"})


def to_text(predicate: Predicate) -> str:
    """Canonical text; ``parse(to_text(p)) == p``. Units are left out: bare numbers are in them."""
    return _text(predicate, parent=None)


def to_english(predicate: Predicate, names: Mapping[str, str] | None = None) -> str:
    """A phrase such as "pole angle is above 0.05 rad and cart velocity is below 0 m/s".

    ``names`` gives the words for a metric where its name with spaces for underscores is not enough.
    """
    return _english(predicate, names or {})


def term_text(term: Term) -> str:
    """Canonical text of a term."""
    match term:
        case Metric(name):
            return _name(name)
        case Delta(name):
            return f"delta({_name(name)})"
        case Lag(name, steps):
            return f"lag({_name(name)}, {steps})"
        case Window(reduction, name, steps):
            return f"{reduction}({_name(name)}, {steps})"


def term_english(term: Term, names: Mapping[str, str] | None = None) -> str:
    """Words for a term's value."""
    words = names or {}
    match term:
        case Metric(name):
            return _words(name, words)
        case Delta(name):
            return f"the change of {_words(name, words)} in one step"
        case Lag(name, steps):
            return f"{_words(name, words)} {steps} {'step' if steps == 1 else 'steps'} ago"
        case Window(reduction, name, steps):
            noun = {"mean": "mean", "min": "lowest", "max": "highest"}[reduction]
            return f"the {noun} {_words(name, words)} of the last {steps} steps"


def number(value: float) -> str:
    """The shortest text that reads back as the same float, without a needless ``.0``."""
    text = repr(float(value))
    return text.removesuffix(".0") if text != "-0.0" else "0"


def _name(name: str) -> str:
    if _BARE.match(name) and name not in _RESERVED:
        return name
    return "`" + name.replace("`", "``") + "`"


def _words(name: str, words: Mapping[str, str]) -> str:
    return words.get(name, name.replace("_", " "))


def _text(predicate: Predicate, parent: type | None) -> str:
    match predicate:
        case Comparison(term, operator, other):
            right = number(other.value) if isinstance(other, Quantity) else term_text(other)
            return f"{term_text(term)} {operator} {right}"
        case Between(term, lower, upper):
            return f"between({term_text(term)}, {number(lower.value)}, {number(upper.value)})"
        case Near(term, centre, tolerance):
            return f"near({term_text(term)}, {number(centre.value)}, {number(tolerance.value)})"
        case Not(operand):
            inner = _text(operand, None)
            return f"not ({inner})" if isinstance(operand, And | Or) else f"not {inner}"
        case And(operands):
            text = " and ".join(_text(operand, And) for operand in operands)
            return f"({text})" if parent is And else text
        case Or(operands):
            text = " or ".join(_text(operand, Or) for operand in operands)
            return text if parent is None else f"({text})"


_PHRASE: Final = {
    Operator.LT: "is below",
    Operator.LE: "is at most",
    Operator.GT: "is above",
    Operator.GE: "is at least",
    Operator.EQ: "is",
    Operator.NE: "is not",
}


def _quantity(quantity: Quantity) -> str:
    return f"{_shown(quantity.value)} {quantity.unit}".rstrip()


def _shown(value: float) -> str:
    """Four significant digits are enough for a sentence; the canonical text keeps them all."""
    return number(float(f"{value:.4g}"))


def _english(predicate: Predicate, words: Mapping[str, str]) -> str:
    match predicate:
        case Not(Comparison(term, operator, other)):
            return _relation(Comparison(term, NEGATED[operator], other), words)
        case Not(operand):
            return f"it is not the case that {_english(operand, words)}"
        case And(operands):
            return " and ".join(
                f"either {_english(operand, words)}"
                if isinstance(operand, Or)
                else _english(operand, words)
                for operand in operands
            )
        case Or(operands):
            return ", or ".join(
                f"both {_english(operand, words)}"
                if isinstance(operand, And) and len(operand.operands) == 2
                else _english(operand, words)
                for operand in operands
            )
        case _:
            return _relation(predicate, words)


def _relation(predicate: Comparison | Between | Near, words: Mapping[str, str]) -> str:
    term = predicate.term
    subject, verb = term_english(term, words), "was" if isinstance(term, Lag) else "is"
    if isinstance(predicate, Between):
        lower, upper = predicate.lower, predicate.upper
        return f"{subject} {verb} between {_shown(lower.value)} and {_quantity(upper)}"
    if isinstance(predicate, Near):
        centre, tolerance = predicate.centre, predicate.tolerance
        return f"{subject} {verb} within {_quantity(tolerance)} of {_quantity(centre)}"
    if isinstance(term, Delta) and isinstance(predicate.other, Quantity):
        change = _change(_words(term.name, words), predicate.operator, predicate.other)
        if change:
            return change
    other = predicate.other
    right = _quantity(other) if isinstance(other, Quantity) else term_english(other, words)
    return f"{subject} {_PHRASE[predicate.operator].replace('is', verb, 1)} {right}"


def _change(subject: str, operator: Operator, bound: Quantity) -> str | None:
    """Rising and falling, where the bound makes the direction plain."""
    if operator in (Operator.GT, Operator.GE) and bound.value >= 0:
        direction = "rising"
    elif operator in (Operator.LT, Operator.LE) and bound.value <= 0:
        direction = "falling"
    else:
        return None
    if bound.value == 0:
        return f"{subject} is {direction}"
    size = _quantity(Quantity(abs(bound.value), bound.unit))
    return f"{subject} is {direction} by more than {size} a step"
