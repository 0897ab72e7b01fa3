"""The bounded buffer between a policy's thread and the sender thread.

The writer must cost microseconds and must never wait, so it owns the whole ring: it fills the block
under construction, advances ``head`` and thereby overwrites the oldest block, whether or not anyone
read it. The reader copies blocks out first and looks at ``head`` afterwards: what the writer may
have touched during the copy is thrown away and counted, so a torn row never leaves the ring.
Everything is allocated at construction; the number of bytes is known before.

A *block* is one step of all streamed agent copies; a *row* is one step of one copy. Rows that are
not environment steps (the reset call of next-step autoreset) are marked invalid and leave no
sequence number, so sequence numbers have no holes but losses.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from interlatent_live.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from interlatent_live.stream import HookPointSpec

FACTS: Final = np.dtype(
    [
        ("time_ns", "<i8"),
        ("episode", "<u4"),
        ("t", "<u4"),
        ("env", "<u2"),
        ("controller", "u1"),
        ("flags", "u1"),
        ("valid", "u1"),
    ]
)
"""One packed record per row, so that one ``struct`` call writes a whole row's facts."""

FACTS_STRUCT: Final = struct.Struct("<qIIHBBB")

SCAN: Final = 1024
"""Blocks looked at in one call of :meth:`Ring.skip_to`, to keep it short."""

KNOWN_Y_ROWS: Final = 256
"""Patterns of sampled rows that are remembered: messages of a steady loop have few."""

_SPAN: Final = struct.Struct("<qq")
"""A block's first sequence number, and the one after its last."""


@dataclass(frozen=True, slots=True)
class RingLayout:
    """Shapes of a ring; ``capacity`` counts blocks and is a multiple of ``y_every``.

    ``envs`` lists the streamed agent copies: a block has ``len(envs)`` rows. ``y`` is kept for
    every ``y_every``-th block, for none where it is 0.
    """

    envs: tuple[int, ...]
    hook_points: tuple[HookPointSpec, ...]
    n_metrics: int
    y_every: int
    capacity: int

    @property
    def rows(self) -> int:
        """Rows of one block."""
        return len(self.envs)

    @property
    def y_blocks(self) -> int:
        """Blocks that hold y."""
        return self.capacity // self.y_every if self.y_every else 0

    @property
    def nbytes(self) -> int:
        """Bytes of all columns together, exactly as :class:`Ring` allocates them."""
        per_block = self.rows * (FACTS.itemsize + 8 * self.n_metrics) + _SPAN.size
        per_block += self.rows * sum(4 * hook.d_in for hook in self.hook_points)
        per_y_block = self.rows * sum(4 * hook.d_out for hook in self.hook_points)
        return self.capacity * per_block + self.y_blocks * per_y_block


