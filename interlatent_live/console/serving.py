"""Uvicorn on a thread of its own: bound before it starts, and ended when asked to.

The service's main thread keeps the signals and the feed; HTTP gets a loop of its own, so neither
waits for the other.
"""

from __future__ import annotations

import socket
import threading
from typing import TYPE_CHECKING, Protocol, Self

import uvicorn

from interlatent_live.config import is_loopback, split_address
from interlatent_live.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from starlette.types import ASGIApp

BACKLOG = 64
SPARE_CONNECTIONS = 32
"""Connections beside the feeds."""
GRACE_S = 2
LARGEST_WORD = 4096
"""Bytes of one message from a page."""


class Closable(Protocol):
    """What feeds clients until it is told to end."""

    def close(self) -> None:
        """No more comes."""


class HttpServer:
    """Serves an application on loopback; a context manager.

    Args:
        app: what answers.
        address: ``HOST:PORT`` of this machine only; port 0 takes a free one.
        endless: what is told before the server ends, so that no answer without an end holds it up.
        feeds: open feeds at once.

    Raises:
        UserError: when the address is not loopback.
        OSError: when it cannot be had.
    """

    def __init__(
        self, app: ASGIApp, address: str, endless: Sequence[Closable], *, feeds: int
    ) -> None:
        host, port = split_address(address)
        if not is_loopback(host):
            raise UserError(
                f"console.http ({address}) is open to other machines, and reading needs no "
                "login: use 127.0.0.1 and reach it through an SSH tunnel"
            )
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = socket.create_server((host, port), family=family, backlog=BACKLOG)
        self.port = int(self._socket.getsockname()[1])
        self.url = f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"
        self._endless = endless
        config = uvicorn.Config(
            app,
            loop="asyncio",
            http="h11",
            ws="websockets-sansio",
            ws_max_size=LARGEST_WORD,
            ws_max_queue=4,
            # On this machine bytes are cheaper than compressing them for each client anew.
            ws_per_message_deflate=False,
            lifespan="off",
            log_config=None,
            log_level="warning",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            limit_concurrency=feeds + SPARE_CONNECTIONS,
            timeout_graceful_shutdown=GRACE_S,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._server.run, args=([self._socket],), name="http", daemon=True
        )

    @property
    def alive(self) -> bool:
        """Whether it still serves."""
        return self._thread.is_alive()

    def __enter__(self) -> Self:
        """Begin to serve."""
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the feeds, let requests under way finish, give the port back."""
        for one in self._endless:
            one.close()
        self._server.should_exit = True
        self._thread.join(GRACE_S + 5)
        self._socket.close()
