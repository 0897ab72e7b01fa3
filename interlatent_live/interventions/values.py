"""What an intervention is: which feature, what is done to it, while which condition, how far.

Values only, without torch: they travel to the agent, into the audit and into results. What they do
to activations is in :mod:`interlatent_live.interventions.deltas`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from interlatent_live.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence


class Kind(StrEnum):
    """What is done to a feature's activation f."""

    STEER = "steer"
    """f + value."""
    CLAMP = "clamp"
    """value, whatever f was."""
    SCALE = "scale"
    """value · f."""
    ABLATE = "ablate"
    """0."""


@dataclass(frozen=True, slots=True)
class FeatureCondition:
    """Holds in rows in which a feature of the same transcoder is above ``threshold`` (or not)."""

    feature: int
    threshold: float = 0.0
    above: bool = True

    def __post_init__(self) -> None:
        if self.feature < 0 or not math.isfinite(self.threshold):
            raise UserError(
                f"a condition needs a feature ≥ 0 and a finite threshold, not {self.feature} and "
                f"{self.threshold}"
            )


@dataclass(frozen=True, slots=True)
class Intervention:
    """One change to one feature at a hook point's output.

    ``predicate`` is the text of a condition on metrics, which whoever has the metrics evaluates;
    ``condition`` is one on features. With both, both must hold.

    Raises:
        UserError: when the value is not finite, negative where that means nothing, or given for an
            ablation.
    """

    feature: int
    kind: Kind
    value: float = 0.0
    condition: FeatureCondition | None = None
    predicate: str | None = None

    def __post_init__(self) -> None:
        if self.feature < 0:
            raise UserError(f"feature {self.feature} does not exist; features count from 0")
        if not math.isfinite(self.value):
            raise UserError(f"{self.kind} needs a finite value, not {self.value}")
        if self.kind is Kind.ABLATE and self.value != 0.0:
            raise UserError("ablate takes no value; use clamp to hold a feature at one")
        if self.kind is Kind.CLAMP and self.value < 0.0:
            raise UserError(
                f"a feature's activation is never negative; clamp to ≥ 0, not {self.value}"
            )

    @property
    def needs_features(self) -> bool:
        """Whether the feature activations of the row must be known to apply it."""
        return self.kind is not Kind.STEER or self.condition is not None


@dataclass(frozen=True, slots=True)
class Plan:
    """All that is active at one hook point, and the bound on their sum.

    ``max_norm`` bounds ‖Δ‖₂ of the *sum* of all deltas in each row, in the units of y: two
    interventions that are each within bounds must not be out of them together.

    Raises:
        UserError: when two interventions both set the same feature, or the bound is not positive.
    """

    hook_point: str
    transcoder_hash: str
    interventions: tuple[Intervention, ...]
    max_norm: float

    def __post_init__(self) -> None:
        if not self.max_norm > 0.0:
            raise UserError(
                f"the bound on an intervention's norm must be positive, not {self.max_norm}"
            )
        clashing = _set_twice(self.interventions)
        if clashing is not None:
            raise UserError(
                f"two interventions set feature {clashing} of {self.hook_point}: end one first"
            )

    @property
    def needs_features(self) -> bool:
        """Whether any intervention needs the row's feature activations."""
        return any(item.needs_features for item in self.interventions)


def _set_twice(interventions: Sequence[Intervention]) -> int | None:
    """A feature that two unconditional or conditional settings compete for, if any."""
    seen: set[int] = set()
    for item in interventions:
        if item.kind is Kind.STEER:
            continue
        if item.feature in seen:
            return item.feature
        seen.add(item.feature)
    return None
