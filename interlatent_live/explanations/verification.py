"""Verdicts: what held-out episodes let one say of a claim.

The rules are those of docs/explanations.md, word for word: eligibility before anything, five
conditions together for *verified*, and each other verdict with its reason. A version of a claim is
verified on episodes begun after its text was fixed, and the n-th version spends α / 2ⁿ, so that
rewriting until something passes is not a way to pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from interlatent_live.explanations.scores import Interval, Scores

ALPHA: Final = 0.05


class Verdict(StrEnum):
    """What may be said of a claim now."""

    VERIFIED = "verified"
    WEAK = "weak"
    CONTRADICTED = "contradicted"
    ABSTAINED = "abstained"
    PENDING = "pending"
    STALE = "stale"


@dataclass(frozen=True, slots=True)
class Bars:
    """The numbers of the rule; changing them changes what "verified" means."""

    balanced_accuracy: float = 0.85
    precision: float = 0.5
    lower_bound: float = 0.75
    contradicted_below: float = 0.6
    least_density: float = 0.005
    most_density: float = 0.5
    bouts: int = 20
    episodes: int = 6


@dataclass(frozen=True, slots=True)
class Judgement:
    """A verdict with its reason in words."""

    verdict: Verdict
    reason: str


def alpha_of(version: int, alpha: float = ALPHA) -> float:
    """What version 0, 1, 2 … may spend: α, α/2, α/4 …; after n rewrites α / 2ⁿ."""
    return alpha * 0.5**version


def eligibility(scores: Scores, bars: Bars | None = None) -> str:
    """Why the feature is not eligible; empty when it is."""
    bars = bars or Bars()
    density = scores.on_rows / scores.rows if scores.rows else 0.0
    if scores.rows == 0:
        return "no episode has begun since the claim was made"
    if density < bars.least_density:
        return f"on in {density:.2%} of the steps, under {bars.least_density:.1%}"
    if density > bars.most_density:
        return f"on in {density:.0%} of the steps, over {bars.most_density:.0%}"
    if scores.bouts < bars.bouts:
        return f"{scores.bouts} of the {bars.bouts} bouts needed"
    if scores.episodes_on < bars.episodes:
        return f"on in {scores.episodes_on} of the {bars.episodes} episodes needed"
    return ""


def judge(
    scores: Scores,
    p_adjusted: float | None,
    *,
    version: int = 0,
    effect_sign: int = 0,
    effect: Interval | None = None,
    stale: str = "",
    bars: Bars | None = None,
) -> Judgement:
    """The verdict of a claim with a predicate.

    Args:
        scores: on episodes begun after this version was fixed.
        p_adjusted: against the null, adjusted over features; None when not computed yet.
        version: number of rewrites before this text.
        effect_sign: the sign of the effect on the action that the claim expects, 0 for none.
        effect: the measured effect with its interval, where a shadow intervention ran.
        stale: why hash, reconstruction error or drift made the claim stale.
        bars: the rule's numbers.
    """
    bars = bars or Bars()
    if stale:
        return Judgement(Verdict.STALE, stale)
    accuracy = scores.balanced_accuracy
    missing = eligibility(scores, bars)
    if not missing and accuracy.low is None:
        missing = accuracy.reason
    if missing:
        return Judgement(Verdict.PENDING, missing)
    against = _contradiction(accuracy, effect_sign, effect, bars)
    if against:
        return Judgement(Verdict.CONTRADICTED, against)
    if p_adjusted is None:
        return Judgement(Verdict.PENDING, "the null is not computed yet")
    wrong = _shortcomings(scores, p_adjusted, alpha_of(version), bars)
    if wrong:
        return Judgement(Verdict.WEAK, wrong)
    return Judgement(
        Verdict.VERIFIED, f"balanced accuracy {accuracy.value or 0:.2f}, p {p_adjusted:.3f}"
    )


def _contradiction(
    accuracy: Interval, effect_sign: int, effect: Interval | None, bars: Bars
) -> str:
    if accuracy.high is not None and accuracy.high < bars.contradicted_below:
        return (
            f"balanced accuracy is below {bars.contradicted_below:g} "
            f"(95 % interval up to {accuracy.high:.3f})"
        )
    if _opposite(effect_sign, effect):
        return "the measured effect on the action has the opposite sign"
    return ""


def _shortcomings(scores: Scores, p: float, alpha: float, bars: Bars) -> str:
    accuracy, precision = scores.balanced_accuracy, scores.precision.value or 0.0
    if precision < bars.precision and (scores.recall or 0.0) >= bars.balanced_accuracy:
        return f"silent unless the predicate holds; precision {precision:.2f}"
    checks = (
        (
            (accuracy.value or 0.0) < bars.balanced_accuracy,
            f"balanced accuracy {accuracy.value:.2f}",
        ),
        ((accuracy.low or 0.0) < bars.lower_bound, f"its lower bound {accuracy.low:.2f}"),
        (precision < bars.precision, f"precision {precision:.2f}"),
        (p > alpha, f"p {p:.3f} over {alpha:.3g}"),
    )
    return ", ".join(text for failed, text in checks if failed)


def _opposite(sign: int, effect: Interval | None) -> bool:
    if sign == 0 or effect is None or effect.low is None or effect.high is None:
        return False
    return (sign > 0 and effect.high < 0) or (sign < 0 and effect.low > 0)
