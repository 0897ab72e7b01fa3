"""The direct effect of a feature on the action, judged against controls of equal size.

A shadow intervention gives, for each sampled step, the change of an action's value (its logit, or
its component) when the feature is taken out. Alone the number says little: any push of that size
moves the action. So it is placed among matched controls, which are pushes of equal norm in other
directions (isotropic, drawn from the activation covariance, other live features' decoders), the
same feature at moments when it is off, and a constant bias of the action. One step ahead this is a
*direct effect on the action*; what follows later only rollouts can tell. The constant bias is shown
for scale: it acts on the value itself, so one step ahead no feature of its norm can beat it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from interlatent_live.explanations.scores import Interval

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

LEAST_CONTROLS: Final = 100
CONSTANT_BIAS: Final = "constant bias"


@dataclass(frozen=True, slots=True, eq=False)
class EffectSamples:
    """Changes of one action value by one feature, at n sampled steps."""

    delta: NDArray[np.float64]
    """[n] value with the feature minus value without it."""
    cluster: NDArray[np.integer]
    """[n] episode of each step."""
    controls: Mapping[str, NDArray[np.float64]]
    """Kind → [C, n] the same steps under C controls of equal norm."""


@dataclass(frozen=True, slots=True)
class EffectReport:
    """An effect with its place among the controls."""

    effect: Interval
    """Mean change, clustered by episode."""
    percentile: Mapping[str, Interval]
    """Kind → percentile (0–100) of the effect's size among the controls', clustered."""
    controls: int
    """Fewest controls of a kind."""
    sign_agrees: bool | None
    """With the claim's expectation; None where it has none or the interval holds 0."""
    stands_out: bool
    """Above the 95th percentile of every kind but the constant bias, by the lower bound.

    With ≥ 100 controls a kind.
    """


def measure_effect(
    samples: EffectSamples, *, expected_sign: int = 0, seed: int = 0, draws: int = 500
) -> EffectReport:
    """Mean effect and its percentile among controls, by a bootstrap over episodes.

    Raises:
        ValueError: when there are no samples, or controls of another length.
    """
    count = len(samples.delta)
    if count == 0 or any(control.shape[1] != count for control in samples.controls.values()):
        raise ValueError("an effect needs samples, and controls at the same steps")
    clusters, which = np.unique(samples.cluster, return_inverse=True)
    sizes = np.bincount(which).astype(np.float64)
    random = np.random.default_rng(seed)
    weights = random.multinomial(
        len(clusters), np.full(len(clusters), 1 / len(clusters)), draws
    ).astype(np.float64)
    total = weights @ sizes

    def means(values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Bootstrap means [draws, …] of values [n] or [C, n]."""
        sums = np.stack([np.bincount(which, row, len(clusters)) for row in np.atleast_2d(values)])
        return (weights @ sums.T) / total[:, None]

    mean = float(samples.delta.mean())
    drawn = means(samples.delta)[:, 0]
    effect = _interval(mean, drawn, len(clusters))
    percentile = {}
    for kind, control in samples.controls.items():
        size = np.abs(control.mean(1))
        value = 100 * float((size < abs(mean)).mean())
        spread = 100 * (np.abs(means(control)) < np.abs(drawn)[:, None]).mean(1)
        percentile[kind] = _interval(value, spread, len(clusters))
    fewest = min((len(control) for control in samples.controls.values()), default=0)
    clear = effect.low is not None and effect.high is not None and effect.low * effect.high > 0
    agrees = None if expected_sign == 0 or not clear else bool(np.sign(mean) == expected_sign)
    stands_out = fewest >= LEAST_CONTROLS and all(
        interval.low is not None and interval.low >= 95
        for kind, interval in percentile.items()
        if kind != CONSTANT_BIAS
    )
    return EffectReport(effect, percentile, fewest, agrees, stands_out)


def _interval(value: float, drawn: NDArray[np.float64], clusters: int) -> Interval:
    if clusters < 2:
        return Interval(value, reason="one episode alone gives no interval")
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Interval(value, float(low), float(high), error=float(drawn.std(ddof=1)))
