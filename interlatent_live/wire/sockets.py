"""ZeroMQ sockets with the options that the design depends on, and nothing else.

Every socket has small queues, bounded kernel buffers, no linger and a limit on message size. None
of them listens or connects beyond this machine without keys.

None uses ZeroMQ's own heartbeats: libzmq 4.3.5 aborts the process ("Assertion failed: !_io_error")
when one is due on a connection that was cut while its receiving queue was full
(https://github.com/zeromq/libzmq/issues/3937, /4364). A frozen peer is noticed by the links, whose
heartbeats are ordinary messages; a dead host by TCP keep-alive.
"""

from __future__ import annotations

import ipaddress
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import zmq

from interlatent_live.errors import UserError
from interlatent_live.wire.keys import make_private_folder
from interlatent_live.wire.limits import DEFAULT_LIMITS
from interlatent_live.wire.security import Domain, protect_client, protect_server

if TYPE_CHECKING:
    from collections.abc import Sequence

    from interlatent_live.wire.keys import ClientKeys, ServerKeys

# As plain numbers: pyzmq's own multipart calls look up enumerations for every frame, and
# that costs more than moving it.
_NOW: Final = int(zmq.NOBLOCK)
_MORE: Final = int(zmq.NOBLOCK | zmq.SNDMORE)
_SMALL: Final = 8192
"""Below this libzmq does not give a received frame memory of its own."""

LONGEST_IPC_PATH: Final = 107
"""Bytes of a Unix socket's path on Linux."""


@dataclass(frozen=True, slots=True)
class SocketTuning:
    """Queues in messages, buffers in bytes, times in milliseconds.

    Credit bounds what is on its way; the queues and buffers here only have to hold that. The kernel
    doubles the buffers it is asked for.
    """

    send_queue: int = 256
    receive_queue: int = 256
    send_buffer: int = 512 * 1024
    receive_buffer: int = 512 * 1024
    handshake: int = 2000
    reconnect_first: int = 50
    reconnect_longest: int = 1000
    largest_message: int = DEFAULT_LIMITS.message_bytes()


DEFAULT_TUNING: Final = SocketTuning()


class Received(NamedTuple):
    """One message from a peer of a ROUTER."""

    peer: bytes
    frames: list[bytes | memoryview]
    user_id: str
    """What the authenticator made of the peer's key, ``""`` without keys."""

    def size(self) -> int:
        """Bytes of all frames."""
        return sum(map(len, self.frames))


def connect_dealer(
    context: zmq.Context[Any],
    endpoint: str,
    *,
    keys: ClientKeys | None = None,
    tuning: SocketTuning = DEFAULT_TUNING,
) -> zmq.Socket[bytes]:
    """A DEALER for a sending link.

    Without ``IMMEDIATE``: a hello may wait in the queue for its receiver to be started. Rows that
    an outage leaves in the queue are refused by the receiver and declared by the link.

    Raises:
        UserError: when the endpoint is beyond this machine and there are no keys.
    """
    check_endpoint(endpoint, protected=keys is not None, listening=False)
    socket = _socket(context, zmq.DEALER, endpoint, tuning)
    if keys is not None:
        protect_client(socket, keys)
    return _attached(socket, endpoint, listening=False)


def bind_router(
    context: zmq.Context[Any],
    endpoint: str,
    *,
    keys: ServerKeys | None = None,
    domain: Domain = Domain.AGENTS,
    tuning: SocketTuning = DEFAULT_TUNING,
) -> zmq.Socket[bytes]:
    """A ROUTER for a receiving hub; a reply to a peer that left raises instead of vanishing.

    Raises:
        UserError: when the endpoint is taken, or beyond this machine and there are no keys.
    """
    check_endpoint(endpoint, protected=keys is not None, listening=True)
    socket = _socket(context, zmq.ROUTER, endpoint, tuning)
    socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
    if keys is not None:
        protect_server(socket, keys, domain)
    return _attached(socket, endpoint, listening=True)


