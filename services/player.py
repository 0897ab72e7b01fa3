"""Recordings in the encoder's place: to the consumers with credit, to viewers on the feed.

A consumer cannot tell the difference. Rows are paced by what the consumers acknowledge and, where a
speed is asked for, by the recording's clock; none is ever dropped to keep up.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NoReturn

import zmq

from interlatent_live.errors import UserError
from interlatent_live.feed.documents import AgentsDocument, Topic
from interlatent_live.pipeline.encoder import EncoderCore
from interlatent_live.pipeline.gathering import Gatherer
from interlatent_live.services.publishing import FeedPublisher
from interlatent_live.services.sending import FeatureSender
from interlatent_live.wire.codec import encode_features
from interlatent_live.wire.messages import FeaturesMessage, Hello

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from interlatent_live.pipeline.encoder import TranscoderLike
    from interlatent_live.recordings.playing import Played
    from interlatent_live.services.network import Network
    from interlatent_live.stream import Activations, FeatureBatch

STATUS_EVERY_S: Final = 0.5
AT_ONCE: Final = 64
"""Messages read before sockets get their turn."""
POLL_MS: Final = 10
PATIENCE_S: Final = 30.0
"""How long a consumer may neither take nor acknowledge anything."""
GOODBYE_WITHIN_S: Final = 600.0


@dataclass(slots=True)
class PlayCounts:
    """How far a replay is."""

    rows: int = 0
    runs: int = 0
    declared: int = 0
    """Rows that the recording declares lost."""
    lost: int = 0
    """Rows that a consumer did not get, because it died."""
    recorded_s: float = 0.0
    """Of the recording's time."""
    began: float = field(default_factory=time.monotonic)
    ended: float | None = None

    @property
    def rows_per_s(self) -> float:
        """Rows taken in by all consumers, for each second so far."""
        until = time.monotonic() if self.ended is None else self.ended
        return self.rows / max(until - self.began, 1e-9)


