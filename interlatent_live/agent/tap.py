"""The tap: one acting policy's steps, aligned, numbered and handed to the sender.

:class:`Tap` needs no torch. With hooks (see :func:`interlatent_live.attach`) the activations of a step
are already in the ring when :meth:`Tap.step` completes its row; without, :meth:`Tap.publish` takes
them as arrays. Nothing here waits, and nothing here raises into the agent unless ``strict`` says so.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import uuid
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Protocol, Self

import numpy as np

from interlatent_live.agent.acting import NEVER, Gate, Point
from interlatent_live.agent.metrics import MetricSet
from interlatent_live.agent.options import Autoreset, OnFull, TapOptions
from interlatent_live.agent.ring import FACTS, FACTS_STRUCT, Ring, Taken, plan_layout
from interlatent_live.errors import UserError
from interlatent_live.stream import (
    Activations,
    Controller,
    HookPointSpec,
    Manifest,
    StepBatch,
    StepFlag,
    Steps,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import ArrayLike, NDArray

    from interlatent_live.agent.metrics import MetricPack
    from interlatent_live.stream import MetricSpec

logger = logging.getLogger(__name__)

_TERMINATED: Final = int(StepFlag.TERMINATED)
_TRUNCATED: Final = int(StepFlag.TRUNCATED)
_SILENT: Final = int(StepFlag.NO_ACTIVATION)
_FACTS_BYTES: Final = FACTS.itemsize


class Lane(Protocol):
    """The way of activations from a device to the ring (:class:`interlatent_live.agent.cuda.CudaLane`)."""

    def allocate(self, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """A float32 ring column the device can copy into."""
        ...

    def flush(self, gate: Gate) -> None:
        """Start the copies of the block under construction."""
        ...

    def ready(self, block: int) -> bool:
        """Whether they have landed."""
        ...


class Feed(Protocol):
    """Who takes the steps out of the ring (:class:`interlatent_live.agent.sender.Sender`)."""

    def close(self, timeout_s: float) -> None:
        """Flush for at most ``timeout_s`` and end."""
        ...

    def stats(self) -> LinkStats:
        """Counters of the way out."""
        ...


@dataclass(frozen=True, slots=True)
class LinkStats:
    """The sender's ledger: ``sent = acknowledged + sum(lost.values()) + in_flight``, in rows."""

    state: str = "none"
    sent: int = 0
    acknowledged: int = 0
    lost: Mapping[str, int] | None = None
    in_flight: int = 0
    last_error: str = ""
    spooled_bytes: int = 0


@dataclass(frozen=True, slots=True)
class TapStats:
    """What a tap did, in rows (one step of one agent copy).

    ``steps = waiting + link.sent``: every step was handed to the link, where it was acknowledged, is in
    flight or was declared lost, or still waits in the ring. ``not_steps`` counts reset calls of
    next-step autoreset, ``sampled_out`` what a sampling option left out, ``faults`` errors inside.
    """

    steps: int
    waiting: int
    not_steps: int
    sampled_out: int
    faults: int
    last_error: str
    silent: tuple[str, ...]
    refused_forwards: Mapping[str, Mapping[str, int]]
    buffer_bytes: int
    link: LinkStats