def bind_publisher(
    context: zmq.Context[Any],
    endpoint: str,
    *,
    keys: ServerKeys | None = None,
    tuning: SocketTuning = DEFAULT_TUNING,
) -> zmq.Socket[bytes]:
    """An XPUB for viewers: it drops for one that is too slow, and hears every subscription.

    Raises:
        UserError: when the endpoint is taken, or beyond this machine and there are no keys.
    """
    check_endpoint(endpoint, protected=keys is not None, listening=True)
    socket = _socket(context, zmq.XPUB, endpoint, tuning)
    socket.setsockopt(zmq.XPUB_VERBOSE, 1)
    if keys is not None:
        protect_server(socket, keys, Domain.FEED)
    return _attached(socket, endpoint, listening=True)


def connect_subscriber(
    context: zmq.Context[Any],
    endpoint: str,
    topics: Sequence[str] = ("",),
    *,
    keys: ClientKeys | None = None,
    tuning: SocketTuning = DEFAULT_TUNING,
) -> zmq.Socket[bytes]:
    """A SUB for a viewer of one publisher.

    Raises:
        UserError: when the endpoint is beyond this machine and there are no keys.
    """
    check_endpoint(endpoint, protected=keys is not None, listening=False)
    socket = _socket(context, zmq.SUB, endpoint, tuning)
    for topic in topics:
        socket.setsockopt_string(zmq.SUBSCRIBE, topic)
    if keys is not None:
        protect_client(socket, keys)
    return _attached(socket, endpoint, listening=False)


def bound_endpoint(socket: zmq.Socket[Any]) -> str:
    """Where a socket really listens, with the port that a ``*`` became."""
    endpoint = socket.getsockopt(zmq.LAST_ENDPOINT)
    return bytes(endpoint).rstrip(b"\0").decode() if isinstance(endpoint, bytes) else ""


def send_message(socket: zmq.Socket[bytes], frames: Sequence[bytes | memoryview]) -> bool:
    """Send without blocking; ``False`` when the queue is full or nobody is there.

    A message is taken whole or not at all: libzmq refuses it at its first frame.
    """
    try:
        for frame in frames[:-1]:
            socket.send(frame, _MORE)
        socket.send(frames[-1], _NOW)
    except zmq.Again:
        return False
    return True


def send_to(socket: zmq.Socket[bytes], peer: bytes, frames: Sequence[bytes | memoryview]) -> bool:
    """Send to one peer of a ROUTER without blocking; ``False`` when it is gone or too slow."""
    try:
        return send_message(socket, [peer, *frames])
    except zmq.ZMQError as error:
        # A peer that left; its ledger tells what that cost.
        if error.errno == zmq.EHOSTUNREACH:
            return False
        raise


def receive_message(socket: zmq.Socket[bytes]) -> list[bytes] | None:
    """The next message of a DEALER, SUB or XPUB, ``None`` when there is none now."""
    try:
        frame = socket.recv(_NOW, copy=False)
    except zmq.Again:
        return None
    frames = [frame.bytes]
    while frame.more:
        frame = socket.recv(_NOW, copy=False)
        frames.append(frame.bytes)
    return frames


def receive_from(socket: zmq.Socket[bytes], *, protected: bool) -> Received | None:
    """The next message of a ROUTER, ``None`` when there is none now.

    Large frames are views of libzmq's own memory, not copies. Frames beyond the third are read and
    thrown away: they make the message malformed, whatever they hold.
    """
    try:
        first = socket.recv(_NOW, copy=False)
    except zmq.Again:
        return None
    frames: list[bytes | memoryview] = []
    frame = first
    while frame.more:
        frame = socket.recv(_NOW, copy=False)
        if len(frames) < 3:
            # A small frame lies in a buffer that it shares with others, at an odd address.
            frames.append(frame.bytes if len(frame) < _SMALL else frame.buffer)
    # The routing frame carries the metadata of the connection.
    return Received(first.bytes, frames, _user_id(first) if protected else "")