class Player:
    """Plays recorded messages to consumers and viewers. Not thread-safe.

    Args:
        network: of this process.
        consumers: endpoints of correlators, explainers and whoever else takes features.
        feed: where viewers subscribe, in the encoder's place; None: there are none.
        window_bytes: what a consumer grants, and so what may wait for it here.
    """

    def __init__(
        self, network: Network, consumers: Sequence[str], feed: str | None, window_bytes: int
    ) -> None:
        self.counts = PlayCounts()
        # Its limit is never reached: nothing is read while a quarter of it waits.
        self._senders = [FeatureSender(network, one, 4 * window_bytes) for one in consumers]
        self._feed = None if feed is None else FeedPublisher(network, feed, "encoder")
        self._room = window_bytes
        self._core = EncoderCore(_Nothing(), _encode_nothing, clock=time.time_ns)
        self._gatherer = Gatherer(window_bytes // 4)
        self._transcoders: dict[str, dict[str, str]] = {}
        self._losses: dict[str, dict[str, int]] = {}
        self._next: dict[str, int] = {}
        self._open: set[str] = set()
        self._status_at = 0.0

    def play(
        self,
        messages: Iterator[Played],
        *,
        speed: float | None,
        stopping: Callable[[], bool],
        on_progress: Callable[[PlayCounts], None],
    ) -> PlayCounts:
        """Play until all is taken in, or until told to stop.

        Args:
            messages: in order of recording.
            speed: times the recording's own; None: as fast as the consumers take it.
            stopping: asked at each turn.
            on_progress: told at each turn.

        Raises:
            UserError: when a consumer does nothing for half a minute.
        """
        self.counts = PlayCounts()
        waiting = next(messages, None)
        first_ns = 0 if waiting is None else waiting.time_ns
        moved_at, before = time.monotonic(), (0, 0)
        while not stopping():
            taken = 0
            while waiting is not None and taken < AT_ONCE and self._has_room():
                self.counts.recorded_s = (waiting.time_ns - first_ns) / 1e9
                elapsed = time.monotonic() - self.counts.began
                if speed is not None and self.counts.recorded_s > elapsed * speed:
                    break
                self._take(waiting)
                waiting, taken = next(messages, None), taken + 1
            self._turn(finished=waiting is None, wait=not taken)
            on_progress(self.counts)
            if waiting is None and not any(sender.link.boot_ids() for sender in self._senders):
                break
            progress = (self.counts.rows, self._unsettled())
            if progress != before or (not progress[1] and waiting is not None):
                moved_at, before = time.monotonic(), progress
            elif time.monotonic() - moved_at > PATIENCE_S:
                raise UserError(self._stuck())
        self.counts.lost = sum(sum(sender.lost().values()) for sender in self._senders)
        self.counts.ended = time.monotonic()
        self._publish_status()
        return self.counts

    def show(self) -> None:
        """Serve viewers, who may come when all is played; call it now and then."""
        self._turn(finished=True, wait=True)

    def close(self) -> None:
        """Say goodbye to consumers and viewers."""
        for sender in self._senders:
            sender.close()
        if self._feed is not None:
            self._feed.close()

    # -- the parts ---------------------------------------------------------------------------------

    def _has_room(self) -> bool:
        return all(sender.queued_bytes < self._room for sender in self._senders)

    def _unsettled(self) -> int:
        return sum(
            sender.queued_bytes
            + sum(sender.link.counts(boot_id).in_flight for boot_id in sender.link.boot_ids())
            for sender in self._senders
        )

    def _stuck(self) -> str:
        states = ", ".join(f"{one.endpoint} ({one.link.state.value})" for one in self._senders)
        return (
            f"for {PATIENCE_S:.0f} s no consumer took anything: {states}; are correlator and "
            "explainer running there?"
        )

    def _take(self, played: Played) -> None:
        message = played.message
        if isinstance(message, Hello):
            self._hello(message)
        elif isinstance(message, FeaturesMessage):
            self._rows(message)
        else:
            self._end(message.boot_id, message.next_seq)

    def _hello(self, hello: Hello) -> None:
        manifest, transcoders = hello.manifest, dict(hello.transcoders or {})
        boot_id = manifest.boot_id
        if boot_id not in self._open:
            self._open.add(boot_id)
            self.counts.runs += 1
            self._next[boot_id] = hello.first_seq
            for sender in self._senders:
                sender.open_stream(manifest, transcoders, hello.first_seq)
        if self._transcoders.get(boot_id) != transcoders:
            # Senders say so by themselves before the first rows of another transcoder.
            self._transcoders[boot_id] = transcoders
            self._core.admit_encoded(boot_id, manifest, transcoders)

    def _rows(self, message: FeaturesMessage) -> None:
        batch = message.batch
        boot_id, steps = batch.boot_id, batch.steps
        known = self._transcoders.setdefault(boot_id, {})
        if any(known.get(name) != one for name, one in batch.transcoders.items()):
            manifest = self._core.manifest(boot_id)
            if manifest is not None:
                known.update(batch.transcoders)
                self._core.admit_encoded(boot_id, manifest, known)
        losses = self._losses.setdefault(boot_id, {})
        for drop in message.drops:
            losses[drop.reason.value] = losses.get(drop.reason.value, 0) + drop.count
            self.counts.declared += drop.count
        self._next[boot_id] = steps.first_seq + len(steps)
        self.counts.rows += len(steps)
        batch = self._core.encoded_elsewhere(boot_id, batch)
        if self._feed is not None and self._feed.wanted(Topic.FEATURES):
            frames = encode_features(batch, sent_ns=batch.encoded_ns)
            self._feed.forward(Topic.FEATURES, frames)
        for gathered in self._gatherer.add(batch, time.monotonic_ns()):
            self._hand_on(gathered)

    def _hand_on(self, batch: FeatureBatch) -> None:
        frames = encode_features(batch, sent_ns=time.time_ns())
        for sender in self._senders:
            sender.offer(batch, frames)

    def _end(self, boot_id: str, sent: int) -> None:
        self._open.discard(boot_id)
        self._core.goodbye(boot_id, sent)
        for batch in self._gatherer.flush(boot_id):
            self._hand_on(batch)
        for sender in self._senders:
            sender.end_stream(boot_id, GOODBYE_WITHIN_S)

    def _turn(self, *, finished: bool, wait: bool) -> None:
        if finished:
            for boot_id in [*self._open]:
                self._end(boot_id, self._next[boot_id])
        for batch in self._gatherer.due(time.monotonic_ns()):
            self._hand_on(batch)
        if wait:
            poller = zmq.Poller()
            for sender in self._senders:
                if sender.socket is not None:
                    poller.register(sender.socket, zmq.POLLIN)
            poller.poll(POLL_MS)
        for sender in self._senders:
            sender.receive()
            sender.tick()
        if self._feed is not None:
            self._feed.welcome_viewers()
        if time.monotonic() >= self._status_at:
            self._publish_status()

    def _publish_status(self) -> None:
        self._status_at = time.monotonic() + STATUS_EVERY_S
        if self._feed is None:
            return
        for boot_id, next_seq in self._next.items():
            if self._core.manifest(boot_id) is not None:
                self._core.set_loss(
                    boot_id,
                    received=next_seq,
                    declared=self._losses.get(boot_id, {}),
                    undeclared=0,
                    duplicates=0,
                )
        document = AgentsDocument(
            agents=self._core.agents(),
            service={"replay": True, "rows_per_s": round(self.counts.rows_per_s, 1)},
            published_ns=time.time_ns(),
        )
        self._feed.documents(Topic.AGENTS, document)


class _Nothing:
    """The library of a player: what it plays is encoded."""

    def find(self, policy_hash: str, hook_point: str) -> TranscoderLike | None:
        """None."""
        del policy_hash, hook_point
        return None

    def policies(self) -> Mapping[str, tuple[str, ...]]:
        """None at all."""
        return {}


def _encode_nothing(transcoder: TranscoderLike, activations: Activations) -> NoReturn:
    raise AssertionError((transcoder, activations))
