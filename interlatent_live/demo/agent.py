"""The demo's agent: a trained policy acting in several copies of its environment, in real time.

It is an ordinary user of :func:`interlatent_live.attach`: hooks on the policy, rows of named
metrics, and nothing that the services could not be told by any other agent. In every tick it also
times the same forward on an unhooked copy of the policy, so that the cost of being watched is
measured under the very conditions it is paid in.
"""

from __future__ import annotations

import copy
import logging
import signal
import threading
import time
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import gymnasium
import msgspec
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from interlatent_live.agent.attach import attach
from interlatent_live.agent.pictures import Pictures
from interlatent_live.agent.shadow_values import ShadowOptions
from interlatent_live.demo.camera import Camera
from interlatent_live.demo.control import agent_name, demo_control, demo_transcoders
from interlatent_live.demo.report import AgentReport
from interlatent_live.environments.disturbance import disturbed
from interlatent_live.environments.metric_packs import StepMetrics, metric_pack_for
from interlatent_live.errors import UserError
from interlatent_live.policies.hashing import policy_hash
from interlatent_live.transcoders.acting import acting_policy
from interlatent_live.zoo.entry import find_entry

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from interlatent_live.agent.tap import Tap
    from interlatent_live.transcoders.acting import ActingPolicy
    from interlatent_live.zoo.entry import ZooEntry

FLUSH_S = 10.0
Y_EVERY = 8
"""Outputs y are sent every so many steps: enough for the live FVU."""
TIMINGS_KEPT = 20_000
PICTURED = frozenset({"CartPole-v1", "LunarLander-v3"})
"""Environments that are drawn in a few milliseconds."""

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Pacer:
    """Keeps a loop at a rate without drifting; a late tick is not made up for by rushing."""

    hz: float
    _next: float = field(default_factory=time.monotonic)

    @property
    def spare_s(self) -> float:
        """Seconds until the next tick is due."""
        return self._next + 1.0 / self.hz - time.monotonic()

    def wait(self, stop: threading.Event) -> None:
        """Sleep until the next tick is due, or the loop is to stop."""
        now = time.monotonic()
        self._next += 1.0 / self.hz
        if self._next > now:
            stop.wait(self._next - now)
        else:
            self._next = now


def make_envs(entry: ZooEntry, copies: int, *, pictured: bool = False) -> SyncVectorEnv[Any, Any]:
    """``copies`` disturbed copies that begin the next episode within the step that ended one.

    With ``pictured`` the first one can be rendered.
    """

    def one(render_mode: str | None = None) -> gymnasium.Env[Any, Any]:
        return disturbed(
            gymnasium.make(
                entry.environment,
                max_episode_steps=entry.max_episode_steps,
                render_mode=render_mode,
            ),
            entry.disturbance,
        )

    first = partial(one, "rgb_array") if pictured else one
    return SyncVectorEnv([first, *[one] * (copies - 1)], autoreset_mode=AutoresetMode.SAME_STEP)


def run_agent(
    env: str,
    *,
    endpoint: str,
    control: str | None = None,
    ask: str | None = None,
    pictures: str | None = None,
    explainer: str | None = None,
    report: Path | None = None,
    steps: int | None = None,
    copies: int | None = None,
    hz: float | None = None,
    seed: int | None = None,
    policy: str | None = None,
) -> AgentReport:
    """Act until ``steps`` steps (of all copies together) are taken, or a signal says stop.

    Args:
        env: an entry of the zoo, or the environment of one that the demo shows.
        endpoint: where the encoder takes steps.
        control: where the control service takes agents; None: nobody commands this one.
        ask: predicate over metrics under which the agent asks a person before it goes on.
        pictures: where the console takes pictures of the first copy; None: none are made.
        explainer: where the explainer takes what features do to the action, and passes "why this
            action?" on; None: neither is worked out.
        report: file for the agent's own account, JSON.
        steps: how many steps; ``None`` means until SIGINT or SIGTERM.
        copies: copies of the environment; the entry's otherwise.
        hz: steps per second and copy; the entry's otherwise.
        seed: seed of starts and pushes; the entry's live seed otherwise.
        policy: another policy than the entry's, by name or path.

    Raises:
        UserError: for an unknown environment or policy.
    """
    entry = find_entry(env)
    acting = acting_policy(policy or entry.policy, environment=entry.environment)
    module = acting.module
    pictured = pictures is not None and entry.environment in PICTURED
    envs = make_envs(entry, copies or entry.live.copies, pictured=pictured)
    measure = StepMetrics(metric_pack_for(entry.environment), acting.output_kind)
    stop = _stop_on_signals()
    bare = copy.deepcopy(module)
    tap = attach(
        module,
        entry.hook_points,
        metrics=measure.specs,
        endpoint=endpoint,
        agent=agent_name(env),
        env=envs,
        environment=entry.environment,
        control_hz=hz or entry.live.control_hz,
        actions=measure.pack.family.actions,
        y_every=Y_EVERY,
        control=None
        if control is None
        else demo_control(
            entry.environment,
            policy_hash(module),
            entry.hook_points,
            endpoint=control,
            ask=ask,
        ),
        shadow=None
        if explainer is None
        else _shadow(policy_hash(module), entry.hook_points, explainer),
    )
    loop = _Loop(
        acting,
        bare,
        envs,
        measure=measure,
        tap=tap,
        seed=entry.live.seed if seed is None else seed,
    )
    camera = _camera(envs, tap, pictures) if pictured and pictures is not None else None
    pacer = Pacer(hz or entry.live.control_hz)
    began = time.monotonic()
    try:
        while not stop.is_set() and (steps is None or loop.steps < steps):
            loop.tick()
            if camera is not None:
                camera.look(pacer.spare_s)
            pacer.wait(stop)
    finally:
        wall_s = time.monotonic() - began
        if camera is not None:
            camera.close()
        tap.close(FLUSH_S)
        envs.close()
    link = tap.stats().link
    account = AgentReport(
        run_id=tap.run_id,
        steps_sent=link.sent,
        declared={str(reason): count for reason, count in (link.lost or {}).items() if count},
        episodes=len(loop.returns),
        mean_return=float(np.mean(loop.returns)) if loop.returns else None,
        wall_s=wall_s,
        tap_on_us=_median_us(loop.tap_on_ns),
        tap_off_us=_median_us(loop.tap_off_ns),
    )
    if report is not None:
        report.write_bytes(msgspec.json.encode(account))
    return account


