"""Sending features to one consumer: a DEALER socket with a :class:`SenderLink` behind it.

What a consumer has no credit for waits, bounded in bytes; beyond the bound the oldest rows are
dropped and declared lost, so a slow consumer costs itself and nobody else.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

import zmq

from interlatent_live.errors import WireError
from interlatent_live.logs import get_logger
from interlatent_live.services.network import LAST_WORDS_MS
from interlatent_live.wire.clock import read_clock
from interlatent_live.wire.codec import decode, encode_features
from interlatent_live.wire.messages import DropReason
from interlatent_live.wire.sender_link import (
    Close,
    Open,
    PeerLost,
    Refused,
    Resume,
    SenderConfig,
    SenderInstruction,
    SenderLink,
    StreamUp,
    Transmit,
)
from interlatent_live.wire.slices import slice_features
from interlatent_live.wire.sockets import receive_message, send_message

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from interlatent_live.services.network import Network
    from interlatent_live.stream import FeatureBatch, Manifest


@dataclass(slots=True)
class _Announced:
    manifest: Manifest
    transcoders: dict[str, str]


@dataclass(slots=True)
class _Waiting:
    batch: FeatureBatch
    frames: Sequence[bytes]
    size: int


class FeatureSender:
    """One consumer of features, from the encoder's side. Not thread-safe.

    Args:
        network: of the service.
        endpoint: where the consumer is bound.
        limit_bytes: most bytes that may wait for it.
        lossless: keep what is sent until it is acknowledged, and send it again to a consumer that
            died meanwhile. Its credit bounds what is kept.
    """

    def __init__(
        self, network: Network, endpoint: str, limit_bytes: int, *, lossless: bool = False
    ) -> None:
        self.endpoint = endpoint
        self.link = SenderLink(SenderConfig(lossless=lossless))
        self._sent: dict[str, deque[_Waiting]] = {}
        self.socket: zmq.Socket[bytes] | None = None
        self._network = network
        self._limit = limit_bytes
        self._queue: deque[_Waiting] = deque()
        self._queued = 0
        self._ending: dict[str, float] = {}
        self._announced: dict[str, _Announced] = {}
        self._log = get_logger("services.sending", consumer=endpoint)
        self._carry_out(self.link.start(read_clock()))

    @property
    def queued_bytes(self) -> int:
        """Bytes that wait for credit."""
        return self._queued

    def open_stream(self, manifest: Manifest, transcoders: Mapping[str, str], seq: int) -> None:
        """Announce a run; its rows begin at ``seq``."""
        self._announced[manifest.boot_id] = _Announced(manifest, dict(transcoders))
        instructions = self.link.open_stream(
            read_clock(), manifest, first_seq=seq, transcoders=transcoders
        )
        self._carry_out(instructions)

    def end_stream(self, boot_id: str, within_s: float) -> None:
        """Say goodbye once everything sent is acknowledged, at the latest after ``within_s``."""
        if self.link.carries(boot_id):
            self._ending[boot_id] = read_clock().mono + within_s

    def offer(self, batch: FeatureBatch, frames: Sequence[bytes]) -> None:
        """Send a batch, or let it wait; ``frames`` are the batch's without declarations."""
        if not self.link.carries(batch.boot_id):
            return
        size = sum(len(frame) for frame in frames)
        self._queue.append(_Waiting(batch, frames, size))
        self._queued += size
        self.flush()
        while self._queued > self._limit:
            self._drop_oldest()

    def flush(self) -> None:
        """Send what may go now."""
        while self._queue:
            waiting = self._queue[0]
            boot_id, steps = waiting.batch.boot_id, waiting.batch.steps
            if not self.link.carries(boot_id):
                self._forget_oldest()
                continue
            rows = len(steps)
            if self.socket is None or self.link.blocked(boot_id, rows, waiting.size) is not None:
                return
            if self._announce(boot_id, waiting.batch.transcoders):
                return
            if steps.first_seq < self.link.next_seq(boot_id):
                self._skip_delivered(waiting, self.link.next_seq(boot_id))
                continue
            self._declare_hole(boot_id, steps.first_seq)
            drops = self.link.pending_drops(boot_id)
            frames = encode_features(waiting.batch, drops=drops) if drops else waiting.frames
            if not send_message(self.socket, frames):
                return
            size = sum(len(frame) for frame in frames)
            self.link.sent(
                read_clock(),
                boot_id,
                first_seq=steps.first_seq,
                rows=rows,
                size=size,
                drops=drops,
            )
            if self.link.config.lossless:
                self._sent.setdefault(boot_id, deque()).append(waiting)
            self._forget_oldest()

    def receive(self) -> None:
        """Take in what the consumer said, then send what its credit allows."""
        while self.socket is not None:
            frames = receive_message(self.socket)
            if frames is None:
                break
            try:
                message = decode(frames)
            except WireError as error:
                self._log.warning("garbage from consumer", reason=error.reason, error=str(error))
                continue
            self._carry_out(self.link.on_message(read_clock(), message))
        self.flush()

    def tick(self) -> None:
        """Let time pass."""
        now = read_clock()
        self._carry_out(self.link.on_tick(now))
        self._forget_settled()
        self.flush()
        queued = {one.batch.boot_id for one in self._queue} if self._ending else set()
        for boot_id, until in list(self._ending.items()):
            settled = boot_id not in queued and self.link.counts(boot_id).in_flight == 0
            if settled or now.mono >= until:
                del self._ending[boot_id]
                self._announced.pop(boot_id, None)
                self._carry_out(self.link.close_stream(now, boot_id))

    def lost(self) -> dict[str, int]:
        """Rows declared lost to this consumer, by reason, over the open streams."""
        found: dict[str, int] = {}
        for boot_id in self.link.boot_ids():
            for reason, rows in self.link.counts(boot_id).lost.items():
                found[reason.value] = found.get(reason.value, 0) + rows
        return found

    def close(self) -> None:
        """Say goodbye and close the socket."""
        if self.socket is not None:
            self.socket.setsockopt(zmq.LINGER, LAST_WORDS_MS)
        self._carry_out(self.link.close(read_clock()))

    def _announce(self, boot_id: str, transcoders: Mapping[str, str]) -> bool:
        """Say hello again before the first rows of another transcoder, so that nobody mixes them.

        Returns whether hello was said: rows wait for the welcome, which comes in a round trip.
        """
        known = self._announced[boot_id]
        if all(known.transcoders.get(name) == one for name, one in transcoders.items()):
            return False
        known.transcoders.update(transcoders)
        self._carry_out(
            self.link.open_stream(read_clock(), known.manifest, transcoders=dict(known.transcoders))
        )
        return True

    def _skip_delivered(self, waiting: _Waiting, next_seq: int) -> None:
        """Leave out rows that an encoder before this one delivered already."""
        self._forget_oldest()
        steps = waiting.batch.steps
        delivered = next_seq - steps.first_seq
        if delivered < len(steps):
            rest = slice_features(waiting.batch, delivered, len(steps) - delivered)
            frames = encode_features(rest)
            size = sum(len(frame) for frame in frames)
            self._queue.appendleft(_Waiting(rest, frames, size))
            self._queued += size

    def _declare_hole(self, boot_id: str, first_seq: int) -> None:
        """Rows that never reached this queue were lost before it, and are declared on."""
        hole = first_seq - self.link.next_seq(boot_id)
        if hole > 0:
            seq = self.link.next_seq(boot_id)
            self.link.declare(boot_id, seq, hole, DropReason.UPSTREAM)

    def _forget_settled(self) -> None:
        """Keep of what was sent only what the consumer has not acknowledged."""
        for boot_id, sent in [*self._sent.items()]:
            settled = self.link.unsettled_seq(boot_id) if self.link.carries(boot_id) else None
            while sent and (settled is None or _end(sent[0]) <= settled):
                sent.popleft()
            if not sent:
                del self._sent[boot_id]

    def _send_again(self, boot_id: str, seq: int) -> None:
        """Put back into the queue, before all else, what was sent from row ``seq`` on."""
        for sent in reversed(self._sent.pop(boot_id, deque())):
            if _end(sent) > seq:
                self._queue.appendleft(sent)
                self._queued += sent.size

    def _drop_oldest(self) -> None:
        waiting = self._queue[0]
        boot_id, steps = waiting.batch.boot_id, waiting.batch.steps
        if self.link.carries(boot_id):
            if steps.first_seq < self.link.next_seq(boot_id):
                self._skip_delivered(waiting, self.link.next_seq(boot_id))
                return
            self._declare_hole(boot_id, steps.first_seq)
            self.link.declare(boot_id, steps.first_seq, len(steps), DropReason.NO_CREDIT)
        self._forget_oldest()

    def _forget_oldest(self) -> None:
        self._queued -= self._queue.popleft().size

    def _carry_out(self, instructions: Sequence[SenderInstruction]) -> None:
        for instruction in instructions:
            match instruction:
                case Open():
                    self._open()
                case Close():
                    if self.socket is not None:
                        self.socket.close()
                        self.socket = None
                case Transmit(frames):
                    self._transmit(frames)
                case Resume(boot_id=boot_id, seq=seq):
                    self._send_again(boot_id, seq)
                case StreamUp(boot_id=boot_id, lost=lost):
                    self._log.info("stream up", boot=boot_id, lost=lost)
                case Refused(boot_id=boot_id, message=message):
                    self._log.warning("refused", boot=boot_id, message=message)
                case PeerLost(why=why):
                    self._log.warning("consumer lost", why=why)

    def _open(self) -> None:
        if self.socket is not None:
            self.socket.close()
        self.socket = self._network.dealer(self.endpoint)

    def _transmit(self, frames: Sequence[bytes]) -> None:
        if self.socket is not None:
            # Control messages repeat themselves: a heartbeat that finds no room is only late.
            send_message(self.socket, frames)


def _end(waiting: _Waiting) -> int:
    """One more than its last row."""
    return waiting.batch.steps.first_seq + len(waiting.batch.steps)
