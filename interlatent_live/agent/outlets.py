"""From the ring onto the link: which rows go now, which wait, which are declared lost and why.

Two ways out. :class:`LossyOutlet` sends what is fresh and lets the ring overwrite the rest: rows
older than the age limit are declared when their turn comes. :class:`LosslessOutlet` puts every row
into a store first and sends from there until the receiver is done with it. Neither knows a socket.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np

from interlatent_live.agent.batches import batch_of
from interlatent_live.errors import WireError
from interlatent_live.wire.codec import decode, encode_features, encode_steps
from interlatent_live.wire.messages import DropReason, FeaturesMessage, StepsMessage
from interlatent_live.wire.slices import slice_message, slice_steps

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from interlatent_live.agent.acting import Point
    from interlatent_live.agent.features import AgentEncoder
    from interlatent_live.agent.retention import Entry, Store
    from interlatent_live.agent.ring import Lost, Ring, Taken
    from interlatent_live.stream import StepBatch
    from interlatent_live.wire.clock import Now
    from interlatent_live.wire.messages import Drop
    from interlatent_live.wire.sender_link import SenderLink

ROWS: Final = 512
"""Most rows of one message, unless one step of all copies is more."""
SHARE: Final = 8
"""A message is at most so small a part of what may be on its way, or credit would come in jerks."""
TURN: Final = 64
"""Most messages of one turn, so that heartbeats and acknowledgements are not starved."""


class Outlet(Protocol):
    """Moves one stream's rows onto the link."""

    boot_id: str

    def limit(self, max_rows: int, max_bytes: int) -> None:
        """The receiver's bounds for one message."""
        ...

    def pump(self, now: Now) -> None:
        """Send what may go now."""
        ...

    def acknowledged(self, processed: int) -> None:
        """The receiver is done with all rows below ``processed``."""
        ...

    def idle(self) -> bool:
        """Whether nothing waits to be sent."""
        ...

    def shut(self) -> None:
        """Declare what still waits; nothing will be sent any more."""
        ...


@dataclass(slots=True)
class Packer:
    """Encodes batches as they shall travel: activations in a dtype, or features."""

    boot_id: str
    dtype: str
    encoder: AgentEncoder | None = None

    def pack(self, batch: StepBatch, drops: Sequence[Drop], sent_ns: int) -> list[bytes]:
        """Frames of a batch."""
        if self.encoder is not None:
            return encode_features(self.encoder.encode(batch), drops=drops, sent_ns=sent_ns)
        return encode_steps(
            batch, boot_id=self.boot_id, drops=drops, sent_ns=sent_ns, activations=self.dtype
        )

    def repack(
        self, message: StepsMessage | FeaturesMessage, drops: Sequence[Drop], sent_ns: int
    ) -> list[bytes]:
        """Frames of a message that was decoded, with other declarations."""
        if isinstance(message, FeaturesMessage):
            return encode_features(message.batch, drops=drops, sent_ns=sent_ns)
        return encode_steps(
            message.batch,
            boot_id=self.boot_id,
            drops=drops,
            sent_ns=sent_ns,
            activations=self.dtype,
        )


class Source:
    """Batches out of the ring, cut to what a message may hold.

    Args:
        ring: where the tap writes.
        points: the tap's hook points.
        finish: turns the ring's rows [n, row_width] into metrics [n, M].
        failed: told when ``finish`` fails; the metrics then are NaN.
    """

    def __init__(
        self,
        ring: Ring,
        points: Mapping[str, Point],
        finish: Callable[[NDArray[np.float64]], NDArray[np.float64]],
        n_metrics: int,
        failed: Callable[[Exception], None],
    ) -> None:
        self.ring = ring
        self.rows = ROWS
        per_row = ring.layout.nbytes // (ring.layout.capacity * ring.layout.rows)
        self._row_bytes = max(1, per_row)
        self._points = points
        self._finish = finish
        self._n_metrics = n_metrics
        self._failed = failed

    def limit(self, max_rows: int, max_bytes: int) -> None:
        """What a message may hold; ``max_bytes`` is the receiver's window."""
        fit = max_bytes // (SHARE * self._row_bytes)
        self.rows = max(1, min(ROWS, max_rows, fit))

    def next(self) -> tuple[list[StepBatch], Lost | None]:
        """The next batch in parts, and what was overwritten before it."""
        taken, lost = self.ring.take(self.rows)
        if taken is None:
            return [], lost
        batch = batch_of(taken, self._points, self._metrics(taken))
        if len(taken) <= self.rows:
            return [batch], lost
        parts = range(0, len(taken), self.rows)
        return [slice_steps(batch, at, min(self.rows, len(taken) - at)) for at in parts], lost

    def _metrics(self, taken: Taken) -> NDArray[np.float64]:
        try:
            return self._finish(taken.metrics)
        except Exception as error:  # noqa: BLE001  a pack is the user's code, and rows are numbered
            self._failed(error)
            return np.full((len(taken), self._n_metrics), np.nan)


