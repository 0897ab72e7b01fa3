"""Whole episodes of many environment copies in lockstep, one policy forward per step.

Gymnasium's vector environments reset by themselves and keep stepping finished copies; collecting
and paired evaluation want exactly one episode per seed, the same whatever else runs beside it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import gymnasium
import numpy as np

from interlatent_live.environments.disturbance import Disturbance, disturbed
from interlatent_live.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    Act = Callable[[NDArray[Any], NDArray[np.intp]], NDArray[Any]]
    """(obs [n, …], copies [n]) → actions [n] or [n, A]."""


@dataclass(frozen=True, slots=True, eq=False)
class LockstepStep:
    """One step of the n copies whose episode still runs."""

    t: int
    copies: NDArray[np.intp]
    """[n] which copies."""
    obs: NDArray[Any]
    """[n, …] what they saw before acting."""
    actions: NDArray[Any]
    rewards: NDArray[np.float64]
    """[n] reward at t + 1."""
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]


class EnvironmentPool:
    """Copies of one environment, made once and reset for each episode.

    Args:
        env_id: Gymnasium id.
        copies: how many.
        disturbance: spread of starts and pushes.

    Raises:
        UserError: when the environment cannot be made.
    """

    def __init__(self, env_id: str, copies: int, disturbance: Disturbance | None = None) -> None:
        if not env_id:
            raise UserError("the policy does not say its environment; name one with --env")
        self.env_id = env_id
        try:
            self.envs = [
                disturbed(gymnasium.make(env_id), disturbance or Disturbance())
                for _ in range(copies)
            ]
        except gymnasium.error.Error as error:
            raise UserError(f"Gymnasium cannot make {env_id!r}: {error}") from error
        except ImportError as error:
            raise UserError(
                f"{env_id} needs a package that is not installed ({error}): install the extra "
                "interlatent-live[box2d] or interlatent-live[mujoco]"
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for env in self.envs:
            env.close()

    @property
    def action_space(self) -> gymnasium.Space[Any]:
        """Of one copy."""
        return self.envs[0].action_space

    def observation_width(self) -> int:
        """Numbers in one flat observation.

        Raises:
            UserError: when observations are not arrays.
        """
        space = self.envs[0].observation_space
        if not isinstance(space, gymnasium.spaces.Box):
            raise UserError(
                f"{self.env_id} has observations of type {type(space).__name__}; wrap it so that "
                "they are arrays (gymnasium.wrappers.FlattenObservation)"
            )
        return int(np.prod(space.shape))

    def episodes(
        self, seeds: Sequence[int], act: Act, *, max_steps: int | None = None
    ) -> Iterator[LockstepStep]:
        """One episode per seed, copy i reset with ``seeds[i]``.

        ``max_steps`` truncates endless episodes.

        Raises:
            UserError: when there are more seeds than copies.
        """
        if len(seeds) > len(self.envs):
            raise UserError(f"{len(seeds)} seeds need as many copies; there are {len(self.envs)}")
        pairs = zip(self.envs, seeds, strict=False)
        obs = np.stack([np.asarray(env.reset(seed=int(seed))[0]) for env, seed in pairs])
        copies = np.arange(len(seeds))
        t = 0
        while len(copies):
            actions = act(obs, copies)
            n = len(copies)
            rewards = np.empty(n)
            terminated, truncated = np.empty(n, np.bool_), np.empty(n, np.bool_)
            after = np.empty_like(obs)
            for row, copy in enumerate(copies):
                result = self.envs[copy].step(actions[row])
                after[row], rewards[row], terminated[row], truncated[row] = result[:4]
            if max_steps is not None and t + 1 >= max_steps:
                truncated |= ~terminated
            yield LockstepStep(t, copies, obs, actions, rewards, terminated, truncated)
            running = ~(terminated | truncated)
            obs, copies = after[running], copies[running]
            t += 1
