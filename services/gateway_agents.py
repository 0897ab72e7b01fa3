"""Agents' connections passed on to the shards that own their runs.

Messages go through as they are: credit, acknowledgements and counted loss are between the agent and
its encoder. A connection belongs to one shard, that of the first run it speaks of, since its credit
is one; further runs on it belong there too. When a slot gets another owner, its agents are told
that nobody knows them, as by an encoder that was restarted: they connect anew, and say what they
lost.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from interlatent_live.errors import WireError
from interlatent_live.logs import get_logger
from interlatent_live.wire.codec import decode, encode_message, kind_of
from interlatent_live.wire.messages import Hello, Refuse
from interlatent_live.wire.security import Domain, speaks_for
from interlatent_live.wire.sockets import (
    SocketTuning,
    receive_from,
    receive_message,
    send_message,
    send_to,
)

if TYPE_CHECKING:
    import zmq

    from interlatent_live.engine.leases import Claim, Leases
    from interlatent_live.services.network import Network
    from interlatent_live.wire.sockets import Received

MESSAGES_PER_TURN: Final = 256
FORGET_AFTER_S: Final = 30.0
CHECK_EVERY_S: Final = 1.0
HELD: Final = 64
"""Messages of one connection that are kept until a shard has answered."""
TUNING: Final = SocketTuning(send_queue=4096, receive_queue=4096)
"""Credit bounds what is under way; a queue that is full would lose it, counted."""


@dataclass(slots=True, eq=False)
class _Peer:
    identity: bytes
    user_id: str
    slot: int
    heard: float
    holder: Claim | None = None
    back: zmq.Socket[bytes] | None = None
    answered: bool = False
    held: list[list[bytes | memoryview]] = field(default_factory=list)
    """What was said before there was an answer: for the shard that comes."""


class AgentRelay:
    """The bound endpoint of agents, and a connection to a shard for each of theirs.

    Args:
        network: of the service.
        endpoint: ``endpoints.agents``.
        leases: who owns what.
        poller: told of sockets as they come and go.
        most: connections at once.

    Raises:
        UserError: when the endpoint is taken.
    """

    def __init__(
        self, network: Network, endpoint: str, leases: Leases, poller: zmq.Poller, most: int
    ) -> None:
        self._network = network
        self._leases = leases
        self._poller = poller
        self._most = most
        self._front = network.router(endpoint, "endpoints.agents", Domain.AGENTS, TUNING)
        poller.register(self._front, 1)
        self._peers: dict[bytes, _Peer] = {}
        self._backs: dict[zmq.Socket[bytes], _Peer] = {}
        self._check_at = 0.0
        self.newest_run = ""
        self._log = get_logger("services.gateway")

    @property
    def connections(self) -> int:
        """Agents' connections now."""
        return len(self._peers)

    def turn(self, ready: set[object]) -> None:
        """Pass on what came, both ways; ``ready`` are the sockets with something to read."""
        for _ in range(MESSAGES_PER_TURN):
            received = receive_from(self._front, protected=self._network.protected)
            if received is None:
                break
            self._from_agent(received)
        for socket in [one for one in self._backs if one in ready]:
            peer = self._backs[socket]
            peer.answered, peer.held = True, []
            for _ in range(MESSAGES_PER_TURN):
                frames = receive_message(socket)
                if frames is None:
                    break
                send_to(self._front, peer.identity, frames)
        now = time.monotonic()
        if now >= self._check_at:
            self._check_at = now + CHECK_EVERY_S
            self._check(now)

    def reroute(self) -> None:
        """Leases changed: connections whose slot has another owner begin anew."""
        for peer in tuple(self._peers.values()):
            holder = self._leases.holder(peer.slot)
            if holder is not peer.holder and not _same(holder, peer.holder):
                if peer.answered:
                    self._unknown(peer.identity)
                    self._forget(peer)
                else:
                    self._detach(peer)
                    self._attach(peer)

    def close(self) -> None:
        """Close every socket."""
        for peer in tuple(self._peers.values()):
            self._forget(peer)
        self._front.close()

    def _from_agent(self, received: Received) -> None:
        peer = self._peers.get(received.peer)
        if kind_of(received.frames) == "hello":
            peer = self._hello(received, peer)
        elif peer is None:
            self._unknown(received.peer)
        if peer is None:
            return
        peer.heard = time.monotonic()
        if not peer.answered and len(peer.held) < HELD:
            peer.held.append([bytes(frame) for frame in received.frames])
        if peer.back is not None:
            send_message(peer.back, received.frames)

    def _hello(self, received: Received, peer: _Peer | None) -> _Peer | None:
        """Whose connection this is; ``None`` when the hello is refused."""
        try:
            message = decode(received.frames)
        except WireError as error:
            self._refuse(received.peer, "", error.reason, str(error))
            return None
        if not isinstance(message, Hello):
            return None
        manifest = message.manifest
        why = speaks_for(received.user_id, manifest)
        if why is None and not self._network.allows(received.user_id):
            why = "this key was revoked"
        if why is None and peer is None and len(self._peers) >= self._most:
            why = f"there are {self._most} connections already; raise limits.agents"
        if why is not None:
            self._refuse(received.peer, manifest.boot_id, "key", why)
            return None
        if peer is None:
            slot = self._leases.slot(manifest.run_id)
            peer = _Peer(received.peer, received.user_id, slot, time.monotonic())
            self._peers[received.peer] = peer
            self._attach(peer)
        self._leases.bind(manifest.run_id, peer.slot)
        self.newest_run = manifest.run_id
        return peer

    def _attach(self, peer: _Peer) -> None:
        peer.holder = self._leases.holder(peer.slot)
        if peer.holder is None:
            return
        peer.back = self._network.dealer(peer.holder.agents)
        self._backs[peer.back] = peer
        self._poller.register(peer.back, 1)
        for frames in peer.held:
            send_message(peer.back, frames)

    def _detach(self, peer: _Peer) -> None:
        if peer.back is not None:
            self._poller.unregister(peer.back)
            del self._backs[peer.back]
            peer.back.close()
            peer.back = None

    def _forget(self, peer: _Peer) -> None:
        del self._peers[peer.identity]
        self._detach(peer)

    def _check(self, now: float) -> None:
        """Let go of connections that are silent, or whose key was revoked."""
        for peer in tuple(self._peers.values()):
            if now - peer.heard > FORGET_AFTER_S or not self._network.allows(peer.user_id):
                self._forget(peer)

    def _unknown(self, identity: bytes) -> None:
        self._refuse(identity, "", "hello", "this connection is not known; say hello again")

    def _refuse(self, identity: bytes, boot_id: str, reason: str, message: str) -> None:
        clean = "".join(char if char.isprintable() else "?" for char in message)[:512]
        refusal = Refuse(
            boot_id=boot_id, reason=reason, message=clean, sent_ns=max(0, time.time_ns())
        )
        send_to(self._front, identity, encode_message(refusal))


def _same(one: Claim | None, other: Claim | None) -> bool:
    return (
        one is not None
        and other is not None
        and (one.shard, one.epoch, one.agents) == (other.shard, other.epoch, other.agents)
    )
