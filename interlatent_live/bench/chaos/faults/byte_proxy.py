"""A TCP proxy between agent and encoder that delays, cuts and truncates.

It works below ZMTP and knows nothing of messages: what it does is what a bad link, a dying router
or a broken middlebox does. Duplicated and reordered *bytes* cannot reach a TCP peer, so those two
are done to whole messages, by :mod:`.message_proxy`.
"""

from __future__ import annotations

import os
import selectors
import socket
import struct
import threading
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final, Self

_CHUNK: Final = 16 * 1024
_HELD: Final = 256 * 1024
"""Bytes held in one direction before it stops reading, as a router's queue is bounded."""
_TURN_S: Final = 0.01


@dataclass(slots=True)
class _Way:
    """One direction of one connection."""

    source: socket.socket
    sink: socket.socket
    upstream: bool
    waiting: deque[tuple[float, bytes]] = field(default_factory=deque)
    held: int = 0


class ByteProxy:
    """A context manager; set the attributes at any time from any thread.

    Attributes:
        delay_s: how long each byte is held, in either direction.
        connections: how many were made so far.
    """

    def __init__(self, host: str, port: int) -> None:
        self.delay_s = 0.0
        self.connections = 0
        self._target = (host, port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.setblocking(False)
        self._ways: list[_Way] = []
        self._wake_read, self._wake_write = os.pipe()
        self._selector = selectors.DefaultSelector()
        self._actions: deque[str] = deque()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="byte-proxy", daemon=True)

    def __enter__(self) -> Self:
        """Begin to accept."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Cut everything and stop."""
        self._stop.set()
        os.write(self._wake_write, b"x")
        self._thread.join()
        os.close(self._wake_read)
        os.close(self._wake_write)

    @property
    def endpoint(self) -> str:
        """Where agents connect."""
        return f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"

    def cut(self) -> None:
        """Reset every connection now."""
        self._do("cut")

    def truncate(self) -> None:
        """Pass half of the next bytes of the agent on, then reset its connection."""
        self._do("truncate")

    def _do(self, action: str) -> None:
        self._actions.append(action)
        os.write(self._wake_write, b"x")

    # -- the thread ------------------------------------------------------------------------------

    def _run(self) -> None:
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._wake_read, selectors.EVENT_READ)
        try:
            while not self._stop.is_set():
                for key, _ in self._selector.select(_TURN_S):
                    if key.fileobj is self._listener:
                        self._accept()
                    elif key.fileobj == self._wake_read:
                        os.read(self._wake_read, 64)
                    else:
                        self._read(key.data)
                if "cut" in self._actions:
                    self._actions.remove("cut")
                    self._close_all()
                for way in tuple(self._ways):
                    self._pass_on(way)
        finally:
            self._close_all()
            self._selector.close()
            self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            client, _ = self._listener.accept()
            try:
                server = socket.create_connection(self._target, timeout=1.0)
            except OSError:
                _reset(client)  # nobody there: as if the agent had met a closed port
                return
            self.connections += 1
            for one in (client, server):
                one.setblocking(False)
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for way in (_Way(client, server, upstream=True), _Way(server, client, upstream=False)):
                self._ways.append(way)
                self._selector.register(way.source, selectors.EVENT_READ, way)

    def _read(self, way: _Way) -> None:
        if way not in self._ways:
            return
        if way.held >= _HELD:
            time.sleep(0.001)  # level-triggered: it would be asked again at once
            return
        try:
            data = way.source.recv(_CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._close(way)
            return
        if way.upstream and "truncate" in self._actions:
            self._actions.remove("truncate")
            with suppress(OSError):
                way.sink.send(data[: len(data) // 2])
            self._close(way)
            return
        way.waiting.append((time.monotonic() + self.delay_s, data))
        way.held += len(data)

    def _pass_on(self, way: _Way) -> None:
        now = time.monotonic()
        while way.waiting and way.waiting[0][0] <= now:
            due, data = way.waiting[0]
            try:
                sent = way.sink.send(data)
            except BlockingIOError:
                return
            except OSError:
                self._close(way)
                return
            way.held -= sent
            if sent == len(data):
                way.waiting.popleft()
            else:
                way.waiting[0] = (due, data[sent:])

    def _close(self, way: _Way) -> None:
        pair = [one for one in self._ways if {one.source, one.sink} == {way.source, way.sink}]
        for one in pair:
            self._ways.remove(one)
            self._selector.unregister(one.source)
        for one in pair:
            _reset(one.source)

    def _close_all(self) -> None:
        while self._ways:
            self._close(self._ways[0])


def _reset(one: socket.socket) -> None:
    """Close with RST: what a peer that vanished looks like, not one that said goodbye."""
    with suppress(OSError):
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    one.close()
