"""Alert rules as a state machine: conditions, a duration, hysteresis; no clock and no sending.

``inactive → pending → firing → inactive``, as in Prometheus: a rule fires once all of its
conditions held for ``for_s``; it stops once they have been *clear*, at the hysteresis thresholds,
for ``keep_s``. A value that is unknown neither starts nor ends an alert, because missing data is
not good news; how long it has been missing can be a condition of its own.
"""

from __future__ import annotations

import json
import operator
import re
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from interlatent_live.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Judge = Callable[[Mapping[str, float]], bool | None]

_OPERATORS: Final[dict[str, Callable[[float, float], bool]]] = {
    ">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le,
}  # fmt: skip
_CONDITION: Final = re.compile(
    r"^\s*(?P<name>\S+)\s*(?P<op>>=|<=|>|<)\s*(?P<value>[-+0-9.eE]+)"
    r"(?:\s+clear\s+(?P<clear>[-+0-9.eE]+))?\s*$"
)
_NAME: Final = re.compile(r"^[a-zA-Z_][a-zA-Z0-9_]*$")


class Phase(StrEnum):
    """Where an alert is."""

    INACTIVE = "inactive"
    PENDING = "pending"
    FIRING = "firing"


@dataclass(frozen=True, slots=True)
class Condition:
    """``name op threshold``; it clears only beyond ``clear`` (default: the threshold itself).

    Names are values the service offers, such as ``feature:12`` (activation), ``density:12``,
    ``metric:height``, ``r:12:height``, ``fvu``, ``drift:fvu``.
    """

    name: str
    op: str
    threshold: float
    clear: float | None = None

    def __post_init__(self) -> None:
        if self.op not in _OPERATORS:
            raise UserError(f"condition on {self.name!r}: {self.op!r} is not one of > >= < <=")
        if self.clear is not None:
            upward = self.op in (">", ">=")
            if (self.clear > self.threshold) == upward and self.clear != self.threshold:
                raise UserError(
                    f"condition on {self.name!r}: the clear value {self.clear:g} lies on the "
                    f"firing side of the threshold {self.threshold:g}"
                )

    @classmethod
    def parse(cls, text: str) -> Condition:
        """From ``"fvu > 0.1 clear 0.08"``.

        Raises:
            UserError: when the text is not of that form.
        """
        match = _CONDITION.match(text)
        if match is None:
            raise UserError(f"{text!r} is not a condition such as 'fvu > 0.1 clear 0.08'")
        try:
            threshold = float(match["value"])
            clear = float(match["clear"]) if match["clear"] else None
        except ValueError as error:
            raise UserError(f"{text!r} does not hold a number") from error
        return cls(match["name"], match["op"], threshold, clear)

    def holds(self, value: float) -> bool:
        """Whether the condition is met."""
        return _OPERATORS[self.op](value, self.threshold)

    def cleared(self, value: float) -> bool:
        """Whether the condition has ended, hysteresis included."""
        bound = self.threshold if self.clear is None else self.clear
        return not _OPERATORS[self.op](value, bound)


