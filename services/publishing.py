"""Publishing to viewers: an XPUB socket that repeats the newest documents to whoever joins late."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import zmq

from interlatent_live.errors import UserError
from interlatent_live.feed.documents import Topic, document_payload
from interlatent_live.wire.codec import encode_document

if TYPE_CHECKING:
    from collections.abc import Sequence

    import msgspec

SEND_QUEUE = 200
"""Messages kept per viewer before XPUB drops for that viewer."""
KEPT_DOCUMENTS = 512


class FeedPublisher:
    """One service's feed. Not thread-safe: it belongs to the service's loop.

    ``source`` names the publishing service; documents are numbered per topic so that viewers can
    count what they missed. A document replaces its predecessor with the same ``key`` in what late
    joiners are sent.
    """

    def __init__(self, context: zmq.Context[Any], endpoint: str, source: str) -> None:
        self.source = source
        self.socket: zmq.Socket[bytes] = context.socket(zmq.XPUB)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.SNDHWM, SEND_QUEUE)
        self.socket.setsockopt(zmq.XPUB_VERBOSE, 1)
        try:
            self.socket.bind(endpoint)
        except zmq.ZMQError as error:
            self.socket.close()
            raise UserError(
                f"the {source} cannot publish its feed on {endpoint}: {error.strerror}; "
                "choose another feed endpoint or stop what uses it"
            ) from error
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
            try:
                request = self.socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            if request[:1] == b"\x01":
                wanted = request[1:].decode("utf-8", "replace")
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
        # XPUB never blocks: for a viewer whose queue is full it drops, and the viewer counts it.
        self.socket.send_multipart(frames, zmq.NOBLOCK)
