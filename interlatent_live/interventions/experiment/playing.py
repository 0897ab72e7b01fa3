"""Plays arms: the same starts each time, with and without an intervention, measured per start.

Several copies of the environment act through one forward, so a start costs little; a copy that has
no start left is stepped no more. Nothing here knows how an arm comes into force.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import gymnasium
import numpy as np

from interlatent_live.environments.metric_packs import metric_pack_for
from interlatent_live.errors import UserError
from interlatent_live.interventions.branches.cloning import restore, take

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from interlatent_live.environments.metric_packs import ObservationPack
    from interlatent_live.interventions.branches.cloning import Snapshot
    from interlatent_live.transcoders.acting import ActingPolicy

RETURN = "return"
LENGTH = "length"


@dataclass(frozen=True, slots=True)
class Start:
    """Where one play begins: an episode's seed, or a cloned state and the seed of its kick."""

    seed: int
    state: int = -1
    """Number of the state; −1: an episode."""


@dataclass(frozen=True, slots=True, eq=False)
class State:
    """A cloned moment and what the agent saw of it."""

    snapshot: Snapshot
    obs: NDArray[Any]


class Acts(Protocol):
    """Chooses actions for all copies at once, and is told what came of them."""

    def act(self, obs: NDArray[Any]) -> NDArray[Any]:
        """Actions for observations [n, …]."""

    def done(self, rewards: NDArray[np.float64], ended: NDArray[np.bool_]) -> None:
        """The copies stepped."""


@dataclass(slots=True)
class Bare:
    """A policy that nobody watches."""

    policy: ActingPolicy

    def act(self, obs: NDArray[Any]) -> NDArray[Any]:
        """As the policy does."""
        return self.policy.act(obs)

    def done(self, rewards: NDArray[np.float64], ended: NDArray[np.bool_]) -> None:
        """Nobody is told."""


@dataclass(slots=True)
class Stage:
    """Copies of an environment, what is measured in it, and where branches begin.

    Args:
        environment: Gymnasium id.
        copies: how many play side by side.
        horizon: steps after which a play ends.
        kick: spread of what is added to the velocities where a branch begins.
    """

    environment: str
    copies: int
    horizon: int
    kick: float
    states: list[State] = field(default_factory=list)
    _envs: list[gymnasium.Env[Any, Any]] = field(default_factory=list)
    _pack: ObservationPack | None = None

    def open(self) -> None:
        """Make the copies.

        Raises:
            UserError: when the environment is not installed or has no flat observation.
        """
        try:
            self._envs = [
                gymnasium.make(
                    self.environment, max_episode_steps=self.horizon, disable_env_checker=True
                )
                for _ in range(self.copies)
            ]
        except gymnasium.error.Error as error:
            raise UserError(f"{self.environment} cannot be made: {error}") from error
        space = self._envs[0].observation_space
        if not isinstance(space, gymnasium.spaces.Box):
            raise UserError(f"{self.environment} has no plain observation; experiments need one")
        self._pack = metric_pack_for(self.environment, obs_dim=int(np.prod(space.shape)))

    def close(self) -> None:
        """Close the copies."""
        for env in self._envs:
            env.close()

    @property
    def pack(self) -> ObservationPack:
        """What is measured."""
        if self._pack is None:
            raise ValueError("open the stage first")
        return self._pack

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the columns of :meth:`play`; all but the first two are means over steps."""
        family = self.pack.family
        names = (spec.name for spec in (*self.pack.specs, *family.action_specs))
        return RETURN, LENGTH, *(f"mean {name}" for name in names)

    def play(self, starts: Sequence[Start], agent: Acts) -> NDArray[np.float64]:
        """One row of metrics for each start, [len(starts), len(metrics)]."""
        out = np.full((len(starts), len(self.metrics)), np.nan)
        waiting = iter(range(len(starts)))
        which: list[int | None] = [next(waiting, None) for _ in self._envs]
        first = [
            self._begin(env, starts[0 if one is None else one])
            for env, one in zip(self._envs, which, strict=True)
        ]
        obs: NDArray[Any] = np.stack(first)
        sums = np.zeros((len(self._envs), len(self.metrics)))
        family = self.pack.family
        while any(one is not None for one in which):
            actions = agent.act(obs)
            sums[:, 2:] += np.concatenate(
                [self.pack.extract_batch(obs), family.measure_actions(np.asarray(actions))], axis=1
            )
            rewards, ended = np.zeros(self.copies), np.zeros(self.copies, np.bool_)
            for copy, one in enumerate(which):
                if one is None:
                    continue
                obs[copy], reward, terminated, truncated, _ = self._envs[copy].step(actions[copy])
                rewards[copy] = float(reward)
                sums[copy, 0] += rewards[copy]
                sums[copy, 1] += 1
                # A cloned state brings the clock of its own episode along.
                late = sums[copy, 1] >= self.horizon
                ended[copy] = terminated or late or (truncated and starts[one].state < 0)
            agent.done(rewards, ended)
            for copy in map(int, np.flatnonzero(ended)):
                done = which[copy]
                if done is not None:
                    sums[copy, 2:] /= sums[copy, 1]
                    out[done] = sums[copy]
                sums[copy] = 0.0
                which[copy] = next(waiting, None)
                if (following := which[copy]) is not None:
                    obs[copy] = self._begin(self._envs[copy], starts[following])
        return out

    def clone_states(self, seeds: Sequence[int], policy: ActingPolicy) -> None:
        """Let the policy act from each seed and clone one moment of each episode.

        The moment is drawn by the seed, 50 to 350 steps in; of an episode that ends before, half of
        that, or its beginning.

        Raises:
            UserError: when the environment's state cannot be cloned, or its velocities not kicked.
        """
        env = gymnasium.make(
            self.environment, max_episode_steps=self.horizon, disable_env_checker=True
        )
        if type(getattr(env.unwrapped, "data", None)).__name__ != "MjData":
            raise UserError(f"branches are kicked in MuJoCo only; {self.environment} is none")
        for seed in seeds:
            when = int(np.random.default_rng(seed).integers(50, 350))
            obs, _ = env.reset(seed=seed)
            kept = State(take(env), np.asarray(obs))
            for step in range(when):
                obs, _, terminated, _, _ = env.step(policy.act(np.asarray(obs)[None])[0])
                if terminated:
                    break
                if step == when // 2 or step == when - 1:
                    kept = State(take(env), np.asarray(obs))
            self.states.append(kept)
        env.close()

    def _begin(self, env: gymnasium.Env[Any, Any], start: Start) -> NDArray[Any]:
        if start.state < 0:
            return np.asarray(env.reset(seed=start.seed)[0])
        env.reset(seed=start.seed)
        restore(env, self.states[start.state].snapshot)
        return _kicked(env, start.seed, self.kick)


def _kicked(env: gymnasium.Env[Any, Any], seed: int, kick: float) -> NDArray[Any]:
    """The observation after each velocity was changed a little."""
    import mujoco  # noqa: PLC0415 - an extra

    inner: Any = env.unwrapped
    inner.data.qvel[:] += kick * np.random.default_rng(seed).normal(size=len(inner.data.qvel))
    mujoco.mj_forward(inner.model, inner.data)
    return np.asarray(inner._get_obs())  # noqa: SLF001  Gymnasium's own way to it
