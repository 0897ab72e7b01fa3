"""Unitree's G1 under Gymnasium ids that import what they need; see :mod:`.arcade` for why.

``UnitreeG1-v0`` has all 29 joints under position control, ``UnitreeG1Legs-v0`` the 12 of the legs
under torques; both are told a walking velocity 50 times a second, and anew every 4 s. An episode
ends when the robot falls, or after 10 s. The robots are :mod:`.unitree_robots`.
"""

from __future__ import annotations

from typing import Any

import gymnasium

from interlatent_live.environments.families.unitree import (
    CONTROL_HZ,
    UNITREE_G1,
    UNITREE_G1_LEGS,
)
from interlatent_live.errors import UserError

EPISODE_S = 10


def unitree_g1(*, render_mode: str | None = None) -> gymnasium.Env[Any, Any]:
    """The whole body: observations float64 [140], actions float32 [29] in ± 1.

    Raises:
        UserError: when MuJoCo is not installed.
    """
    robot: gymnasium.Env[Any, Any] = _robots().UnitreeG1(render_mode=render_mode)
    return robot


def unitree_g1_legs(*, render_mode: str | None = None) -> gymnasium.Env[Any, Any]:
    """The legs alone: observations float64 [69], actions float32 [12] in ± 100.

    Raises:
        UserError: when MuJoCo is not installed.
    """
    robot: gymnasium.Env[Any, Any] = _robots().UnitreeG1Legs(render_mode=render_mode)
    return robot


def _robots() -> Any:
    try:
        from interlatent_live.environments import unitree_robots  # noqa: PLC0415 - needs an extra
    except (ImportError, gymnasium.error.DependencyNotInstalled) as error:
        raise UserError(
            "Unitree's G1 needs MuJoCo, which is not installed: install the extra "
            "interlatent-live[mujoco]"
        ) from error
    return unitree_robots


for _id, _make in ((UNITREE_G1, unitree_g1), (UNITREE_G1_LEGS, unitree_g1_legs)):
    gymnasium.register(
        id=_id.rpartition(":")[2],
        entry_point=f"{__name__}:{_make.__name__}",
        max_episode_steps=EPISODE_S * CONTROL_HZ,
    )
