"""Who may connect: CURVE on the socket, and an authenticator that knows the keys.

A CURVE server without an authenticator encrypts for, and accepts, every key there is. So a server
socket is never given keys without a ZAP domain that must be answered for, and
:class:`Authenticator` answers in a thread of its own: unknown, revoked and expired keys are turned
away before a message of theirs is read. Protocol: ZeroMQ RFC 27 (ZAP), RFC 26 (CURVE).
"""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, Self

import zmq
from zmq.utils import z85

from interlatent_live.errors import UserError
from interlatent_live.wire.keys import KeyDirectory, KeyRing, KeyRole
from interlatent_live.wire.speaking import may_speak

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path
    from types import TracebackType

    from interlatent_live.stream import Manifest
    from interlatent_live.wire.keys import ClientKeys, ServerKeys

ZAP_ENDPOINT: Final = "inproc://zeromq.zap.01"
RELOAD_INTERVAL: Final = 0.5
"""Seconds between two looks at the key directory."""


class Domain(StrEnum):
    """What a listening socket is for. pyzmq knows no wildcard domain, and neither do we."""

    AGENTS = "interlatent-agents"
    """Rows come in here, from agents or from services."""
    FEED = "interlatent-feed"
    """Viewers read here."""
    SERVICES = "interlatent-services"
    """Services among themselves."""


ROLES: Final[Mapping[str, frozenset[KeyRole]]] = {
    Domain.AGENTS: frozenset({KeyRole.AGENT, KeyRole.SERVICE}),
    Domain.FEED: frozenset({KeyRole.VIEWER, KeyRole.SERVICE}),
    Domain.SERVICES: frozenset({KeyRole.SERVICE}),
}


@dataclass(frozen=True, slots=True)
class ZapAnswer:
    """The frames to reply, and what was decided in one word, for counters."""

    frames: list[bytes]
    outcome: str


def zap_answer(request: Sequence[bytes], ring: KeyRing, now: datetime) -> ZapAnswer | None:
    """Answer one ZAP request; ``None`` when it is not one.

    ``request`` is version, request id, domain, address, identity, mechanism, credentials. The
    outcome is ``accepted``, ``unknown``, ``revoked``, ``expired``, ``role``, ``domain`` or
    ``mechanism``.
    """
    if len(request) < 6 or request[0] != b"1.0":
        return None
    request_id, domain, mechanism = request[1], request[2].decode("utf-8", "replace"), request[5]
    roles = ROLES.get(domain)
    if roles is None:
        return _refuse(request_id, "domain")
    if mechanism != b"CURVE" or len(request) != 7 or len(request[6]) != 32:
        return _refuse(request_id, "mechanism")
    verdict = ring.check(z85.encode(request[6]).decode("ascii"), now)
    if verdict.certificate is None:
        return _refuse(request_id, verdict.reason)
    if verdict.certificate.role not in roles:
        return _refuse(request_id, "role")
    user_id = verdict.user_id.encode()
    return ZapAnswer([b"1.0", request_id, b"200", b"OK", user_id, b""], "accepted")


def speaks_for(user_id: str, manifest: Manifest) -> str | None:
    """Why the key behind a connection may not open a stream of that agent; ``None`` when it may."""
    if may_speak(user_id, manifest.agent):
        return None
    role, _, rest = user_id.partition("/")
    name = rest.rpartition("/")[0]
    return (
        f"the key {name!r} ({role}) may not speak for the agent {manifest.agent!r}; use the key "
        "made under that name"
    )


def protect_server(socket: zmq.Socket[Any], keys: ServerKeys, domain: Domain) -> None:
    """Make a socket a CURVE server whose every connection the authenticator must let in.

    To be called before ``bind``; without a running :class:`Authenticator` nobody gets in.
    """
    socket.setsockopt(zmq.CURVE_SERVER, 1)
    socket.setsockopt(zmq.CURVE_SECRETKEY, keys.secret)
    socket.setsockopt(zmq.CURVE_PUBLICKEY, keys.public)
    socket.setsockopt_string(zmq.ZAP_DOMAIN, domain.value)
    socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)


def protect_client(socket: zmq.Socket[Any], keys: ClientKeys) -> None:
    """Make a socket a CURVE client; to be called before ``connect``."""
    socket.setsockopt(zmq.CURVE_SECRETKEY, keys.secret)
    socket.setsockopt(zmq.CURVE_PUBLICKEY, keys.public)
    socket.setsockopt(zmq.CURVE_SERVERKEY, keys.server)


class Authenticator:
    """Answers for every protected server socket of one context, from a key directory.

    The directory is looked at twice a second, so a new, revoked or rotated key needs no restart.
    Connections made before a revocation live on in libzmq; a receiver ends them with
    :meth:`allows`, see :meth:`ReceiverHub.expel`.
    """

    def __init__(self, context: zmq.Context[Any], directory: Path) -> None:
        self.outcomes: Counter[str] = Counter()
        self.problems: tuple[str, ...] = ()
        self._context = context
        self._directory = KeyDirectory(directory)
        self._ring = KeyRing(())
        self._signature: object = None
        self._stop = threading.Event()
        self._bound = threading.Event()
        self._failure: zmq.ZMQError | None = None
        self._thread = threading.Thread(target=self._serve, name="zap", daemon=True)

    def start(self) -> Self:
        """Read the directory and begin to answer.

        Raises:
            UserError: when the directory is not one.
            zmq.ZMQError: when the context has an authenticator already.
        """
        if not self._directory.path.is_dir():
            raise UserError(
                f"there is no key directory {self._directory.path}; make one with "
                "`interlatent-live keys new service --role service --dir DIR`"
            )
        self._reload()
        self._thread.start()
        self._bound.wait()
        if self._failure is not None:
            raise self._failure
        return self

    def stop(self) -> None:
        """Stop answering; from now on nobody new gets in."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def allows(self, user_id: str) -> bool:
        """Whether a connection under ``user_id`` would still be let in; always without keys."""
        return not user_id or self._ring.allows(user_id, datetime.now(UTC))

    def _reload(self) -> None:
        signature = self._directory.signature()
        if signature != self._signature:
            self._ring, self.problems = self._directory.ring()
            self._signature = signature

    def _serve(self) -> None:
        with self._context.socket(zmq.REP) as socket:
            socket.setsockopt(zmq.LINGER, 0)
            try:
                socket.bind(ZAP_ENDPOINT)
            except zmq.ZMQError as error:
                self._failure = error
                self._bound.set()
                return
            self._bound.set()
            while not self._stop.is_set():
                ready = socket.poll(int(RELOAD_INTERVAL * 1000 / 2))
                self._reload()
                if ready:
                    self._answer(socket)

    def _answer(self, socket: zmq.Socket[bytes]) -> None:
        request = socket.recv_multipart()
        answer = zap_answer(request, self._ring, datetime.now(UTC))
        if answer is None:
            # A REP socket must reply before it can hear again.
            answer = _refuse(request[1] if len(request) > 1 else b"", "malformed")
        self.outcomes[answer.outcome] += 1
        socket.send_multipart(answer.frames)


def _refuse(request_id: bytes, outcome: str) -> ZapAnswer:
    # The status text reaches the client; it says no more than that the answer is no.
    return ZapAnswer([b"1.0", request_id, b"400", b"refused", b"", b""], outcome)
