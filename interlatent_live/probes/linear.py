"""The probe itself: a logistic regression, standardisation folded in, calibrated.

Fitted by iteratively reweighted least squares (Newton's method) with an L2 penalty on standardised
inputs; the step is exact, so there is no learning rate and no seed. Classes are not reweighted: the
probe's number is a probability. Platt scaling on episodes of their own (Platt 1999) corrects what
the penalty and a shift between episodes leave.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from scipy.special import expit

from interlatent_live.errors import UserError

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_ITERATIONS: Final = 100


@dataclass(frozen=True, slots=True, eq=False)
class Logistic:
    """p = σ(x · weight + bias)."""

    weight: NDArray[np.float64]
    """[d], in the units of x."""
    bias: float

    def margin(self, x: NDArray[np.floating]) -> NDArray[np.float64]:
        """X · weight + bias, [n] for x [n, d]: the log odds."""
        return np.asarray(x, np.float64) @ self.weight + self.bias

    def probability(self, x: NDArray[np.floating]) -> NDArray[np.float64]:
        """[n] for x [n, d]."""
        return np.asarray(expit(self.margin(x)), np.float64)


def fit_logistic(
    x: NDArray[np.floating], positive: NDArray[np.bool_], *, l2: float = 1.0
) -> Logistic:
    """Fit on rows x [n, d]; ``l2`` is the penalty ½ l2 ‖w‖² on standardised inputs.

    Raises:
        UserError: when all rows have the same label.
    """
    if positive.all() or not positive.any():
        raise UserError(
            f"all {len(positive)} rows have the same label, so there is nothing to tell apart: "
            "collect more varied episodes (disturbed starts) or choose another target"
        )
    array = np.asarray(x, np.float64)
    mean, scale = array.mean(0), array.std(0)
    scale = np.where(scale > 1e-9 * max(float(scale.max()), 1e-300), scale, np.inf)
    design = np.concatenate([(array - mean) / scale, np.ones((len(array), 1))], axis=1)
    penalty = np.full(design.shape[1], l2)
    penalty[-1] = 0.0
    coefficients = _newton(design, positive.astype(np.float64), penalty)
    weight = coefficients[:-1] / scale
    return Logistic(weight, float(coefficients[-1] - mean @ weight))


def calibrate(probe: Logistic, x: NDArray[np.floating], positive: NDArray[np.bool_]) -> Logistic:
    """Platt scaling on rows of other episodes: margin → a · margin + b, a > 0.

    Labels are softened to (n₊ + 1)/(n₊ + 2) and 1/(n₋ + 2), as Platt does, so that separable rows
    do not end in certainty. A fit that would turn the probe around leaves it as it was.
    """
    count = int(positive.sum())
    if count in (0, len(positive)):
        return probe
    soft = np.where(positive, (count + 1) / (count + 2), 1 / (len(positive) - count + 2))
    margin = probe.margin(x)
    design = np.stack([margin, np.ones(len(margin))], axis=1)
    slope, shift = _newton(design, soft, np.array([1e-6, 0.0]))
    if slope <= 0:
        return probe
    return Logistic(probe.weight * slope, float(probe.bias * slope + shift))


def _newton(
    design: NDArray[np.float64], soft: NDArray[np.float64], penalty: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Minimise Σ log-loss + ½ Σ penalty · c² by damped Newton steps."""
    coefficients = np.zeros(design.shape[1])
    share = float(np.clip(soft.mean(), 1e-6, 1 - 1e-6))
    coefficients[-1] = np.log(share / (1 - share))
    loss = _loss(design, soft, penalty, coefficients)
    for _ in range(MAX_ITERATIONS):
        p = expit(design @ coefficients)
        gradient = design.T @ (p - soft) + penalty * coefficients
        curvature = (design * (p * (1 - p))[:, None]).T @ design + np.diag(penalty + 1e-9)
        step = np.linalg.solve(curvature, gradient)
        size = 1.0
        while size > 1e-6:
            trial = coefficients - size * step
            trial_loss = _loss(design, soft, penalty, trial)
            if trial_loss <= loss:
                break
            size /= 2
        else:
            break
        improved = loss - trial_loss
        coefficients, loss = trial, trial_loss
        if improved <= 1e-10 * (1 + abs(loss)):
            break
    return coefficients


def _loss(
    design: NDArray[np.float64],
    soft: NDArray[np.float64],
    penalty: NDArray[np.float64],
    coefficients: NDArray[np.float64],
) -> float:
    margin = design @ coefficients
    return float(
        (np.logaddexp(0, margin) - soft * margin).sum()
        + 0.5 * (penalty * coefficients * coefficients).sum()
    )
