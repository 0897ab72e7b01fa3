"""Highway driving under a Gymnasium id that imports what it needs; see :mod:`.arcade` for why."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import gymnasium
import numpy as np

from interlatent_live.errors import UserError

if TYPE_CHECKING:
    from numpy.typing import NDArray

HIGHWAY_FAST: Final = "interlatent_live.environments.driving:HighwayFast-v0"
"""Three lanes, 20 slower cars, one decision a second, 30 seconds."""
TARGET_SPEEDS: Final = (20.0, 25.0, 30.0)
"""What the ego car's cruise control can be set to, m/s."""
FASTER: Final = 3
SLOWER: Final = 4


def highway_fast(*, render_mode: str | None = None) -> gymnasium.Env[Any, Any]:
    """``highway-fast-v0`` as it comes: the ego car and the 4 nearest, float32 [5, 5].

    Raises:
        UserError: when highway-env is not installed.
    """
    try:
        import highway_env  # noqa: PLC0415 - an extra, with a message of its own where it is missing
    except ImportError as error:
        raise UserError(
            "highway-fast-v0 needs highway-env, which is not installed: install the extra "
            "interlatent-live[highway]"
        ) from error
    gymnasium.register_envs(highway_env)
    return gymnasium.make("highway-fast-v0", render_mode=render_mode, disable_env_checker=True)


gymnasium.register(
    id=HIGHWAY_FAST.rpartition(":")[2], entry_point=f"{__name__}:{highway_fast.__name__}"
)


def speed_asked(speed: NDArray[np.float64], action: NDArray[np.integer]) -> NDArray[np.float64]:
    """By how much an action changes what the cruise control is set to, m/s.

    FASTER and SLOWER set it one step above or below the setting next to the present speed; the
    others leave it (highway-env's ``MDPVehicle.act``, here for a car that drives as it was set).

    Args:
        speed: [n] m/s.
        action: [n] numbers of actions.
    """
    first, step = TARGET_SPEEDS[0], TARGET_SPEEDS[1] - TARGET_SPEEDS[0]
    last = len(TARGET_SPEEDS) - 1
    now = np.clip(np.round((speed - first) / step), 0, last)
    moved = now + (action == FASTER).astype(float) - (action == SLOWER).astype(float)
    return np.asarray((np.clip(moved, 0, last) - now) * step)
