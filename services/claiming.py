"""Claims on slots and what is said to them: documents between a shard and the gateway."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, TypeVar

import msgspec

from interlatent_live.engine.leases import Claim, Leases
from interlatent_live.errors import UserError, WireError
from interlatent_live.wire.codec import decode, encode_document
from interlatent_live.wire.messages import Document
from interlatent_live.wire.security import Domain
from interlatent_live.wire.sockets import (
    check_endpoint,
    receive_from,
    receive_message,
    send_message,
    send_to,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    import zmq

    from interlatent_live.services.network import Network

S = TypeVar("S")

TOPIC: Final = "claims"
CLAIM_EVERY_S: Final = 0.5
MOST_STRAYS: Final = 4096
"""Runs told in one answer; the newest."""


class Verdict(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the gateway says to a claim."""

    fenced: bool
    """A later start of this shard has spoken: end."""
    strays: dict[str, int]
    """Runs that belong to another slot than their hash's."""


class ClaimDesk:
    """The gateway's end.

    Raises:
        UserError: when the endpoint is taken.
    """

    def __init__(self, network: Network, endpoint: str, leases: Leases, poller: zmq.Poller) -> None:
        self._network = network
        self._leases = leases
        self._socket = network.router(endpoint, "endpoints.correlator", Domain.SERVICES)
        poller.register(self._socket, 1)
        self.fenced = 0
        """Claims of starts that are over."""

    def turn(self) -> bool:
        """Take in claims and answer them; whether the holders are others than before."""
        before = self._leases.holders()
        while True:
            received = receive_from(self._socket, protected=self._network.protected)
            if received is None:
                return self._leases.holders() != before
            try:
                claim = _read(received.frames, Claim)
                for address in claim.addresses if claim.ready else ():
                    check_endpoint(address, protected=self._network.protected, listening=False)
                taken = self._leases.take(claim)
            except (WireError, UserError, msgspec.ValidationError):
                continue
            self.fenced += not taken
            strays = dict(list(self._leases.strays().items())[-MOST_STRAYS:])
            frames = _write(Verdict(fenced=not taken, strays=strays), "gateway")
            send_to(self._socket, received.peer, frames)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


class Claimant:
    """A shard's end: claims now and then, and knows what was said last."""

    def __init__(self, network: Network, endpoint: str, claim: Claim) -> None:
        self.claim = claim
        self.verdict: Verdict | None = None
        self._socket = network.dealer(endpoint)
        self._due = 0.0

    def turn(self, wait_s: float) -> Verdict | None:
        """Claim when it is time, and wait so long at most for an answer; the newest verdict."""
        now = time.monotonic()
        if now >= self._due:
            self._due = now + CLAIM_EVERY_S
            send_message(self._socket, _write(self.claim, self.claim.shard))
        self._socket.poll(int(wait_s * 1000))
        while (frames := receive_message(self._socket)) is not None:
            self.verdict = _read(frames, Verdict)
        return self.verdict

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


def _write(value: msgspec.Struct, source: str) -> list[bytes]:
    payload = msgspec.to_builtins(value)
    return encode_document(TOPIC, payload, source=source, sent_ns=time.time_ns())


def _read(frames: Sequence[bytes | memoryview], kind: type[S]) -> S:
    message = decode(frames)
    if not isinstance(message, Document) or message.topic != TOPIC:
        raise WireError("kind", "that is no claim and no answer to one")
    return msgspec.convert(dict(message.payload), kind)
