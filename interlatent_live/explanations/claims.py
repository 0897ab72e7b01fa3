"""A claim: what is said of a feature, in words and as a predicate, with all that speaks for it.

Claims are values. A new score, verdict or text makes a new claim, and the old one stays in the
history; so what was shown when can be told later, and nothing is edited in place.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from interlatent_live.explanations.predicates import to_text
from interlatent_live.explanations.verification import Verdict

if TYPE_CHECKING:
    from collections.abc import Mapping

    from interlatent_live.explanations.predicates import Predicate
    from interlatent_live.explanations.scores import Interval, Scores
    from interlatent_live.stream import FeatureAddress


class Support(StrEnum):
    """What a clause of a description rests on."""

    PREDICATE = "predicate"
    EFFECT = "effect"
    NOTHING = "unverified wording"


@dataclass(frozen=True, slots=True)
class Clause:
    """One statement of a description, bound to what would show it wrong."""

    text: str
    support: Support
    predicate: Predicate | None = None
    """The sub-predicate, for support by predicate."""


@dataclass(frozen=True, slots=True)
class ExpectedEffect:
    """What the feature is expected to do to the action, one step ahead."""

    action: str
    """Name of a discrete action, or of a component of a continuous one."""
    sign: int
    """+1: the feature makes it likelier or larger; −1: the opposite."""


@dataclass(frozen=True, slots=True)
class MeasuredEffect:
    """What a feature adds to one action's value one step ahead, by shadow interventions."""

    action: str
    effect: Interval
    """Value with the feature minus value without it, clustered by episode."""
    percentile: Mapping[str, Interval]
    """Kind of control → percentile (0–100) of the effect's size among controls of equal norm."""
    controls: int
    """Of each kind."""
    steps: int
    episodes: int
    stands_out: bool
    """Above the 95th percentile of every kind but the constant bias."""


@dataclass(frozen=True, slots=True)
class ClaimEvent:
    """One entry of a claim's history."""

    at_ns: int
    version: int
    verdict: Verdict
    reason: str
    balanced_accuracy: float | None
    predicate: str
    writer: str


@dataclass(frozen=True, slots=True)
class Claim:
    """One version of what is said of a feature, with its scores on later episodes.

    ``predicate`` is None where the writer abstained.
    """

    address: FeatureAddress
    label: str
    description: str
    clauses: tuple[Clause, ...]
    predicate: Predicate | None
    writer: str
    prompt_hash: str
    version: int
    created_ns: int
    """Only episodes begun later count as held out."""
    rewrites: int = 0
    """Versions before this one that had been scored; n of them leave α / 2ⁿ to this one."""
    expected_effect: ExpectedEffect | None = None
    confidence: float | None = None
    """What the writer says of itself; shown, never used."""
    density: float | None = None
    scores: Scores | None = None
    p_adjusted: float | None = None
    null_draws: int = 0
    best_rule: str | None = None
    """The best rule of the claim's size or smaller, canonical text."""
    best_rule_balanced_accuracy: float | None = None
    clock_balanced_accuracy: float | None = None
    """The best rule on clock metrics alone: a confounder to look at."""
    effect: Interval | None = None
    """Measured on the action that is expected to change, where one is."""
    effects: tuple[MeasuredEffect, ...] = ()
    verdict: Verdict = Verdict.PENDING
    reason: str = "not scored yet"
    history: tuple[ClaimEvent, ...] = field(default=(), repr=False)

    @property
    def loses_to_its_rule(self) -> bool:
        """The plain rule of the same size does better by more than .01 balanced accuracy."""
        ours = None if self.scores is None else self.scores.balanced_accuracy.value
        theirs = self.best_rule_balanced_accuracy
        return ours is not None and theirs is not None and theirs > ours + 0.01

    def judged(self, verdict: Verdict, reason: str, at_ns: int) -> Claim:
        """With a verdict; a *changed* verdict is added to the history."""
        changed = replace(self, verdict=verdict, reason=reason)
        known = self.history and self.history[-1].version == self.version
        if known and verdict is self.verdict:
            return changed
        event = ClaimEvent(
            at_ns,
            self.version,
            verdict,
            reason,
            None if self.scores is None else self.scores.balanced_accuracy.value,
            "" if self.predicate is None else to_text(self.predicate),
            self.writer,
        )
        return replace(changed, history=(*self.history, event)[-100:])


