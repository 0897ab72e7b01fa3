"""Publishing to viewers: an XPUB socket that repeats the newest documents to whoever joins late."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from interlatent_live.feed.documents import Topic, document_payload
from interlatent_live.wire.codec import encode_document
from interlatent_live.wire.sockets import receive_message, send_message

if TYPE_CHECKING:
    from collections.abc import Sequence

    import msgspec

    from interlatent_live.services.network import Network

KEPT_DOCUMENTS = 512


class FeedPublisher:
    """One service's feed. Not thread-safe: it belongs to the service's loop.

    ``source`` names the publishing service; documents are numbered per topic so that viewers can
    count what they missed. A document replaces its predecessor with the same ``key`` in what late
    joiners are sent.
    """

    def __init__(self, network: Network, endpoint: str, source: str) -> None:
        self.source = source
        self.socket = network.publisher(endpoint, f"endpoints.{source}_feed")
        self._kept: dict[tuple[Topic, str], dict[str, Any]] = {}
        self._numbers: dict[Topic, int] = {}

    def documents(self, topic: Topic, document: msgspec.Struct, key: str = "") -> None:
        """Publish a document and keep it for late joiners."""
        payload = document_payload(document)
        self._kept.pop((topic, key), None)
        if len(self._kept) >= KEPT_DOCUMENTS:
            del self._kept[next(iter(self._kept))]
        self._kept[topic, key] = payload
        self._publish(topic, payload)

    def forward(self, topic: Topic, frames: Sequence[bytes | memoryview]) -> None:
        """Publish a wire message as it is, kept for nobody."""
        self._send([topic.value.encode(), *frames])

    def welcome_viewers(self) -> None:
        """Answer new subscriptions with the newest documents of their topics."""
        while True:
            frames = receive_message(self.socket)
            if frames is None:
                return
            if frames[0][:1] == b"\x01":
                wanted = frames[0][1:].decode("utf-8", "replace")
                for (topic, _), payload in list(self._kept.items()):
                    if topic.startswith(wanted):
                        self._publish(topic, payload)

    def close(self) -> None:
        """Close the socket."""
        self.socket.close()

    def _publish(self, topic: Topic, payload: dict[str, Any]) -> None:
        # A repeat gets a number of its own, so that holes in the numbers are losses, nothing else.
        seq = self._numbers.get(topic, 0)
        self._numbers[topic] = seq + 1
        frames = encode_document(
            topic.value, payload, source=self.source, seq=seq, sent_ns=time.time_ns()
        )
        self._send([topic.value.encode(), *frames])

    def _send(self, frames: Sequence[bytes | memoryview]) -> None:
        # XPUB never waits: for a viewer whose queue is full it drops, and the viewer counts it.
        send_message(self.socket, frames)
