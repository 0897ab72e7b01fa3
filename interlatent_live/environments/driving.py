"""Highway driving under a Gymnasium id that imports what it needs; see :mod:`.arcade` for why."""

from __future__ import annotations

from typing import Any, Final

import gymnasium

from interlatent_live.errors import UserError

HIGHWAY_FAST: Final = "interlatent_live.environments.driving:HighwayFast-v0"
"""Three lanes, 20 slower cars, one decision a second, 30 seconds."""


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