def check_endpoint(endpoint: str, *, protected: bool, listening: bool) -> None:
    """Check that an endpoint is one of ours and, without keys, does not leave this machine.

    Raises:
        UserError: naming the endpoint and what to do.
    """
    scheme, separator, rest = endpoint.partition("://")
    if not separator or scheme not in {"tcp", "ipc", "inproc"} or not rest:
        raise UserError(
            f"{endpoint!r} is not an endpoint; write tcp://127.0.0.1:PORT or ipc:///path/to/socket"
        )
    if scheme == "ipc":
        _check_ipc(endpoint, rest)
        return
    if scheme == "inproc" or protected or _is_loopback(rest):
        return
    verb = "listen on" if listening else "connect to"
    raise UserError(
        f"refusing to {verb} {endpoint} without keys: it leaves this machine; use 127.0.0.1, or "
        "make keys with `interlatent-live keys new`"
    )


def _socket(
    context: zmq.Context[Any], kind: int, endpoint: str, tuning: SocketTuning
) -> zmq.Socket[bytes]:
    socket: zmq.Socket[bytes] = context.socket(kind)
    for option, value in (
        (zmq.LINGER, 0),
        (zmq.SNDHWM, tuning.send_queue),
        (zmq.RCVHWM, tuning.receive_queue),
        (zmq.SNDBUF, tuning.send_buffer),
        (zmq.RCVBUF, tuning.receive_buffer),
        (zmq.TCP_KEEPALIVE, 1),
        (zmq.TCP_KEEPALIVE_IDLE, 20),
        (zmq.TCP_KEEPALIVE_INTVL, 5),
        (zmq.TCP_KEEPALIVE_CNT, 4),
        (zmq.HANDSHAKE_IVL, tuning.handshake),
        (zmq.RECONNECT_IVL, tuning.reconnect_first),
        (zmq.RECONNECT_IVL_MAX, tuning.reconnect_longest),
        (zmq.MAXMSGSIZE, tuning.largest_message),
        (zmq.IPV6, int("[" in endpoint)),
    ):
        socket.setsockopt(option, value)
    return socket


def _attached(socket: zmq.Socket[bytes], endpoint: str, *, listening: bool) -> zmq.Socket[bytes]:
    try:
        if not listening:
            socket.connect(endpoint)
            return socket
        if endpoint.startswith("ipc://"):
            make_private_folder(Path(endpoint.removeprefix("ipc://")).parent)
        socket.bind(endpoint)
        if endpoint.startswith("ipc://"):
            Path(endpoint.removeprefix("ipc://")).chmod(0o700)
    except zmq.ZMQError as error:
        socket.close()
        if error.errno == zmq.EADDRINUSE:
            raise UserError(
                f"{endpoint} is in use; stop what uses it or choose another endpoint"
            ) from None
        verb = "listen on" if listening else "connect to"
        raise UserError(f"cannot {verb} {endpoint}: {error.strerror or error}") from None
    return socket


def _check_ipc(endpoint: str, path: str) -> None:
    if path.startswith("@"):
        raise UserError(
            f"{endpoint} is an abstract socket, which has no permissions; give a path instead"
        )
    if len(os.fsencode(path)) > LONGEST_IPC_PATH:
        raise UserError(
            f"the path of {endpoint} is longer than the {LONGEST_IPC_PATH} bytes a socket can have"
        )
    folder = Path(path).parent
    if folder.is_dir() and folder.stat().st_mode & 0o077:
        raise UserError(
            f"the folder of {endpoint} is open to other users; put the socket into a folder of its "
            f"own, or run `chmod 700 {folder}`"
        )


def _is_loopback(address: str) -> bool:
    host = address.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _user_id(frame: zmq.Frame) -> str:
    try:
        value = frame.get("User-Id")
    except zmq.ZMQError:
        return ""
    return value if isinstance(value, str) else ""
