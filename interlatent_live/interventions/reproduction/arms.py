"""Arms of the experiment: what each adds where, and while which condition.

An arm is a constant delta at one hidden layer's output, or a constant added to the difference of
the two logits, alone or while a condition holds. Steering a feature by α on every step is the delta
α · W_dec[j] of :func:`interlatent_live.interventions.deltas.delta`, and is made by it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from interlatent_live.environments.families.cartpole import CARTPOLE
from interlatent_live.interventions.deltas import delta
from interlatent_live.interventions.values import Intervention, Kind

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from interlatent_live.transcoders.transcoder import Transcoder


@dataclass(frozen=True, slots=True)
class MetricCondition:
    """A metric beyond a threshold; two-sided ones push the other way on the other side."""

    metric: str
    threshold: float
    above: bool = True
    two_sided: bool = False

    def __str__(self) -> str:
        if self.two_sided:
            return f"|{self.metric}| > {self.threshold:g}, by its sign"
        return f"{self.metric} {'>' if self.above else '<'} {self.threshold:g}"

    def sign(self, metrics: NDArray[np.float64]) -> NDArray[np.float32]:
        """[n] 1 where it holds, −1 on the other side of a two-sided one, else 0."""
        value = metrics[:, METRICS.index(self.metric)]
        if self.two_sided:
            return (np.sign(value) * (np.abs(value) > self.threshold)).astype(np.float32)
        holds = value > self.threshold if self.above else value < self.threshold
        return holds.astype(np.float32)


@dataclass(frozen=True, slots=True)
class FeatureCondition:
    """A feature of the first hidden layer's widest transcoder above a threshold."""

    feature: int
    threshold: float

    def __str__(self) -> str:
        return f"hidden.0 feature {self.feature} > {self.threshold:.2g}"


Condition = MetricCondition | FeatureCondition

METRICS = tuple(spec.name for spec in CARTPOLE.specs)


@dataclass(frozen=True, slots=True, eq=False)
class Arm:
    """One thing to try.

    ``layer`` 0 or 1 says where ``delta`` [d] is added; None means the bias alone.
    """

    name: str
    layer: int | None = None
    delta: NDArray[np.float32] | None = None
    bias: float = 0.0
    condition: Condition | None = None
    facts: dict[str, float | int | str] = field(default_factory=dict)

    @property
    def norm(self) -> float:
        """‖delta‖₂."""
        return 0.0 if self.delta is None else float(np.linalg.norm(self.delta))


UNSTEERED = Arm("unsteered")


def steering_arms(
    layer: int,
    transcoders: Sequence[Transcoder],
    alphas: Iterable[float],
    condition: Condition | None = None,
) -> list[Arm]:
    """Every feature of these transcoders × every α."""
    arms = []
    for transcoder in transcoders:
        width = transcoder.config.n_features
        for feature in range(width):
            for alpha in alphas:
                item = Intervention(feature, Kind.STEER, float(alpha))
                change = delta((item,), transcoder.W_dec, None, n=1)[0].numpy()
                name = f"hidden.{layer} k={width} feature {feature} α={alpha:+g}"
                arms.append(
                    Arm(
                        name if condition is None else f"{name} while {condition}",
                        layer,
                        change.astype(np.float32),
                        condition=condition,
                        facts={"width": width, "feature": feature, "alpha": float(alpha)},
                    )
                )
    return arms


def random_arms(steered: Sequence[Arm], rng: np.random.Generator) -> list[Arm]:
    """As many arms as were steered, of the same norms and doses, in random directions.

    Each feature's decoder direction is replaced by one isotropic direction, which all its doses
    share, so that the search has exactly as many tries.
    """
    directions: dict[tuple[int | None, object, object], NDArray[np.float64]] = {}
    arms = []
    for arm in steered:
        if arm.delta is None:
            continue
        key = (arm.layer, arm.facts["width"], arm.facts["feature"])
        if key not in directions:
            directions[key] = unit_vector(len(arm.delta), rng)
        signed = np.copysign(arm.norm, float(arm.facts["alpha"])) * directions[key]
        name = f"random direction {len(directions)} at hidden.{arm.layer}, norm {arm.norm:.2f}"
        arms.append(Arm(name, arm.layer, signed.astype(np.float32), facts=dict(arm.facts)))
    return arms


def control_arms(winner: Arm, count: int, rng: np.random.Generator) -> list[Arm]:
    """Isotropic directions of the winner's norm at its layer, for its percentile."""
    if winner.delta is None:
        return []
    return [
        Arm(
            f"control {index}",
            winner.layer,
            (winner.norm * unit_vector(len(winner.delta), rng)).astype(np.float32),
            condition=winner.condition,
        )
        for index in range(count)
    ]


def bias_arms(biases: Iterable[float], condition: Condition | None = None) -> list[Arm]:
    """A constant added to (logit of right − logit of left)."""
    suffix = "" if condition is None else f" while {condition}"
    return [
        Arm(f"logit bias {bias:+g}{suffix}", bias=float(bias), condition=condition)
        for bias in biases
    ]


def conditions(feature_thresholds: Sequence[float]) -> list[Condition]:
    """The conditions that were thought of before any was tried.

    Positions and positions ahead, one-sided and two-sided: "drifting off the track"; and each
    feature of the first hidden layer's widest transcoder above its own median.
    """
    found: list[Condition] = []
    for metric, thresholds in (
        ("cart_position", (0.0, 0.5, 1.0)),
        ("cart_position_ahead", (0.5, 1.5)),
    ):
        for threshold in thresholds:
            found += [
                MetricCondition(metric, threshold),
                MetricCondition(metric, -threshold, above=False),
                MetricCondition(metric, threshold, two_sided=True),
            ]
    found += [
        FeatureCondition(index, threshold)
        for index, threshold in enumerate(feature_thresholds)
        if np.isfinite(threshold)
    ]
    return found


def unit_vector(d: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """An isotropic direction in d dimensions."""
    vector = rng.normal(size=d)
    return vector / np.linalg.norm(vector)
