"""Publishing to viewers: an XPUB socket that repeats the newest documents to whoever joins late."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from interlatent_live.errors import WireError
from interlatent_live.feed.documents import Topic, document_payload
from interlatent_live.logs import get_logger
from interlatent_live.wire.codec import encode_document
from interlatent_live.wire.sockets import receive_message, send_message

if TYPE_CHECKING:
    from collections.abc import Sequence

    import msgspec

    from interlatent_live.services.network import Network

LIMIT_BYTES = 16 * 1024 * 1024
"""Documents kept for late joiners, unless told otherwise."""


class FeedPublisher:
    """One service's feed. Not thread-safe: it belongs to the service's loop.

    ``source`` names the publishing service; documents are numbered per topic so that viewers can
    count what they missed. A document replaces its predecessor with the same ``key`` in what late
    joiners are sent, at most ``limit_bytes`` of them, the newest.
    """

    def __init__(
        self, network: Network, endpoint: str, source: str, limit_bytes: int = LIMIT_BYTES
    ) -> None:
        self.source = source
        self._limit = limit_bytes
        self._held = 0
        self.socket = network.publisher(endpoint, f"endpoints.{source}_feed")
        self._kept: dict[tuple[Topic, str], tuple[dict[str, Any], int]] = {}
        self._numbers: dict[Topic, int] = {}
        self._subscribed: set[str] = set()
        self._log = get_logger(f"services.{source}")
        self.refused = 0
        """Documents that do not fit the wire's rules."""

    def documents(self, topic: Topic, document: msgspec.Struct, key: str = "") -> None:
        """Publish a document and keep it for late joiners.

        One that the wire refuses, such as one too large, is counted and logged: viewers keep the
        one before, and no service ends over what it cannot show.
        """
        payload = document_payload(document)
        try:
            size = self._publish(topic, payload)
        except WireError as error:
            self.refused += 1
            self._log.warning("document not published", key=key, why=str(error))
            return
        self._forget((topic, key))
        while self._kept and self._held + size > self._limit:
            self._forget(next(iter(self._kept)))
        self._kept[topic, key] = (payload, size)
        self._held += size

    def _forget(self, key: tuple[Topic, str]) -> None:
        _, size = self._kept.pop(key, (None, 0))
        self._held -= size

    def wanted(self, topic: Topic) -> bool:
        """Whether a viewer has asked for this topic: what nobody wants need not be made."""
        return any(topic.startswith(wanted) for wanted in self._subscribed)

    def forward(self, topic: Topic, frames: Sequence[bytes | memoryview]) -> None:
        """Publish a wire message as it is, kept for nobody."""
        self._send([topic.value.encode(), *frames])

    def welcome_viewers(self) -> None:
        """Answer new subscriptions with the newest documents of their topics."""
        while True:
            frames = receive_message(self.socket)
            if frames is None:
                return
            wanted = frames[0][1:].decode("utf-8", "replace")
            if frames[0][:1] == b"\x00":
                # XPUB says so only when the last of them left.
                self._subscribed.discard(wanted)
            elif frames[0][:1] == b"\x01":
                self._remember(wanted)
                for (topic, _), (payload, _) in list(self._kept.items()):
                    if topic.startswith(wanted):
                        self._publish(topic, payload)

    def _remember(self, wanted: str) -> None:
        # Foreign words: only those that mean something here are kept, so they are few.
        if any(topic.startswith(wanted) for topic in Topic):
            self._subscribed.add(wanted)

    def close(self) -> None:
        """Close the socket."""
        self.socket.close()

    def _publish(self, topic: Topic, payload: dict[str, Any]) -> int:
        # A repeat gets a number of its own, so that holes in the numbers are losses, nothing else.
        seq = self._numbers.get(topic, 0)
        self._numbers[topic] = seq + 1
        frames = encode_document(
            topic.value, payload, source=self.source, seq=seq, sent_ns=time.time_ns()
        )
        self._send([topic.value.encode(), *frames])
        return sum(len(frame) for frame in frames)

    def _send(self, frames: Sequence[bytes | memoryview]) -> None:
        # XPUB never waits: for a viewer whose queue is full it drops, and the viewer counts it.
        send_message(self.socket, frames)