class LossyOutlet:
    """Sends fresh rows under credit; what cannot go in time is declared lost.

    Args:
        source: batches of the tap's ring.
        link: carries the stream.
        packer: encodes.
        send: hands frames to the socket without blocking; False when it takes none.
        max_age_s: older rows are given up.
    """

    def __init__(
        self,
        source: Source,
        link: SenderLink,
        packer: Packer,
        send: Callable[[Sequence[bytes]], bool],
        *,
        max_age_s: float,
    ) -> None:
        self.boot_id = packer.boot_id
        self._source = source
        self._ring = source.ring
        self._link = link
        self._packer = packer
        self._send = send
        self._max_age_ns = int(max_age_s * 1e9)
        self._held: deque[StepBatch] = deque()
        self._packed: tuple[list[bytes], tuple[Drop, ...]] | None = None
        self._max_bytes = 2**62

    def limit(self, max_rows: int, max_bytes: int) -> None:
        """The receiver's bounds for one message."""
        self._source.limit(max_rows, max_bytes)
        self._max_bytes = max_bytes

    def acknowledged(self, processed: int) -> None:
        """Nothing is kept after it was sent."""

    def idle(self) -> bool:
        """Whether ring and hand are empty."""
        return not self._held and self._ring.backlog() == 0

    def pump(self, now: Now) -> None:
        """Send what may go now; give up what is too old."""
        # Rows that come while these are sent wait for the next turn: alone they would cost as much.
        end = self._ring.head
        for _ in range(TURN):
            if not self._held and self._ring.tail >= end:
                return
            why = self._link.blocked(self.boot_id, 1, 0)
            self._expire(now, why)
            if why is not None or not (self._held or self._refill()):
                return
            if not self._send_held(now):
                return

    def _refill(self) -> bool:
        parts, lost = self._source.next()
        self._declare(lost, DropReason.OVERRUN)
        self._held.extend(parts)
        return bool(parts)

    def _send_held(self, now: Now) -> bool:
        batch = self._held[0]
        rows, first = len(batch.steps), batch.steps.first_seq
        drops = self._link.pending_drops(self.boot_id)
        if self._packed is None or self._packed[1] != drops:
            self._packed = (self._packer.pack(batch, drops, now.wall_ns), drops)
        frames = self._packed[0]
        size = sum(map(len, frames))
        if max(map(len, frames)) > self._max_bytes:
            self._too_big(batch)
            return True
        if self._link.blocked(self.boot_id, rows, size) is not None or not self._send(frames):
            return False
        self._link.sent(now, self.boot_id, first_seq=first, rows=rows, size=size, drops=drops)
        self._held.popleft()
        self._packed = None
        return True

    def _too_big(self, batch: StepBatch) -> None:
        """Halve the batch; a single row that is too big can never go."""
        rows = len(batch.steps)
        self._held.popleft()
        self._packed = None
        if rows == 1:
            self._link.declare(self.boot_id, batch.steps.first_seq, 1, DropReason.REFUSED)
            return
        half = rows // 2
        self._source.rows = min(self._source.rows, max(1, half))
        self._held.appendleft(slice_steps(batch, half, rows - half))
        self._held.appendleft(slice_steps(batch, 0, half))

    def _expire(self, now: Now, why: DropReason | None) -> None:
        limit = now.wall_ns - self._max_age_ns
        while self._held and self._held[0].steps.time_ns[0] < limit:
            batch = self._held.popleft()
            self._packed = None
            reason = why or DropReason.NO_CREDIT
            self._link.declare(self.boot_id, batch.steps.first_seq, len(batch.steps), reason)
        if self._held:
            return
        oldest = self._ring.oldest_time_ns()
        if oldest is None or (oldest >= limit and why is None):
            return
        overwritten, aged = self._ring.skip_to(limit)
        self._declare(overwritten, DropReason.OVERRUN)
        self._declare(aged, why or DropReason.AGE)

    def _declare(self, lost: Lost | None, reason: DropReason) -> None:
        if lost is not None:
            self._link.declare(self.boot_id, lost.first_seq, lost.count, reason)

    def shut(self) -> None:
        """Declare everything that still waits."""
        for batch in self._held:
            self._link.declare(
                self.boot_id, batch.steps.first_seq, len(batch.steps), DropReason.SHUTDOWN
            )
        self._held.clear()
        while self._ring.oldest_time_ns() is not None:
            overwritten, rest = self._ring.skip_to(2**62)
            self._declare(overwritten, DropReason.OVERRUN)
            self._declare(rest, DropReason.SHUTDOWN)


