"""The receiving end of many connections as a state machine: events in, instructions out.

One hub stands behind one ROUTER socket. It answers hellos, keeps a ledger per stream and credit per
connection, acknowledges what its shell has processed, and forgets who went away. It reads no clock
and knows no socket.

A stream belongs to the connection that opened it last: rows that an older connection of the same
agent left behind are refused, since their sender has declared them lost.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from interlatent_live.errors import WireError
from interlatent_live.wire.clock import OffsetSample
from interlatent_live.wire.codec import ManifestCheck
from interlatent_live.wire.credit import Budget, ReceiverCredit, Window
from interlatent_live.wire.ledger import ReceiverCounts, ReceiverLedger
from interlatent_live.wire.limits import MAX_STREAMS, MAX_TEXT
from interlatent_live.wire.messages import (
    Ack,
    Bye,
    FeaturesMessage,
    Heartbeat,
    Hello,
    Refuse,
    Stats,
    StepsMessage,
    StreamAck,
    Welcome,
)
from interlatent_live.wire.slices import slice_message

if TYPE_CHECKING:
    from collections.abc import Callable

    from interlatent_live.stream import Manifest
    from interlatent_live.wire.clock import Now
    from interlatent_live.wire.messages import WireMessage

Identity = bytes

_ROWS: Final = (StepsMessage, FeaturesMessage)

REFUSAL_INTERVAL: Final = 1.0
"""Seconds between two refusals of the same kind to one peer: garbage is not answered in kind."""


@dataclass(frozen=True, slots=True)
class ReceiverConfig:
    """Times in seconds, sizes in bytes.

    The memory that connections can fill is ``total_bytes`` at most. A connection gets a window of
    ``window_bytes``, or of ``least_bytes`` once three quarters of the total are given out.
    """

    ack_interval: float = 0.05
    peer_timeout: float = 5.0
    reorder_grace: float = 0.25
    """A hole older than two of these is reported as missing."""
    remember: float = 600.0
    """How long a stream without a connection is remembered."""
    max_streams: int = 4096
    max_peers: int = 4096
    window_steps: int = 65_536
    window_bytes: int = 4 * 1024 * 1024
    least_bytes: int = 128 * 1024
    total_bytes: int = 256 * 1024 * 1024
    max_rows: int = 4096
    messages_per_s: float = 20_000.0
    """Messages that one connection may send a second; a second's worth may come at once."""
    server: str = ""


@dataclass(frozen=True, slots=True)
class Reply:
    """Send this message to that peer."""

    peer: Identity
    message: Welcome | Refuse | Ack


@dataclass(frozen=True, slots=True)
class Asked:
    """A peer opens a stream: answer with :meth:`ReceiverHub.accept` or :meth:`~.refuse`."""

    peer: Identity
    hello: Hello


@dataclass(frozen=True, slots=True)
class Deliver:
    """Rows to process, none of them seen before; report them with ``processed``, in this order."""

    boot_id: str
    message: StepsMessage | FeaturesMessage


@dataclass(frozen=True, slots=True)
class Detached:
    """A stream has no connection any more; it may come back under the same ``boot_id``."""

    boot_id: str


@dataclass(frozen=True, slots=True)
class Ended:
    """A stream said goodbye; nothing more will come of it."""

    boot_id: str
    statement: Bye


HubInstruction = Reply | Asked | Deliver | Detached | Ended


def anyone(user_id: str, manifest: Manifest) -> str | None:
    """The rule of a socket without keys: whoever can connect may speak for any agent."""
    del user_id, manifest
    return None


@dataclass(slots=True)
class _Peer:
    user_id: str
    credit: ReceiverCredit
    reserved: int
    heard: float
    streams: set[str] = field(default_factory=set)
    dirty: set[str] = field(default_factory=set)
    ack_due: bool = False
    unacknowledged: int = 0
    echo_ns: int = 0
    echo_received_ns: int = 0


@dataclass(slots=True)
class _Waiting:
    first: int
    rows: int
    size: int
    peer: Identity
    parts: int
    """Deliveries that are still to be reported processed."""


