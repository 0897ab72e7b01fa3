"""Stable-Baselines3: stream a model's steps while it learns, or in a loop of ``model.predict``.

Learning: ``model.learn(..., callback=InterlatentCallback(["mlp_extractor.policy_net.0"]))``. A loop
of predictions: ``env = TappedVecEnv(model.get_env(), tap)``. Hook points are module names within
``model.policy``; critics, value nets, target nets and ``mlp_extractor`` itself do not run under
``predict`` and would stay silent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, VecNormalize, unwrap_vec_wrapper

from interlatent_live.agent.attach import attach
from interlatent_live.agent.metrics import MetricSet
from interlatent_live.errors import UserError
from interlatent_live.stream import Controller

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from interlatent_live.agent.metrics import MetricPack
    from interlatent_live.agent.tap import Tap
    from interlatent_live.stream import MetricSpec

TIME_LIMIT = "TimeLimit.truncated"
FINAL_OBSERVATION = "terminal_observation"


class StepReporter:
    """Turns what a Stable-Baselines3 environment returns into rows of a tap.

    Stable-Baselines3 resets a copy within the step that ended its episode; the last observation is
    in its info. Observations are the environment's own: where they are normalised, the original
    ones.
    """

    def __init__(self, tap: Tap, env: VecEnv) -> None:
        self.tap = tap
        self.controller = int(Controller.POLICY)
        tap.configure_for(env)
        self._n = env.num_envs
        self._normalizer = unwrap_vec_wrapper(env, VecNormalize)
        self._now = np.full((self._n, tap.metrics.width), np.nan)
        self._rows = np.full((self._n, tap.metrics.row_width), np.nan)

    def begin(self, obs: Any) -> None:
        """All copies were reset and returned ``obs``."""
        try:
            self.tap.reset()
            self._now = self._observe(self._newest(obs), [{}] * self._n)
        except Exception as error:  # noqa: BLE001  a bug of ours must never reach the agent
            self.tap.gate.fault(error)

    def step(
        self,
        actions: NDArray[Any],
        obs: Any,
        rewards: NDArray[Any],
        dones: NDArray[np.bool_],
        infos: Sequence[Mapping[str, Any]],
    ) -> None:
        """The copies took ``actions`` and returned the rest."""
        try:
            self._step(actions, obs, rewards, dones, infos)
        except Exception as error:  # noqa: BLE001  as in begin
            self.tap.gate.fault(error)

    def _step(
        self,
        actions: NDArray[Any],
        obs: Any,
        rewards: NDArray[Any],
        dones: NDArray[np.bool_],
        infos: Sequence[Mapping[str, Any]],
    ) -> None:
        tap, metrics = self.tap, self.tap.metrics
        truncated = dones & np.array([bool(info.get(TIME_LIMIT, False)) for info in infos])
        upcoming = self._observe(self._newest(obs), infos)
        later = upcoming
        if metrics.needs_next and dones.any():
            later = self._with_finals(upcoming, dones, infos)
        if self._normalizer is not None:
            rewards = self._normalizer.get_original_reward()
        # A single copy is a row, not a batch of one: so the tap counts it.
        pick: Any = slice(None) if self._n > 1 else 0
        row, ends = self._rows[pick], ((dones & ~truncated)[pick], truncated[pick])
        metrics.fill(
            row,
            self._now[pick],
            later[pick],
            action=actions[pick],
            reward=rewards[pick],
            terminated=ends[0],
            truncated=ends[1],
            t=tap.steps_in_episode,
        )
        tap.complete(row, *ends, self.controller)
        self._now = upcoming

    def _with_finals(
        self,
        upcoming: NDArray[np.float64],
        dones: NDArray[np.bool_],
        infos: Sequence[Mapping[str, Any]],
    ) -> NDArray[np.float64]:
        """Snapshots of what came of the step: where an episode ended, of its last observation."""
        later = upcoming.copy()
        for i in map(int, np.flatnonzero(dones)):
            final = infos[i].get(FINAL_OBSERVATION)
            if final is None:
                later[i] = self.tap.metrics.observe_info(infos[i])
                continue
            if self._normalizer is not None:
                final = self._normalizer.unnormalize_obs(final)
            later[i] = self.tap.metrics.observe(final, infos[i], None)
        return later

    def _newest(self, obs: Any) -> Any:
        """What the environment itself returned last."""
        return obs if self._normalizer is None else self._normalizer.get_original_obs()

    def _observe(self, obs: Any, infos: Sequence[Mapping[str, Any]]) -> NDArray[np.float64]:
        metrics = self.tap.metrics
        return np.stack([metrics.observe(_element(obs, i), infos[i], None) for i in range(self._n)])


class TappedVecEnv(VecEnvWrapper):
    """A vector environment of Stable-Baselines3 whose steps are streamed.

    Wrap it around the environment that the model's own loop steps; the row of a step is complete
    when ``step`` returns. Where the tap has control, every action passes its gate on the way in:
    the copies are one agent, so they are held and stopped together, each by the safe action, and
    episodes that end meanwhile begin anew as ever. It is for a loop of ``model.predict``: a model
    that learns must not be held (see :class:`InterlatentCallback`).
    """

    def __init__(self, venv: VecEnv, tap: Tap) -> None:
        super().__init__(venv)
        self.reporter = StepReporter(tap, venv)
        self._actions: NDArray[Any] = np.zeros(0)

    def reset(self) -> Any:
        """As the environment's."""
        obs = self.venv.reset()
        self.reporter.begin(obs)
        return obs

    def step_async(self, actions: NDArray[Any]) -> None:
        """As the environment's, with the actions that the gate lets through."""
        control = self.reporter.tap.control
        self._actions = actions if control is None else control.gate(actions)
        self.venv.step_async(self._actions)

    def step_wait(self) -> Any:
        """As the environment's; streams the step."""
        obs, rewards, dones, infos = self.venv.step_wait()
        self.reporter.step(self._actions, obs, rewards, dones, infos)
        return obs, rewards, dones, infos


