"""CartPole-v1: a cart on a rail with a pole hinged to it.

Derived metrics follow from Gymnasium's constants: pole of full length 1 m (half-length l = 0.5 m),
rail ±2.4 m, fall at ±12°. The *divergent* angle is the unstable mode of the linearised pole,
θ + θ̇/ω₀ with ω₀² = g / (l (4/3 − m/(M + m))) (Barto, Sutton & Anderson 1983, as in Gymnasium's
equations): left alone, the pole falls to the side of its sign. The *regulator force* is what the
textbook's linear-quadratic regulator would push with: u = K s for the linearised cart-pole with
Q = I and R = 0.1 (K solves the continuous algebraic Riccati equation; a test solves it again). It
depends on the state alone, not on any policy, and weighs position, velocity, lean and rate as
balancing needs them together.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import numpy as np

from interlatent_live.environments.families.family import Family
from interlatent_live.stream import MetricSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray

GRAVITY: Final = 9.8
POLE_LENGTH: Final = 1.0
RAIL: Final = 2.4
FALL_ANGLE: Final = 12 * 2 * math.pi / 360
STEP_SECONDS: Final = 0.02
DIVERGENCE_RATE: Final = math.sqrt(GRAVITY / (POLE_LENGTH / 2 * (4 / 3 - 0.1 / 1.1)))
"""ω₀, about 4 per second."""
REGULATOR_GAINS: Final = (3.16228, 5.82235, 47.81308, 12.65128)
"""N per m, m/s, rad, rad/s; positive pushes right."""


def _measure(obs: NDArray[np.float64]) -> NDArray[np.float64]:
    x, v, angle, rate = obs.T
    return np.stack(
        [
            x,
            v,
            angle,
            rate,
            x + POLE_LENGTH * np.sin(angle),
            v + POLE_LENGTH * np.cos(angle) * rate,
            angle + rate / DIVERGENCE_RATE,
            x + v,
            obs @ np.array(REGULATOR_GAINS),
            RAIL - np.abs(x),
            FALL_ANGLE - np.abs(angle),
        ],
        axis=1,
    )


CARTPOLE: Final = Family(
    environment="CartPole-v1",
    obs_dim=4,
    specs=(
        MetricSpec("cart_position", "m", description="from the middle of the rail, right is +"),
        MetricSpec("cart_velocity", "m/s", description="right is +"),
        MetricSpec("pole_angle", "rad", description="from upright, right is +"),
        MetricSpec("pole_angular_velocity", "rad/s", description="right is +"),
        MetricSpec("tip_position", "m", description="of the pole's tip, right is +"),
        MetricSpec("tip_velocity", "m/s", description="sideways, of the pole's tip"),
        MetricSpec("pole_divergence", "rad", description="where the pole falls if left alone"),
        MetricSpec("cart_position_ahead", "m", description="of the cart in 1 s at this velocity"),
        MetricSpec("regulator_force", "N", description="an optimal linear controller's push"),
        MetricSpec("edge_distance", "m", description="from the nearer end of the rail"),
        MetricSpec("fall_margin", "rad", description="angle left before the pole counts as fallen"),
    ),
    measure=_measure,
    step_seconds=STEP_SECONDS,
    actions=("push left", "push right"),
)
