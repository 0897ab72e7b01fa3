"""Ms. Pac-Man as its two policies see it, under Gymnasium ids that import what they need.

Gymnasium imports the module that stands before the colon of an id, so
``gymnasium.make("interlatent_live.environments.arcade:MsPacmanRam-v5")`` works from anywhere and
names all that decides an episode: frame skip 4, sticky actions with probability .25, the minimal
action set (Machado et al. 2018), the console's 128 bytes of RAM as the observation.
"""

from __future__ import annotations

from typing import Any, Final

import gymnasium

from interlatent_live.errors import UserError

MSPACMAN_RAM: Final = "interlatent_live.environments.arcade:MsPacmanRam-v5"
RAM_BYTES: Final = 128


def mspacman_ram(*, render_mode: str | None = None) -> gymnasium.Env[Any, Any]:
    """``ALE/MsPacman-v5`` with the RAM, uint8 [128], as its observation.

    Raises:
        UserError: when the Arcade Learning Environment is not installed.
    """
    return _ale("ALE/MsPacman-v5", obs_type="ram", render_mode=render_mode)


def _ale(env_id: str, **settings: Any) -> gymnasium.Env[Any, Any]:
    try:
        import ale_py  # noqa: PLC0415 - an extra, with a message of its own where it is missing
    except ImportError as error:
        raise UserError(
            f"{env_id} needs the Arcade Learning Environment, which is not installed: install the "
            "extra interlatent-live[atari]"
        ) from error
    # Its banner goes to stderr at every start, in the middle of progress bars.
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    gymnasium.register_envs(ale_py)
    return gymnasium.make(env_id, disable_env_checker=True, **settings)


gymnasium.register(id=MSPACMAN_RAM.rpartition(":")[2], entry_point=f"{__name__}:mspacman_ram")
