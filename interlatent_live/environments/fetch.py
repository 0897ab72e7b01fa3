"""FetchReach with a flat observation, under a Gymnasium id that imports what it needs.

Gymnasium-Robotics' observation is a dictionary of three parts; ``FetchReachFlat-v4`` has them in a
row, in the order of :mod:`.families.fetch`. Nothing else is different. A step is 40 ms, an episode
50 steps, the reward −1 for each step that ends 5 cm or more from the goal.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box

from interlatent_live.environments.families.fetch import FETCH_REACH
from interlatent_live.errors import UserError

if TYPE_CHECKING:
    from numpy.typing import NDArray

PARTS = ("achieved_goal", "desired_goal", "observation")


class FlatGoals(gymnasium.ObservationWrapper[Any, Any, Any]):
    """The three parts of a goal environment's observation in a row, float64 [16]."""

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        super().__init__(env)
        space: Any = env.observation_space
        size = sum(space[part].shape[0] for part in PARTS)
        self.observation_space = Box(-np.inf, np.inf, (size,), np.float64)

    def observation(self, observation: dict[str, NDArray[np.float64]]) -> NDArray[np.float64]:
        """The parts in a row."""
        return np.concatenate([observation[part] for part in PARTS])


def fetch_reach(*, render_mode: str | None = None) -> gymnasium.Env[Any, Any]:
    """``FetchReach-v4`` with observations float64 [16] and actions float32 [4] in ± 1.

    Raises:
        UserError: when Gymnasium-Robotics is not installed.
    """
    try:
        import gymnasium_robotics  # noqa: PLC0415 - an extra, with a message of its own where it is missing
    except ImportError as error:
        raise UserError(
            "FetchReach needs gymnasium-robotics, which is not installed: install the extra "
            "interlatent-live[robotics]"
        ) from error
    gymnasium.register_envs(gymnasium_robotics)
    size = {} if render_mode is None else {"width": 240, "height": 240}
    env = gymnasium.make("FetchReach-v4", render_mode=render_mode, disable_env_checker=True, **size)
    return FlatGoals(env)


gymnasium.register(id=FETCH_REACH.rpartition(":")[2], entry_point=f"{__name__}:fetch_reach")
