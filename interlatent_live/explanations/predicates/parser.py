"""From text to a predicate: a hand-written recursive-descent parser with positions in its errors.

Grammar (whitespace is free, keywords are lower case)::

    predicate  = conjunct { "or" conjunct }
    conjunct   = factor { "and" factor }
    factor     = "not" factor | "(" predicate ")" | relation
    relation   = "between" "(" term "," number "," number ")"
               | "near" "(" term "," number "," number ")"
               | operand comparator operand { comparator operand }
    comparator = "<" | "<=" | ">" | ">=" | "==" | "!="
    operand    = term | number
    term       = name | "delta" "(" name ")" | "lag" "(" name "," integer ")"
               | ("mean" | "min" | "max") "(" name "," integer ")"
    number     = ["-" | "+"] digits ["." digits] [exponent] [unit]
    name       = letter { letter | digit | "_" | "." } | "`" any text "`"

A backtick inside a quoted name is doubled. A unit is written after the number; a unit that is not
the metric's own is converted where :mod:`units` can and refused where it cannot. The text is
untrusted: its length, its tokens, its depth and its windows are bounded before anything is built,
and nothing is ever evaluated as code.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NoReturn

from interlatent_live.errors import UserError
from interlatent_live.explanations.predicates.tree import (
    MIRRORED,
    Between,
    Comparison,
    Delta,
    Lag,
    Metric,
    Near,
    Not,
    Operator,
    Predicate,
    Quantity,
    Reduction,
    Term,
    Window,
    all_of,
    any_of,
)
from interlatent_live.explanations.predicates.units import factor
from interlatent_live.stream import MetricSpec, Role

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

WHEN_ROLES: Final = frozenset({Role.STATE, Role.CLOCK})
"""The only roles a *when* predicate may use; action and outcome belong to the effect."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds that hold before a predicate exists."""

    characters: int = 2000
    comparisons: int = 24
    depth: int = 8
    window_steps: int = 1000


DEFAULT_LIMITS: Final = Limits()


class PredicateError(UserError):
    """A text that is not a predicate; ``position`` counts characters from 0."""

    def __init__(self, position: int, message: str) -> None:
        super().__init__(f"the predicate is wrong at character {position + 1}: {message}")
        self.position = position


_TOKEN: Final = re.compile(
    r"""(?P<space>\s+)
      | (?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)
      | (?P<name>[^\W\d][\w.]*)
      | (?P<quoted>`(?:[^`]|``)*`)
      | (?P<operator><=|>=|==|!=|<|>)
      | (?P<punctuation>[(),+-])
      """,
    re.VERBOSE,
)
_UNIT: Final = re.compile(r"[ \t]*(°?[^\W\d_][\w²³]*(?:[/·^*][\w²³-]+)*|°(?:/s)?|%)")
_KEYWORDS: Final = frozenset(
    {"and", "or", "not", "between", "near", "delta", "lag", "mean", "min", "max"}
)


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    position: int


def parse(
    text: str,
    metrics: Iterable[MetricSpec] | None = None,
    *,
    roles: Collection[Role] = WHEN_ROLES,
    limits: Limits = DEFAULT_LIMITS,
) -> Predicate:
    """Parse ``text``; with ``metrics`` also check names, roles and units.

    Numbers come back in the unit of the metric they are compared with. Without ``metrics`` only the
    syntax is checked and units stay as written.

    Raises:
        PredicateError: one sentence with the position of the first mistake.
    """
    if len(text) > limits.characters:
        raise PredicateError(
            limits.characters, f"it is longer than {limits.characters} characters; shorten it"
        )
    known = None if metrics is None else {spec.name: spec for spec in metrics}
    return _Parser(text, known, frozenset(roles), limits).run()


