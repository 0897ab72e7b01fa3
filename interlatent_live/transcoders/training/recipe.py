"""The recipe: everything that decides how a transcoder is trained, apart from its architecture.

Defaults are what worked on small policies; each is a field so that a report can state it and a
second run can repeat it.
"""

from __future__ import annotations

import math
from enum import StrEnum
from typing import Final

import msgspec

from interlatent_live.errors import UserError

RATE: Final = 0.01
"""Peak learning rate, for normalised x and y.

Chosen on small policies: at F = 256 and at F = 1,024 it reaches several times lower errors than
2e-4 / √(F / 2¹⁴) of Gao et al. 2024, §A.3, and the best rate hardly moves with F."""


class Normalise(StrEnum):
    """How x is scaled before training; the scale is folded into the weights afterwards."""

    SCALE = "scale"
    """One factor for all dimensions, so that E‖x − x̄‖² = d_in."""
    ZSCORE = "zscore"
    """Each dimension to unit variance; helps ReLU layers, whose dimensions differ by orders."""


class Recipe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How to train.

    Args:
        steps: gradient steps.
        batch: rows per step and model.
        learning_rate: of Adam; ``None`` means 0.01.
        warmup: share of the steps over which the rate rises linearly from 0.
        decay: share of the steps, at the end, over which it falls linearly to 0.
        beta1: Adam's first decay.
        beta2: Adam's second decay.
        aux_weight: weight of the auxiliary loss that lets dead features explain the residual (after
            Gao et al. 2024, §A.2, but in units of the loss itself); 0 turns it off.
        aux_k: dead features used per row; ``None`` means d_out / 2.
        dead_window: steps without firing after which a feature counts as dead.
        head_weight: λ of the head-weighted loss; 0 turns it off.
        normalise: how x is scaled.
        l0_weight: JumpReLU: weight of the penalty (L0 / k − 1)².
        bandwidth: JumpReLU: width of the kernel of its straight-through gradient, in units of
            normalised pre-activations.
        l1_warmup: ReLU: share of the steps over which the L1 weight rises.
        bf16: run the products in bfloat16 (CUDA only); thresholds and Adam's state stay float32.

    Raises:
        UserError: when a value is impossible.
    """

    steps: int = 4000
    batch: int = 512
    learning_rate: float | None = None
    warmup: float = 0.02
    decay: float = 0.5
    beta1: float = 0.9
    beta2: float = 0.999
    aux_weight: float = 1.0
    aux_k: int | None = None
    dead_window: int = 200
    head_weight: float = 0.0
    normalise: Normalise = Normalise.ZSCORE
    l0_weight: float = 0.03
    bandwidth: float = 0.1
    l1_warmup: float = 0.05
    bf16: bool = False

    def __post_init__(self) -> None:
        for name, value in (
            ("steps", self.steps),
            ("batch", self.batch),
            ("dead_window", self.dead_window),
        ):
            if value < 1:
                raise UserError(f"{name} is {value}; it must be at least 1")
        for name, share in (
            ("warmup", self.warmup),
            ("decay", self.decay),
            ("l1_warmup", self.l1_warmup),
        ):
            if not 0 <= share <= 1:
                raise UserError(f"{name} is {share}; it is a share of the steps, from 0 to 1")
        for name, weight in (
            ("aux_weight", self.aux_weight),
            ("head_weight", self.head_weight),
            ("l0_weight", self.l0_weight),
        ):
            if not 0 <= weight < math.inf:
                raise UserError(f"{name} is {weight}; it must be finite and at least 0")
        if self.learning_rate is not None and not 0 < self.learning_rate < math.inf:
            raise UserError(f"learning_rate is {self.learning_rate}; it must be positive")
        if not 0 < self.bandwidth < math.inf:
            raise UserError(f"bandwidth is {self.bandwidth}; it must be positive")

    def rate(self) -> float:
        """Peak learning rate."""
        return RATE if self.learning_rate is None else self.learning_rate

    def schedule(self, step: int) -> float:
        """Factor on the peak rate at 0-based ``step``: up, flat, down."""
        rise = self.warmup * self.steps
        fall = self.decay * self.steps
        factor = 1.0
        if rise > 0:
            factor = min(factor, (step + 1) / rise)
        if fall > 0:
            factor = min(factor, (self.steps - step) / fall)
        return factor