@dataclass(frozen=True, slots=True)
class AlertRule:
    """What to watch. All conditions must hold; ``predicate`` may add one over all values.

    ``predicate`` takes the known values by name and returns whether it holds, or ``None`` when it
    cannot tell; ``cleared`` likewise whether a firing alert's predicate has ended (default: once it
    does not hold), which is its hysteresis. ``reads`` names the values that the two ask for.
    """

    name: str
    conditions: tuple[Condition, ...] = ()
    predicate: Judge | None = None
    cleared: Judge | None = None
    reads: tuple[str, ...] = ()
    for_s: float = 0.0
    keep_s: float = 0.0
    severity: str = "warning"
    summary: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not _NAME.match(self.name):
            raise UserError(f"alert rule {self.name!r}: use letters, digits and underscores")
        if not self.conditions and self.predicate is None:
            raise UserError(f"alert rule {self.name!r} has no condition")
        if self.for_s < 0 or self.keep_s < 0:
            raise UserError(f"alert rule {self.name!r}: durations must be ≥ 0")

    @property
    def names(self) -> tuple[str, ...]:
        """Every value that the rule speaks of, each once."""
        return tuple(dict.fromkeys((*(one.name for one in self.conditions), *self.reads)))

    def holds(self, values: Mapping[str, float | None]) -> bool | None:
        """Whether every condition is met; ``None`` when that cannot be told."""
        return self._judge(values, lambda condition, value: condition.holds(value), self.predicate)

    def stays(self, values: Mapping[str, float | None]) -> bool | None:
        """Whether a firing alert goes on: no condition has cleared; ``None`` if unknown."""
        goes_on = self.predicate if self.cleared is None else _opposite(self.cleared)
        return self._judge(values, lambda condition, value: not condition.cleared(value), goes_on)

    def _judge(
        self,
        values: Mapping[str, float | None],
        test: Callable[[Condition, float], bool],
        predicate: Judge | None,
    ) -> bool | None:
        unknown = False
        for condition in self.conditions:
            value = values.get(condition.name)
            if value is None or value != value:  # noqa: PLR0124 - NaN is unknown
                unknown = True
            elif not test(condition, value):
                return False
        if predicate is not None:
            known = {name: value for name, value in values.items() if value is not None}
            answer = predicate(known)
            if answer is None:
                unknown = True
            elif not answer:
                return False
        return None if unknown else True


def _opposite(judge: Judge) -> Judge:
    def opposite(values: Mapping[str, float]) -> bool | None:
        answer = judge(values)
        return None if answer is None else not answer

    return opposite


@dataclass(frozen=True, slots=True)
class Transition:
    """A change of phase that somebody may want to hear of."""

    rule: AlertRule
    run: str
    phase: Phase
    """PENDING, FIRING, or INACTIVE (resolved, when it was firing)."""
    was: Phase
    at_ns: int
    started_ns: int
    """When the conditions began to hold."""
    values: Mapping[str, float | None]
    hook_point: str = ""

    @property
    def resolved(self) -> bool:
        """Whether a firing alert has ended."""
        return self.was is Phase.FIRING and self.phase is Phase.INACTIVE

    @property
    def notable(self) -> bool:
        """Whether receivers are told: firing and resolved are, pending is not."""
        return self.phase is Phase.FIRING or self.resolved


@dataclass(slots=True)
class AlertState:
    """One rule on one run. Feed it values with the time they belong to; it never looks at a clock.

    Times are the agent's, so a replay makes the same transitions.
    """

    rule: AlertRule
    run: str = ""
    phase: Phase = Phase.INACTIVE
    started_ns: int = 0
    clear_since_ns: int | None = None
    unknown_evaluations: int = 0
    hook_point: str = ""

    def step(self, now_ns: int, values: Mapping[str, float | None]) -> Transition | None:
        """Evaluate once; returns the transition made, if any."""
        was = self.phase
        if self.phase is Phase.FIRING:
            self._firing(now_ns, values)
        else:
            self._waiting(now_ns, values)
        if self.phase is was:
            return None
        return self._transition(was, now_ns, values)

    def active(self, now_ns: int, values: Mapping[str, float | None]) -> Transition | None:
        """What a receiver that forgets is told again while the alert fires; ``None`` otherwise."""
        if self.phase is not Phase.FIRING:
            return None
        return self._transition(Phase.FIRING, now_ns, values)

    def _transition(
        self, was: Phase, now_ns: int, values: Mapping[str, float | None]
    ) -> Transition:
        shown = {name: values.get(name) for name in self.rule.names}
        return Transition(
            self.rule, self.run, self.phase, was, now_ns, self.started_ns, shown, self.hook_point
        )

    def _waiting(self, now_ns: int, values: Mapping[str, float | None]) -> None:
        answer = self.rule.holds(values)
        if answer is None:
            self.unknown_evaluations += 1
            return
        if not answer:
            self.phase = Phase.INACTIVE
            return
        if self.phase is Phase.INACTIVE:
            self.phase = Phase.PENDING
            self.started_ns = now_ns
        if now_ns - self.started_ns >= self.rule.for_s * 1e9:
            self.phase = Phase.FIRING
            self.clear_since_ns = None

    def _firing(self, now_ns: int, values: Mapping[str, float | None]) -> None:
        answer = self.rule.stays(values)
        if answer is None:
            self.unknown_evaluations += 1
            return
        if answer:
            self.clear_since_ns = None
            return
        if self.clear_since_ns is None:
            self.clear_since_ns = now_ns
        if now_ns - self.clear_since_ns >= self.rule.keep_s * 1e9:
            self.phase = Phase.INACTIVE
            self.clear_since_ns = None

    def to_dict(self) -> dict[str, Any]:
        """State for a snapshot."""
        return {
            "rule": self.rule.name, "run": self.run, "phase": str(self.phase),
            "started_ns": self.started_ns, "clear_since_ns": self.clear_since_ns,
        }  # fmt: skip

    def load(self, state: Mapping[str, Any]) -> None:
        """Inverse of :meth:`to_dict`."""
        self.phase = Phase(state["phase"])
        self.started_ns = int(state["started_ns"])
        self.clear_since_ns = state["clear_since_ns"]


