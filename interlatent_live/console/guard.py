"""What every request passes before a route sees it, and what every answer carries.

A page in a browser on this machine can make its own name resolve to 127.0.0.1 and then read what
listens here (DNS rebinding). It cannot choose the Host header, so a request by any other name than
this machine's loopback names is refused. It could also open a socket here, which no rule of the
browser forbids, or send a form; but it cannot choose the Origin header either. Bodies are small and
read whole before the application runs, so none can take memory or hold a thread.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import msgspec

from interlatent_live.config import is_loopback, split_address

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

LARGEST_BODY: Final = 32 * 1024
BODY_WITHIN_S: Final = 10.0
HEADERS: Final = (
    (
        b"content-security-policy",
        b"default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
)
"""What every answer carries, unless its route says otherwise for itself."""
_BODILESS: Final = frozenset({"GET", "HEAD", "OPTIONS"})


class _RefusedError(Exception):
    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status


class Guard:
    """ASGI middleware: Host, size and time of the body, headers of the answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse, or let through with a body that is there already."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        host = headers.get(b"host", b"").decode("latin-1")
        if scope["type"] == "websocket":
            try:
                _check_host(host)
                _check_origin(headers.get(b"origin", b"").decode("latin-1"), host)
            except _RefusedError:
                # Closed before it was accepted, which the client sees as 403.
                await send({"type": "websocket.close"})
                return
            await self._app(scope, receive, send)
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = list(message.get("headers", ()))
                names = {name.lower() for name, _ in own}
                message["headers"] = own + [one for one in HEADERS if one[0] not in names]
            await send(message)

        try:
            if scope["method"] in _BODILESS:
                _check_host(host)
            else:
                # Read first: a connection that is closed with a body unread loses the answer too.
                body = await _body(headers, receive)
                _check_host(host)
                _check_origin(headers.get(b"origin", b"").decode("latin-1"), host)
                receive = _given(body, receive)
        except _RefusedError as error:
            await _answer(guarded, error.status, str(error))
            return
        await self._app(scope, receive, guarded)


def _check_host(host: str) -> None:
    name = split_address(host)[0] or host.removeprefix("[").removesuffix("]")
    if not is_loopback(name.lower()):
        raise _RefusedError(
            421, f"this is not {host[:100]!r}; ask by 127.0.0.1, or forward the port with SSH"
        )


def _check_origin(origin: str, host: str) -> None:
    """Programs send no origin; pages always do, and it must be a page of this very console."""
    if origin and origin.lower() != f"http://{host.lower()}":
        raise _RefusedError(403, f"a page of {origin[:100]!r} may not do that here")


async def _body(headers: dict[bytes, bytes], receive: Receive) -> bytes:
    too_large = _RefusedError(413, f"a request's body is at most {LARGEST_BODY} bytes")
    announced = headers.get(b"content-length", b"0")
    if not announced.isdigit() or len(announced) > 9 or int(announced) > LARGEST_BODY:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_WITHIN_S):
            while True:
                message = await receive()
                if message["type"] != "http.request":
                    raise _RefusedError(400, "the request ended before its body did")
                body += message.get("body", b"")
                if len(body) > LARGEST_BODY:
                    raise too_large
                if not message.get("more_body", False):
                    return bytes(body)
    except TimeoutError as error:
        raise _RefusedError(408, f"the body did not come within {BODY_WITHIN_S:g} s") from error


def _given(body: bytes, receive: Receive) -> Receive:
    handed = False

    async def again() -> Message:
        nonlocal handed
        if handed:
            return await receive()
        handed = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


async def _answer(send: Send, status: int, detail: str) -> None:
    body = msgspec.json.encode({"detail": detail})
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
