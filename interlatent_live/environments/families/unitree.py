"""Unitree G1, the whole body (29 joints) and the legs alone (12): joints by name, gait, effort.

Both observations begin with what the policy was trained on and go on with what the simulator knows
besides, so that all metrics follow from an observation alone, travel with recordings and work on
batches. :class:`Layout` says where what lies; the environments write by it, the metrics read by it.

The attitude comes from gravity in the base's frame, g = Rᵀ(0, 0, −1): tilt = acos(−g_z), pitch
(nose down is +) = atan2(g_x, −g_z), roll (to the right is +) = atan2(−g_y, −g_z). The gait phase is
the policies' own clock, which they are given with the observation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from interlatent_live.environments.families.family import Family
from interlatent_live.stream import MetricSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray

UNITREE_G1: Final = "interlatent_live.environments.unitree:UnitreeG1-v0"
UNITREE_G1_LEGS: Final = "interlatent_live.environments.unitree:UnitreeG1Legs-v0"
CONTROL_HZ: Final = 50
CONTACT_N: Final = 5.0
"""A foot that bears more is on the ground."""

_LEG: Final = ("hip_pitch", "hip_roll", "hip_yaw", "knee", "ankle_pitch", "ankle_roll")
_ARM: Final = (
    "shoulder_pitch",
    "shoulder_roll",
    "shoulder_yaw",
    "elbow",
    "wrist_roll",
    "wrist_pitch",
    "wrist_yaw",
)
LEG_JOINTS: Final = tuple(f"{side}_{joint}" for side in ("left", "right") for joint in _LEG)
G1_JOINTS: Final = (
    *LEG_JOINTS,
    *("waist_yaw", "waist_roll", "waist_pitch"),
    *(f"{side}_{joint}" for side in ("left", "right") for joint in _ARM),
)
_KNEES_BENT: Final = (-0.312, 0.0, 0.0, 0.669, -0.363, 0.0)
_ARMS_BENT: Final = (
    *(0.2, 0.2, 0.0, 0.6, 0.0, 0.0, 0.0),
    *(0.2, -0.2, 0.0, 0.6, 0.0, 0.0, 0.0),
)
_LEGS_AT_REST: Final = (-0.1, 0.0, 0.0, 0.3, -0.2, 0.0)
_SIMULATOR: Final = 8
"""Base velocity (3), pelvis height, force under and height of either foot; then the torques."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Where an observation holds what, and in which units the policy is given it.

    ``seen`` numbers are the policy's; the simulator's follow, then ``extra`` ones without meaning
    for a metric. ``scales`` multiply angular velocity, command (forward, left, turn) and joint
    velocities; ``rest`` are the angles [rad] that joint angles are told from.
    """

    joints: tuple[str, ...]
    rest: tuple[float, ...]
    seen: int
    gyro: int
    gravity: int
    command: int
    angles: int
    velocities: int
    phase_sin: int
    phase_cos: int
    gyro_scale: float = 1.0
    command_scale: tuple[float, float, float] = (1.0, 1.0, 1.0)
    velocity_scale: float = 1.0
    extra: int = 0

    @property
    def size(self) -> int:
        """Numbers in an observation."""
        return self.seen + _SIMULATOR + len(self.joints) + self.extra

    def measure(self, obs: NDArray[np.float64]) -> NDArray[np.float64]:
        """State metrics [n, M] of observations [n, size], in the order of :meth:`specs`."""
        n = len(self.joints)
        gyro = obs[:, self.gyro : self.gyro + 3] / self.gyro_scale
        gravity = obs[:, self.gravity : self.gravity + 3]
        command = obs[:, self.command : self.command + 3] / np.array(self.command_scale)
        angles = obs[:, self.angles : self.angles + n] + np.array(self.rest)
        rates = obs[:, self.velocities : self.velocities + n] / self.velocity_scale
        simulated = obs[:, self.seen : self.seen + _SIMULATOR]
        torques = obs[:, self.seen + _SIMULATOR : self.seen + _SIMULATOR + n]
        velocity, height = simulated[:, :3], simulated[:, 3]
        force, lift = simulated[:, 4:6], simulated[:, 6:8]
        error = velocity[:, :2] - command[:, :2]
        columns = [
            height,
            np.arccos(np.clip(-gravity[:, 2], -1.0, 1.0)),
            np.arctan2(-gravity[:, 1], -gravity[:, 2]),
            np.arctan2(gravity[:, 0], -gravity[:, 2]),
            *velocity.T,
            *gyro.T,
            *command.T,
            np.hypot(error[:, 0], error[:, 1]),
            np.abs(gyro[:, 2] - command[:, 2]),
            *angles.T,
            *rates[:, : len(LEG_JOINTS)].T,
            *force.T,
            *(force > CONTACT_N).T,
            lift[:, 0] - lift[:, 1],
            angles[:, 6] - angles[:, 0],
            obs[:, self.phase_sin],
            obs[:, self.phase_cos],
            *torques[:, : len(LEG_JOINTS)].T,
            np.abs(torques * rates).sum(1),
        ]
        return np.stack(columns, axis=1)

    def specs(self) -> tuple[MetricSpec, ...]:
        """Names and units of the columns."""
        return (
            MetricSpec("torso_height", "m", description="of the pelvis above the ground"),
            MetricSpec("tilt", "rad", description="between the pelvis's axis and the vertical"),
            MetricSpec("roll", "rad", description="to the right is +"),
            MetricSpec("pitch", "rad", description="nose down is +"),
            MetricSpec("forward_velocity", "m/s", description="in the pelvis's frame"),
            MetricSpec("sideways_velocity", "m/s", description="to the left is +"),
            MetricSpec("vertical_velocity", "m/s", description="in the pelvis's frame"),
            MetricSpec("roll_velocity", "rad/s"),
            MetricSpec("pitch_velocity", "rad/s"),
            MetricSpec("yaw_velocity", "rad/s", description="to the left is +"),
            MetricSpec("wanted_forward_velocity", "m/s", description="what it is told to do"),
            MetricSpec("wanted_sideways_velocity", "m/s", description="what it is told to do"),
            MetricSpec("wanted_yaw_velocity", "rad/s", description="what it is told to do"),
            MetricSpec("velocity_error", "m/s", description="from what it is told, on the ground"),
            MetricSpec("yaw_velocity_error", "rad/s", description="from what it is told"),
            *(MetricSpec(f"{joint}_angle", "rad") for joint in self.joints),
            *(MetricSpec(f"{joint}_velocity", "rad/s") for joint in LEG_JOINTS),
            MetricSpec("left_foot_force", "N", description="contact force on the left foot"),
            MetricSpec("right_foot_force", "N", description="contact force on the right foot"),
            MetricSpec("left_foot_contact", "", description="1 when the left foot bears weight"),
            MetricSpec("right_foot_contact", "", description="1 when the right foot bears weight"),
            MetricSpec("left_foot_lift", "m", description="left foot above the right"),
            MetricSpec("stride", "rad", description="right hip pitch minus left hip pitch"),
            MetricSpec("gait_phase_sin", "", description="sine of the left leg's clock"),
            MetricSpec("gait_phase_cos", "", description="cosine of the left leg's clock"),
            *(MetricSpec(f"{joint}_torque", "N m") for joint in LEG_JOINTS),
            MetricSpec("mechanical_power", "W", description="sum over joints of |torque × rate|"),
        )

    def family(self, environment: str) -> Family:
        """The family of the environment that observes in this layout."""
        return Family(
            environment=environment,
            obs_dim=self.size,
            specs=self.specs(),
            measure=self.measure,
            step_seconds=1 / CONTROL_HZ,
            joints=self.joints,
        )


G1_LAYOUT: Final = Layout(
    joints=G1_JOINTS,
    rest=(*_KNEES_BENT, *_KNEES_BENT, 0.0, 0.0, 0.073, *_ARMS_BENT),
    seen=103,
    gyro=3,
    gravity=6,
    command=9,
    angles=12,
    velocities=41,
    phase_cos=99,
    phase_sin=101,
)
"""MuJoCo Playground's joystick task: base velocity (3) first, last action at 70."""
LEGS_LAYOUT: Final = Layout(
    joints=LEG_JOINTS,
    rest=(*_LEGS_AT_REST, *_LEGS_AT_REST),
    seen=47,
    gyro=0,
    gravity=3,
    command=6,
    angles=9,
    velocities=21,
    phase_sin=45,
    phase_cos=46,
    gyro_scale=0.25,
    command_scale=(2.0, 2.0, 0.25),
    velocity_scale=0.05,
    extra=2,
)
"""unitree_rl_gym's G1: last action at 33; the two last numbers tell an episode and its step."""

G1: Final = G1_LAYOUT.family(UNITREE_G1)
G1_LEGS: Final = LEGS_LAYOUT.family(UNITREE_G1_LEGS)
