"""LunarLander-v3: the observations in metres, seconds and radians again.

Gymnasium scales them (``lunar_lander.py``: half viewport 10 m × 6.67 m, 50 Hz): x = 10 s₀,
altitude = 6.67 s₁, vₓ = 5 s₂, v_y = 7.5 s₃, angular velocity = 2.5 s₅. The origin is the pad.

*Turn demand* and *lift demand* are the two errors that Gymnasium's own hand-written controller
(``heuristic`` in the same file) acts on: how far the tilt is from the one that steers to the pad,
and how far the sink rate is from a safe one. They depend on the state alone, not on any policy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from interlatent_live.environments.families.family import Family
from interlatent_live.stream import MetricSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray

STEP_SECONDS: Final = 1 / 50
HALF_WIDTH: Final = 600 / 30 / 2
HALF_HEIGHT: Final = 400 / 30 / 2
_SCALE: Final = np.array(
    [
        HALF_WIDTH,
        HALF_HEIGHT,
        1 / STEP_SECONDS / HALF_WIDTH,
        1 / STEP_SECONDS / HALF_HEIGHT,
        1.0,
        1 / STEP_SECONDS / 20.0,
        1.0,
        1.0,
    ]
)


def _measure(obs: NDArray[np.float64]) -> NDArray[np.float64]:
    x, y, vx, vy, angle, rate, left, right = (obs * _SCALE).T
    turn, lift = _heuristic(obs)
    return np.stack(
        [
            x,
            y,
            vx,
            vy,
            angle,
            rate,
            left,
            right,
            np.hypot(x, y),
            np.hypot(vx, vy),
            x + vx,
            angle + rate / 2,
            turn,
            lift,
        ],
        axis=1,
    )


def _heuristic(s: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """``angle_todo`` and ``hover_todo`` of Gymnasium's heuristic, [n] each."""
    wanted_angle = np.clip(0.5 * s[:, 0] + 1.0 * s[:, 2], -0.4, 0.4)
    turn = (wanted_angle - s[:, 4]) * 0.5 - s[:, 5]
    lift = (0.55 * np.abs(s[:, 0]) - s[:, 1]) * 0.5 - s[:, 3] * 0.5
    landed = (s[:, 6] > 0) | (s[:, 7] > 0)
    return np.where(landed, 0.0, turn), np.where(landed, -0.5 * s[:, 3], lift)


LUNARLANDER: Final = Family(
    environment="LunarLander-v3",
    obs_dim=8,
    specs=(
        MetricSpec("x_position", "m", description="from the middle of the pad, right is +"),
        MetricSpec("altitude", "m", description="of the legs above the pad"),
        MetricSpec("x_velocity", "m/s", description="right is +"),
        MetricSpec("vertical_velocity", "m/s", description="up is +"),
        MetricSpec("tilt", "rad", description="of the lander, left is +"),
        MetricSpec("angular_velocity", "rad/s", description="left is +"),
        MetricSpec("left_leg_contact", "", description="1 when the left leg touches ground"),
        MetricSpec("right_leg_contact", "", description="1 when the right leg touches ground"),
        MetricSpec("pad_distance", "m", description="from the middle of the pad"),
        MetricSpec("speed", "m/s", description="in any direction"),
        MetricSpec("x_position_ahead", "m", description="in 1 s at this velocity"),
        MetricSpec("tilt_ahead", "rad", description="in 0.5 s at this angular velocity"),
        MetricSpec("turn_demand", "rad", description="turn a simple autopilot wants, left is +"),
        MetricSpec("lift_demand", "", description="lift a simple autopilot wants, up is +"),
    ),
    measure=_measure,
    step_seconds=STEP_SECONDS,
    actions=("coast", "left engine", "main engine", "right engine"),
)