def plan_layout(
    envs: tuple[int, ...],
    hook_points: tuple[HookPointSpec, ...],
    n_metrics: int,
    *,
    y_every: int,
    max_bytes: int,
    max_steps: int,
) -> RingLayout:
    """The largest ring of at most ``max_steps`` steps within ``max_bytes``.

    Raises:
        UserError: when fewer than four blocks fit, since a writer that never waits needs room.
    """
    unit = max(1, y_every)
    one = RingLayout(envs, hook_points, n_metrics, y_every, unit)
    units = min(max_bytes // one.nbytes, max(1, max_steps // unit))
    layout = RingLayout(envs, hook_points, n_metrics, y_every, int(units) * unit)
    if layout.capacity < 4:
        needed = RingLayout(envs, hook_points, n_metrics, y_every, -(-4 // unit) * unit).nbytes
        raise UserError(
            f"the tap's buffer limit of {max_bytes} bytes and {max_steps} steps is too small for "
            f"these hook points and metrics: allow at least {needed} bytes and 4 steps"
        )
    return layout


@dataclass(frozen=True, slots=True, eq=False)
class Lost:
    """Rows that were overwritten before they were read."""

    first_seq: int
    count: int


@dataclass(frozen=True, slots=True, eq=False)
class Taken:
    """n rows copied out of the ring, safe from the writer.

    ``x[name]`` is [n, d_in] float32, ``y[name]`` is [m, d_out] float32 with ``y_rows`` [m]
    ascending; ``facts`` is [n] of :data:`FACTS`, ``metrics`` [n, M] float64.
    """

    first_seq: int
    first_block: int
    facts: NDArray[np.void]
    metrics: NDArray[np.float64]
    x: Mapping[str, NDArray[np.float32]]
    y: Mapping[str, NDArray[np.float32]]
    y_rows: NDArray[np.uint16]
    span: NDArray[np.int64]
    """[blocks, 2] first sequence number of each block, and the one after its last."""

    def __len__(self) -> int:
        return len(self.facts)

    def rows_before(self, block: int) -> int:
        """How many of the rows belong to blocks before ``block``."""
        at = block - self.first_block
        if at <= 0:
            return 0
        return len(self) if at >= len(self.span) else int(self.span[at, 0]) - self.first_seq


def _host_float32(shape: tuple[int, ...]) -> NDArray[np.float32]:
    # Filled, not only reserved: the first lap must not pay page faults in the policy's thread.
    return np.full(shape, 0.0, np.float32)


class Ring:
    """A single-writer, single-reader ring of blocks. See the module's docstring for the protocol.

    The writer's half: write into row ``slot`` of the columns, then :meth:`commit`. The reader's
    half: :meth:`take` and :meth:`skip_to`. ``allocate`` makes the activation columns (the tap of a
    CUDA policy passes pinned memory).
    """

    __slots__ = (
        "_expected",
        "_pending",
        "_y_rows_of",
        "capacity",
        "facts",
        "facts_bytes",
        "head",
        "layout",
        "lost",
        "metrics",
        "next_seq",
        "slot",
        "span",
        "span_bytes",
        "tail",
        "wants_y",
        "x",
        "y",
        "y_every",
    )

    def __init__(
        self,
        layout: RingLayout,
        allocate: Callable[[tuple[int, ...]], NDArray[np.float32]] = _host_float32,
        first_seq: int = 0,
    ) -> None:
        capacity, rows = layout.capacity, layout.rows
        self.layout = layout
        self.capacity = capacity
        self.facts = np.zeros((capacity, rows), FACTS)
        self.facts_bytes = self.facts.view(np.uint8).reshape(-1).data
        self.metrics = np.full((capacity, rows, layout.n_metrics), np.nan)
        self.span = np.zeros((capacity, 2), np.int64)
        self.span_bytes = self.span.reshape(-1).view(np.uint8).data
        self.x = {h.name: allocate((capacity, rows, h.d_in)) for h in layout.hook_points}
        self.y = {
            h.name: allocate((layout.y_blocks, rows, h.d_out))
            for h in layout.hook_points
            if layout.y_every
        }
        self.head = 0
        self.slot = 0
        self.next_seq = first_seq
        self.wants_y = layout.y_every > 0
        self.y_every = layout.y_every
        self.tail = 0
        self._expected = first_seq
        self.lost = 0
        self._pending: Callable[[int], bool] | None = None
        self._y_rows_of: dict[tuple[int, int, int], NDArray[np.uint16]] = {}

    # -- writer ---------------------------------------------------------------------------------

    def commit(self, valid: int) -> None:
        """Publish the block under construction, of which ``valid`` rows are steps."""
        slot = self.slot
        seq = self.next_seq
        self.next_seq = end = seq + valid
        _SPAN.pack_into(self.span_bytes, slot * 16, seq, end)
        head = self.head + 1
        slot += 1
        self.slot = 0 if slot == self.capacity else slot
        y_every = self.y_every
        self.wants_y = y_every > 0 and head % y_every == 0
        # Last: from here on a reader may copy the block, and the next slot is the writer's.
        self.head = head

    def y_slot(self, block: int) -> int:
        """Index into the y columns for a block that samples y."""
        return (block % self.capacity) // self.y_every

    # -- reader ---------------------------------------------------------------------------------

    def hold_until(self, ready: Callable[[int], bool]) -> None:
        """Let :meth:`take` stop before the first block that is not ``ready`` (CUDA events)."""
        self._pending = ready

    def backlog(self) -> int:
        """Blocks written and neither taken nor overwritten."""
        return min(self.head - self.tail, self.capacity - 1)

    def oldest_time_ns(self) -> int | None:
        """Wall clock of the oldest waiting block, ns since the epoch; None when none waits.

        The block may be overwritten while this looks; the answer is then merely too new.
        """
        tail = max(self.tail, self.head - self.capacity + 1)
        if tail >= self.head:
            return None
        return int(self.facts["time_ns"][tail % self.capacity, 0])

    def skip_to(self, time_ns: int) -> tuple[Lost | None, Lost | None]:
        """Give up the waiting blocks completed before ``time_ns``, at most ``SCAN`` per call.

        Returns:
            What had been overwritten already, and what was given up now.
        """
        while True:
            first = max(self.tail, self.head - self.capacity + 1)
            blocks = np.arange(first, min(self.head, first + SCAN))
            if not len(blocks):
                return None, None
            slots = blocks % self.capacity
            spans = self.span[slots]
            fresh = self.facts["time_ns"][slots, 0] >= time_ns
            if first >= self.head - self.capacity + 1:
                break  # nothing of it was overwritten while it was read
        overwritten = self._declare(int(spans[0, 0]))
        aged = int(np.argmax(fresh)) if fresh.any() else len(blocks)
        self.tail = first + aged
        return overwritten, self._declare(int(spans[aged - 1, 1])) if aged else None

    def take(self, max_rows: int) -> tuple[Taken | None, Lost | None]:
        """Copy out the oldest waiting blocks, at most ``max_rows`` rows (at least one block).

        Returns:
            The rows, or None when nothing waits, and what was overwritten before it could be read.
        """
        capacity = self.capacity
        head = self.head
        first = max(self.tail, head - capacity + 1)
        # Up to the wrap only, so that each column is one slice: index arrays cost ten times more.
        count = min(head - first, max(1, max_rows // self.layout.rows), capacity - first % capacity)
        if self._pending is not None:
            count = self._ready(first, count)
        if count <= 0:
            return None, None
        copied = self._copy(first, count)
        # What the writer may have touched meanwhile: every block whose slot it has come round to,
        # including the one it fills right now.
        safe = self.head - capacity + 1
        torn = min(max(0, safe - first), count)
        self.tail = first + count
        if torn == count:
            return None, None  # the next call sees how far the writer got
        return self._rows(copied, first, torn)

    def _ready(self, first: int, count: int) -> int:
        ready = self._pending
        if ready is None:
            return count
        # Copies complete in order, so asking about the last block usually settles it.
        while count > 0 and not ready(first + count - 1):
            count = count // 2
        return count

    def _copy(self, first: int, count: int) -> _Copied:
        slot = first % self.capacity
        here = slice(slot, slot + count)
        y_every = self.layout.y_every
        first_y, y_here = 0, slice(0, 0)
        if y_every:
            first_y = -(-first // y_every) * y_every
            n_y = max(0, -(-(first + count - first_y) // y_every))
            y_slot = first_y % self.capacity // y_every
            y_here = slice(y_slot, y_slot + n_y)
        return _Copied(
            self.facts[here].copy(),
            self.metrics[here].copy(),
            self.span[here].copy(),
            {name: column[here].copy() for name, column in self.x.items()},
            {name: column[y_here].copy() for name, column in self.y.items()},
            first_y,
            y_here.stop - y_here.start,
        )

    def _rows(self, copied: _Copied, first: int, torn: int) -> tuple[Taken | None, Lost | None]:
        span = copied.span[torn:]
        first_seq, end_seq = int(span[0, 0]), int(span[-1, 1])
        lost = self._declare(first_seq)
        facts = copied.facts[torn:].reshape(-1)
        n = len(facts)
        metrics = copied.metrics[torn:].reshape(n, -1)
        x = {name: column[torn:].reshape(n, -1) for name, column in copied.x.items()}
        # Blocks of y, counted from the first block kept; those before it are torn.
        start = copied.first_y - first - torn
        skip = max(0, -(start // self.layout.y_every)) if torn and copied.n_y else 0
        y = {name: column[skip:].reshape(-1, column.shape[-1]) for name, column in copied.y.items()}
        y_rows = self._y_rows(start, skip, copied.n_y)
        # Only rows that are steps have numbers, so the numbers tell whether all are.
        if end_seq - first_seq != n:
            valid = facts["valid"] != 0
            new_row = np.cumsum(valid) - 1
            y_valid = valid[y_rows]
            y = {name: column[y_valid] for name, column in y.items()}
            y_rows = new_row[y_rows[y_valid]].astype(np.uint16)
            x = {name: column[valid] for name, column in x.items()}
            facts, metrics = facts[valid], metrics[valid]
        self._expected = first_seq + len(facts)
        if not len(facts):
            return None, lost
        return Taken(first_seq, first + torn, facts, metrics, x, y, y_rows, span), lost

    def _y_rows(self, start: int, skip: int, count: int) -> NDArray[np.uint16]:
        """Rows that y was kept of: ``count`` blocks from block ``start`` on, without ``skip``."""
        known = self._y_rows_of.get((start, skip, count))
        if known is None:
            rows, y_every = self.layout.rows, self.layout.y_every
            blocks = range(start + skip * y_every, start + count * y_every, y_every or 1)
            known = np.array([b * rows + row for b in blocks for row in range(rows)], np.uint16)
            known.flags.writeable = False
            if len(self._y_rows_of) >= KNOWN_Y_ROWS:
                self._y_rows_of.clear()
            self._y_rows_of[start, skip, count] = known
        return known

    def _declare(self, first_seq: int) -> Lost | None:
        expected = self._expected
        missing = first_seq - expected
        if missing <= 0:
            return None
        self._expected = first_seq
        self.lost += missing
        return Lost(expected, missing)


@dataclass(frozen=True, slots=True, eq=False)
class _Copied:
    """Blocks as they were found, possibly torn at the old end."""

    facts: NDArray[np.void]
    metrics: NDArray[np.float64]
    span: NDArray[np.int64]
    x: dict[str, NDArray[np.float32]]
    y: dict[str, NDArray[np.float32]]
    first_y: int
    n_y: int
