"""The sending end of a connection as a state machine: events in, instructions out.

The same machine carries steps from an agent to an encoder and features from an encoder to its
consumers. It knows no socket and reads no clock: a shell opens and closes sockets and moves frames
as the instructions say. What to do with rows that may not go now (drop, spool, block) is the
shell's policy; the link says *whether* they may go and keeps the books.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

from interlatent_live.errors import WireError
from interlatent_live.wire.clock import OffsetEstimator, OffsetSample
from interlatent_live.wire.codec import encode, encode_hello
from interlatent_live.wire.credit import SenderCredit
from interlatent_live.wire.ledger import SenderCounts, SenderLedger
from interlatent_live.wire.messages import (
    Ack,
    Bye,
    Drop,
    DropReason,
    Heartbeat,
    Refuse,
    Stats,
    Welcome,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from interlatent_live.stream import Manifest
    from interlatent_live.wire.clock import Now
    from interlatent_live.wire.messages import StreamAck, WireMessage


class LinkState(Enum):
    """Where a connection stands."""

    IDLE = "idle"
    WAITING = "waiting"
    GREETING = "greeting"
    UP = "up"
    CLOSED = "closed"


@dataclass(frozen=True, slots=True)
class SenderConfig:
    """Times in seconds. ``lossless`` sends again what a lost peer did not process."""

    heartbeat: float = 0.5
    peer_timeout: float = 5.0
    """A peer that is slow is not dead: a process that ended is told by its successor at once."""
    rewind_interval: float = 2.0
    """Lossless only: least time between two times that a hole is sent again."""
    hello_timeout: float = 5.0
    backoff_first: float = 0.1
    backoff_longest: float = 5.0
    refused_retry: float = 10.0
    stats_interval: float = 1.0
    age_limit: float | None = None
    """Rows older than this when their turn comes are not worth sending; ``None`` for no limit."""
    lossless: bool = False

    def __post_init__(self) -> None:
        """Refuse times that contradict each other.

        Raises:
            ValueError: when a peer would time out between two heartbeats.
        """
        if self.peer_timeout < 2 * self.heartbeat:
            raise ValueError("peer_timeout must be at least two heartbeats")


@dataclass(frozen=True, slots=True)
class Open:
    """Make a new socket and connect it; forget the old one."""


@dataclass(frozen=True, slots=True)
class Close:
    """Close the socket at once, with what still waits in it."""


@dataclass(frozen=True, slots=True)
class Transmit:
    """Send these frames."""

    frames: Sequence[bytes]


@dataclass(frozen=True, slots=True)
class StreamUp:
    """A stream was accepted: rows may flow. ``lost`` rows were declared for the peer before."""

    boot_id: str
    server: str
    max_rows: int
    max_bytes: int
    lost: int


@dataclass(frozen=True, slots=True)
class Resume:
    """Lossless only: send the stream again from this row on."""

    boot_id: str
    seq: int


@dataclass(frozen=True, slots=True)
class Refused:
    """The peer refused a stream, or with an empty ``boot_id`` a message."""

    boot_id: str
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class PeerLost:
    """The connection ended; ``why`` is one of ``silent``, ``unknown``, ``nonsense``."""

    why: str


SenderInstruction = Open | Close | Transmit | StreamUp | Resume | Refused | PeerLost


@dataclass(slots=True)
class _Stream:
    manifest: Manifest
    transcoders: Mapping[str, str] | None
    ledger: SenderLedger
    welcomed: bool = False
    greet_at: float | None = None
    rewound_at: float = float("-inf")
    touched: bool = False
    """Its books changed, and a statement of them is due within the interval."""
    stats_said: SenderCounts | None = None


@dataclass(slots=True)
class LinkCounters:
    """What happened on a link since its start."""

    connections: int = 0
    peers_lost: int = 0
    refusals: dict[str, int] = field(default_factory=dict)


class SenderLink:
    """One connection that sends one or more streams.

    Call :meth:`start` once, :meth:`on_message` for what arrives and :meth:`on_tick` at least at
    :meth:`next_wake`; carry out what they return, in order. For data: :meth:`blocked`, then encode
    with :meth:`pending_drops`, send without blocking, and report :meth:`sent` or :meth:`declare`.
    """

    def __init__(
        self, config: SenderConfig | None = None, *, rng: random.Random | None = None
    ) -> None:
        self.config = config or SenderConfig()
        self.state = LinkState.IDLE
        self.counters = LinkCounters()
        self.credit = SenderCredit()
        self._rng = rng or random.Random()
        self._streams: dict[str, _Stream] = {}
        self._offset = OffsetEstimator()
        self._failures = 0
        self._at = 0.0
        self._heard = 0.0
        self._spoke = 0.0
        # A link may carry a thousand silent streams: only those are looked at whose books changed
        # (first those of which this is new, then with the time their statement is due), and those
        # that were refused.
        self._touched: list[str] = []
        self._statements: deque[tuple[float, str]] = deque()
        self._refused: set[str] = set()
        self._greet_at = float("inf")

    # --- streams --------------------------------------------------------------------------------

    def open_stream(
        self,
        now: Now,
        manifest: Manifest,
        *,
        first_seq: int = 0,
        transcoders: Mapping[str, str] | None = None,
    ) -> list[SenderInstruction]:
        """Add a stream, or announce it with other transcoders; its rows begin at ``first_seq``.

        Raises:
            WireError: reason ``schema`` when the manifest does not fit the wire's rules.
        """
        known = self._streams.get(manifest.boot_id)
        ledger = known.ledger if known else SenderLedger(first_seq)
        stream = _Stream(manifest, transcoders, ledger)
        greeting = self._greet(now, stream)
        self._streams[manifest.boot_id] = stream
        return [greeting] if self.state in {LinkState.GREETING, LinkState.UP} else []

    def close_stream(self, now: Now, boot_id: str) -> list[SenderInstruction]:
        """End a stream: say goodbye with its final ledger and forget it.

        Call it when :meth:`counts` shows nothing in flight, or has shown something for too long:
        what is in flight then is declared lost, reason ``shutdown``.
        """
        stream = self._streams.pop(boot_id)
        stream.ledger.lose_peer(0, DropReason.SHUTDOWN)
        if not stream.welcomed or self.state is not LinkState.UP:
            return []
        out = [self._transmit(now, self._statement(now, boot_id, stream, Bye))]
        if not self._wanted():
            # With its last stream the receiver forgets the connection, and what it granted on it.
            self.credit.reset()
        return out

    def carries(self, boot_id: str) -> bool:
        """Whether this is one of the streams of this link."""
        return boot_id in self._streams

    def boot_ids(self) -> tuple[str, ...]:
        """The streams of this link."""
        return tuple(self._streams)

    # --- events ---------------------------------------------------------------------------------

    def start(self, now: Now) -> list[SenderInstruction]:
        """Open the connection and announce the streams."""
        return self._open(now)

    def on_message(self, now: Now, message: WireMessage) -> list[SenderInstruction]:
        """Something arrived from the peer."""
        if self.state not in {LinkState.GREETING, LinkState.UP}:
            return []
        self._heard = now.mono
        match message:
            case Welcome():
                return self._on_welcome(now, message)
            case Ack():
                return self._on_ack(now, message)
            case Refuse():
                return self._on_refuse(now, message)
            case _:
                return []

    def on_tick(self, now: Now) -> list[SenderInstruction]:
        """Time has passed."""
        if self.state is LinkState.WAITING and now.mono >= self._at:
            return self._open(now)
        if self.state is LinkState.GREETING and now.mono >= self._at:
            return [Close(), *self._retry(now)]
        if self.state is not LinkState.UP:
            return []
        # A peer that refused every stream owes no answer, and none is asked for.
        wanted = self._wanted()
        if wanted and now.mono - self._heard > self.config.peer_timeout:
            return self._lose(now, "silent")
        out = [*self._greet_again(now), *self._reports(now)]
        if wanted and not out and now.mono - self._spoke >= self.config.heartbeat:
            out.append(self._transmit(now, Heartbeat(sent_ns=_stamp(now))))
        return out

    def _wanted(self) -> bool:
        """Whether the receiver takes a stream of this connection."""
        return any(stream.welcomed for stream in self._streams.values())

    def _greet_again(self, now: Now) -> list[SenderInstruction]:
        """Say hello again for the streams that were refused, when their time has come."""
        if now.mono < self._greet_at:
            return []
        out: list[SenderInstruction] = []
        for boot_id in tuple(self._refused):
            stream = self._streams.get(boot_id)
            if stream is None or stream.greet_at is None:
                self._refused.discard(boot_id)
            elif now.mono >= stream.greet_at:
                self._refused.discard(boot_id)
                out.append(self._greet(now, stream))
        waiting = (self._streams[boot_id].greet_at for boot_id in self._refused)
        self._greet_at = min((at for at in waiting if at is not None), default=float("inf"))
        return out

    def _reports(self, now: Now) -> list[SenderInstruction]:
        """The statements that are due."""
        if self._touched:
            due = now.mono + self.config.stats_interval
            self._statements.extend((due, boot_id) for boot_id in self._touched)
            self._touched.clear()
        out: list[SenderInstruction] = []
        while self._statements and self._statements[0][0] <= now.mono:
            _, boot_id = self._statements.popleft()
            stream = self._streams.get(boot_id)
            if stream is not None:
                stream.touched = False
                if stream.welcomed:
                    out += self._report(now, boot_id, stream)
        return out

    def _touch(self, boot_id: str, stream: _Stream) -> None:
        """The books of a stream changed."""
        if not stream.touched:
            stream.touched = True
            self._touched.append(boot_id)

    def close(self, now: Now) -> list[SenderInstruction]:
        """End every stream and the connection."""
        out: list[SenderInstruction] = []
        for boot_id in tuple(self._streams):
            out += self.close_stream(now, boot_id)
        self.state = LinkState.CLOSED
        return [*out, Close()]

    def next_wake(self, now: Now) -> float:
        """Seconds until :meth:`on_tick` has something to do, at most one heartbeat."""
        due = now.mono + self.config.heartbeat
        if self.state in {LinkState.WAITING, LinkState.GREETING}:
            due = min(due, self._at)
        elif self.state is LinkState.UP:
            due = min(due, self._spoke + self.config.heartbeat)
        return max(0.0, due - now.mono)

    # --- data -----------------------------------------------------------------------------------

    def blocked(self, boot_id: str, rows: int, size: int) -> DropReason | None:
        """Why a message of so many rows and bytes may not go now, or ``None`` when it may."""
        if self.state is not LinkState.UP or not self._streams[boot_id].welcomed:
            return DropReason.NO_PEER
        return None if self.credit.allows(rows, size) else DropReason.NO_CREDIT

    def too_old(self, now: Now, row_ns: int) -> bool:
        """Whether a row of that time is beyond the age limit."""
        limit = self.config.age_limit
        return limit is not None and now.wall_ns - row_ns > limit * 1e9

    def pending_drops(self, boot_id: str) -> tuple[Drop, ...]:
        """What the next message of the stream must declare."""
        return self._streams[boot_id].ledger.pending_drops()

    def sent(
        self,
        now: Now,
        boot_id: str,
        *,
        first_seq: int,
        rows: int,
        size: int,
        drops: Sequence[Drop] = (),
    ) -> None:
        """A message with these rows, bytes (all frames) and declarations went onto the wire.

        Raises:
            ValueError: when the rows are out of turn.
        """
        stream = self._streams[boot_id]
        stream.ledger.transmit(first_seq, rows)
        stream.ledger.drops_sent(drops)
        self._touch(boot_id, stream)
        self.credit.spend(rows, size)
        self._spoke = now.mono

    def declare(self, boot_id: str, first_seq: int, rows: int, reason: DropReason) -> None:
        """These rows, whose turn it is, will never be sent.

        Raises:
            ValueError: when the rows are out of turn.
        """
        stream = self._streams[boot_id]
        stream.ledger.declare(first_seq, rows, reason)
        self._touch(boot_id, stream)

    def next_seq(self, boot_id: str) -> int:
        """The row whose turn it is."""
        return self._streams[boot_id].ledger.next_seq

    def unsettled_seq(self, boot_id: str) -> int:
        """The first row that is neither acknowledged nor declared lost for good."""
        return self._streams[boot_id].ledger.unsettled_seq()

    def counts(self, boot_id: str) -> SenderCounts:
        """The stream's ledger now."""
        return self._streams[boot_id].ledger.counts()

    def clock_offset(self) -> OffsetSample | None:
        """The peer's clock minus ours, with the round trip it was seen at."""
        return self._offset.best()

    # --- the parts ------------------------------------------------------------------------------

    def _open(self, now: Now) -> list[SenderInstruction]:
        self.state = LinkState.GREETING
        self._at = now.mono + self.config.hello_timeout
        self._heard = now.mono
        self.credit.reset()
        self.counters.connections += 1
        return [Open(), *(self._greet(now, stream) for stream in self._streams.values())]

    def _greet(self, now: Now, stream: _Stream) -> SenderInstruction:
        stream.welcomed = False
        stream.greet_at = None
        self._spoke = now.mono
        return Transmit(
            encode_hello(
                stream.manifest,
                first_seq=stream.ledger.unsettled_seq(),
                sent_ns=_stamp(now),
                transcoders=stream.transcoders,
                lossless=self.config.lossless,
            )
        )

    def _retry(self, now: Now) -> list[SenderInstruction]:
        # Full jitter: a thousand agents that lost one encoder must not come back in step.
        longest = min(
            self.config.backoff_longest, self.config.backoff_first * 2.0 ** min(self._failures, 16)
        )
        self._failures += 1
        self._at = now.mono + self._rng.uniform(longest / 4, longest)
        self.state = LinkState.WAITING
        for stream in self._streams.values():
            stream.welcomed = False
        return []

    def _lose(self, now: Now, why: str) -> list[SenderInstruction]:
        self.counters.peers_lost += 1
        return [Close(), PeerLost(why), *self._retry(now)]

    def _on_welcome(self, now: Now, welcome: Welcome) -> list[SenderInstruction]:
        stream = self._streams.get(welcome.boot_id)
        if stream is None or stream.welcomed:
            return []
        if stream.ledger.next_seq == stream.ledger.first_seq < welcome.received:
            # A relay that was restarted: its predecessor brought the receiver this far.
            stream.ledger = SenderLedger(welcome.received)
        ledger = stream.ledger
        if welcome.received > ledger.next_seq:
            return self._lose(now, "nonsense")
        self.state = LinkState.UP
        self._failures = 0
        self.credit.grant(welcome.credit_steps, welcome.credit_bytes)
        stream.welcomed = True
        self._touch(welcome.boot_id, stream)
        out: list[SenderInstruction] = []
        lost = 0
        if self.config.lossless:
            holes = [welcome.received, *(hole.first_seq for hole in welcome.missing)]
            out.append(Resume(welcome.boot_id, ledger.rewind(min(holes))))
        else:
            lost = ledger.give_up(welcome.missing) + ledger.lose_peer(welcome.received)
        up = StreamUp(welcome.boot_id, welcome.server, welcome.max_rows, welcome.max_bytes, lost)
        if ledger.pending_drops():
            out += self._report(now, welcome.boot_id, stream)
        return [up, *out]

    def _on_ack(self, now: Now, ack: Ack) -> list[SenderInstruction]:
        if not self._wanted():
            return []  # the answer to a goodbye: what it grants is forgotten
        self.credit.grant(ack.credit_steps, ack.credit_bytes)
        self._offset.add(ack.echo_ns, ack.echo_received_ns, ack.sent_ns, now.wall_ns)
        out: list[SenderInstruction] = []
        try:
            for entry in ack.streams:
                stream = self._streams.get(entry.boot_id)
                if stream is not None and stream.welcomed:
                    out += self._settle(now, entry, stream)
        except WireError:
            return self._lose(now, "nonsense")
        return out

    def _settle(self, now: Now, entry: StreamAck, stream: _Stream) -> list[SenderInstruction]:
        ledger = stream.ledger
        self._touch(entry.boot_id, stream)
        if not self.config.lossless:
            lost = ledger.give_up(entry.missing) if entry.missing else 0
            ledger.acknowledge(entry.processed)
            return self._report(now, entry.boot_id, stream) if lost else []
        if not entry.missing:
            # After a rewind the receiver may be ahead of what was sent again.
            ledger.acknowledge(min(entry.processed, ledger.next_seq))
            return []
        first = entry.missing[0].first_seq
        ledger.acknowledge(min(entry.processed, first, ledger.next_seq))
        # Until the rows arrive every acknowledgement repeats the hole: one rewind an interval.
        if now.mono - stream.rewound_at < self.config.rewind_interval:
            return []
        stream.rewound_at = now.mono
        return [Resume(entry.boot_id, ledger.rewind(first))]

    def _on_refuse(self, now: Now, refuse: Refuse) -> list[SenderInstruction]:
        reasons = self.counters.refusals
        reasons[refuse.reason] = reasons.get(refuse.reason, 0) + 1
        if refuse.reason == "hello":
            # The peer does not know this connection: it restarted, or the connection was cut.
            return self._lose(now, "unknown")
        out: list[SenderInstruction] = [Refused(refuse.boot_id, refuse.reason, refuse.message)]
        stream = self._streams.get(refuse.boot_id)
        if stream is not None and not stream.welcomed:
            self.state = LinkState.UP
            self._failures = 0
            wait = refuse.retry_ms / 1000 or self.config.refused_retry
            stream.greet_at = now.mono + wait * self._rng.uniform(1.0, 1.25)
            self._refused.add(refuse.boot_id)
            self._greet_at = min(self._greet_at, stream.greet_at)
        return out

    def _report(self, now: Now, boot_id: str, stream: _Stream) -> list[SenderInstruction]:
        counts = stream.ledger.counts()
        if counts == stream.stats_said and not stream.ledger.pending_drops():
            return []
        stream.stats_said = counts
        return [self._transmit(now, self._statement(now, boot_id, stream, Stats))]

    def _statement(self, now: Now, boot_id: str, stream: _Stream, kind: type[Stats]) -> Stats:
        counts = stream.ledger.counts()
        drops = stream.ledger.pending_drops()
        stream.ledger.drops_sent(drops)
        offset = self._offset.best()
        return kind(
            boot_id=boot_id,
            next_seq=stream.ledger.next_seq,
            sent=counts.sent,
            acknowledged=counts.acknowledged,
            lost=counts.lost,
            in_flight=counts.in_flight,
            drops=drops,
            used_steps=self.credit.steps_used,
            used_bytes=self.credit.bytes_used,
            offset_ns=None if offset is None else offset.offset_ns,
            sent_ns=_stamp(now),
        )

    def _transmit(self, now: Now, message: Stats | Heartbeat) -> SenderInstruction:
        self._spoke = now.mono
        return Transmit(encode(message))


def total_counts(counts: Iterable[SenderCounts]) -> SenderCounts:
    """The ledgers of several streams as one."""
    sent = acknowledged = in_flight = 0
    lost: dict[DropReason, int] = {}
    for one in counts:
        sent += one.sent
        acknowledged += one.acknowledged
        in_flight += one.in_flight
        for reason, rows in one.lost.items():
            lost[reason] = lost.get(reason, 0) + rows
    return SenderCounts(sent, acknowledged, lost, in_flight)


def _stamp(now: Now) -> int:
    # Clocks before 1970 exist on machines without a battery.
    return max(0, now.wall_ns)
