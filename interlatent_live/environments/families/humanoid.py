"""Humanoid-v5 beyond its joints: where it is in its stride, how it balances, what it spends.

All of it is computed from the observation, so that it travels with recordings and works on batches.
The observation's ``cinert`` holds for each body its mass and mass × offset from the centre of mass
of the whole (MuJoCo, "Computation", composite inertia), which gives the feet relative to the centre
of mass. The *capture offset* is how far ahead of the feet's middle the extrapolated centre of mass
lies, x + v √(h / g) (Hof, Gazendam & Sinke 2005): a body whose feet cannot get under that point
falls. *Gait phase* is the angle of the stride in its phase plane, atan2(−stride velocity / ω,
stride), which runs from 0, the right thigh furthest behind the left, once through 2π per stride.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from interlatent_live.environments.families import mujoco
from interlatent_live.environments.families.family import Family
from interlatent_live.stream import MetricSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray

GRAVITY: Final = 9.81
STRIDE_RATE: Final = 16.0
"""ω in rad/s, about the 2.6 strides a second of the shipped expert; it only scales the plane."""

_CINERT: Final = slice(45, 175)
_ACTUATOR_FORCES: Final = slice(253, 270)
_BODIES: Final = 13
_FEET: Final = [5, 8]
_OFFSET, _MASS = slice(6, 9), 9
_FORWARD, _SIDEWAYS = 22, 23
"""Places of the root's velocities."""
_RATES: Final = slice(28, 45)
_RIGHT_HIP_Y, _LEFT_HIP_Y = 10, 14
_KNEES: Final = (6, 10)
"""Places among the 17 joints."""


def _measure(obs: NDArray[np.float64]) -> NDArray[np.float64]:
    plain = mujoco.HUMANOID.measure(obs)
    bodies = obs[:, _CINERT].reshape(len(obs), _BODIES, 10)
    feet = bodies[:, _FEET, _OFFSET] / bodies[:, _FEET, _MASS, None]
    height = -feet[:, :, 2].min(1)
    middle = feet[:, :, :2].mean(1)
    reach = np.sqrt(np.maximum(height, 0.0) / GRAVITY)
    stride = obs[:, _RIGHT_HIP_Y] - obs[:, _LEFT_HIP_Y]
    rates = obs[:, _RATES]
    stride_rate = rates[:, 5] - rates[:, 9]
    phase = np.arctan2(-stride_rate / STRIDE_RATE, stride)
    torques = obs[:, _ACTUATOR_FORCES]
    more = [
        height,
        -middle[:, 0],
        -middle[:, 1],
        obs[:, _FORWARD] * reach - middle[:, 0],
        obs[:, _SIDEWAYS] * reach - middle[:, 1],
        feet[:, 0, 2] - feet[:, 1, 2],
        stride_rate,
        np.sin(phase),
        np.cos(phase),
        *torques[:, _KNEES].T,
        np.abs(torques * rates).sum(1),
    ]
    return np.concatenate([plain, np.stack(more, axis=1)], axis=1)


HUMANOID: Final = Family(
    environment=mujoco.HUMANOID.environment,
    obs_dim=mujoco.HUMANOID.obs_dim,
    specs=(
        *mujoco.HUMANOID.specs,
        MetricSpec("com_height", "m", description="of the centre of mass above the lower foot"),
        MetricSpec("com_ahead", "m", description="centre of mass in front of the feet's middle"),
        MetricSpec("com_beside", "m", description="centre of mass left of the feet's middle"),
        MetricSpec("capture_ahead", "m", description="extrapolated centre of mass, to the front"),
        MetricSpec("capture_beside", "m", description="extrapolated centre of mass, to the left"),
        MetricSpec("right_foot_lift", "m", description="right foot above the left"),
        MetricSpec("stride_velocity", "rad/s", description="change of the stride"),
        MetricSpec("gait_phase_sin", "", description="sine of the place in the stride"),
        MetricSpec("gait_phase_cos", "", description="cosine of the place in the stride"),
        MetricSpec("right_knee_torque", "N m", description="of the actuator"),
        MetricSpec("left_knee_torque", "N m", description="of the actuator"),
        MetricSpec("mechanical_power", "W", description="sum over joints of |torque × rate|"),
    ),
    measure=_measure,
    step_seconds=mujoco.HUMANOID.step_seconds,
    joints=mujoco.HUMANOID.joints,
)
