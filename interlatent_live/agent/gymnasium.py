"""Gymnasium wrappers: every step of an environment becomes an aligned row of named metrics.

The wrapper sits around the environment that the agent steps, so nothing in the agent's loop
changes: ``env = tap.wrap(env)``. An observation is read once, when it is returned, before the agent
or the environment can alter it; the row is complete as soon as ``step`` returns, before any forward
on the next observation can be mistaken for this step's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
from gymnasium.vector import VectorEnv, VectorWrapper

from interlatent_live.agent.metrics import MetricSet, info_of
from interlatent_live.agent.options import Autoreset
from interlatent_live.errors import UserError
from interlatent_live.stream import Controller

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from interlatent_live.agent.tap import Tap


def wrap(env: Any, tap: Tap) -> TappedEnv | TappedVectorEnv:
    """The environment, wrapped to stream its steps through the tap.

    Raises:
        UserError: when it is neither a Gymnasium environment nor a vector environment.
    """
    if isinstance(env, VectorEnv):
        return TappedVectorEnv(env, tap)
    if isinstance(env, gymnasium.Env):
        return TappedEnv(env, tap)
    raise UserError(
        f"a {type(env).__name__} is no Gymnasium environment; report its steps with tap.step(...)"
    )


class TappedEnv(gymnasium.Wrapper[Any, Any, Any, Any]):
    """One environment whose steps are streamed.

    ``controller`` says who chooses the actions from now on (:class:`Controller`); ``extra`` holds
    declared metrics, by name, for the next step only.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], tap: Tap) -> None:
        super().__init__(env)
        self.tap = tap
        self.controller = int(Controller.POLICY)
        self.extra: dict[str, float] = {}
        tap.configure_for(env)
        self._now: NDArray[np.float64] | None = None
        self._row = np.full(tap.metrics.row_width, np.nan)

    def reset(self, **arguments: Any) -> tuple[Any, dict[str, Any]]:
        """As the environment's; begins a new episode of the stream."""
        obs, info = self.env.reset(**arguments)
        try:
            self.tap.reset()
            self._now = self.tap.metrics.observe(obs, info, self.env)
        except Exception as error:  # noqa: BLE001  a bug of ours must never reach the agent
            self._now = None
            self.tap.gate.fault(error)
        return obs, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """As the environment's; streams the step."""
        obs, reward, terminated, truncated, info = self.env.step(action)
        try:
            later = self.tap.metrics.observe(obs, info, self.env)
            self._publish(later, action, reward, (terminated, truncated))
        except Exception as error:  # noqa: BLE001  as in reset
            self.tap.gate.fault(error)
        return obs, reward, terminated, truncated, info

    def _publish(
        self, later: NDArray[np.float64], action: Any, reward: Any, ends: tuple[bool, bool]
    ) -> None:
        tap = self.tap
        metrics = tap.metrics
        row = self._row
        now = self._now
        if now is None:
            now = np.full(metrics.width, np.nan)
        metrics.fill(
            row,
            now,
            later,
            action=action,
            reward=reward,
            terminated=ends[0],
            truncated=ends[1],
            t=tap.steps_in_episode,
        )
        if self.extra:
            metrics.fill_named(row, self.extra)
        tap.complete(row, *ends, self.controller)
        if self.extra:
            metrics.fill_named(row, dict.fromkeys(self.extra, np.nan))
            self.extra = {}
        self._now = later


class TappedVectorEnv(VectorWrapper):
    """n environments whose steps are streamed, in any of Gymnasium's three ways of autoreset.

    ``controller`` is one :class:`Controller` for all, or [n]; ``extra`` holds declared metrics [n]
    by name, for the next step only.
    """

    def __init__(self, env: VectorEnv[Any, Any, Any], tap: Tap) -> None:
        super().__init__(env)
        self.tap = tap
        self.controller: int | NDArray[np.uint8] = int(Controller.POLICY)
        self.extra: dict[str, NDArray[np.float64]] = {}
        tap.configure_for(env)
        self._same_step = tap.autoreset is Autoreset.SAME_STEP
        self._envs: Sequence[Any] = getattr(env.unwrapped, "envs", None) or [None] * env.num_envs
        self._now = np.full((env.num_envs, tap.metrics.width), np.nan)
        self._rows = np.full((env.num_envs, tap.metrics.row_width), np.nan)

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        """As the environment's; with a ``reset_mask`` only those copies begin a new episode."""
        # Gymnasium takes the mask out of the caller's dict, so it is read before.
        mask = (options or {}).get("reset_mask")
        obs, infos = self.env.reset(seed=seed, options=options)
        try:
            self.tap.reset(mask)
            where = np.arange(self.num_envs) if mask is None else np.flatnonzero(mask)
            snapshot = self.tap.metrics.observe_many(obs, infos, self._envs, where)
            self._now[where] = snapshot[where]
        except Exception as error:  # noqa: BLE001  a bug of ours must never reach the agent
            self.tap.gate.fault(error)
        return obs, infos

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """As the environment's; streams the steps."""
        obs, rewards, terminated, truncated, infos = self.env.step(actions)
        try:
            upcoming = self.tap.metrics.observe_many(obs, infos, self._envs, range(self.num_envs))
            self._publish(upcoming, actions, rewards, (terminated, truncated), infos)
        except Exception as error:  # noqa: BLE001  as in reset
            self.tap.gate.fault(error)
        return obs, rewards, terminated, truncated, infos

    def _publish(
        self,
        upcoming: NDArray[np.float64],
        actions: Any,
        rewards: Any,
        ends: tuple[NDArray[np.bool_], NDArray[np.bool_]],
        infos: Mapping[str, Any],
    ) -> None:
        tap, metrics, rows = self.tap, self.tap.metrics, self._rows
        later = upcoming
        ended = ends[0] | ends[1]
        if metrics.needs_next and self._same_step and ended.any():
            # The observation is of the next episode already; what came of the step is in final_*.
            later = self._with_finals(upcoming, infos, np.flatnonzero(ended))
        metrics.fill(
            rows,
            self._now,
            later,
            action=actions,
            reward=rewards,
            terminated=ends[0],
            truncated=ends[1],
            t=tap.steps_in_episode,
        )
        extra, self.extra = self.extra, {}
        metrics.fill_named(rows, extra)
        tap.complete(rows, *ends, self.controller)
        metrics.fill_named(rows, dict.fromkeys(extra, np.nan))
        self._now = upcoming

    def _with_finals(
        self, upcoming: NDArray[np.float64], infos: Mapping[str, Any], ended: NDArray[np.intp]
    ) -> NDArray[np.float64]:
        final_obs, final_info = infos["final_obs"], infos["final_info"]
        later = upcoming.copy()
        for i in ended:
            # The environments themselves were reset already: a pack must not look into them.
            info = info_of(final_info, int(i))
            try:
                later[i] = self.tap.metrics.observe(final_obs[i], info, None)
            except Exception:  # noqa: BLE001  a pack that needs the environment has no outcome here
                later[i] = self.tap.metrics.observe_info(info)
        return later


__all__ = ["MetricSet", "TappedEnv", "TappedVectorEnv", "wrap"]