@dataclass(slots=True)
class _Stream:
    manifest: Manifest
    check: ManifestCheck
    ledger: ReceiverLedger
    peer: Identity | None
    waiting: deque[_Waiting] = field(default_factory=deque)
    statement: Stats | None = None
    detached_at: float = 0.0
    ended: bool = False


@dataclass(slots=True)
class _Pace:
    """How many messages a connection may still send, as of a moment (a token bucket)."""

    left: float
    at: float


@dataclass(slots=True)
class HubCounters:
    """What happened at a hub since its start; rows are counted by the ledgers."""

    messages: int = 0
    bytes: int = 0
    hellos: int = 0
    peers_lost: int = 0
    refusals: dict[str, int] = field(default_factory=dict)


class ReceiverHub:
    """Every connection and stream behind one socket.

    ``speaks_for(user_id, manifest)`` returns why this key may not speak for this agent, or
    ``None``; see :func:`interlatent_live.wire.security.speaks_for`.
    """

    def __init__(
        self,
        config: ReceiverConfig | None = None,
        *,
        speaks_for: Callable[[str, Manifest], str | None] = anyone,
    ) -> None:
        self.config = config or ReceiverConfig()
        self.counters = HubCounters()
        self.budget = Budget(
            self.config.total_bytes,
            wanted=self.config.window_bytes,
            least=self.config.least_bytes,
        )
        self._speaks_for = speaks_for
        self._peers: dict[Identity, _Peer] = {}
        self._streams: OrderedDict[str, _Stream] = OrderedDict()
        self._due: deque[tuple[float, Identity]] = deque()
        self._holey: set[str] = set()
        self._age_at = 0.0
        self._sweep_at = 0.0
        self._refused: OrderedDict[tuple[Identity, str], float] = OrderedDict()
        self._paces: OrderedDict[Identity, _Pace] = OrderedDict()

    # --- events ---------------------------------------------------------------------------------

    def paced(self, now: Now, peer: Identity) -> list[HubInstruction] | None:
        """Ask before a message is decoded: ``None`` lets it through.

        A connection that sends more than its rate is refused, reason ``rate``; rows in what is
        thrown away leave a hole, and so are declared like any that vanish on the way.
        """
        pace = self._paces.get(peer)
        rate = self.config.messages_per_s
        if pace is None:
            # Whoever connects anew for each message is no faster for it: the oldest is forgotten.
            while len(self._paces) >= self.config.max_peers:
                self._paces.popitem(last=False)
            pace = self._paces[peer] = _Pace(rate, now.mono)
        pace.left = min(rate, pace.left + (now.mono - pace.at) * rate)
        pace.at = now.mono
        if pace.left >= 1.0:
            pace.left -= 1.0
            return None
        return self._refusal(
            now, peer, "rate", f"this connection sends more than {rate:g} messages a second"
        )

    def on_message(
        self, now: Now, peer: Identity, message: WireMessage, *, size: int, user_id: str = ""
    ) -> list[HubInstruction]:
        """A message of ``size`` bytes (all frames) arrived from ``peer``.

        ``user_id`` is what the authenticator made of the peer's key, ``""`` without keys.
        """
        counters = self.counters
        counters.messages += 1
        counters.bytes += size
        known = self._peers.get(peer)
        if known is not None:
            known.user_id = user_id
            known.heard = now.mono
            known.echo_ns, known.echo_received_ns = message.sent_ns, _stamp(now)
            if not known.ack_due:
                self._soil(now, peer, known)
        if isinstance(message, _ROWS):
            return self._on_rows(now, peer, message, size)
        return self._on_other(now, peer, message, user_id)

    def _on_other(
        self, now: Now, peer: Identity, message: WireMessage, user_id: str
    ) -> list[HubInstruction]:
        match message:
            case Hello():
                return self._on_hello(now, peer, message, user_id)
            case Stats():
                return self._on_statement(now, peer, message)
            case Heartbeat():
                return [] if peer in self._peers else self._unknown(now, peer, "")
            case _:
                return self._refusal(now, peer, "kind", "a receiver of rows has no use for this")

    def on_garbage(self, now: Now, peer: Identity, error: WireError) -> list[HubInstruction]:
        """A message that could not be read arrived from ``peer``; it is counted and answered."""
        return self._refusal(now, peer, error.reason, str(error))

    def on_tick(self, now: Now) -> list[HubInstruction]:
        """Time has passed: acknowledge what is due, report holes, forget the silent."""
        out: list[HubInstruction] = []
        while self._due and self._due[0][0] <= now.mono:
            _, identity = self._due.popleft()
            peer = self._peers.get(identity)
            if peer is not None and peer.ack_due:
                out.append(self._acknowledge(now, identity, peer))
        if now.mono >= self._age_at:
            self._age_at = now.mono + self.config.reorder_grace
            self._age(now)
        if now.mono >= self._sweep_at:
            self._sweep_at = now.mono + self.config.peer_timeout / 4
            out += self._sweep(now)
        return out

    def accept(self, now: Now, peer: Identity, hello: Hello) -> list[HubInstruction]:
        """Open, or open again, the stream that a peer :class:`Asked` for."""
        boot_id = hello.manifest.boot_id
        stream = self._streams.get(boot_id)
        backlog = _backlog(stream)
        out = self._take_over(now, peer, stream, boot_id)
        known = self._peers.get(peer)
        if known is None:
            known = self._admit(now, peer, backlog)
        elif stream is not None and stream.peer != peer:
            known.credit.adopt(backlog)
        if known is None:
            return [
                *out,
                self._reply_refuse(
                    now,
                    peer,
                    boot_id,
                    "busy",
                    "this receiver has no memory left for another agent; raise its total_bytes",
                    retry_ms=2000,
                ),
            ]
        known.echo_ns, known.echo_received_ns = hello.sent_ns, _stamp(now)
        if stream is None or stream.ended:
            ledger = ReceiverLedger(hello.first_seq, lossless=hello.lossless)
            stream = _Stream(hello.manifest, ManifestCheck(hello.manifest), ledger, peer)
            self._streams[boot_id] = stream
        else:
            stream.peer = peer
            stream.ledger.resume(hello.first_seq)
            for left in stream.waiting:
                left.peer = peer
        self._streams.move_to_end(boot_id)
        known.streams.add(boot_id)
        limits = known.credit.limits()
        welcome = Welcome(
            boot_id=boot_id,
            server=self.config.server,
            credit_steps=limits.steps,
            credit_bytes=limits.bytes,
            max_rows=self.config.max_rows,
            max_bytes=known.credit.window.bytes,
            received=stream.ledger.next_seq,
            missing=stream.ledger.missing(),
            echo_ns=hello.sent_ns,
            sent_ns=_stamp(now),
        )
        return [*out, Reply(peer, welcome)]

    def refuse(
        self,
        now: Now,
        peer: Identity,
        boot_id: str,
        *,
        reason: str,
        message: str,
        retry_ms: int = 0,
    ) -> list[HubInstruction]:
        """Refuse the stream that a peer :class:`Asked` for, with a sentence for its operator."""
        return [self._reply_refuse(now, peer, boot_id, reason, message, retry_ms=retry_ms)]

    def expel(self, now: Now, still_allowed: Callable[[str], bool]) -> list[HubInstruction]:
        """End the connections whose key was revoked or ran out since they were made.

        ``still_allowed(user_id)`` is :meth:`interlatent_live.wire.security.Authenticator.allows`;
        call this every second or so. An expelled peer has to connect anew, and is turned away.
        """
        out: list[HubInstruction] = []
        for identity, peer in tuple(self._peers.items()):
            if not still_allowed(peer.user_id):
                why = "the key of this connection is not valid any more"
                out.append(self._reply_refuse(now, identity, "", "key", why))
                out += self._drop_peer(now, identity)
        return out

    def processed(self, now: Now, boot_id: str, messages: int = 1) -> list[HubInstruction]:
        """The oldest ``messages`` delivered of a stream are done with."""
        stream = self._streams.get(boot_id)
        out: list[HubInstruction] = []
        while messages and stream is not None and stream.waiting:
            messages -= 1
            done = stream.waiting[0]
            done.parts -= 1
            if done.parts:
                continue
            stream.waiting.popleft()
            peer = self._peers.get(done.peer)
            if peer is None:
                continue
            peer.credit.process(done.rows, done.size)
            peer.unacknowledged += done.size
            peer.dirty.add(boot_id)
            # A quarter of the window: soon enough that a fast sender never waits for the timer.
            if peer.unacknowledged * 4 >= peer.credit.window.bytes:
                out.append(self._acknowledge(now, done.peer, peer))
            elif not peer.ack_due:
                self._soil(now, done.peer, peer)
        return out

    # --- what is known --------------------------------------------------------------------------

    def streams(self) -> tuple[str, ...]:
        """Streams that have a connection or are remembered."""
        return tuple(self._streams)

    def connected(self, boot_id: str) -> bool:
        """Whether the stream has a connection."""
        stream = self._streams.get(boot_id)
        return stream is not None and stream.peer is not None

    def peers(self) -> int:
        """Number of connections."""
        return len(self._peers)

    def manifest(self, boot_id: str) -> Manifest:
        """The manifest of a stream."""
        return self._streams[boot_id].manifest

    def counts(self, boot_id: str) -> ReceiverCounts:
        """The ledger of a stream now."""
        return self._streams[boot_id].ledger.counts()

    def statement(self, boot_id: str) -> Stats | None:
        """The sender's own ledger, as it last told."""
        return self._streams[boot_id].statement

    def waiting(self, boot_id: str) -> int:
        """Messages of a stream that were delivered and not reported processed."""
        return len(self._streams[boot_id].waiting)

    def clock_offset(self, boot_id: str) -> OffsetSample | None:
        """The sender's clock minus ours, as the sender told it; its round trip is not told."""
        statement = self._streams[boot_id].statement
        if statement is None or statement.offset_ns is None:
            return None
        return OffsetSample(-statement.offset_ns, 0)

    # --- the parts ------------------------------------------------------------------------------

    def _soil(self, now: Now, identity: Identity, peer: _Peer) -> None:
        """There is something to acknowledge to this peer, within the interval."""
        if not peer.ack_due:
            peer.ack_due = True
            self._due.append((now.mono + self.config.ack_interval, identity))

    def _on_hello(
        self, now: Now, peer: Identity, hello: Hello, user_id: str
    ) -> list[HubInstruction]:
        self.counters.hellos += 1
        boot_id = hello.manifest.boot_id
        why = self._speaks_for(user_id, hello.manifest)
        if why is not None:
            return [self._reply_refuse(now, peer, boot_id, "key", why)]
        known = self._streams.get(boot_id)
        if known is not None and known.manifest != hello.manifest and not known.ended:
            # A second agent under a boot_id in use would mix its rows into the first one's.
            return [
                self._reply_refuse(
                    now,
                    peer,
                    boot_id,
                    "manifest",
                    f"boot {boot_id!r} is known with another manifest; every start of an agent "
                    "needs a boot_id of its own",
                )
            ]
        return [Asked(peer, hello)]

    def _take_over(
        self, now: Now, peer: Identity, stream: _Stream | None, boot_id: str
    ) -> list[HubInstruction]:
        """Make room for a stream that is new, or free it from an older connection."""
        if stream is not None and stream.peer is not None and stream.peer != peer:
            older = self._peers.get(stream.peer)
            if older is not None:
                older.streams.discard(boot_id)
                older.dirty.discard(boot_id)
                if not older.streams:
                    self._forget_peer(stream.peer)
        out: list[HubInstruction] = []
        while stream is None and len(self._streams) >= self.config.max_streams:
            oldest = next(iter(self._streams))
            owner = self._streams[oldest].peer
            if owner is not None:
                out.append(Detached(oldest))
                self._peers[owner].streams.discard(oldest)
            del self._streams[oldest]
            self._holey.discard(oldest)
        del now
        return out

    def _admit(self, now: Now, identity: Identity, backlog: Window) -> _Peer | None:
        if len(self._peers) >= self.config.max_peers:
            return None
        reserved = self.budget.reserve()
        if not reserved:
            return None
        window = Window(self.config.window_steps, reserved)
        peer = _Peer("", ReceiverCredit(window, backlog), reserved, now.mono)
        self._peers[identity] = peer
        return peer

    def _on_rows(
        self, now: Now, identity: Identity, message: StepsMessage | FeaturesMessage, size: int
    ) -> list[HubInstruction]:
        boot_id = message.boot_id if isinstance(message, StepsMessage) else message.batch.boot_id
        stream = self._streams.get(boot_id)
        peer = self._peers.get(identity)
        if stream is None or peer is None or stream.peer != identity:
            return self._unknown(now, identity, boot_id)
        rows = len(message.batch.steps.env)
        if not peer.credit.receive(rows, size):
            out = self._refusal(
                now, identity, "credit", "more rows or bytes were sent than this peer granted"
            )
            return [*out, *self._drop_peer(now, identity)]
        try:
            stream.check(message)
        except WireError as error:
            peer.credit.process(rows, size)
            return self._refusal(now, identity, error.reason, str(error))
        peer.dirty.add(boot_id)
        return self._admit_rows(identity, peer, stream, message, size)

    def _admit_rows(
        self,
        identity: Identity,
        peer: _Peer,
        stream: _Stream,
        message: StepsMessage | FeaturesMessage,
        size: int,
    ) -> list[HubInstruction]:
        steps, ledger = message.batch.steps, stream.ledger
        boot_id = stream.manifest.boot_id
        first, rows = steps.first_seq, len(steps.env)
        if message.drops:
            ledger.declare(message.drops)
            if ledger.holes():
                self._holey.add(boot_id)
        if first == ledger.next_seq:
            ledger.admit(first, rows)
            stream.waiting.append(_Waiting(first, rows, size, identity, 1))
            return [Deliver(boot_id, message)]
        fresh = ledger.admit(first, rows)
        if ledger.holes():
            self._holey.add(boot_id)
        if not fresh:
            peer.credit.process(rows, size)
            return []
        stream.waiting.append(_Waiting(first + fresh[0][0], rows, size, identity, len(fresh)))
        if fresh[0] == (0, rows):
            return [Deliver(boot_id, message)]
        return [Deliver(boot_id, slice_message(message, offset, count)) for offset, count in fresh]

    def _on_statement(self, now: Now, identity: Identity, message: Stats) -> list[HubInstruction]:
        stream = self._streams.get(message.boot_id)
        peer = self._peers.get(identity)
        if stream is None or peer is None or stream.peer != identity:
            return self._unknown(now, identity, message.boot_id)
        stream.statement = message
        stream.ledger.declare(message.drops)
        stream.ledger.expect(message.next_seq)
        peer.credit.correct(message.used_steps, message.used_bytes)
        if stream.ledger.holes():
            self._holey.add(message.boot_id)
        peer.dirty.add(message.boot_id)
        if not isinstance(message, Bye):
            return []
        stream.ended = True
        out = [self._acknowledge(now, identity, peer)]
        self._detach(now, message.boot_id, stream, identity)
        if not peer.streams:
            self._forget_peer(identity)
        return [*out, Ended(message.boot_id, message)]

    def _acknowledge(self, now: Now, identity: Identity, peer: _Peer) -> HubInstruction:
        entries = []
        for boot_id in sorted(peer.dirty)[:MAX_STREAMS]:
            stream = self._streams.get(boot_id)
            if stream is not None:
                entries.append(_entry(boot_id, stream))
            peer.dirty.discard(boot_id)
        peer.ack_due = False
        peer.unacknowledged = 0
        if peer.dirty:
            self._soil(now, identity, peer)
        limits = peer.credit.limits()
        ack = Ack(
            streams=tuple(entries),
            credit_steps=limits.steps,
            credit_bytes=limits.bytes,
            echo_ns=peer.echo_ns,
            echo_received_ns=peer.echo_received_ns,
            sent_ns=_stamp(now),
        )
        return Reply(identity, ack)

    def _age(self, now: Now) -> None:
        for boot_id in tuple(self._holey):
            stream = self._streams.get(boot_id)
            if stream is None:
                self._holey.discard(boot_id)
                continue
            reported = stream.ledger.age()
            peer = self._peers.get(stream.peer) if stream.peer is not None else None
            if reported and peer is not None and stream.peer is not None:
                peer.dirty.add(boot_id)
                self._soil(now, stream.peer, peer)
            if not stream.ledger.holes() and not reported:
                self._holey.discard(boot_id)

    def _sweep(self, now: Now) -> list[HubInstruction]:
        out: list[HubInstruction] = []
        silent = [
            identity
            for identity, peer in self._peers.items()
            if now.mono - peer.heard > self.config.peer_timeout
        ]
        for identity in silent:
            self.counters.peers_lost += 1
            out += self._drop_peer(now, identity)
        gone = [
            boot_id
            for boot_id, stream in self._streams.items()
            if stream.peer is None
            and not stream.waiting
            and now.mono - stream.detached_at > self.config.remember
        ]
        for boot_id in gone:
            del self._streams[boot_id]
            self._holey.discard(boot_id)
        while self._refused:
            key, at = next(iter(self._refused.items()))
            if now.mono - at < REFUSAL_INTERVAL:
                break
            del self._refused[key]
        return out

    def _drop_peer(self, now: Now, identity: Identity) -> list[HubInstruction]:
        peer = self._peers[identity]
        out: list[HubInstruction] = []
        for boot_id in tuple(peer.streams):
            stream = self._streams[boot_id]
            self._detach(now, boot_id, stream, identity)
            out.append(Detached(boot_id))
        self._forget_peer(identity)
        return out

    def _detach(self, now: Now, boot_id: str, stream: _Stream, identity: Identity) -> None:
        stream.peer = None
        stream.detached_at = now.mono
        peer = self._peers.get(identity)
        if peer is not None:
            peer.streams.discard(boot_id)

    def _forget_peer(self, identity: Identity) -> None:
        peer = self._peers.pop(identity)
        self.budget.release(peer.reserved)

    def _unknown(self, now: Now, peer: Identity, boot_id: str) -> list[HubInstruction]:
        return self._refusal(
            now,
            peer,
            "hello",
            "this connection has not said hello for the stream it sends",
            boot_id,
        )

    def _refusal(
        self, now: Now, peer: Identity, reason: str, message: str, boot_id: str = ""
    ) -> list[HubInstruction]:
        """Count every refusal, answer one a second for each peer and reason."""
        at = self._refused.get((peer, reason))
        if at is not None and now.mono - at < REFUSAL_INTERVAL:
            self._count_refusal(reason)
            return []
        while len(self._refused) >= self.config.max_peers:
            self._refused.popitem(last=False)
        self._refused.pop((peer, reason), None)
        self._refused[peer, reason] = now.mono
        return [self._reply_refuse(now, peer, boot_id, reason, message)]

    def _reply_refuse(
        self,
        now: Now,
        peer: Identity,
        boot_id: str,
        reason: str,
        message: str,
        *,
        retry_ms: int = 0,
    ) -> Reply:
        self._count_refusal(reason)
        refusal = Refuse(
            boot_id=boot_id,
            reason=reason,
            message=_printable(message),
            retry_ms=retry_ms,
            sent_ns=_stamp(now),
        )
        return Reply(peer, refusal)

    def _count_refusal(self, reason: str) -> None:
        refusals = self.counters.refusals
        refusals[reason] = refusals.get(reason, 0) + 1


def _entry(boot_id: str, stream: _Stream) -> StreamAck:
    ledger = stream.ledger
    counts = ledger.counts()
    processed = ledger.settled_seq()
    if stream.waiting:
        processed = min(processed, stream.waiting[0].first)
    return StreamAck(
        boot_id=boot_id,
        received=ledger.next_seq,
        processed=processed,
        missing=ledger.missing(),
        rows_received=counts.received,
        rows_declared=counts.declared_total,
        rows_undeclared=counts.undeclared,
        rows_duplicate=counts.duplicate,
    )


def _backlog(stream: _Stream | None) -> Window:
    if stream is None:
        return Window(0, 0)
    return Window(sum(one.rows for one in stream.waiting), sum(one.size for one in stream.waiting))


def _printable(text: str) -> str:
    """A sentence that the wire's own rules let through, whatever foreign text is quoted in it."""
    clean = "".join(char if char.isprintable() else "?" for char in text)
    return clean[:MAX_TEXT]


def _stamp(now: Now) -> int:
    # Clocks before 1970 exist on machines without a battery.
    return max(0, now.wall_ns)