def _shadow(policy_hash: str, hook_points: Sequence[str], explainer: str) -> ShadowOptions | None:
    """A shadow on the transcoders that the package carries; None where it has none."""
    found = demo_transcoders(policy_hash, hook_points)
    return ShadowOptions(transcoders=found, explainer=explainer) if found else None


def _camera(envs: SyncVectorEnv[Any, Any], tap: Tap, endpoint: str) -> Camera | None:
    """Looks at the first copy; None where what draws it or what encodes it is not installed."""
    try:
        return Camera(envs.envs[0].render, Pictures(tap, endpoint=endpoint))
    except (UserError, gymnasium.error.DependencyNotInstalled) as error:
        logger.info("no pictures: %s", error)
        return None


class _Loop:
    """One agent loop over all copies; ``tick`` takes one step in each."""

    def __init__(
        self,
        acting: ActingPolicy,
        bare: torch.nn.Module,
        envs: SyncVectorEnv[Any, Any],
        *,
        measure: StepMetrics,
        tap: Tap,
        seed: int,
    ) -> None:
        self._acting = acting
        self._bare = bare
        self._envs = envs
        self._measure = measure
        self._tap = tap
        self._obs, _ = envs.reset(seed=seed)
        self._rng = np.random.default_rng(seed)  # of policies that sample
        self._t = np.zeros(envs.num_envs, np.int64)
        self._running = np.zeros(envs.num_envs)
        self.steps = 0
        self.returns: list[float] = []
        self.tap_on_ns: list[int] = []
        self.tap_off_ns: list[int] = []

    def tick(self) -> None:
        """Observe, act, step, stream."""
        obs = self._obs
        outputs, forward_ns, bare_ns = self._forward(torch.from_numpy(obs.copy()))
        actions, gate_ns = self._gated(self._acting.actions(outputs, self._rng))
        self._obs, rewards, terminated, truncated, _ = self._envs.step(actions)
        began = time.perf_counter_ns()
        rows = self._measure.rows(obs, self._t, actions, rewards, outputs.numpy())
        self._tap.complete(rows, terminated, truncated)
        if len(self.tap_on_ns) < TIMINGS_KEPT:
            self.tap_on_ns.append(forward_ns + gate_ns + time.perf_counter_ns() - began)
            self.tap_off_ns.append(bare_ns)
        self._count(rewards, terminated | truncated)

    def _gated(self, actions: NDArray[Any]) -> tuple[NDArray[Any], int]:
        """The actions that control lets through, and what that took, in ns."""
        if self._tap.control is None:
            return actions, 0
        began = time.perf_counter_ns()
        return self._tap.control.gate(actions), time.perf_counter_ns() - began

    def _forward(self, obs: torch.Tensor) -> tuple[torch.Tensor, int, int]:
        """Outputs, and ns of the forward with hooks and without, in alternating order."""
        with torch.no_grad():
            if len(self.tap_on_ns) % 2:
                outputs, hooked = _timed(self._acting.module, obs)
                _, bare = _timed(self._bare, obs)
            else:
                _, bare = _timed(self._bare, obs)
                outputs, hooked = _timed(self._acting.module, obs)
        return outputs, hooked, bare

    def _count(self, rewards: NDArray[np.float64], ended: NDArray[np.bool_]) -> None:
        self.steps += len(rewards)
        self._running += rewards
        self._t += 1
        for env in np.flatnonzero(ended):
            self.returns.append(float(self._running[env]))
            self._running[env] = 0.0
            self._t[env] = 0


def _timed(
    module: Callable[[torch.Tensor], torch.Tensor], obs: torch.Tensor
) -> tuple[torch.Tensor, int]:
    began = time.perf_counter_ns()
    outputs = module(obs)
    return outputs, time.perf_counter_ns() - began


def _median_us(timings_ns: list[int]) -> float:
    return float(np.median(timings_ns)) / 1e3 if timings_ns else 0.0


def _stop_on_signals() -> threading.Event:
    stop = threading.Event()
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stop.set())
    return stop