class Tap:
    """Streams the steps of one acting policy; use it as a context manager, or close it.

    Args:
        metrics: names, specs, a metric pack or a :class:`MetricSet`.
        options: everything else; see :class:`TapOptions`.
        policy_hash: content hash of the policy's weights, ``sha256:…``; transcoders are bound to it.
        hook_points: hook points with widths, where they are known; :meth:`publish` adds what it sees.
        env: the environment or vector environment, to learn the number of copies and the way of
            autoreset from it.
        env_count: number of agent copies, where there is no ``env``.
        autoreset: how a vectorised environment begins the next episode, where there is no ``env``.

    Raises:
        UserError: when the options contradict each other.
    """

    def __init__(
        self,
        metrics: MetricSet | MetricPack | Sequence[str | MetricSpec] | None = None,
        options: TapOptions | None = None,
        *,
        policy_hash: str = "",
        hook_points: Sequence[HookPointSpec] = (),
        env: Any = None,
        env_count: int | None = None,
        autoreset: Autoreset | str | None = None,
        **changes: Any,
    ) -> None:
        options = options or TapOptions()
        self.options = replace(options, **changes) if changes else options
        self.metrics = MetricSet.of(metrics)
        self.policy_hash = policy_hash
        self.run_id = self.options.run_id or f"{self.options.agent}-{uuid.uuid4().hex[:12]}"
        self.boot_id = uuid.uuid4().hex
        self.points = {h.name: Point(h.name, h.d_in, h.d_out) for h in hook_points}
        self.gate = Gate(strict=self.options.strict)
        self.manifest: Manifest | None = None
        self.ring: Ring | None = None
        self._pid = os.getpid()
        self._lane: Lane | None = None
        self._feed: Feed | None = None
        self._on_close: list[Callable[[], None]] = []
        self._closed = False
        self._blocks = False
        self._info: Mapping[str, Any] = {}
        self._early: list[_EarlyStep] = []
        self._calls = 0
        self._until_sample = 1
        self._not_steps = 0
        self._sampled_out = 0
        self._thread_told = False
        self.autoreset: Autoreset | None = None
        self._configured = False
        self._arrange(1, None)
        if env is not None:
            self.configure_for(env)
        elif env_count is not None or autoreset is not None:
            self._configure(env_count or 1, autoreset)

    # -- before the first step ------------------------------------------------------------------

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
        word = getattr(mode, "value", mode)
        table = {
            "NextStep": Autoreset.NEXT_STEP,
            "SameStep": Autoreset.SAME_STEP,
            "Disabled": Autoreset.DISABLED,
        }
        self._configure(int(count), table.get(str(word), Autoreset.SAME_STEP))

    def _configure(self, env_count: int, autoreset: Autoreset | str | None) -> None:
        if self._calls and env_count != self._n:
            raise UserError(
                f"the tap has already streamed {self._n} agent copies and cannot change to {env_count}; "
                "attach a new one"
            )
        if autoreset is None and env_count > 1:
            raise UserError(
                f"with {env_count} agent copies the tap must know how episodes begin: pass env=..., or "
                "autoreset='next_step' (Gymnasium's default), 'same_step' or 'disabled'"
            )
        if not 1 <= env_count <= 2**16:
            raise UserError(f"env_count is {env_count}; it must be between 1 and 65536")
        try:
            mode = None if autoreset is None else Autoreset(autoreset)
        except ValueError:
            raise UserError(
                f"autoreset is {autoreset!r}; it may be next_step, same_step or disabled"
            ) from None
        self._configured = True
        if not self._calls:
            self._arrange(env_count, mode)

    def _arrange(self, env_count: int, autoreset: Autoreset | None) -> None:
        chosen = self.options.envs
        envs = tuple(range(env_count)) if chosen is None else tuple(chosen)
        if chosen is not None and (
            len(set(envs)) != len(envs) or not envs or (env_count > 1 and max(envs) >= env_count)
        ):
            raise UserError(f"envs={chosen} must name different copies below {env_count}")
        self._n = env_count
        self._envs = envs if env_count > 1 else (0,)
        self.autoreset = autoreset
        gate = self.gate
        gate.envs = env_count
        gate.index = None
        if len(self._envs) != env_count or self._envs != tuple(range(env_count)):
            gate.index = np.array(self._envs, np.intp)
        self._episode = np.zeros(env_count, np.uint32)
        self._t = np.zeros(env_count, np.uint32)
        self._between = np.zeros(env_count, bool)
        self._one_episode = 0
        self._one_t = 0
        self._row = np.full(len(self.metrics), np.nan)
        self._rows = np.full((env_count, len(self.metrics)), np.nan)

    def use_lane(self, lane: Lane) -> None:
        """Copy activations through a device lane; before the first step."""
        self._lane = lane

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
        self.gate.thread = threading.get_ident()

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

        For n > 1 agent copies every argument has n elements along its first axis, and a step that was
        a reset call (next-step autoreset) is recognised and left out.

        Args:
            metrics: the whole row [M] (or [n, M]) in the order of the tap's metrics, or values by name
                on top of what the other arguments give.
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
        """
        try:
            if not self._enter():
                return
            row = self._row_of(
                metrics, obs, action, reward, terminated, truncated, info, next_obs, env
            )
            self._complete(row, terminated, truncated, controller)
        except _Wait as full:
            raise UserError(str(full)) from None
        except Exception as error:  # noqa: BLE001  a bug of ours must never reach the agent
            self.gate.fault(error)

    def complete(
        self,
        row: NDArray[np.float64],
        terminated: Any,
        truncated: Any,
        controller: int | ArrayLike = Controller.POLICY,
    ) -> None:
        """Complete a step whose metric row [M] (or rows [n, M]) is ready; for wrappers."""
        try:
            if self._enter():
                self._complete(row, terminated, truncated, controller)
        except _Wait as full:
            raise UserError(str(full)) from None
        except Exception as error:  # noqa: BLE001  as in step
            self.gate.fault(error)

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
            y: outputs by hook point, [d_out] or [n, d_out]; may be left out where there is none, then
                the stream has no reconstruction error.
            step: the other arguments of :meth:`step`.
        """
        try:
            gate = self.gate
            for name, value in (x or {}).items():
                point = self.points.get(name)
                if point is None:
                    if self.ring is not None:
                        raise UserError(
                            f"hook point {name!r} was not there in the first step published; publish all "
                            "hook points from the first step on, or name them in hook_points"
                        )
                    point = self.points[name] = Point(name)
                xs = np.asarray(value).reshape(gate.envs, -1)
                out = (y or {}).get(name)
                if out is None:
                    point.y_optional = True
                    if point.d_out is None:
                        raise UserError(
                            f"the width of y at {name!r} is unknown: publish y with the first step, or "
                            "name it in hook_points=[HookPointSpec(name, d_in, d_out)]"
                        )
                ys = None if out is None else np.asarray(out).reshape(gate.envs, -1)
                if self.ring is None:
                    point.d_in = xs.shape[1]
                    if ys is not None:
                        point.d_out = ys.shape[1]
                gate.store(point, xs, ys)
        except Exception as error:  # noqa: BLE001  as in step
            self.gate.fault(error)
        self.step(metrics, **step)

    def reset(self, mask: ArrayLike | None = None) -> None:
        """Begin a new episode without a step that ended the old one (an ``env.reset`` in between).

        ``mask`` [n] selects the copies that were reset, None all. Copies at the very start of an
        episode stay where they are.
        """
        if self._n == 1:
            if self._one_t:
                self._one_episode, self._one_t = self._one_episode + 1, 0
            return
        which = np.ones(self._n, bool) if mask is None else np.asarray(mask, bool)
        begun = which & (self._t > 0)
        self._episode[begun] += 1
        self._t[begun] = 0
        self._between &= ~which

    @property
    def steps_in_episode(self) -> Any:
        """Step within the episode of the next row: an int, or [n] for n copies."""
        return self._one_t if self._n == 1 else self._t

    def wrap(self, env: Any) -> Any:
        """The environment, wrapped so that every step of it is streamed with its metrics."""
        from interlatent_live.agent.gymnasium import wrap  # noqa: PLC0415  gymnasium is optional here

        return wrap(env, self)

    # -- reading --------------------------------------------------------------------------------

    def take(self, max_rows: int = 4096) -> StepBatch | None:
        """Take waiting steps out, for use within this process; None when there are none.

        Raises:
            UserError: when the tap streams to an endpoint, whose sender takes the steps.
        """
        if self._feed is not None:
            raise UserError("this tap streams to its endpoint; attach with endpoint=None to take steps")
        self._seal_early()
        if self.ring is None:
            return None
        taken, _ = self.ring.take(max_rows)
        return None if taken is None else batch_of(taken, self.points)

    def stats(self) -> TapStats:
        """A snapshot of all counters."""
        ring = self.ring
        link = self._feed.stats() if self._feed is not None else LinkStats()
        numbered = (ring.next_seq if ring is not None else 0) + sum(
            int(early.valid.sum()) for early in self._early
        )
        return TapStats(
            steps=numbered,
            waiting=max(0, numbered - link.sent),
            not_steps=self._not_steps,
            sampled_out=self._sampled_out,
            faults=self.gate.faults,
            last_error=self.gate.last_error,
            silent=tuple(p.name for p in self._silent()),
            refused_forwards={p.name: dict(p.refused) for p in self.points.values() if p.refused},
            buffer_bytes=ring.layout.nbytes if ring is not None else 0,
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
        if os.getpid() != self._pid:
            return
        self._seal_early()
        if self._feed is not None:
            self._feed.close(timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    # -- within ---------------------------------------------------------------------------------

    def _enter(self) -> bool:
        """Whether this call may write: same process, same thread, still open."""
        if self._closed:
            return False
        if os.getpid() != self._pid:
            # A forked child has a copy of the ring and no sender; it must stay inert.
            self.gate.recording = False
            self._closed = True
            return False
        gate = self.gate
        thread = threading.get_ident()
        if gate.thread is None:
            gate.thread = thread
        elif gate.thread != thread:
            gate.faults += 1
            gate.last_error = "a step was reported from a second thread"
            if not self._thread_told:
                self._thread_told = True
                logger.error(
                    "a tap belongs to the one thread that acts; steps from another thread are ignored: "
                    "attach one tap per thread, or call tap.move_to_this_thread()"
                )
            if gate.strict:
                raise UserError("a tap belongs to the one thread that acts")
            return False
        return True

    def _row_of(
        self,
        metrics: Mapping[str, Any] | ArrayLike | None,
        obs: Any,
        action: Any,
        reward: Any,
        terminated: Any,
        truncated: Any,
        info: Mapping[str, Any] | None,
        next_obs: Any,
        env: Any,
    ) -> NDArray[np.float64]:
        columns = self.metrics
        by_name = isinstance(metrics, dict)
        if metrics is not None and not by_name:
            row = np.asarray(metrics, np.float64)
            wanted = (len(columns),) if self._n == 1 else (self._n, len(columns))
            if row.shape != wanted and row.size == self._n * len(columns):
                row = row.reshape(wanted)
            if row.shape != wanted:
                raise UserError(f"metrics has shape {row.shape}, this tap's row is {wanted}")
            return row
        row = self._row if self._n == 1 else self._rows
        row.fill(np.nan)
        info = info or {}
        if self._n == 1:
            now = _nothing(columns.width) if obs is None else columns.observe(obs, self._info, env)
            later = None
            if columns.needs_next:
                later = (
                    columns.observe(next_obs, info, env)
                    if next_obs is not None
                    else columns.observe_info(info)
                )
            columns.fill(row, now, later, action, reward, terminated, truncated, self._one_t)
        else:
            everyone = range(self._n)
            envs = env if env is not None else [None] * self._n
            now = (
                np.full((self._n, columns.width), np.nan)
                if obs is None
                else columns.observe_many(obs, self._info, envs, everyone)
            )
            later = None
            if columns.needs_next and next_obs is not None:
                later = columns.observe_many(next_obs, info, envs, everyone)
            columns.fill(row, now, later, action, reward, terminated, truncated, self._t)
        self._info = info
        if by_name:
            columns.fill_named(row, metrics)  # type: ignore[arg-type] # a dict, as just asked
        return row

    def _complete(
        self,
        row: NDArray[np.float64],
        terminated: Any,
        truncated: Any,
        controller: int | ArrayLike,
    ) -> None:
        self._calls += 1
        ring = self.ring
        if ring is None:
            ring = self._before_the_ring(row, terminated, truncated, controller)
            if ring is None:
                return
        elif self._n == 1:
            self._write_one(ring, row, terminated, truncated, controller)
        else:
            self._write_many(ring, row, terminated, truncated, controller)
        if self._calls == self.options.silent_after:
            self._report_silence()

    def _write_one(
        self, ring: Ring, row: NDArray[np.float64], terminated: Any, truncated: Any, controller: Any
    ) -> None:
        gate = self.gate
        flags = (_TERMINATED if terminated else 0) | (_TRUNCATED if truncated else 0)
        t = self._one_t
        episode = self._one_episode
        if flags:
            self._one_t, self._one_episode = 0, episode + 1
        else:
            self._one_t = t + 1
        recording = gate.recording
        if recording or flags:
            slot = ring.slot
            if not recording or self._mark(ring, gate.block):
                flags |= _SILENT
            if self._lane is not None:
                self._lane.flush(gate)
            ring.metrics[slot, 0] = row
            FACTS_STRUCT.pack_into(
                ring.facts_bytes, slot * _FACTS_BYTES,
                time.time_ns(), episode, t, 0, int(controller), flags, 1,
            )  # fmt: skip
            self._commit(ring, 1)
        else:
            self._sampled_out += 1
        if self.options.step_every > 1:
            self._sample()

    def _mark(self, ring: Ring, block: int) -> bool:
        """Whether this block lacks activations; blanks what an earlier lap left in its place."""
        missing = False
        none = True
        for point in self.points.values():
            if point.fired == block:
                none = False
                if point.first_fired == NEVER:
                    point.first_fired = block
            elif point.x is not None and point.first_fired != NEVER:
                missing = True
                point.x[ring.slot] = 0.0
                if point.y is not None and ring.wants_y:
                    point.y[ring.y_slot(block)] = 0.0
        return missing or none

    def _commit(self, ring: Ring, valid: int) -> None:
        if self._blocks:
            self._wait_for_room(ring)
        ring.commit(valid)
        gate = self.gate
        gate.block = ring.head
        gate.slot = ring.slot
        gate.wants_y = ring.wants_y

    def _write_many(
        self,
        ring: Ring,
        rows: NDArray[np.float64],
        terminated: Any,
        truncated: Any,
        controller: int | ArrayLike,
    ) -> None:
        gate = self.gate
        step = self._advance(terminated, truncated)
        keep = step.valid if gate.recording else step.valid & step.done
        index = gate.index
        steps = step.valid
        if index is not None:
            keep, steps = keep[index], steps[index]
        count = int(np.count_nonzero(keep))
        self._sampled_out += int(np.count_nonzero(steps)) - count
        if count:
            flags = step.flags
            if not gate.recording or self._mark(ring, gate.block):
                flags = flags | _SILENT
            if self._lane is not None:
                self._lane.flush(gate)
            self._fill(ring, rows, step, flags, controller, keep)
            self._commit(ring, count)
        if self.options.step_every > 1:
            self._sample()

    def _fill(
        self,
        ring: Ring,
        rows: NDArray[np.float64],
        step: _Advance,
        flags: NDArray[np.uint8],
        controller: int | ArrayLike,
        kept: NDArray[np.bool_],
        time_ns: int | None = None,
    ) -> None:
        index = self.gate.index
        facts = ring.facts[ring.slot]
        facts["time_ns"] = time.time_ns() if time_ns is None else time_ns
        facts["env"] = self._envs
        facts["valid"] = kept
        if index is None:
            ring.metrics[ring.slot] = rows
            facts["episode"], facts["t"], facts["flags"] = step.episode, step.t, flags
            facts["controller"] = controller
        else:
            ring.metrics[ring.slot] = rows[index]
            facts["episode"], facts["t"] = step.episode[index], step.t[index]
            facts["flags"] = flags[index]
            facts["controller"] = np.broadcast_to(np.asarray(controller), (self._n,))[index]

    def _advance(self, terminated: Any, truncated: Any) -> _Advance:
        """Count a step of n copies: which of them were steps, and where each now stands."""
        term = np.broadcast_to(np.asarray(terminated, bool), (self._n,))
        trunc = np.broadcast_to(np.asarray(truncated, bool), (self._n,))
        valid = ~self._between
        done = (term | trunc) & valid
        flags = (term * np.uint8(_TERMINATED)) | (trunc * np.uint8(_TRUNCATED))
        episode, t = self._episode.copy(), self._t.copy()
        self._t[valid] += 1
        self._t[done] = 0
        self._episode[done] += 1
        self._not_steps += int(np.count_nonzero(self._between))
        if self.autoreset is Autoreset.NEXT_STEP:
            self._between = done
        return _Advance(valid, done, flags.astype(np.uint8), episode, t)

    def _sample(self) -> None:
        self._until_sample -= 1
        if self._until_sample <= 0:
            self._until_sample = self.options.step_every
        self.gate.recording = self._until_sample == self.options.step_every

    # -- the first steps ------------------------------------------------------------------------

    def _before_the_ring(
        self,
        row: NDArray[np.float64],
        terminated: Any,
        truncated: Any,
        controller: int | ArrayLike,
    ) -> Ring | None:
        """Keep a step until the widths of all hook points are known; make the ring when they are."""
        step = self._advance_any(terminated, truncated)
        block = self.gate.block
        self._early.append(
            _EarlyStep(
                np.array(row, np.float64).reshape(self._n, -1),
                step,
                np.broadcast_to(np.asarray(controller, np.uint8), (self._n,)).copy(),
                time.time_ns(),
                {
                    p.name: (p.staged_x, p.staged_y)
                    for p in self.points.values()
                    if p.fired == block and p.staged_x is not None
                },
                step.valid,
            )
        )
        self.gate.block += 1
        known = all(p.d_in is not None and p.d_out is not None for p in self.points.values())
        if known or self._calls >= self.options.silent_after:
            self._seal_early()
        return self.ring

    def _advance_any(self, terminated: Any, truncated: Any) -> _Advance:
        if self._n > 1:
            return self._advance(terminated, truncated)
        flags = (_TERMINATED if terminated else 0) | (_TRUNCATED if truncated else 0)
        step = _Advance(
            np.ones(1, bool),
            np.array([flags != 0]),
            np.array([flags], np.uint8),
            np.array([self._one_episode], np.uint32),
            np.array([self._one_t], np.uint32),
        )
        if flags:
            self._one_t, self._one_episode = 0, self._one_episode + 1
        else:
            self._one_t += 1
        return step

    def _seal_early(self) -> None:
        """Make the ring with the hook points whose widths are known, and replay the first steps."""
        if self.ring is not None or not self._early:
            return
        options, gate = self.options, self.gate
        known = [p for p in self.points.values() if p.d_in is not None and p.d_out is not None]
        for point in self.points.values():
            point.fired = NEVER
        hooks = tuple(HookPointSpec(p.name, int(p.d_in or 0), int(p.d_out or 0)) for p in known)
        layout = plan_layout(
            self._envs,
            hooks,
            len(self.metrics),
            y_every=options.y_every,
            max_bytes=options.max_bytes,
            max_steps=max(4 * max(1, options.y_every), options.max_steps // len(self._envs)),
        )
        ring = Ring(layout, self._lane.allocate) if self._lane is not None else Ring(layout)
        if self._lane is not None:
            ring.hold_until(self._lane.ready)
        for point in known:
            point.bind(ring, direct=gate.index is None)
        self.ring = gate.ring = ring
        self.manifest = Manifest(
            agent=options.agent,
            run_id=self.run_id,
            boot_id=self.boot_id,
            policy_hash=self.policy_hash,
            hook_points=hooks,
            metrics=self.metrics.specs,
            env_count=self._n,
            control_hz=options.control_hz,
            environment=options.environment,
            actions=options.actions,
        )
        early, self._early = self._early, []
        gate.block, gate.slot, gate.wants_y = ring.head, ring.slot, ring.wants_y
        lane, self._lane = self._lane, None
        for step in early[-(layout.capacity - 1) :]:
            self._replay(ring, step)
        self._lane = lane
        if options.endpoint is not None:
            self._feed = self._start_sender(ring, self.manifest)
            self._blocks = options.on_full == OnFull.BLOCK

    def _replay(self, ring: Ring, early: _EarlyStep) -> None:
        gate = self.gate
        for name, (x, y) in early.activations.items():
            point = self.points[name]
            if point.x is None or x is None:
                continue
            point.x[ring.slot] = x
            if point.y is not None and ring.wants_y:
                point.y[ring.y_slot(ring.head)] = np.nan if y is None else y
            point.fired = gate.block
        flags = early.step.flags
        if self._mark(ring, gate.block):
            flags = flags | np.uint8(_SILENT)
        kept = early.valid if gate.index is None else early.valid[gate.index]
        if kept.any():
            self._fill(
                ring, early.rows, early.step, flags, early.controller, kept, early.time_ns
            )
            self._commit(ring, int(np.count_nonzero(kept)))

    def _start_sender(self, ring: Ring, manifest: Manifest) -> Feed:
        from interlatent_live.agent.sender import Sender  # noqa: PLC0415  sockets only where they are used

        return Sender(ring, manifest, self.points, self.options)

    def _silent(self) -> list[Point]:
        if self._calls < self.options.silent_after:
            return []
        return [p for p in self.points.values() if p.first_fired == NEVER]

    def _report_silence(self) -> None:
        for point in self._silent():
            logger.warning(
                "hook point %r stayed silent for %d steps: %s",
                point.name,
                self._calls,
                point.silence(self._n),
            )

    def _wait_for_room(self, ring: Ring) -> None:
        give_up = time.monotonic() + self.options.block_timeout_s
        while ring.backlog() >= ring.capacity - 2:
            if time.monotonic() > give_up:
                raise _Wait(
                    f"no step could be sent to {self.options.endpoint} for "
                    f"{self.options.block_timeout_s:g} s and on_full is 'block'; start the encoder "
                    "service, or choose on_full='spool'"
                )
            time.sleep(0.001)


class _Wait(Exception):  # noqa: N818  a signal within this module, not an error type
    """Blocking gave up."""


@dataclass(frozen=True, slots=True, eq=False)
class _Advance:
    """Where n copies stood at a step: which were steps, which ended, flags, episode and t."""

    valid: NDArray[np.bool_]
    done: NDArray[np.bool_]
    flags: NDArray[np.uint8]
    episode: NDArray[np.uint32]
    t: NDArray[np.uint32]


@dataclass(frozen=True, slots=True, eq=False)
class _EarlyStep:
    """A step taken before the ring could be laid out."""

    rows: NDArray[np.float64]
    step: _Advance
    controller: NDArray[np.uint8]
    time_ns: int
    activations: Mapping[str, tuple[NDArray[np.float32] | None, NDArray[np.float32] | None]]
    valid: NDArray[np.bool_]


def batch_of(taken: Taken, points: Mapping[str, Point]) -> StepBatch:
    """The columns of a step batch; hook points that had not fired before its first row are left out."""
    facts = taken.facts
    steps = Steps(
        first_seq=taken.first_seq,
        env=facts["env"].copy(),
        episode=facts["episode"].copy(),
        t=facts["t"].copy(),
        time_ns=facts["time_ns"].copy(),
        controller=facts["controller"].copy(),
        flags=facts["flags"].copy(),
        metrics=taken.metrics,
    )
    no_y = taken.y_rows[:0]
    activations = {}
    for name, x in taken.x.items():
        if not 0 <= points[name].first_fired <= taken.first_block:
            continue
        y = taken.y.get(name)
        if y is None:
            width = points[name].d_out or 1
            activations[name] = Activations(x, np.zeros((0, width), np.float32), no_y)
        elif points[name].y_optional:
            given = ~np.isnan(y[:, 0])
            activations[name] = Activations(x, y[given], taken.y_rows[given])
        else:
            activations[name] = Activations(x, y, taken.y_rows)
    return StepBatch(steps, activations)


def _nothing(width: int) -> NDArray[np.float64]:
    return np.full(width, np.nan)
