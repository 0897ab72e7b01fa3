"""A service's ZeroMQ context, with keys where they are configured and an authenticator for them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import zmq

from interlatent_live.errors import UserError
from interlatent_live.wire.keys import ServerKeys
from interlatent_live.wire.security import Authenticator, Domain
from interlatent_live.wire.sockets import (
    DEFAULT_TUNING,
    bind_publisher,
    bind_router,
    connect_dealer,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import TracebackType

    from interlatent_live.wire.sockets import SocketTuning

LAST_WORDS_MS = 200
"""How long a message of goodbye may take to leave a socket that is closed."""


class Network:
    """Makes a service's sockets; a context manager that ends them all.

    Args:
        keys: the key directory, or ``None`` when everything stays on this machine.

    Raises:
        UserError: when the directory has no service key.
    """

    def __init__(self, keys: Path | None) -> None:
        self.context: zmq.Context[Any] = zmq.Context()
        self._keys = None if keys is None else ServerKeys.load(keys)
        self._authenticator = None if keys is None else Authenticator(self.context, keys)

    def __enter__(self) -> Self:
        if self._authenticator is not None:
            self._authenticator.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._authenticator is not None:
            self._authenticator.stop()
        self.context.destroy(linger=LAST_WORDS_MS)

    @property
    def protected(self) -> bool:
        """Whether connections need a key."""
        return self._keys is not None

    def allows(self, user_id: str) -> bool:
        """Whether a connection made under ``user_id`` would still be let in."""
        return self._authenticator is None or self._authenticator.allows(user_id)

    def router(
        self, endpoint: str, what: str, domain: Domain, tuning: SocketTuning = DEFAULT_TUNING
    ) -> zmq.Socket[bytes]:
        """A bound ROUTER.

        Raises:
            UserError: when the endpoint is taken or needs keys; ``what`` names the setting.
        """
        return _named(
            what,
            lambda: bind_router(
                self.context, endpoint, keys=self._keys, domain=domain, tuning=tuning
            ),
        )

    def publisher(
        self, endpoint: str, what: str, tuning: SocketTuning = DEFAULT_TUNING
    ) -> zmq.Socket[bytes]:
        """A bound XPUB; raises as :meth:`router`."""
        return _named(
            what, lambda: bind_publisher(self.context, endpoint, keys=self._keys, tuning=tuning)
        )

    def dealer(self, endpoint: str) -> zmq.Socket[bytes]:
        """A DEALER to another service, under this service's own key."""
        client = None if self._keys is None else self._keys.client()
        return connect_dealer(self.context, endpoint, keys=client)


def _named(what: str, make: Callable[[], zmq.Socket[bytes]]) -> zmq.Socket[bytes]:
    try:
        return make()
    except UserError as error:
        raise UserError(f"{what}: {error}") from error
