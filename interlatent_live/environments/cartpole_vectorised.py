"""CartPole-v1 for many copies at once, bit for bit what Gymnasium's single environment computes.

Experiments that need tens of millions of steps cannot call an environment per step. The equations
below are Gymnasium's (``cartpole.py``, explicit Euler) in the same order of operations and in
float64, so that a trajectory agrees to the last bit; a test holds it to that. Gymnasium has a
vectorised CartPole of its own, which keeps its state in another precision.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

GRAVITY: Final = 9.8
POLE_MASS: Final = 0.1
TOTAL_MASS: Final = 0.1 + 1.0
HALF_LENGTH: Final = 0.5
POLE_MASS_LENGTH: Final = POLE_MASS * HALF_LENGTH
FORCE: Final = 10.0
TAU: Final = 0.02
ANGLE_LIMIT: Final = 12 * 2 * math.pi / 360
POSITION_LIMIT: Final = 2.4
TIME_LIMIT: Final = 500


def start_states(seeds: Iterable[int]) -> NDArray[np.float64]:
    """States [n, 4] after ``env.reset(seed=seed)``, by Gymnasium's own recipe for its generator."""
    rows = [
        np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed))).uniform(
            low=-0.05, high=0.05, size=(4,)
        )
        for seed in seeds
    ]
    return np.array(rows, np.float64).reshape(-1, 4)


def step(
    state: NDArray[np.float64], action: NDArray[np.integer] | NDArray[np.bool_]
) -> NDArray[np.float64]:
    """The next states [n, 4] of states [n, 4] (x, ẋ, θ, θ̇) under actions [n] (1 pushes right)."""
    x, x_dot, theta, theta_dot = state.T
    force = np.where(action, FORCE, -FORCE)
    costheta = np.cos(theta)
    sintheta = np.sin(theta)
    temp = (force + POLE_MASS_LENGTH * np.square(theta_dot) * sintheta) / TOTAL_MASS
    thetaacc = (GRAVITY * sintheta - costheta * temp) / (
        HALF_LENGTH * (4.0 / 3.0 - POLE_MASS * np.square(costheta) / TOTAL_MASS)
    )
    xacc = temp - POLE_MASS_LENGTH * thetaacc * costheta / TOTAL_MASS
    following = np.empty_like(state)
    following[:, 0] = x + TAU * x_dot
    following[:, 1] = x_dot + TAU * xacc
    following[:, 2] = theta + TAU * theta_dot
    following[:, 3] = theta_dot + TAU * thetaacc
    return following


def terminated(state: NDArray[np.float64]) -> NDArray[np.bool_]:
    """[n] whether the cart left the rail or the pole fell."""
    x, theta = state[:, 0], state[:, 2]
    return (
        (x < -POSITION_LIMIT)
        | (x > POSITION_LIMIT)
        | (theta < -ANGLE_LIMIT)
        | (theta > ANGLE_LIMIT)
    )


def observation(state: NDArray[np.float64]) -> NDArray[np.float32]:
    """What the policy is given: the states [n, 4] as float32."""
    return state.astype(np.float32)
