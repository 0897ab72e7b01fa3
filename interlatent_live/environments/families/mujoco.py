"""HalfCheetah-v5, Walker2d-v5 and Humanoid-v5: joints by name, bodies in metres and radians.

Orders as in Gymnasium's documentation of the default observations (root x, y left out). The
humanoid's actuators run abdomen_y, z, x while its joints run z, y, x: both orders are kept as they
are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from interlatent_live.environments.families.family import Family
from interlatent_live.stream import MetricSpec

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

_CHEETAH_JOINTS: Final = (
    "back_thigh",
    "back_shin",
    "back_foot",
    "front_thigh",
    "front_shin",
    "front_foot",
)
_WALKER_JOINTS: Final = (
    "right_thigh",
    "right_leg",
    "right_foot",
    "left_thigh",
    "left_leg",
    "left_foot",
)
_HUMANOID_JOINTS: Final = (
    "abdomen_z",
    "abdomen_y",
    "abdomen_x",
    "right_hip_x",
    "right_hip_z",
    "right_hip_y",
    "right_knee",
    "left_hip_x",
    "left_hip_z",
    "left_hip_y",
    "left_knee",
    "right_shoulder1",
    "right_shoulder2",
    "right_elbow",
    "left_shoulder1",
    "left_shoulder2",
    "left_elbow",
)
_HUMANOID_ACTUATORS: Final = ("abdomen_y", "abdomen_z", *_HUMANOID_JOINTS[2:])
_HUMANOID_METRICS: Final = 48
_CFRC_EXT: Final = 270
_RIGHT_FOOT, _LEFT_FOOT = 5, 8
# cfrc_ext has for each body torque, then force; by component, then foot.
_FOOT_FORCES: Final = np.array(
    [[_CFRC_EXT + 6 * foot + 3 + axis for foot in (_RIGHT_FOOT, _LEFT_FOOT)] for axis in range(3)]
)
# Places of the products of two of w, x, y, z among all sixteen.
_WX_WZ_XX_YY: Final = np.array([1, 3, 5, 10])
_YZ_XY_YY_ZZ: Final = np.array([11, 6, 10, 15])
_WY, _ZX = 2, 13


def _angles(joints: Iterable[str]) -> list[MetricSpec]:
    return [MetricSpec(f"{joint}_angle", "rad") for joint in joints]


def _rates(joints: Iterable[str]) -> list[MetricSpec]:
    return [MetricSpec(f"{joint}_velocity", "rad/s") for joint in joints]


def _planar(
    environment: str, joints: tuple[str, ...], step_seconds: float, *, height: str, pitch: str
) -> Family:
    """HalfCheetah and Walker2d share their layout: height, pitch, six joints, then velocities."""
    specs = (
        MetricSpec("torso_height", "m", description=height),
        MetricSpec("torso_pitch", "rad", description=pitch),
        *_angles(joints),
        MetricSpec("forward_velocity", "m/s"),
        MetricSpec("vertical_velocity", "m/s"),
        MetricSpec("pitch_velocity", "rad/s"),
        *_rates(joints),
        MetricSpec("stride", "rad", description=f"{joints[0]} angle minus {joints[3]} angle"),
    )

    def measure(obs: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.concatenate([obs, (obs[:, 2] - obs[:, 5])[:, None]], axis=1)

    return Family(environment, 17, specs, measure, step_seconds=step_seconds, joints=joints)


def _measure_humanoid(obs: NDArray[np.float64]) -> NDArray[np.float64]:
    """Computed beside running agents, in batches of a few rows: what costs are calls, not numbers.

    With the unit quaternion w, x, y, z: roll = atan2(2 (wx + yz), 1 − 2 (xx + yy)), yaw =
    atan2(2 (wz + xy), 1 − 2 (yy + zz)), pitch = asin 2 (wy − zx), tilt = acos(1 − 2 (xx + yy)).
    """
    out = np.empty((len(obs), _HUMANOID_METRICS))
    quaternion = obs[:, 1:5]
    products = (quaternion[:, :, None] * quaternion[:, None, :]).reshape(-1, 16)
    twice = 2 * (products.take(_WX_WZ_XX_YY, 1) + products.take(_YZ_XY_YY_ZZ, 1))
    upright = 1 - twice[:, 2:]
    out[:, 0] = obs[:, 0]
    np.arccos(np.minimum(np.maximum(upright[:, 0], -1), 1), out=out[:, 1])
    np.arctan2(twice[:, :2], upright, out=out[:, 2:5:2])
    nose = 2 * (products[:, _WY] - products[:, _ZX])
    np.arcsin(np.minimum(np.maximum(nose, -1), 1), out=out[:, 3])
    out[:, 5:45] = obs[:, 5:45]
    squares = np.square(obs.take(_FOOT_FORCES, 1))
    np.sqrt(squares[:, 0] + squares[:, 1] + squares[:, 2], out=out[:, 45:47])
    out[:, 47] = obs[:, 10] - obs[:, 14]
    return out


HALFCHEETAH: Final = _planar(
    "HalfCheetah-v5",
    _CHEETAH_JOINTS,
    0.05,
    height="of the torso, from its start",
    pitch="nose down is +",
)
WALKER2D: Final = _planar(
    "Walker2d-v5",
    _WALKER_JOINTS,
    0.008,
    height="of the torso above the ground",
    pitch="backward is +",
)
HUMANOID: Final = Family(
    environment="Humanoid-v5",
    obs_dim=348,
    specs=(
        MetricSpec("torso_height", "m", description="of the torso above the ground"),
        MetricSpec("tilt", "rad", description="between the torso's axis and the vertical"),
        MetricSpec("roll", "rad"),
        MetricSpec("pitch", "rad"),
        MetricSpec("yaw", "rad"),
        *_angles(_HUMANOID_JOINTS),
        MetricSpec("forward_velocity", "m/s"),
        MetricSpec("sideways_velocity", "m/s"),
        MetricSpec("vertical_velocity", "m/s"),
        MetricSpec("roll_velocity", "rad/s"),
        MetricSpec("pitch_velocity", "rad/s"),
        MetricSpec("yaw_velocity", "rad/s"),
        *_rates(_HUMANOID_JOINTS),
        MetricSpec("right_foot_force", "N", description="contact force on the right foot"),
        MetricSpec("left_foot_force", "N", description="contact force on the left foot"),
        MetricSpec("stride", "rad", description="right hip pitch minus left hip pitch"),
    ),
    measure=_measure_humanoid,
    step_seconds=0.015,
    joints=_HUMANOID_ACTUATORS,
)
