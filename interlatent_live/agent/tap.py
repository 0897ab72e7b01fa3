"""The tap: one acting policy's steps, aligned, numbered and handed to the sender.

:class:`Tap` needs no torch. With hooks (see :func:`interlatent_live.attach`) the activations of a
step are already in the ring when :meth:`Tap.step` completes its row; without, :meth:`Tap.publish`
takes them as arrays. Nothing here waits, and nothing here raises into the agent unless ``strict``
says so.
"""

from __future__ import annotations

import logging
import uuid
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import prod
from os import getpid
from threading import get_ident
from typing import TYPE_CHECKING, Any, Final, Protocol, Self

import numpy as np

from interlatent_live.agent.acting import NEVER, Gate, Point
from interlatent_live.agent.batches import batch_of
from interlatent_live.agent.metrics import MetricSet
from interlatent_live.agent.options import Autoreset, OnFull, TapOptions
from interlatent_live.agent.stats import LinkStats, TapStats
from interlatent_live.agent.writer import BlockedError, StepWriter
from interlatent_live.errors import UserError
from interlatent_live.stream import Controller, HookPointSpec, Manifest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import ArrayLike, NDArray

    from interlatent_live.agent.control import AgentControl
    from interlatent_live.agent.metrics import MetricPack
    from interlatent_live.agent.ring import Ring
    from interlatent_live.agent.shadow_values import ShadowWorker
    from interlatent_live.agent.writer import Lane
    from interlatent_live.stream import MetricSpec, StepBatch

logger = logging.getLogger(__name__)

_AUTORESET: Final = {
    "NextStep": Autoreset.NEXT_STEP,
    "SameStep": Autoreset.SAME_STEP,
    "Disabled": Autoreset.DISABLED,
}


class Feed(Protocol):
    """Who takes the steps out of the ring (:class:`interlatent_live.agent.sender.Sender`)."""

    def close(self, timeout_s: float) -> None:
        """Flush for at most ``timeout_s`` and end."""
        ...

    def stats(self) -> LinkStats:
        """Counters of the way out."""
        ...


