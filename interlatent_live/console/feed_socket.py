"""One client's feed over a WebSocket: each event is a text frame with one JSON object.

The frames are the lines of the JSON-lines feed, so that a client reads both with the same code. A
client that does not read is only a place in the ring: its own sending waits, and nothing else does.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from starlette.websockets import WebSocketDisconnect

from interlatent_live.console.broadcast import ClientKind
from interlatent_live.console.streaming import as_objects

if TYPE_CHECKING:
    from starlette.websockets import WebSocket

    from interlatent_live.console.broadcast import Broadcast, Place
    from interlatent_live.feed.documents import Topic

GOING_AWAY = 1001


async def serve_feed(
    socket: WebSocket, broadcast: Broadcast, topics: frozenset[Topic], after: str
) -> None:
    """Send events until the client goes or the console ends.

    ``after`` is the id of the last event that the client has had; empty: none.

    Raises:
        UserError: as :meth:`Broadcast.join`, before the socket is accepted.
    """
    loop = asyncio.get_running_loop()
    awake = asyncio.Event()

    def wake() -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(awake.set)

    place = broadcast.join(wake, topics, after or None, ClientKind.WEBSOCKET)
    try:
        await socket.accept()
        sending = asyncio.create_task(_send(socket, place, awake, broadcast.epoch))
        gone = asyncio.create_task(_gone(socket))
        try:
            await asyncio.wait({sending, gone}, return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
                await socket.close(GOING_AWAY)
        except WebSocketDisconnect:
            pass
        finally:
            for task in (sending, gone):
                task.cancel()
            await asyncio.wait({sending, gone})
    finally:
        place.leave()


async def _send(socket: WebSocket, place: Place, awake: asyncio.Event, epoch: str) -> None:
    """Ends when the console does, and every event was sent."""
    while True:
        awake.clear()
        batch = place.next()
        for one in as_objects(batch, epoch):
            await socket.send_text(one.decode())
        if batch.closed:
            return
        if not batch.events and batch.missed == 0:
            await awake.wait()


async def _gone(socket: WebSocket) -> None:
    """Ends when the client closes; whatever else it says is not listened to."""
    while (await socket.receive())["type"] != "websocket.disconnect":
        pass
