"""The gate: is this transcoder good enough to explain this policy with, and why (not).

A bare number invites the wrong comparison, so each check states its bound, what was found and what
failing it means. The bounds are the definitions' where they give one, and otherwise the point at
which the figure would contradict the sentence that the check stands for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

MIN_AGREEMENT = 0.9
MAX_REGRET = 0.25
MAX_RMSE = 0.25
MAX_MEMORISED = 0.05
MIN_LIVE = 16


@dataclass(frozen=True, slots=True)
class Check:
    """One condition of the gate."""

    name: str
    passed: bool
    sentence: str


@dataclass(frozen=True, slots=True)
class Gate:
    """All conditions; the gate passes when each does."""

    passed: bool
    checks: tuple[Check, ...]

    @property
    def verdict(self) -> str:
        """One sentence."""
        failed = [check.sentence for check in self.checks if not check.passed]
        if not failed:
            return "Pass: " + "; ".join(check.sentence for check in self.checks) + "."
        return "Fail: " + "; ".join(failed) + "."


def judge(median: Mapping[str, Any], *, k: int | None, n_features: int) -> Gate:
    """Judge the medians over seeds of an evaluation group.

    Args:
        median: ``fvu``, ``fvu_affine``, ``fvu_beyond_affine``, ``l0``, ``live``,
            ``memorised_share``; where measured also ``agreement``, ``kl``, ``regret``, ``rmse``,
            ``equivalent`` with ``difference``, ``lo``, ``hi``, ``margin``, and
            ``stability`` with ``stability_random``.
        k: of the configuration.
        n_features: F.
    """
    checks = [_affine(median), _sparsity(median, k, n_features), _alive(median, n_features)]
    checks.append(_memorised(median))
    if median.get("equivalent") is not None:
        checks.append(_behaviour(median))
    action = _single_actions(median)
    if action is not None:
        checks.append(action)
    if median.get("stability") is not None:
        checks.append(_stability(median))
    return Gate(all(check.passed for check in checks), tuple(checks))


def _affine(median: Mapping[str, Any]) -> Check:
    ratio = median["fvu_beyond_affine"]
    passed = ratio < 1
    found = f"FVU {median['fvu']:.4f} against {median['fvu_affine']:.4f} of an affine map"
    says = "explains more than a straight line" if passed else "explains less than a straight line"
    return Check("beyond affine", passed, f"{says} ({found})")


def _sparsity(median: Mapping[str, Any], k: int | None, n_features: int) -> Check:
    l0, bound = median["l0"], 1.1 * k if k is not None else n_features / 4
    passed = l0 <= bound
    word = "sparse" if passed else "not as sparse as promised"
    return Check("sparsity", passed, f"{word} (L0 {l0:.1f}, bound {bound:.1f})")


def _alive(median: Mapping[str, Any], n_features: int) -> Check:
    live = median["live"]
    bound = min(MIN_LIVE, n_features // 2)
    passed = live >= bound
    word = "has" if passed else "has only"
    return Check("live features", passed, f"{word} {live:.0f} live features of {n_features}")


def _memorised(median: Mapping[str, Any]) -> Check:
    share = median["memorised_share"]
    passed = share <= MAX_MEMORISED
    word = "its features are general" if passed else "too many features are memorised"
    return Check(
        "memorised",
        passed,
        f"{word} ({share:.1%} fire significantly less than half as often on held-out episodes)",
    )


def _behaviour(median: Mapping[str, Any]) -> Check:
    passed = bool(median["equivalent"])
    word = "behaves as the original" if passed else "is not shown to behave as the original"
    return Check(
        "behaviour",
        passed,
        f"spliced in, the policy {word} (return {median['difference']:+.1f}, 90 % interval "
        f"{median['lo']:+.1f} to {median['hi']:+.1f}, margin ±{median['margin']:.1f})",
    )


def _single_actions(median: Mapping[str, Any]) -> Check | None:
    if median.get("rmse") is not None:
        value = median["rmse"]
        return Check(
            "single actions",
            value <= MAX_RMSE,
            f"actions differ by {value:.3f} standard deviations (bound {MAX_RMSE})",
        )
    if median.get("regret") is not None:
        value = median["regret"]
        return Check(
            "single actions",
            value <= MAX_REGRET,
            f"its choices cost {value:.3f} of the mean gap between the two best values (bound "
            f"{MAX_REGRET}; agreement {median['agreement']:.2f} says little where values tie)",
        )
    if median.get("agreement") is not None:
        value = median["agreement"]
        return Check(
            "single actions",
            value >= MIN_AGREEMENT,
            f"{value:.1%} of single actions agree (bound {MIN_AGREEMENT:.0%})",
        )
    return None


def _stability(median: Mapping[str, Any]) -> Check:
    own, control = median["stability"], median["stability_random"]
    passed = own > control
    word = "seeds agree more than" if passed else "seeds agree no more than"
    return Check(
        "stability",
        passed,
        f"{word} random dictionaries do (matched correlation {own:.2f} against {control:.2f})",
    )