class LosslessOutlet:
    """Keeps every row in a store until the receiver is done with it, and sends from there in order.

    Without ``source`` it only replays what is in the store (left by an earlier process).
    """

    def __init__(
        self,
        source: Source | None,
        link: SenderLink,
        packer: Packer,
        send: Callable[[Sequence[bytes]], bool],
        *,
        store: Store,
    ) -> None:
        self.boot_id = packer.boot_id
        self.store = store
        self._source = source
        self._link = link
        self._packer = packer
        self._send = send
        self._max_rows = 2**16

    def limit(self, max_rows: int, max_bytes: int) -> None:
        """The receiver's bounds for one message; what was stored larger is cut when it is sent."""
        self._max_rows = max(1, max_rows)
        if self._source is not None:
            self._source.limit(max_rows, max_bytes)

    def acknowledged(self, processed: int) -> None:
        """Forget what is done with."""
        self.store.release(processed)

    def idle(self) -> bool:
        """Whether ring and store are empty."""
        return (
            self._ring_is_empty()
            and self._link.counts(self.boot_id).in_flight == 0
            and (self.store.at(self._link.next_seq(self.boot_id)) is None)
        )

    def _ring_is_empty(self) -> bool:
        return self._source is None or self._source.ring.backlog() == 0

    def pump(self, now: Now) -> None:
        """Store what is new, send what may go."""
        self._fill(now)
        for _ in range(TURN):
            if not self._send_next(now):
                return

    def _fill(self, now: Now) -> None:
        if self._source is None:
            return
        ring = self._source.ring
        end = ring.head
        for _ in range(TURN):
            if ring.tail >= end or not self.store.has_room():
                return
            parts, lost = self._source.next()
            if lost is not None:
                self.store.lose(lost.first_seq, lost.count, DropReason.OVERRUN)
            for batch in parts:
                self._keep(batch, now)
            if not parts:
                return

    def _keep(self, batch: StepBatch, now: Now) -> None:
        first, rows = batch.steps.first_seq, len(batch.steps)
        try:
            frames = self._packer.pack(batch, (), now.wall_ns)
        except Exception:
            # The rows are numbered and out of the ring: whatever is wrong, they must be accounted.
            self.store.lose(first, rows, DropReason.REFUSED)
            raise
        self.store.append(first, rows, frames)

    def _send_next(self, now: Now) -> bool:
        link = self._link
        seq = link.next_seq(self.boot_id)
        entry = self.store.at(seq)
        if entry is None:
            return False
        if entry.reason is not None:
            link.declare(self.boot_id, seq, entry.end - seq, entry.reason)
            return True
        if link.blocked(self.boot_id, 1, 0) is not None:
            return False
        drops = link.pending_drops(self.boot_id)
        rows = min(entry.end - seq, self._max_rows)
        frames = self._frames(entry, seq, rows, drops, now.wall_ns)
        if frames is None:
            return True  # broken: the entry now has the reason, and is declared next
        size = sum(map(len, frames))
        if link.blocked(self.boot_id, rows, size) is not None or not self._send(frames):
            return False
        link.sent(now, self.boot_id, first_seq=seq, rows=rows, size=size, drops=drops)
        return True

    def _frames(
        self, entry: Entry, seq: int, rows: int, drops: Sequence[Drop], sent_ns: int
    ) -> list[bytes] | None:
        """Stored rows as frames: as they lie there, or cut and with declarations."""
        stored = self.store.read(entry)
        if stored is None or ((seq, rows) == (entry.first, entry.end - entry.first) and not drops):
            return stored
        try:
            message = decode(stored)
        except WireError:
            message = None
        if not isinstance(message, StepsMessage | FeaturesMessage):
            # Intact by its checksum and yet no rows of ours: written by another version.
            entry.reason = DropReason.SPOOL_BROKEN
            return None
        part = slice_message(message, seq - entry.first, rows)
        return self._packer.repack(part, drops, sent_ns)

    def shut(self) -> None:
        """What is stored stays there; what never got that far is noted as lost."""
        if self._source is None:
            return
        ring = self._source.ring
        while ring.oldest_time_ns() is not None:
            overwritten, rest = ring.skip_to(2**62)
            for lost, reason in ((overwritten, DropReason.OVERRUN), (rest, DropReason.SHUTDOWN)):
                if lost is not None:
                    self.store.lose(lost.first_seq, lost.count, reason)

    def give_up(self) -> None:
        """Declare what is stored and was not sent: the store ends with this process."""
        while (entry := self.store.at(seq := self._link.next_seq(self.boot_id))) is not None:
            reason = entry.reason or DropReason.SHUTDOWN
            self._link.declare(self.boot_id, seq, entry.end - seq, reason)