class Tap:
    """Streams the steps of one acting policy; use it as a context manager, or close it.

    Args:
        metrics: names, specs, a metric pack or a :class:`MetricSet`.
        options: everything else; see :class:`TapOptions`.
        policy_hash: content hash of the policy's weights, ``sha256:…``; transcoders are bound to
            it.
        hook_points: hook points with widths, where they are known; :meth:`publish` adds what it
            sees.
        env: the environment or vector environment, to learn the number of copies and the way of
            autoreset from it.
        env_count: number of agent copies, where there is no ``env``.
        autoreset: how a vectorised environment begins the next episode, where there is no ``env``.
        changes: single options, on top of ``options``.

    Raises:
        UserError: when the options contradict each other.
    """

    def __init__(
        self,
        metrics: MetricSet | MetricPack | Sequence[str | MetricSpec] | None = None,
        options: TapOptions | None = None,
        *,
        policy_hash: str = "none",
        hook_points: Sequence[HookPointSpec] = (),
        env: Any = None,
        env_count: int | None = None,
        autoreset: Autoreset | str | None = None,
        **changes: Any,
    ) -> None:
        self.options = replace(options or TapOptions(), **changes)
        self.metrics = MetricSet.of(metrics)
        self.policy_hash = policy_hash
        self.run_id = self.options.run_id or f"{self.options.agent}-{uuid.uuid4().hex[:12]}"
        self.boot_id = uuid.uuid4().hex
        self.points = {h.name: Point(h.name, h.d_in, h.d_out) for h in hook_points}
        self.gate = Gate(strict=self.options.strict)
        self.manifest: Manifest | None = None
        self._writer = StepWriter(
            self.options, self.gate, self.points, self.metrics.row_width, self._opened
        )
        self._feed: Feed | None = None
        self._pid = getpid()
        self._on_close: list[Callable[[], None]] = []
        self._closed = False
        self._info: Mapping[str, Any] = {}
        self._thread_told = False
        self._changed: Callable[[], bool] | None = None
        self.shadow: ShadowWorker | None = None
        """What measures features beside the policy, where it was asked for."""
        self.control: AgentControl | None = None
        """What people command, where it was asked for; a loop of one's own calls its ``gate``."""
        self.changed = False
        """Whether the policy's weights changed while it was attached."""
        self._row_width = self.metrics.row_width
        self._silent_after = self.options.silent_after
        self._row = np.full(self.metrics.row_width, np.nan)
        self._rows = self._row[None]
        if env is not None:
            self.configure_for(env)
        elif env_count is not None or autoreset is not None:
            self._configure(env_count or 1, autoreset)
        self.check()

    # -- before the first step ------------------------------------------------------------------

    @property
    def autoreset(self) -> Autoreset | None:
        """How episodes of a vectorised environment begin."""
        return self._writer.clock.autoreset

    def configure_for(self, env: Any) -> None:
        """Learn the number of agent copies and the way of autoreset from an environment.

        Raises:
            UserError: when steps were already taken with another number of copies.
        """
        count = getattr(env, "num_envs", None)
        if count is None:
            self._configure(1, Autoreset.DISABLED)
            return
        mode = (getattr(env, "metadata", None) or {}).get("autoreset_mode")
        # Stable-Baselines3's vector environments have no such entry and reset in the same step.
        word = str(getattr(mode, "value", mode))
        self._configure(int(count), _AUTORESET.get(word, Autoreset.SAME_STEP))

    def _configure(self, env_count: int, autoreset: Autoreset | str | None) -> None:
        if autoreset is None and env_count > 1:
            raise UserError(
                f"with {env_count} agent copies the tap must know how episodes begin: pass "
                "env=..., or autoreset='next_step' (Gymnasium's default), 'same_step' or 'disabled'"
            )
        if not 1 <= env_count <= 2**16:
            raise UserError(f"env_count is {env_count}; it must be between 1 and 65536")
        try:
            mode = None if autoreset is None else Autoreset(autoreset)
        except ValueError:
            raise UserError(
                f"autoreset is {autoreset!r}; it may be next_step, same_step or disabled"
            ) from None
        if self._writer.calls:
            if env_count != self.gate.envs:
                raise UserError(
                    f"the tap has already streamed {self.gate.envs} agent copies and cannot change "
                    f"to {env_count}; attach a new one"
                )
            return
        self._writer.arrange(env_count, mode)
        self._rows = np.full((env_count, self.metrics.row_width), np.nan)

    def use_lane(self, lane: Lane) -> None:
        """Copy activations through a device lane; before the first step."""
        self._writer.lane = lane

    def watch(self, changed: Callable[[], bool]) -> None:
        """Ask ``changed`` at each step whether the policy still is the one of the manifest."""
        self._changed = changed

    def on_close(self, action: Callable[[], None]) -> None:
        """Do something when the tap closes, such as taking hooks off."""
        self._on_close.append(action)

    # -- acting ---------------------------------------------------------------------------------

    @contextmanager
    def acting(self) -> Iterator[None]:
        """Mark the forwards that act. Once used, no other forward is ever taken for a step."""
        gate = self.gate
        gate.explicit_only = True
        before, gate.explicit = gate.explicit, True
        try:
            yield
        finally:
            gate.explicit = before

    def move_to_this_thread(self) -> None:
        """From now on this thread acts and steps (the first to step is taken for it otherwise)."""
        self.gate.thread = get_ident()

    # -- stepping -------------------------------------------------------------------------------

    def step(
        self,
        metrics: Mapping[str, Any] | ArrayLike | None = None,
        *,
        obs: Any = None,
        action: Any = None,
        reward: Any = None,
        terminated: Any = False,
        truncated: Any = False,
        info: Mapping[str, Any] | None = None,
        next_obs: Any = None,
        env: Any = None,
        controller: int | ArrayLike = Controller.POLICY,
    ) -> None:
        """Complete the row of one environment step, right after ``env.step``.

        For n > 1 agent copies every argument has n elements along its first axis, and a step that
        was a reset call (next-step autoreset) is recognised and left out.

        Args:
            metrics: the whole row [M] (or [n, M]) in the order of the tap's metrics, or values by
                name on top of what the other arguments give.
            obs: obs_t, which the policy saw; read by the tap's metric pack if it has one.
            action: a_t.
            reward: reward_{t+1}.
            terminated: whether the step ended the episode.
            truncated: whether it met a time limit.
            info: the info that came with reward_{t+1}.
            next_obs: obs_{t+1}, for metrics of the outcome; in vector environments the final
                observation where the episode ended.
            env: passed on to the metric pack.
            controller: who chose the action.

        Raises:
            UserError: under ``on_full="block"``, when no room came up in time; anything under
                ``strict``.
        """
        try:
            if self._may_write():
                row = self._row_of(
                    metrics,
                    _Step(obs, action, reward, terminated, truncated, info or {}, next_obs, env),
                )
                self.complete(row, terminated, truncated, controller)
        except BlockedError:
            raise
        except Exception as error:  # noqa: BLE001  a bug of ours must never reach the agent
            self.gate.fault(error)

    def complete(
        self,
        row: NDArray[np.float64],
        terminated: Any,
        truncated: Any,
        controller: int | ArrayLike = Controller.POLICY,
    ) -> None:
        """Complete a step whose metric row [M] (or rows [n, M]) is ready.

        Raises:
            UserError: as :meth:`step`.
        """
        gate = self.gate
        try:
            # The usual case in one look; each call not made counts where caches are cold.
            if (
                gate.thread == get_ident() and getpid() == self._pid and not self._closed
            ) or self._may_write():
                if row.shape[-1] != self._row_width:
                    row = self.metrics.whole(row)
                writer = self._writer
                if self._changed is not None and self._changed():
                    self._weights_changed()
                if self.control is not None:
                    controller = self.control.finish(row, terminated, truncated, controller)
                writer.complete(row, terminated, truncated, controller)
                if writer.calls == self._silent_after:
                    self._report_silence()
        except BlockedError:
            raise
        except Exception as error:  # noqa: BLE001  as in step
            gate.fault(error)

    def publish(
        self,
        metrics: Mapping[str, Any] | ArrayLike | None = None,
        x: Mapping[str, ArrayLike] | None = None,
        y: Mapping[str, ArrayLike] | None = None,
        **step: Any,
    ) -> None:
        """Publish one step of a policy that is not torch: :meth:`step` with its activations.

        Args:
            metrics: as in :meth:`step`.
            x: inputs by hook point, [d_in] or [n, d_in].
            y: outputs by hook point, [d_out] or [n, d_out]; may be left out after the first step,
                or where ``hook_points`` gave the width. Steps without y have no reconstruction
                error.
            step: the other arguments of :meth:`step`.

        Raises:
            UserError: as :meth:`step`.
        """
        try:
            for name, value in (x or {}).items():
                self._store(name, value, (y or {}).get(name))
        except Exception as error:  # noqa: BLE001  as in step
            self.gate.fault(error)
        self.step(metrics, **step)

    def _store(self, name: str, x: ArrayLike, y: ArrayLike | None) -> None:
        gate = self.gate
        point = self.points.get(name)
        if point is None:
            if gate.ring is not None:
                raise UserError(
                    f"hook point {name!r} was not in the first step published; publish all hook "
                    "points from the first step on, or name them in hook_points"
                )
            point = self.points[name] = Point(name)
        xs = np.asarray(x).reshape(gate.envs, -1)
        ys = None if y is None else np.asarray(y).reshape(gate.envs, -1)
        if ys is None:
            point.y_optional = True
            if point.d_out is None:
                raise UserError(
                    f"the width of y at {name!r} is unknown: publish y with the first step, or "
                    "name it in hook_points=[HookPointSpec(name, d_in, d_out)]"
                )
        elif gate.ring is None:
            point.d_out = ys.shape[1]
        if gate.ring is None:
            point.d_in = xs.shape[1]
        gate.store(point, xs, ys)

    def reset(self, mask: ArrayLike | None = None) -> None:
        """Begin a new episode without a step that ended the old one (an ``env.reset`` in between).

        ``mask`` [n] selects the copies that were reset, None all. Copies at the very start of an
        episode stay where they are.
        """
        self._writer.clock.reset(mask)

    @property
    def steps_in_episode(self) -> int | NDArray[np.uint32]:
        """Step within the episode of the next row: an int, or [n] for n copies."""
        clock = self._writer.clock
        return clock.one_t if clock.n == 1 else clock.t

    @property
    def place(self) -> tuple[int, int] | tuple[NDArray[np.uint32], NDArray[np.int64]]:
        """Episode and step within it of the next row: two ints, or [n] of n copies.

        The step is −1 where the next call is a reset and no step.
        """
        return self._writer.clock.place

    def wrap(self, env: Any) -> Any:
        """The environment, wrapped so that every step of it is streamed with its metrics.

        With control, every action passes its gate on the way in.

        Raises:
            UserError: when it is no Gymnasium environment.
        """
        from interlatent_live.agent.gymnasium import wrap  # noqa: PLC0415  publishing needs no Gymnasium

        wrapped = wrap(env, self)
        if self.control is None:
            return wrapped
        from interlatent_live.agent.gating import gated  # noqa: PLC0415  likewise

        return gated(wrapped, self.control)

    # -- reading --------------------------------------------------------------------------------

    @property
    def rows(self) -> int:
        """How many rows were numbered so far, which is the number of the next one."""
        return self._writer.numbered()

    @property
    def link_state(self) -> str:
        """State of the way to the encoder, as in :class:`LinkStats`."""
        return "none" if self._feed is None else self._feed.stats().state

    def take(self, max_rows: int = 4096) -> StepBatch | None:
        """Take waiting steps out, for use within this process; None when there are none.

        Raises:
            UserError: when the tap streams to an endpoint, whose sender takes the steps.
        """
        if self.options.endpoint is not None:
            raise UserError(
                "this tap streams to its endpoint; attach with endpoint=None to take steps"
            )
        self._writer.open()
        if self._writer.ring is None:
            return None
        taken, lost = self._writer.ring.take(max_rows)
        if taken is None and lost is None and self._writer.ring.backlog():
            taken, lost = self._writer.ring.take(max_rows)
        if taken is None:
            return None
        return batch_of(taken, self.points, self.metrics.finish(taken.metrics))

    def stats(self) -> TapStats:
        """A snapshot of all counters."""
        writer, gate = self._writer, self.gate
        link = self._feed.stats() if self._feed is not None else LinkStats()
        steps = writer.numbered()
        return TapStats(
            steps=steps,
            waiting=max(0, steps - link.sent),
            not_steps=writer.clock.not_steps,
            sampled_out=writer.sampled_out,
            faults=gate.faults,
            last_error=gate.last_error,
            silent=tuple(point.name for point in self._silent()),
            refused_forwards={p.name: dict(p.refused) for p in self.points.values() if p.refused},
            buffer_bytes=writer.ring.layout.nbytes if writer.ring is not None else 0,
            link=link,
        )

    def close(self, timeout_s: float = 2.0) -> None:
        """Flush for at most ``timeout_s`` seconds, say goodbye, take the hooks off. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self.gate.recording = False
        for action in self._on_close:
            action()
        if getpid() != self._pid:
            return
        self._writer.open()
        if self._feed is not None:
            self._feed.close(timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    # -- within ---------------------------------------------------------------------------------

    def _may_write(self) -> bool:
        """Whether this call may write: same process, same thread, still open."""
        if self._closed:
            return False
        if getpid() != self._pid:
            # A forked child has a copy of the ring and no sender; it must stay inert.
            self.gate.recording = False
            self._closed = True
            return False
        gate = self.gate
        thread = get_ident()
        if gate.thread is None:
            gate.thread = thread
        return gate.thread == thread or self._refuse_thread()

    def _refuse_thread(self) -> bool:
        sentence = (
            "a tap belongs to the one thread that acts; steps from another thread are ignored: "
            "attach one tap per thread, or call tap.move_to_this_thread()"
        )
        if self.gate.strict:
            raise UserError(sentence)
        self.gate.faults += 1
        self.gate.last_error = sentence
        if not self._thread_told:
            self._thread_told = True
            logger.error(sentence)
        return False

    def _weights_changed(self) -> None:
        self._changed = None
        self._writer.stale = True
        self.changed = True
        logger.warning(
            "the policy's weights changed after it was attached, so it is no longer %s: its steps "
            "go on with metrics and without activations; attach it anew, or attach with "
            "learning=True",
            self.policy_hash,
        )

    def _report_silence(self) -> None:
        for point in self._silent():
            logger.warning(
                "hook point %r stayed silent for %d steps: %s",
                point.name,
                self._writer.calls,
                point.silence(self.gate.envs),
            )

    def _silent(self) -> list[Point]:
        if self._writer.calls < self.options.silent_after:
            return []
        return [p for p in self.points.values() if p.first_fired == NEVER]

    def _row_of(
        self, metrics: Mapping[str, Any] | ArrayLike | None, step: _Step
    ) -> NDArray[np.float64]:
        one = self.gate.envs == 1
        row = self._row if one else self._rows
        by_name = isinstance(metrics, dict)
        if metrics is not None and not by_name:
            given = np.asarray(metrics, np.float64)
            wanted = (*row.shape[:-1], len(self.metrics))
            if given.shape == wanted:
                return given
            if given.size != prod(wanted):
                raise UserError(f"metrics has shape {given.shape}; this tap's row is {wanted}")
            return given.reshape(wanted)
        row.fill(np.nan)
        now, later = self._snapshots(step) if self.metrics.width else (_NOTHING, None)
        self.metrics.fill(
            row,
            now,
            later,
            action=step.action,
            reward=step.reward,
            terminated=step.terminated,
            truncated=step.truncated,
            t=self.steps_in_episode,
        )
        self._info = step.info
        if by_name:
            self.metrics.fill_named(row, metrics)  # type: ignore[arg-type] # a dict, as just asked
        return row

    def _snapshots(self, step: _Step) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
        columns, n = self.metrics, self.gate.envs
        later = None
        if n == 1:
            now = columns.observe_info(self._info)
            if step.obs is not None:
                now = columns.observe(step.obs, self._info, step.env)
            if columns.needs_next and step.next_obs is not None:
                later = columns.observe(step.next_obs, step.info, step.env)
            elif columns.needs_next:
                later = columns.observe_info(step.info)
            return now, later
        envs = [None] * n if step.env is None else step.env
        now = np.full((n, columns.width), np.nan)
        if step.obs is not None:
            now = columns.observe_many(step.obs, self._info, envs, range(n))
        if columns.needs_next and step.next_obs is not None:
            later = columns.observe_many(step.next_obs, step.info, envs, range(n))
        return now, later

    def _manifest_with(self, hook_points: tuple[HookPointSpec, ...]) -> Manifest:
        options = self.options
        return Manifest(
            agent=options.agent,
            run_id=self.run_id,
            boot_id=self.boot_id,
            policy_hash=self.policy_hash,
            hook_points=hook_points,
            metrics=self.metrics.specs,
            env_count=self.gate.envs,
            control_hz=options.control_hz,
            environment=options.environment,
            actions=options.actions,
        )

    def check(self) -> None:
        """Check that names and address fit the wire, while it is still easy to see whose they are.

        Raises:
            UserError: naming what does not fit.
        """
        endpoint = self.options.endpoint
        if endpoint is None:
            return
        # Without an endpoint no part of the wire is needed.
        from interlatent_live.wire.codec import encode_hello  # noqa: PLC0415
        from interlatent_live.wire.sockets import check_endpoint  # noqa: PLC0415

        check_endpoint(endpoint, protected=self.options.keys is not None, listening=False)
        points = self.points.values()
        hooks = (HookPointSpec(p.name, p.d_in or 1, p.d_out or 1) for p in points)
        encode_hello(self._manifest_with(tuple(hooks)))
        if self.options.encode_at == "agent" and self.points:
            from interlatent_live.agent.features import AgentEncoder  # noqa: PLC0415  brings torch

            known = (HookPointSpec(p.name, p.d_in or 0, p.d_out or 0) for p in points)
            AgentEncoder(self.options.transcoders or {}, self._manifest_with(tuple(known)))

    def _opened(self, ring: Ring) -> None:
        """The ring exists: say who we are, and let the sender read it."""
        options = self.options
        self.manifest = self._manifest_with(ring.layout.hook_points)
        if options.endpoint is not None:
            from interlatent_live.agent.sender import Sender  # noqa: PLC0415  no sockets without one

            self._feed = Sender(ring, self.manifest, self.points, options, self.metrics.finish)
            self._writer.blocks = options.on_full == OnFull.BLOCK


@dataclass(slots=True)
class _Step:
    """The arguments of one step, passed on together."""

    obs: Any
    action: Any
    reward: Any
    terminated: Any
    truncated: Any
    info: Mapping[str, Any]
    next_obs: Any
    env: Any


_NOTHING: Final = np.zeros(0)
