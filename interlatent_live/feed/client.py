"""The typed client of a feed: subscribe, and get documents and feature batches as they come.

A viewer is never allowed to slow the stream: it reads from XPUB sockets, which drop for a viewer
that is too slow, and the client counts what it missed. Joining late is no loss: a publisher repeats
its newest documents to every new subscriber.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec
import zmq

from interlatent_live.closing import Closing
from interlatent_live.errors import WireError
from interlatent_live.feed.documents import Topic, parse_document
from interlatent_live.wire.codec import decode
from interlatent_live.wire.messages import Document, FeaturesMessage
from interlatent_live.wire.sockets import connect_subscriber, receive_message

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from interlatent_live.stream import FeatureBatch
    from interlatent_live.wire.keys import ClientKeys

MESSAGES_PER_TURN = 1000


@dataclass(frozen=True, slots=True)
class FeedEvent:
    """Something a publisher said; ``value`` is a document or a feature batch."""

    topic: Topic
    value: msgspec.Struct | FeatureBatch
    received_ns: int


@dataclass(slots=True)
class FeedCounters:
    """What this viewer could not show."""

    documents_missed: int = 0
    refused: dict[str, int] = field(default_factory=dict)


class FeedClient(Closing):
    """A viewer of one system's feeds.

    Args:
        endpoints: XPUB endpoints of the encoder, correlator and explainer.
        topics: what to subscribe to; everything by default. Without ``FEATURES`` the traffic is a
            few documents a second.
        keys: a viewer's key, for feeds beyond this machine.

    Not thread-safe, like the sockets inside. Endpoints that nobody serves yet are fine: the sockets
    connect when somebody does.
    """

    def __init__(
        self,
        endpoints: Sequence[str],
        topics: Sequence[Topic] = tuple(Topic),
        *,
        keys: ClientKeys | None = None,
    ) -> None:
        self.counters = FeedCounters()
        self._context = zmq.Context()
        self._poller = zmq.Poller()
        self._sockets: list[zmq.Socket[bytes]] = []
        self._next: dict[tuple[str, str], int] = {}
        words = [topic.value for topic in topics]
        for endpoint in endpoints:
            socket = connect_subscriber(self._context, endpoint, words, keys=keys)
            self._poller.register(socket, zmq.POLLIN)
            self._sockets.append(socket)

    def close(self) -> None:
        """Close the sockets; pending messages are dropped."""
        for socket in self._sockets:
            socket.close()
        self._context.term()

    def subscribe(self, topic: Topic, *, wanted: bool = True) -> None:
        """Begin, or cease, to hear a topic, so that single steps cost nothing when nobody looks."""
        option = zmq.SUBSCRIBE if wanted else zmq.UNSUBSCRIBE
        for socket in self._sockets:
            socket.setsockopt(option, topic.value.encode("ascii"))

    def events(self, timeout_s: float) -> Iterator[FeedEvent]:
        """Everything that arrives within ``timeout_s``, and at least one poll's worth."""
        deadline = time.monotonic() + timeout_s
        while True:
            wait = max(0.0, deadline - time.monotonic())
            for socket, _ in self._poller.poll(int(wait * 1000)):
                yield from self._drain(socket)
            if time.monotonic() >= deadline:
                return

    def _drain(self, socket: zmq.Socket[bytes]) -> Iterator[FeedEvent]:
        for _ in range(MESSAGES_PER_TURN):
            frames = receive_message(socket)
            if frames is None:
                return
            event = self._event(frames)
            if event is not None:
                yield event

    def _event(self, frames: list[bytes]) -> FeedEvent | None:
        received_ns = time.time_ns()
        try:
            topic = Topic(frames[0].decode("ascii"))
            message = decode(frames[1:])
            match message:
                case FeaturesMessage():
                    return FeedEvent(topic, message.batch, received_ns)
                case Document():
                    self._count(message)
                    document = parse_document(topic, dict(message.payload))
                    return FeedEvent(topic, document, received_ns)
                case _:
                    self._refuse("kind")
        except WireError as error:
            self._refuse(error.reason)
        except (ValueError, KeyError, msgspec.ValidationError):
            self._refuse("document")
        return None

    def _count(self, document: Document) -> None:
        key = (document.source, document.topic)
        expected = self._next.get(key)
        if expected is not None and document.seq > expected:
            self.counters.documents_missed += document.seq - expected
        self._next[key] = document.seq + 1

    def _refuse(self, reason: str) -> None:
        self.counters.refused[reason] = self.counters.refused.get(reason, 0) + 1