def claim_json(claim: Claim) -> dict[str, Any]:
    """The claim as the feeds and the demo's report show it; undefined is null with a reason."""
    scores = claim.scores
    accuracy = None if scores is None else scores.balanced_accuracy
    precision = None if scores is None else scores.precision
    return {
        "label": claim.label,
        "description": claim.description,
        "predicate": None if claim.predicate is None else to_text(claim.predicate),
        "verdict": str(claim.verdict),
        "reason": claim.reason,
        "judged_ns": claim.history[-1].at_ns if claim.history else claim.created_ns,
        "balanced_accuracy": None if accuracy is None else accuracy.value,
        "balanced_accuracy_lo": None if accuracy is None else accuracy.low,
        "balanced_accuracy_hi": None if accuracy is None else accuracy.high,
        "precision": None if precision is None else precision.value,
        "recall": None if scores is None else scores.recall,
        "lift": None if scores is None else scores.lift,
        "auc": None if scores is None else scores.auc,
        "p_adjusted": claim.p_adjusted,
        "null_draws": claim.null_draws,
        "bouts": 0 if scores is None else scores.bouts,
        "episodes_heldout": 0 if scores is None else scores.episodes,
        "undefined_steps": 0 if scores is None else scores.undefined,
        "best_rule": claim.best_rule,
        "best_rule_balanced_accuracy": claim.best_rule_balanced_accuracy,
        "loses_to_its_rule": claim.loses_to_its_rule,
        "clock_balanced_accuracy": claim.clock_balanced_accuracy,
        "expected_effect": (
            None
            if claim.expected_effect is None
            else {"action": claim.expected_effect.action, "sign": claim.expected_effect.sign}
        ),
        "effects": [
            {
                "action": one.action,
                **_interval_json(one.effect),
                "percentiles": {k: _interval_json(v) for k, v in one.percentile.items()},
                "controls": one.controls,
                "steps": one.steps,
                "episodes": one.episodes,
                "stands_out": one.stands_out,
            }
            for one in claim.effects
        ],
        "effect_agrees": effect_agrees(claim),
        "clauses": [{"text": c.text, "support": str(c.support)} for c in claim.clauses],
        "writer": claim.writer,
        "prompt_hash": claim.prompt_hash,
        "version": claim.version,
        "rewrites": claim.rewrites,
        "created_ns": claim.created_ns,
    }


def effect_agrees(claim: Claim) -> bool | None:
    """Whether the measured effect has the expected sign; None where nothing says so or against."""
    expected, effect = claim.expected_effect, claim.effect
    if expected is None or effect is None or effect.low is None or effect.high is None:
        return None
    if effect.low > 0 or effect.high < 0:
        return (effect.low > 0) == (expected.sign > 0)
    return None


def _interval_json(interval: Interval) -> dict[str, float | None]:
    return {"value": interval.value, "lo": interval.low, "hi": interval.high}


def claim_counts(claims: tuple[Claim, ...], live: int, eligible: set[str]) -> dict[str, Any]:
    """The totals of the demo's report: how many of each verdict, and the verified share.

    ``eligible`` are the addresses (as text) of eligible features; the share is of those.
    """
    counts: dict[str, Any] = {"live": live, "eligible": len(eligible)}
    for verdict in Verdict:
        counts[str(verdict)] = sum(claim.verdict is verdict for claim in claims)
    verified = sum(
        claim.verdict is Verdict.VERIFIED and str(claim.address) in eligible for claim in claims
    )
    counts["verified_share"] = verified / len(eligible) if eligible else None
    return counts
