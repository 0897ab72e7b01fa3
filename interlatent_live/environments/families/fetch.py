"""FetchReach-v4: where the gripper is, where it should be, and what is left between them.

The observation is the three parts of Gymnasium-Robotics' dictionary in a row: achieved goal (3),
desired goal (3), observation (10: gripper position, finger positions, gripper velocity, finger
velocities; the last five are moves per 40 ms step there and per second here).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from interlatent_live.environments.families.family import Family
from interlatent_live.stream import MetricSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray

FETCH_REACH: Final = "interlatent_live.environments.fetch:FetchReachFlat-v4"
STEP_SECONDS: Final = 0.04
REACHED_M: Final = 0.05
"""The environment's own threshold."""


def _measure(obs: NDArray[np.float64]) -> NDArray[np.float64]:
    gripper, goal = obs[:, :3], obs[:, 3:6]
    velocity = obs[:, 11:14] / STEP_SECONDS
    away = goal - gripper
    distance = np.linalg.norm(away, axis=1)
    closing = (velocity * away).sum(1) / np.maximum(distance, 1e-9)
    columns = [
        *gripper.T,
        *goal.T,
        *away.T,
        distance,
        (distance < REACHED_M).astype(np.float64),
        *velocity.T,
        np.linalg.norm(velocity, axis=1),
        closing,
        obs[:, 9] + obs[:, 10],
    ]
    return np.stack(columns, axis=1)


def _three(name: str, unit: str, description: str) -> tuple[MetricSpec, ...]:
    return tuple(
        MetricSpec(f"{name}_{axis}", unit, description=f"{description}, {where} is +")
        for axis, where in (("x", "away from the base"), ("y", "to the left"), ("z", "up"))
    )


FETCH: Final = Family(
    environment=FETCH_REACH,
    obs_dim=16,
    specs=(
        *_three("gripper", "m", "where the gripper is"),
        *_three("goal", "m", "where it should be"),
        *_three("to_goal", "m", "from the gripper to the goal"),
        MetricSpec("goal_distance", "m", description="from the gripper to the goal"),
        MetricSpec("at_goal", "", description="1 within 5 cm of the goal"),
        *_three("gripper_velocity", "m/s", "of the gripper"),
        MetricSpec("gripper_speed", "m/s", description="in any direction"),
        MetricSpec("closing_speed", "m/s", description="at which the goal comes nearer"),
        MetricSpec("finger_opening", "m", description="between the fingers"),
    ),
    measure=_measure,
    step_seconds=STEP_SECONDS,
    joints=("move_x", "move_y", "move_z", "fingers"),
)
