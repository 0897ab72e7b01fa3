"""The policy thread's side of the ring: completes rows, and lays the ring out once it can.

The widths of hook points are often known from the architecture, then the ring exists with the first
step; else the first steps wait in a list until each hook point has fired, or has had its chance.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from time import time_ns
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np

from interlatent_live.agent.acting import NEVER
from interlatent_live.agent.episodes import TERMINATED, TRUNCATED, EpisodeClock
from interlatent_live.agent.ring import FACTS, FACTS_STRUCT, Ring, plan_layout
from interlatent_live.errors import UserError
from interlatent_live.stream import HookPointSpec, StepFlag

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import ArrayLike, NDArray

    from interlatent_live.agent.acting import Gate, Point
    from interlatent_live.agent.episodes import Advance
    from interlatent_live.agent.options import Autoreset, TapOptions

_SILENT: Final = int(StepFlag.NO_ACTIVATION)
_FACTS_BYTES: Final = FACTS.itemsize


class Lane(Protocol):
    """The way of activations from a device to the ring (``interlatent_live.agent.cuda``)."""

    def allocate(self, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """A float32 ring column the device can copy into."""
        ...

    def flush(self, gate: Gate) -> None:
        """Start the copies of the block under construction."""
        ...

    def ready(self, block: int) -> bool:
        """Whether they have landed."""
        ...


class BlockedError(UserError):
    """A step waited longer than allowed for room, under ``on_full="block"``."""


@dataclass(frozen=True, slots=True, eq=False)
class _EarlyStep:
    """A step taken before the ring could be laid out."""

    rows: NDArray[np.float64]
    at: Advance
    controller: NDArray[np.uint8]
    time_ns: int
    activations: Mapping[str, tuple[NDArray[np.float32] | None, NDArray[np.float32] | None]]


class StepWriter:
    """Completes the block under construction and publishes it.

    Args:
        options: the tap's.
        gate: shared with the hooks.
        points: hook points by name, shared with the hooks.
        n_metrics: metric columns per row.
        opened: called once, when the ring exists and the first steps are in it.
    """

    def __init__(
        self,
        options: TapOptions,
        gate: Gate,
        points: Mapping[str, Point],
        n_metrics: int,
        opened: Callable[[Ring], None],
    ) -> None:
        self.ring: Ring | None = None
        self.lane: Lane | None = None
        self.calls = 0
        self.sampled_out = 0
        self.stale = False
        """Whether the policy is no longer the one of the manifest: steps then have no
        activations."""
        self.blocks = False
        """Whether a full ring makes a step wait; set once there is a sender to wait for."""
        self._options = options
        self._gate = gate
        self._points = points
        self._n_metrics = n_metrics
        self._opened = opened
        self._early: list[_EarlyStep] = []
        self._until_sample = options.step_every
        self.arrange(1, None)

    def arrange(self, n: int, autoreset: Autoreset | None) -> None:
        """Set the number of agent copies; before the first step.

        Raises:
            UserError: when the chosen copies do not exist.
        """
        chosen = self._options.envs
        envs = tuple(range(n)) if chosen is None or n == 1 else tuple(chosen)
        if not envs or len(set(envs)) != len(envs) or max(envs) >= n or min(envs) < 0:
            raise UserError(
                f"envs is {chosen}; it must name different agent copies from 0 to {n - 1}"
            )
        self.envs = envs
        self._env_column = np.array(envs, np.uint16)
        self.clock = EpisodeClock(n, autoreset)
        self._one = n == 1
        self._gate.envs = n
        self._gate.index = None if envs == tuple(range(n)) else np.array(envs, np.intp)

    def numbered(self) -> int:
        """Rows that were steps and were not left out."""
        made = self.ring.next_seq if self.ring is not None else 0
        return made + sum(int(np.count_nonzero(step.at.valid)) for step in self._early)

    def complete(
        self, row: NDArray[np.float64], terminated: Any, truncated: Any, controller: Any
    ) -> None:
        """Publish a step with its metric row [M] (or rows [n, M])."""
        self.calls += 1
        ring = self.ring
        if ring is None:
            self._keep(row, terminated, truncated, controller)
        elif self._one:
            self._write_one(ring, row, terminated, truncated, controller)
        else:
            self._write_many(ring, row, terminated, truncated, controller)

    # -- with the ring --------------------------------------------------------------------------

    def _write_one(
        self, ring: Ring, row: NDArray[np.float64], terminated: Any, truncated: Any, controller: Any
    ) -> None:
        gate, clock = self._gate, self.clock
        flags = (TERMINATED if terminated else 0) | (TRUNCATED if truncated else 0)
        t, episode = clock.one_t, clock.one_episode
        if flags:
            clock.one_t, clock.one_episode = 0, episode + 1
        else:
            clock.one_t = t + 1
        recording = gate.recording
        if recording or flags:
            if not recording or self.stale or self._lacks_activations(ring, gate.block):
                flags |= _SILENT
            if self.lane is not None:
                self.lane.flush(gate)
            slot = ring.slot
            ring.metrics[slot, 0] = row
            FACTS_STRUCT.pack_into(
                ring.facts_bytes, slot * _FACTS_BYTES,
                time_ns(), episode, t, 0, int(controller), flags, 1,
            )  # fmt: skip
            self._commit(ring, 1)
        else:
            self.sampled_out += 1
        if self._options.step_every > 1:
            self._sample()

    def _write_many(
        self,
        ring: Ring,
        rows: NDArray[np.float64],
        terminated: ArrayLike,
        truncated: ArrayLike,
        controller: ArrayLike,
    ) -> None:
        gate = self._gate
        at = self.clock.advance(terminated, truncated)
        keep = at.valid if gate.recording else at.valid & at.done
        steps = at.valid
        if gate.index is not None:
            keep, steps = keep[gate.index], steps[gate.index]
        count = int(np.count_nonzero(keep))
        self.sampled_out += int(np.count_nonzero(steps)) - count
        if count:
            silent = not gate.recording or self.stale or self._lacks_activations(ring, gate.block)
            if self.lane is not None:
                self.lane.flush(gate)
            self._fill(ring, rows, at, controller, keep, at_ns=time_ns(), silent=silent)
            self._commit(ring, count)
        if self._options.step_every > 1:
            self._sample()

    def _fill(
        self,
        ring: Ring,
        rows: NDArray[np.float64],
        at: Advance,
        controller: ArrayLike,
        keep: NDArray[np.bool_],
        *,
        at_ns: int,
        silent: bool,
    ) -> None:
        index = self._gate.index
        flags = at.flags | np.uint8(_SILENT) if silent else at.flags
        facts = ring.facts[ring.slot]
        facts["time_ns"] = at_ns
        facts["env"] = self._env_column
        facts["valid"] = keep
        if index is None:
            ring.metrics[ring.slot] = rows
            facts["episode"], facts["t"], facts["flags"] = at.episode, at.t, flags
            facts["controller"] = controller
        else:
            ring.metrics[ring.slot] = rows[index]
            facts["episode"], facts["t"], facts["flags"] = (
                at.episode[index], at.t[index], flags[index],
            )  # fmt: skip
            everyone = np.broadcast_to(np.asarray(controller), (self.clock.n,))
            facts["controller"] = everyone[index]

    def _lacks_activations(self, ring: Ring, block: int) -> bool:
        """Whether a hook point that has fired before did not now, or none did.

        Blanks what an earlier lap left in the place of its activations.
        """
        missing = False
        none = True
        for point in self._points.values():
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

    def _commit(self, ring: Ring, count: int) -> None:
        if self.blocks:
            self._wait_for_room(ring)
        ring.commit(count)
        gate = self._gate
        gate.block = ring.head
        gate.slot = ring.slot
        gate.wants_y = ring.wants_y

    def _sample(self) -> None:
        self._until_sample -= 1
        self._gate.recording = self._until_sample == 0
        if self._until_sample == 0:
            self._until_sample = self._options.step_every

    def _wait_for_room(self, ring: Ring) -> None:
        give_up = time.monotonic() + self._options.block_timeout_s
        while ring.backlog() >= ring.capacity - 2:
            if time.monotonic() > give_up:
                raise BlockedError(
                    f"no step could be sent to {self._options.endpoint} for "
                    f"{self._options.block_timeout_s:g} s and on_full is 'block'; start the "
                    "encoder service, or choose on_full='spool'"
                )
            time.sleep(0.001)

    # -- before there is a ring -----------------------------------------------------------------

    def _keep(
        self, row: NDArray[np.float64], terminated: Any, truncated: Any, controller: Any
    ) -> None:
        n, gate = self.clock.n, self._gate
        self._early.append(
            _EarlyStep(
                np.array(row, np.float64).reshape(n, -1),
                self.clock.advance(terminated, truncated),
                np.broadcast_to(np.asarray(controller, np.uint8), (n,)).copy(),
                time_ns(),
                {
                    point.name: (point.staged_x, point.staged_y)
                    for point in self._points.values()
                    if point.fired == gate.block
                },
            )
        )
        gate.block += 1
        known = all(p.d_in is not None and p.d_out is not None for p in self._points.values())
        if known or self.calls >= self._options.silent_after:
            self.open()

    def open(self) -> None:
        """Make the ring from the hook points whose widths are known, and put the first steps in."""
        if self.ring is not None or not self._early:
            return
        options, gate = self._options, self._gate
        known = [p for p in self._points.values() if p.d_in is not None and p.d_out is not None]
        layout = plan_layout(
            self.envs,
            tuple(HookPointSpec(p.name, int(p.d_in or 0), int(p.d_out or 0)) for p in known),
            self._n_metrics,
            y_every=options.y_every,
            max_bytes=options.max_bytes,
            max_steps=max(4 * max(1, options.y_every), options.max_steps // len(self.envs)),
        )
        lane = self.lane
        ring = Ring(layout) if lane is None else Ring(layout, lane.allocate)
        if lane is not None:
            ring.hold_until(lane.ready)
        for point in self._points.values():
            point.fired = NEVER
        for point in known:
            point.bind(ring, direct=gate.index is None)
        self.ring = gate.ring = ring
        gate.block, gate.slot, gate.wants_y = ring.head, ring.slot, ring.wants_y
        early, self._early = self._early, []
        for step in early:
            self._replay(ring, step)
        if options.step_every > 1:
            self._sample()
        self._opened(ring)

    def _replay(self, ring: Ring, early: _EarlyStep) -> None:
        gate, at = self._gate, early.at
        for name, (x, y) in early.activations.items():
            point = self._points[name]
            if point.x is None or x is None:
                continue
            point.x[ring.slot] = x
            if point.y is not None and ring.wants_y:
                point.y[ring.y_slot(ring.head)] = np.nan if y is None else y
            point.fired = gate.block
        silent = self._lacks_activations(ring, gate.block)
        keep = at.valid if gate.index is None else at.valid[gate.index]
        if keep.any():
            self._fill(
                ring, early.rows, at, early.controller, keep, at_ns=early.time_ns, silent=silent
            )
            self._commit(ring, int(np.count_nonzero(keep)))
