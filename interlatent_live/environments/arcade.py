"""Ms. Pac-Man as its two policies see it, under Gymnasium ids that import what they need.

Gymnasium imports the module that stands before the colon of an id, so
``gymnasium.make("interlatent_live.environments.arcade:MsPacmanRam-v5")`` works from anywhere and
names all that decides an episode. From RAM: frame skip 4, sticky actions with probability .25, the
minimal action set (Machado et al. 2018), the console's 128 bytes as the observation. From pixels:
the preprocessing of Mnih et al. 2015 (frame skip 4, the brighter of the last two frames, 84 × 84
in grey, four of them, up to 30 idle frames at the start) and no sticky actions. The bytes come
along behind the frames: a step's metrics are read from them, and the policy never sees them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import gymnasium
import numpy as np

from interlatent_live.errors import UserError

if TYPE_CHECKING:
    from numpy.typing import NDArray

MSPACMAN_RAM: Final = "interlatent_live.environments.arcade:MsPacmanRam-v5"
MSPACMAN_PIXELS: Final = "interlatent_live.environments.arcade:MsPacmanPixels-v5"
RAM_BYTES: Final = 128
FRAMES: Final = (4, 84, 84)
"""Stacked grey frames, the oldest first."""
FRAME_BYTES: Final = 4 * 84 * 84


def mspacman_ram(*, render_mode: str | None = None) -> gymnasium.Env[Any, Any]:
    """``ALE/MsPacman-v5`` with the RAM, uint8 [128], as its observation.

    Raises:
        UserError: when the Arcade Learning Environment is not installed.
    """
    return _ale("ALE/MsPacman-v5", obs_type="ram", render_mode=render_mode)


def mspacman_pixels(*, render_mode: str | None = None) -> gymnasium.Env[Any, Any]:
    """``ALE/MsPacman-v5`` with uint8 [28,224 + 128]: :data:`FRAMES` flattened, then the RAM.

    Before the first frame of an episode the stack holds zeros, as where the policy was trained.

    Raises:
        UserError: when the Arcade Learning Environment or OpenCV is not installed.
    """
    from gymnasium.wrappers import (  # noqa: PLC0415 - slow to import, and only these frames need it
        AtariPreprocessing,
        FrameStackObservation,
    )

    env = _ale(
        "ALE/MsPacman-v5",
        obs_type="grayscale",
        frameskip=1,
        repeat_action_probability=0.0,
        render_mode=render_mode,
    )
    try:
        small = AtariPreprocessing(env, noop_max=30, frame_skip=4, screen_size=FRAMES[1])
    except gymnasium.error.DependencyNotInstalled as error:
        raise UserError(
            "frames are scaled by OpenCV, which is not installed: install the extra "
            "interlatent-live[atari]"
        ) from error
    stacked = FrameStackObservation(small, FRAMES[0], padding_type="zero")
    return _FramesThenRam(stacked)


class _FramesThenRam(gymnasium.ObservationWrapper[Any, Any, Any]):
    """Appends the console's RAM to the flattened frames."""

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        super().__init__(env)
        size = FRAME_BYTES + RAM_BYTES
        self.observation_space = gymnasium.spaces.Box(0, 255, (size,), np.uint8)

    def observation(self, observation: Any) -> NDArray[np.uint8]:
        base: Any = self.env.unwrapped
        return np.concatenate([np.asarray(observation).reshape(-1), base.ale.getRAM()])


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
gymnasium.register(id=MSPACMAN_PIXELS.rpartition(":")[2], entry_point=f"{__name__}:mspacman_pixels")
