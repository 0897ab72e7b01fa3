"""Alert rules from a TOML file; every mistake is one sentence with its line.

    [[rule]]
    name = "fvu_high"
    when = ["fvu > 0.1 clear 0.08"]
    for_s = 5
    keep_s = 10
    severity = "critical"
    summary = "The transcoder no longer explains the policy."

``when`` holds conditions (all must hold) on the values of :mod:`interlatent_live.alerts.values`;
``predicate`` adds one in the claims' language, and ``clear`` says, in the same, when it has ended;
``agent`` and ``hook_point`` restrict a rule, ``labels`` go to Alertmanager.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from interlatent_live.alerts.predicates import parse_values
from interlatent_live.alerts.values import check_name
from interlatent_live.errors import UserError
from interlatent_live.statistics.rules import AlertRule, Condition

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from interlatent_live.stream import MetricSpec

_HEAD: Final = re.compile(r"^\s*\[\[\s*rule\s*\]\]")
_KEYS: Final[dict[str, type | tuple[type, ...]]] = {
    "name": str, "when": list, "for_s": (int, float), "keep_s": (int, float), "severity": str,
    "summary": str, "labels": dict, "agent": str, "hook_point": str, "predicate": str, "clear": str,
}  # fmt: skip
MOST_RULES: Final = 1000


@dataclass(frozen=True, slots=True)
class ScopedRule:
    """A rule and where it applies; empty: everywhere."""

    rule: AlertRule
    agent: str = ""
    hook_point: str = ""
    predicate: str = ""
    clear: str = ""

    def for_metrics(self, metrics: Sequence[MetricSpec]) -> AlertRule:
        """The rule for one run, with the units of its metrics.

        Raises:
            UserError: when its predicate gives a metric another unit than the run's.
        """
        return _with_predicates(self.rule, self.predicate, self.clear, metrics)


def load_rules(file: Path) -> tuple[ScopedRule, ...]:
    """The rules of a file.

    Raises:
        UserError: for a file that cannot be read or the first mistake in it, with its line.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the alert rules {file} can't be read: {error}") from error
    return parse_rules(text, str(file))


def parse_rules(text: str, where: str) -> tuple[ScopedRule, ...]:
    """The rules of a text; raises as :func:`load_rules`."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{where}: {error}") from error
    lines = text.splitlines()
    heads = [number for number, line in enumerate(lines, 1) if _HEAD.match(line)]
    for key in document:
        if key != "rule":
            raise UserError(
                f"{where}:{_line(lines, 1, key)}: there is no {key!r}; rules are [[rule]] tables"
            )
    tables = document.get("rule", [])
    if not isinstance(tables, list) or len(tables) > MOST_RULES:
        raise UserError(f"{where}: rules are at most {MOST_RULES} [[rule]] tables")
    found: list[ScopedRule] = []
    for number, table in enumerate(tables):
        head = heads[number] if number < len(heads) else 1
        rule = _rule(table, where, lines, head)
        if any(rule.rule.name == other.rule.name for other in found):
            line = _line(lines, head, "name")
            raise UserError(f"{where}:{line}: two rules are called {rule.rule.name!r}")
        found.append(rule)
    return tuple(found)


def _rule(table: dict[str, Any], where: str, lines: list[str], head: int) -> ScopedRule:
    for key, value in table.items():
        line = _line(lines, head, key)
        if key not in _KEYS:
            raise UserError(f"{where}:{line}: a rule has no {key!r}; it has {', '.join(_KEYS)}")
        if not isinstance(value, _KEYS[key]) or isinstance(value, bool):
            raise UserError(f"{where}:{line}: {key} is {value!r}, which is of the wrong kind")
    if "name" not in table:
        raise UserError(f"{where}:{head}: this rule has no name")
    if "when" not in table and "predicate" not in table:
        raise UserError(f"{where}:{head}: this rule has no when and no predicate")
    if "clear" in table and "predicate" not in table:
        line = _line(lines, head, "clear")
        raise UserError(f"{where}:{line}: clear belongs to a predicate, and this rule has none")
    conditions = _conditions(table, where, lines, head)
    predicate, clear = _predicates(table, where, lines, head)
    try:
        rule = AlertRule(
            name=table["name"],
            conditions=tuple(conditions),
            predicate=parse_values(table["name"], predicate) if predicate else None,
            for_s=float(table.get("for_s", 0.0)),
            keep_s=float(table.get("keep_s", 0.0)),
            severity=table.get("severity", "warning"),
            summary=table.get("summary", ""),
            labels={str(k): str(v) for k, v in table.get("labels", {}).items()},
        )
    except UserError as error:
        raise UserError(f"{where}:{head}: {error}") from error
    rule = _with_predicates(rule, predicate, clear, None)
    return ScopedRule(rule, table.get("agent", ""), table.get("hook_point", ""), predicate, clear)


def _conditions(table: dict[str, Any], where: str, lines: list[str], head: int) -> list[Condition]:
    conditions = []
    for text in table.get("when", ()):
        line = _line(lines, head, str(text), quoted=True)
        try:
            condition = Condition.parse(str(text))
            check_name(condition.name)
        except UserError as error:
            raise UserError(f"{where}:{line}: {error}") from error
        conditions.append(condition)
    return conditions


def _predicates(table: dict[str, Any], where: str, lines: list[str], head: int) -> tuple[str, str]:
    for key in ("predicate", "clear"):
        try:
            if key in table:
                parse_values(table["name"], table[key])
        except UserError as error:
            raise UserError(f"{where}:{_line(lines, head, key)}: {error}") from error
    return table.get("predicate", ""), table.get("clear", "")


def _with_predicates(
    rule: AlertRule, predicate: str, clear: str, metrics: Sequence[MetricSpec] | None
) -> AlertRule:
    if not predicate:
        return rule
    holds = parse_values(rule.name, predicate, metrics)
    ends = parse_values(rule.name, clear, metrics) if clear else None
    reads = (*holds.reads, *(ends.reads if ends is not None else ()))
    return replace(rule, predicate=holds, cleared=ends, reads=reads)


def _line(lines: list[str], head: int, key: str, *, quoted: bool = False) -> int:
    """Line of a key (or of a quoted text) of the rule that begins at ``head``."""
    for number in range(head, len(lines) + 1):
        line = lines[number - 1]
        if number > head and _HEAD.match(line):
            break
        if key in line if quoted else re.match(rf"\s*\[?{re.escape(key)}\b", line):
            return number
    return head