class InterlatentCallback(BaseCallback):
    """Streams the steps a model takes while it learns.

    A learning policy is another one after each update, so its stream carries no policy hash that a
    transcoder could be bound to (``learning=True`` of :func:`interlatent_live.attach`).

    Args:
        hook_points: module names within ``model.policy``.
        metrics: as for :func:`interlatent_live.attach`; unless given, all that the environment
            shows.
        options: as for :func:`interlatent_live.attach`.

    Raises:
        UserError: when control is asked for.
    """

    def __init__(
        self,
        hook_points: Sequence[str],
        metrics: MetricSet | MetricPack | Sequence[str | MetricSpec] | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        if options.get("control") is not None:
            raise UserError(
                "control of a learning model is refused: it steps its environment itself, past any "
                "gate, and would learn from held or steered steps as if it had chosen them; put a "
                "trained one under control with attach(model.policy, …, control=…) and "
                "TappedVecEnv(model.get_env(), tap)"
            )
        self._hook_points = hook_points
        self._metrics = metrics
        self._options = options
        self.tap: Tap | None = None
        self._reporter: StepReporter | None = None

    def _on_training_start(self) -> None:
        env = self.training_env
        metrics = MetricSet.from_env(env) if self._metrics is None else self._metrics
        self.tap = attach(
            self.model.policy,
            self._hook_points,
            metrics,
            env=env,
            **({"learning": True} | self._options),
        )
        self._reporter = StepReporter(self.tap, env)
        # Set by the algorithm just before the callbacks start.
        self._reporter.begin(self.model._last_obs)  # noqa: SLF001  there is no other way to it

    def _on_step(self) -> bool:
        """Called right after ``env.step``, before anything else is forwarded."""
        seen = self.locals
        if self._reporter is not None:
            # What reached the environment: clipped or unscaled, where the algorithm did that.
            actions = np.asarray(seen.get("clipped_actions", seen.get("actions")))
            came = (seen["new_obs"], seen["rewards"], seen["dones"], seen["infos"])
            self._reporter.step(actions, *came)
        return True

    def _on_training_end(self) -> None:
        if self.tap is not None:
            self.tap.close()


def _element(obs: Any, i: int) -> Any:
    return {key: value[i] for key, value in obs.items()} if isinstance(obs, dict) else obs[i]
