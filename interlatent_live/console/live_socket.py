"""The page's socket: points of one view at most 30 times a second, as binary messages.

A text message (JSON) says which boot and transcoder the points after it belong to
(:mod:`~interlatent_live.console.point_messages`). The page's place in the ring travels as text now
and then, so that a page that comes back goes on where it was. So does the state of control, as
``{"control": …}``.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Final

import msgspec
from starlette.websockets import WebSocketDisconnect

from interlatent_live.console.control_routes import News
from interlatent_live.console.live import MOST_HISTORY, LiveHub, Points, View
from interlatent_live.console.point_messages import encode_points

if TYPE_CHECKING:
    from starlette.websockets import WebSocket

    from interlatent_live.console.control_routes import ControlDoor
    from interlatent_live.console.live import LivePlace

RATE_HZ: Final = 30.0
POINTS_PER_S: Final = 120.0
"""At most; a display shows no more."""
MARK_EVERY_S: Final = 2.0


async def serve_live(
    socket: WebSocket, hub: LiveHub, view: View, after: str, door: ControlDoor | None = None
) -> None:
    """Send until the page goes or the console ends. A slow page gets thinner points."""
    await socket.accept()
    place = hub.join(view, after)
    gone = asyncio.create_task(_gone(socket))
    news = None if door is None else News(door)
    try:
        await _send(socket, hub, place, gone, news)
    except (WebSocketDisconnect, RuntimeError) as error:
        # Starlette says RuntimeError when a send meets a socket that has just been closed.
        if isinstance(error, RuntimeError) and "close" not in str(error).lower():
            raise
    finally:
        gone.cancel()
        place.leave()
        if news is not None:
            news.close()


async def _gone(socket: WebSocket) -> None:
    """Ends when the page closes; whatever else it says is not listened to."""
    with contextlib.suppress(WebSocketDisconnect):
        while True:
            await socket.receive_text()


async def _send(
    socket: WebSocket,
    hub: LiveHub,
    place: LivePlace,
    gone: asyncio.Task[None],
    news: News | None,
) -> None:
    shown: tuple[str, str] | None = None
    before, marked = None, 0.0
    while not gone.done() and not hub.closed:
        now = time.monotonic()
        most = MOST_HISTORY
        if before is not None:
            most = min(MOST_HISTORY, max(1, int((now - before) * POINTS_PER_S)))
        before = now
        for points in place.next(most):
            if shown != (points.boot_id, points.transcoder):
                shown = (points.boot_id, points.transcoder)
                await socket.send_text(_text("stream", points))
            await socket.send_bytes(encode_points(points, place.missed))
        state = None if news is None else news.next()
        if state is not None:
            await socket.send_text(f'{{"control":{state}}}')
        if now - marked > MARK_EVERY_S:
            marked = now
            await socket.send_text(msgspec.json.encode({"after": place.name}).decode())
        await asyncio.wait({gone}, timeout=max(0.0, now + 1 / RATE_HZ - time.monotonic()))
    if hub.closed:
        await socket.close(1001)


def _text(kind: str, points: Points) -> str:
    return msgspec.json.encode(
        {
            kind: {
                "boot_id": points.boot_id,
                "transcoder": points.transcoder,
                "n_features": points.n_features,
                "metrics": points.metrics.shape[1],
            }
        }
    ).decode()
