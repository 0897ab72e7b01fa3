"""One client's feed as an HTTP answer that does not end: server-sent events or JSON lines.

Server-sent events follow the HTML standard, section 9.2: ``id``, ``event`` and ``data``, and a
comment when nothing happens, so that a dead connection is noticed.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import msgspec
from fastapi.responses import StreamingResponse

from interlatent_live.console.broadcast import ClientKind

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from starlette.types import Receive, Scope, Send

    from interlatent_live.console.broadcast import Batch, Broadcast, Event
    from interlatent_live.feed.documents import Topic

SSE: Final = "text/event-stream"
LINES: Final = "application/x-ndjson"
KEEP_ALIVE_S: Final = 15.0


class FeedResponse(StreamingResponse):
    """A feed from a place in the ring, until the client goes or the console ends.

    Raises:
        UserError: as :meth:`Broadcast.join`.
    """

    def __init__(
        self, broadcast: Broadcast, topics: frozenset[Topic], last_id: str | None, media_type: str
    ) -> None:
        loop = asyncio.get_running_loop()
        awake = asyncio.Event()

        def wake() -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(awake.set)

        kind = ClientKind.EVENTS if media_type == SSE else ClientKind.LINES
        self._place = broadcast.join(wake, topics, last_id, kind)
        as_text = _sse if media_type == SSE else _lines
        nothing = b": still here\n\n" if media_type == SSE else b"\n"
        super().__init__(
            self._stream(awake, lambda batch: as_text(batch, broadcast.epoch), nothing),
            media_type=media_type,
        )

    async def _stream(
        self, awake: asyncio.Event, as_text: Callable[[Batch], bytes], nothing: bytes
    ) -> AsyncIterator[bytes]:
        # Something at once: clients wait for the first byte to call a feed open.
        yield nothing
        while True:
            awake.clear()
            batch = self._place.next()
            if batch.events or batch.missed != 0:
                yield as_text(batch)
                continue
            if batch.closed:
                return
            try:
                async with asyncio.timeout(KEEP_ALIVE_S):
                    await awake.wait()
            except TimeoutError:
                yield nothing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve it, and give the place back however it ends."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._place.leave()


def _sse(batch: Batch, epoch: str) -> bytes:
    parts = []
    if batch.missed != 0:
        parts.append(b"event: missed\ndata: " + msgspec.json.encode({"events": batch.missed}))
    for event in batch.events:
        # The id of the last event of a batch is what a client comes back with.
        head = f"id: {epoch}-{event.number}\nevent: {event.topic.value}\ndata: "
        parts.append(head.encode() + _object(event, epoch))
    return b"".join(part + b"\n\n" for part in parts)


def _lines(batch: Batch, epoch: str) -> bytes:
    return b"".join(part + b"\n" for part in as_objects(batch, epoch))


def as_objects(batch: Batch, epoch: str) -> list[bytes]:
    """A JSON object for each event, after one that says what was missed, if anything was."""
    parts = []
    if batch.missed != 0:
        missed = {"topic": "missed", "value": {"events": batch.missed}}
        parts.append(msgspec.json.encode(missed))
    return parts + [_object(event, epoch) for event in batch.events]


def _object(event: Event, epoch: str) -> bytes:
    return msgspec.json.encode(
        {
            "id": f"{epoch}-{event.number}",
            "topic": event.topic.value,
            "time_ns": event.time_ns,
            "value": msgspec.Raw(event.value),
        }
    )
