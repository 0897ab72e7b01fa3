"""The writer that needs no language model: it states the best rule in English, and says so."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from interlatent_live.explanations.claims import Clause, Support
from interlatent_live.explanations.predicates import And, Or, leaf_count, to_english
from interlatent_live.explanations.writers.port import Draft

if TYPE_CHECKING:
    from interlatent_live.explanations.predicates import Predicate
    from interlatent_live.explanations.profile import FeatureProfile
    from interlatent_live.explanations.rules import Rule

BUILT_IN: Final = "built-in (no LLM)"
_LABEL_LENGTH: Final = 60


class BuiltInWriter:
    """States the rule; costs nothing, sends nothing, never fails."""

    @property
    def name(self) -> str:
        """``"built-in (no LLM)"``."""
        return BUILT_IN

    async def write(self, profile: FeatureProfile) -> Draft:
        """The rule in English, or an abstention."""
        return state_rule(profile.rule)

    async def aclose(self) -> None:
        """Nothing to close."""


def state_rule(rule: Rule, fallback_reason: str = "") -> Draft:
    """The best rule as a draft; abstains where there is none."""
    predicate = rule.predicate
    if predicate is None:
        return Draft(
            "no rule found",
            "No rule over the known metrics tells when this feature is on. "
            "(Stated by code; not a language model.)",
            (),
            None,
            BUILT_IN,
            "",
            fallback_reason=fallback_reason,
        )
    english = to_english(predicate)
    clauses = tuple(
        Clause(to_english(part), Support.PREDICATE, part) for part in clauses_of(predicate)
    )
    return Draft(
        label_of(predicate),
        f"On when {english}. (The best rule found, stated by code; not a language model.)",
        clauses,
        predicate,
        BUILT_IN,
        "",
        fallback_reason=fallback_reason,
    )


def clauses_of(predicate: Predicate) -> tuple[Predicate, ...]:
    """The parts that a description states one by one: operands of the outermost and / or."""
    return predicate.operands if isinstance(predicate, And | Or) else (predicate,)


def label_of(predicate: Predicate) -> str:
    """A short name: the English of a small rule, the first clause and a count of a larger one."""
    text = to_english(predicate).replace(" is ", " ")
    if len(text) <= _LABEL_LENGTH:
        return text
    parts = clauses_of(predicate)
    first = to_english(parts[0]).replace(" is ", " ")
    word = "or" if isinstance(predicate, Or) else "and"
    rest = leaf_count(predicate) - leaf_count(parts[0])
    short = f"{first} {word} {rest} more" if rest else first
    return short if len(short) <= _LABEL_LENGTH + 20 else short[: _LABEL_LENGTH + 19] + "…"