class _Parser:
    def __init__(
        self,
        text: str,
        known: dict[str, MetricSpec] | None,
        roles: frozenset[Role],
        limits: Limits,
    ) -> None:
        self._text = text
        self._known = known
        self._roles = roles
        self._limits = limits
        self._units = _unit_names(known)
        self._tokens = list(self._tokenise())
        self._at = 0
        self._comparisons = 0

    def run(self) -> Predicate:
        if self._peek().kind == "end":
            self._fail(self._peek(), "it is empty; write a comparison such as height > 0.5")
        predicate = self._disjunction(1)
        token = self._peek()
        if token.kind != "end":
            self._fail(token, f"expected 'and', 'or' or the end, found {token.text!r}")
        return predicate

    def _tokenise(self) -> Iterable[_Token]:
        position = 0
        while position < len(self._text):
            found = _TOKEN.match(self._text, position)
            if found is None:
                raise PredicateError(position, f"unexpected character {self._text[position]!r}")
            kind = found.lastgroup or ""
            if kind != "space":
                yield _Token(kind, found.group(), position)
            position = found.end()
            if kind == "number":
                unit = _UNIT.match(self._text, position)
                if unit is not None and unit.group(1) not in _KEYWORDS - self._units:
                    yield _Token("unit", unit.group(1), unit.start(1))
                    position = unit.end()
        yield _Token("end", "the end", len(self._text))

    def _peek(self) -> _Token:
        return self._tokens[self._at]

    def _next(self) -> _Token:
        token = self._tokens[self._at]
        self._at += token.kind != "end"
        return token

    def _is(self, text: str) -> bool:
        token = self._peek()
        return token.text == text and token.kind in ("name", "punctuation")

    def _expect(self, text: str) -> _Token:
        token = self._next()
        if token.text != text or token.kind != "punctuation":
            self._fail(token, f"expected {text!r}, found {token.text!r}")
        return token

    def _fail(self, token: _Token, message: str) -> NoReturn:
        raise PredicateError(token.position, message)

    def _disjunction(self, level: int) -> Predicate:
        if level > self._limits.depth:
            self._fail(self._peek(), f"it is nested deeper than {self._limits.depth} levels")
        operands = [self._conjunction(level)]
        while self._is("or"):
            self._next()
            operands.append(self._conjunction(level))
        return any_of(tuple(operands))

    def _conjunction(self, level: int) -> Predicate:
        operands = [self._factor(level)]
        while self._is("and"):
            self._next()
            operands.append(self._factor(level))
        return all_of(tuple(operands))

    def _factor(self, level: int) -> Predicate:
        if level > self._limits.depth:
            self._fail(self._peek(), f"it is nested deeper than {self._limits.depth} levels")
        if self._is("not"):
            self._next()
            return Not(self._factor(level + 1))
        if self._is("("):
            self._next()
            inner = self._disjunction(level + 1)
            self._expect(")")
            return inner
        return self._relation()

    def _relation(self) -> Predicate:
        start = self._peek()
        self._count(start)
        if start.kind == "name" and start.text in ("between", "near") and self._called():
            return self._bounded()
        left, left_token = self._operand()
        parts: list[Predicate] = []
        operator = self._next()
        if operator.kind != "operator":
            self._fail(operator, f"expected a comparison such as >, found {operator.text!r}")
        while True:
            right, right_token = self._operand()
            parts.append(self._compare(left, left_token, operator, right, right_token))
            if self._peek().kind != "operator":
                return all_of(tuple(parts))
            self._count(self._peek())
            left, left_token, operator = right, right_token, self._next()

    def _count(self, token: _Token) -> None:
        self._comparisons += 1
        if self._comparisons > self._limits.comparisons:
            self._fail(token, f"it has more than {self._limits.comparisons} comparisons")

    def _compare(
        self,
        left: Quantity | Term,
        left_token: _Token,
        operator: _Token,
        right: Quantity | Term,
        right_token: _Token,
    ) -> Predicate:
        kind = Operator(operator.text)
        if isinstance(left, Quantity):
            if isinstance(right, Quantity):
                self._fail(left_token, "a comparison needs a metric on one side")
            return Comparison(right, MIRRORED[kind], self._in_unit(left, right, left_token))
        if isinstance(right, Quantity):
            return Comparison(left, kind, self._in_unit(right, left, right_token))
        if self._known is not None:
            ours, theirs = self._known[left.name].unit, self._known[right.name].unit
            if ours != theirs:
                self._fail(
                    right_token,
                    f"{left.name!r} is in {ours or 'no unit'} but {right.name!r} is in "
                    f"{theirs or 'no unit'}; compare like with like",
                )
        return Comparison(left, kind, right)

    def _bounded(self) -> Predicate:
        kind = self._next()
        self._expect("(")
        term, _ = self._term()
        self._expect(",")
        first, first_token = self._number()
        self._expect(",")
        second, second_token = self._number()
        self._expect(")")
        first = self._in_unit(first, term, first_token)
        second = self._in_unit(second, term, second_token)
        if kind.text == "near":
            if second.value < 0:
                self._fail(second_token, "the tolerance of near must not be negative")
            return Near(term, first, second)
        if first.value > second.value:
            self._fail(first_token, "the lower bound of between is above the upper one")
        return Between(term, first, second)

    def _operand(self) -> tuple[Quantity | Term, _Token]:
        token = self._peek()
        if token.kind == "number" or (token.kind == "punctuation" and token.text in "+-"):
            return self._number()
        return self._term()

    def _number(self) -> tuple[Quantity, _Token]:
        start = self._peek()
        sign = 1.0
        if start.kind == "punctuation" and start.text in "+-":
            self._next()
            sign = -1.0 if start.text == "-" else 1.0
        token = self._next()
        if token.kind != "number":
            self._fail(token, f"expected a number, found {token.text!r}")
        value = sign * float(token.text)
        if not math.isfinite(value):
            self._fail(token, "the number is too large")
        unit = self._next().text if self._peek().kind == "unit" else ""
        return Quantity(value, unit), start

    def _in_unit(self, quantity: Quantity, term: Term, token: _Token) -> Quantity:
        if self._known is None:
            return quantity
        declared = self._known[term.name].unit
        scale = factor(quantity.unit, declared)
        if scale is None:
            self._fail(
                token,
                f"{quantity.unit!r} does not convert to {declared or 'a bare number'!r}, "
                f"the unit of {term.name!r}",
            )
        return Quantity(quantity.value * scale, declared)

    def _called(self) -> bool:
        following = self._tokens[self._at + 1]
        return following.kind == "punctuation" and following.text == "("

    def _term(self) -> tuple[Term, _Token]:
        token = self._peek()
        if token.kind == "quoted" or (token.kind == "name" and not self._called()):
            return Metric(self._name()), token
        if token.kind != "name":
            self._fail(token, f"expected a metric, found {token.text!r}")
        if token.text not in ("delta", "lag", "mean", "min", "max"):
            self._fail(
                token, f"there is no function {token.text!r}; use delta, lag, mean, min or max"
            )
        self._next()
        self._expect("(")
        name = self._name()
        term: Term
        if token.text == "delta":
            term = Delta(name)
        else:
            self._expect(",")
            least = 1 if token.text == "lag" else 2
            steps = self._steps(least)
            term = (
                Lag(name, steps)
                if token.text == "lag"
                else Window(Reduction(token.text), name, steps)
            )
        self._expect(")")
        return term, token

    def _steps(self, least: int) -> int:
        token = self._next()
        if token.kind != "number" or not token.text.isdecimal():
            self._fail(token, f"expected a whole number of steps, found {token.text!r}")
        if self._peek().kind == "unit":
            self._fail(self._peek(), "windows and lags are in steps and take no unit")
        if len(token.text) > 9 or not least <= int(token.text) <= self._limits.window_steps:
            self._fail(token, f"the number of steps must be {least} to {self._limits.window_steps}")
        return int(token.text)

    def _name(self) -> str:
        token = self._next()
        if token.kind == "quoted":
            name = token.text[1:-1].replace("``", "`")
        elif token.kind == "name" and token.text not in ("and", "or", "not"):
            name = token.text
        else:
            self._fail(token, f"expected a metric, found {token.text!r}")
        if not name:
            self._fail(token, "a metric's name is empty")
        if self._known is None:
            return name
        spec = self._known.get(name)
        if spec is None:
            self._fail(token, f"there is no metric {name!r}")
        if spec.role not in self._roles:
            allowed = ", ".join(sorted(self._roles))
            self._fail(token, f"{name!r} is of role {spec.role}; only {allowed} may be used here")
        return name


def _unit_names(known: dict[str, MetricSpec] | None) -> frozenset[str]:
    """Units of the metrics, so that a unit named like a keyword ("min") still is a unit."""
    return frozenset() if known is None else frozenset(spec.unit for spec in known.values())