def webhook_payload(transition: Transition) -> dict[str, Any]:
    """JSON body for a webhook: what, where, since when, with which values."""
    return {
        "schema": 1,
        "alert": transition.rule.name,
        "status": "resolved" if transition.resolved else str(transition.phase),
        "severity": transition.rule.severity,
        "summary": transition.rule.summary,
        "run": transition.run,
        "hook_point": transition.hook_point,
        "started_ns": transition.started_ns,
        "at_ns": transition.at_ns,
        "values": dict(transition.values),
        "labels": dict(transition.rule.labels),
    }


def alertmanager_alerts(transition: Transition) -> list[dict[str, Any]]:
    """Body for Alertmanager's ``POST /api/v2/alerts``."""
    item: dict[str, Any] = {
        "labels": {
            **transition.rule.labels,
            "alertname": transition.rule.name,
            "severity": transition.rule.severity,
            "run": transition.run,
            **({"hook_point": transition.hook_point} if transition.hook_point else {}),
        },
        "annotations": {
            "summary": transition.rule.summary or transition.rule.name,
            "values": json.dumps(dict(transition.values), sort_keys=True),
        },
        "startsAt": _rfc3339(transition.started_ns),
    }
    if transition.resolved:
        item["endsAt"] = _rfc3339(transition.at_ns)
    return [item]


def prometheus_rules(rules: tuple[AlertRule, ...], metric: str = "interlatent_value") -> str:
    """A Prometheus rule file (YAML) that fires on the gauge ``metric{name="…"}`` of ``/metrics``.

    Conditions become expressions joined by ``and on (run)``; predicates and hysteresis thresholds
    have no counterpart there, so rules with a predicate are refused.

    Raises:
        UserError: for a rule with a predicate.
    """
    lines = ["groups:", "- name: interlatent-live", "  rules:"]
    for rule in rules:
        if rule.predicate is not None:
            raise UserError(
                f"alert rule {rule.name!r} has a predicate, which Prometheus cannot express"
            )
        parts = [
            f"max by (run) ({metric}{{name={json.dumps(c.name)}}}) {c.op} {c.threshold!r}"
            for c in rule.conditions
        ]
        lines += [
            f"  - alert: {rule.name}",
            f"    expr: {json.dumps(' and on (run) '.join(parts))}",
            f"    for: {max(rule.for_s, 0):g}s",
            f"    keep_firing_for: {max(rule.keep_s, 0):g}s",
            "    labels:",
            f"      severity: {json.dumps(rule.severity)}",
            *(f"      {k}: {json.dumps(v)}" for k, v in sorted(rule.labels.items())),
            "    annotations:",
            f"      summary: {json.dumps(rule.summary or rule.name)}",
        ]
    return "\n".join(lines) + "\n"


def _rfc3339(ns: int) -> str:
    from datetime import UTC, datetime  # noqa: PLC0415 - only the Alertmanager body needs it

    return datetime.fromtimestamp(ns / 1e9, UTC).isoformat(timespec="milliseconds")
