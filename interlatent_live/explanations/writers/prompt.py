"""Prompts as versioned files, and data put into them so that it stays data.

Names of metrics, actions and environments are other people's text. In a prompt metrics have aliases
(m1, m2, …), names are cut and stripped of control characters, everything goes in as one JSON
document between two lines with a nonce that is the document's own hash, so that no name can contain
it; and the answer's predicate is parsed over the aliases only.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any, Final

from interlatent_live.explanations.predicates import (
    And,
    Between,
    Comparison,
    Near,
    Not,
    Or,
    Predicate,
    Quantity,
    Term,
    to_text,
)
from interlatent_live.stream import Role

if TYPE_CHECKING:
    from collections.abc import Mapping

    from interlatent_live.explanations.profile import FeatureProfile
    from interlatent_live.stream import MetricSpec

_NAME_LENGTH: Final = 60
_DIGITS: Final = 4


@dataclass(frozen=True, slots=True)
class Prompt:
    """One versioned prompt file."""

    name: str
    version: int
    system: str
    user: str
    hash: str
    """``sha256:`` of the file's text; kept on every claim made with it."""

    def fill(self, **values: str) -> str:
        """The user part with ``{{name}}`` replaced; replaced text is not searched again."""
        out, rest = "", self.user
        while rest:
            before, mark, after = rest.partition("{{")
            out += before
            if not mark:
                break
            key, _, rest = after.partition("}}")
            out += values[key]
        return out


@cache
def load_prompt(name: str) -> Prompt:
    """Read ``prompts/NAME.md``.

    Raises:
        ValueError: when its front matter or its parts are not as they should be.
    """
    text = (resources.files("interlatent_live.prompts") / f"{name}.md").read_text("utf-8")
    _, front, body = text.split("---\n", 2)
    matter = dict(line.split(": ", 1) for line in front.strip().splitlines())
    if not body.startswith("## System\n") or matter.get("name") != name:
        raise ValueError(f"prompts/{name}.md does not start with its own front matter")
    system, mark, user = body.removeprefix("## System\n").partition("## User\n")
    if not mark:
        raise ValueError(f"prompts/{name}.md has no '## User' part")
    digest = hashlib.sha256(text.encode()).hexdigest()
    return Prompt(name, int(matter["version"]), system.strip(), user.strip(), f"sha256:{digest}")


def as_data(text: str, length: int = _NAME_LENGTH) -> str:
    """Other people's text as one short line: no control or formatting characters."""
    kept = "".join(
        " " if char.isspace() else char
        for char in text
        if char.isspace() or unicodedata.category(char)[0] != "C"
    )
    line = " ".join(kept.split())
    return line if len(line) <= length else line[: length - 1] + "…"


@dataclass(frozen=True, slots=True)
class Aliases:
    """m1, m2, … for the metrics that a *when* predicate may use."""

    specs: tuple[MetricSpec, ...]
    """Specs under their aliases, for the parser."""
    real: Mapping[str, str]
    """Alias → real name."""

    @classmethod
    def of(cls, profile: FeatureProfile) -> Aliases:
        """Aliases in the order of the profile's metrics."""
        specs, real = [], {}
        for number, metric in enumerate(profile.metrics, 1):
            alias = f"m{number}"
            specs.append(replace(metric.spec, name=alias))
            real[alias] = metric.spec.name
        return cls(tuple(specs), real)

    def reveal(self, predicate: Predicate) -> Predicate:
        """The same predicate over the real names."""
        return _renamed(predicate, self.real)

    def hide(self, predicate: Predicate) -> Predicate:
        """The same predicate over the aliases."""
        return _renamed(predicate, {name: alias for alias, name in self.real.items()})


def _renamed(predicate: Predicate, names: Mapping[str, str]) -> Predicate:
    def term(old: Term) -> Term:
        return replace(old, name=names[old.name])

    match predicate:
        case Not(operand):
            return Not(_renamed(operand, names))
        case And(operands):
            return And(tuple(_renamed(operand, names) for operand in operands))
        case Or(operands):
            return Or(tuple(_renamed(operand, names) for operand in operands))
        case Comparison(left, _, other):
            right = other if isinstance(other, Quantity) else term(other)
            return replace(predicate, term=term(left), other=right)
        case Between(left) | Near(left):
            return replace(predicate, term=term(left))


def claim_data(profile: FeatureProfile, aliases: Aliases) -> dict[str, Any]:
    """What the claim prompt says of a feature, as JSON; numbers have four digits."""
    rule = profile.rule.predicate
    metrics = []
    for alias, metric in zip(aliases.specs, profile.metrics, strict=True):
        metrics.append(
            {
                "metric": alias.name,
                "name": as_data(metric.spec.name),
                "unit": as_data(metric.spec.unit, 16),
                "meaning": as_data(metric.spec.description, 120),
                "clock": metric.spec.role is Role.CLOCK,
                "mean_when_on": _number(metric.mean_on),
                "mean_when_off": _number(metric.mean_off),
                "auroc": _number(metric.auroc),
                "range_5_95": [_number(metric.low), _number(metric.high)],
            }
        )
    columns = {spec.name: index for index, spec in enumerate(profile.specs)}
    shown = [columns[real] for real in aliases.real.values()]
    data: dict[str, Any] = {
        "environment": as_data(profile.environment),
        "actions": [as_data(action) for action in profile.actions],
        "on_in_share_of_steps": _number(profile.density),
        "metrics": metrics,
        "steps": [
            {
                "kind": "strongest" if exemplar.kind == "top" else "off",
                "activation": _number(exemplar.activation),
                "metrics": [_number(exemplar.metrics[index]) for index in shown],
            }
            for exemplar in profile.exemplars
        ],
        "best_rule_found_by_code": None if rule is None else to_text(aliases.hide(rule)),
    }
    if profile.previous:
        data["your_last_claim_failed_on_later_episodes"] = True
    return data


def delimited(prompt: Prompt, data: dict[str, Any]) -> str:
    """The prompt's user part around the data, with the data's hash as nonce."""
    text = json.dumps(data, ensure_ascii=True, separators=(", ", ": "))
    nonce = hashlib.sha256(text.encode()).hexdigest()[:16]
    return prompt.fill(nonce=nonce, data=text)


def _number(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.{_DIGITS}g}")
