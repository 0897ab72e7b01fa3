"""Receiving rows: one ROUTER socket with a :class:`ReceiverHub` behind it.

The encoder receives steps from agents this way, and correlator, explainer and recorder receive
features from encoders; the shell of each only says what it does with rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from interlatent_live.errors import WireError
from interlatent_live.services.network import LAST_WORDS_MS
from interlatent_live.wire.clock import read_clock
from interlatent_live.wire.codec import decode, encode_message
from interlatent_live.wire.limits import DEFAULT_LIMITS, Limits
from interlatent_live.wire.receiver_link import ReceiverConfig, ReceiverHub, Reply
from interlatent_live.wire.security import Domain, speaks_for
from interlatent_live.wire.sockets import receive_from, send_to

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from interlatent_live.config import Settings
    from interlatent_live.services.network import Network
    from interlatent_live.wire.receiver_link import Asked, Deliver, Detached, Ended, HubInstruction

    Received = Asked | Deliver | Detached | Ended

EXPEL_EVERY_S = 1.0
LEAST_WINDOW = 128 * 1024
"""Bytes that a peer may have under way however many there are."""
MESSAGES_PER_TURN = 256
"""Messages read before the shell's loop gets its turn, so that a flood cannot starve it."""


def open_receiver(
    settings: Settings, network: Network, endpoint: str, domain: Domain, *, server: str
) -> RowReceiver:
    """A receiver bound to ``endpoints.ENDPOINT``, within the limits for who speaks there.

    Agents of ``Domain.AGENTS`` have a window of ``limits.agent_bytes`` each, services of
    ``Domain.SERVICES`` one of ``limits.consumer_bytes``; ``server`` is how the peers know it.

    Raises:
        UserError: when the endpoint is taken.
    """
    limits = settings.limits
    window, peers = (
        (limits.agent_bytes, limits.agents)
        if domain is Domain.AGENTS
        else (limits.consumer_bytes, limits.consumers)
    )
    return RowReceiver(
        network,
        getattr(settings.endpoints, endpoint),
        f"endpoints.{endpoint}",
        domain,
        config=ReceiverConfig(
            window_bytes=window,
            least_bytes=min(window, LEAST_WINDOW),
            total_bytes=window * peers,
            messages_per_s=limits.messages_per_s,
            server=f"interlatent-live {server}",
        ),
        limits=Limits(body_bytes=limits.message_bytes),
    )


class RowReceiver:
    """A bound ROUTER socket and the hub that keeps its books.

    Not thread-safe. ``setting`` names the endpoint in the sentence for a taken port.
    """

    def __init__(
        self,
        network: Network,
        endpoint: str,
        setting: str,
        domain: Domain,
        *,
        config: ReceiverConfig | None = None,
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        self.hub = ReceiverHub(config, speaks_for=speaks_for)
        self._limits = limits
        self._network = network
        self._expel_at = 0.0
        self.socket = network.router(endpoint, setting, domain)

    def receive(self, has_room: Callable[[], bool] = lambda: True) -> Iterator[Received]:
        """What arrived: hellos to answer, rows to process, streams that went or ended.

        ``has_room`` is asked before each message; without room the rest waits in the socket, and
        senders soon for their credit.
        """
        for _ in range(MESSAGES_PER_TURN):
            if not has_room():
                return
            received = receive_from(self.socket, protected=self._network.protected)
            if received is None:
                return
            now, peer = read_clock(), received.peer
            refused = self.hub.paced(now, peer)
            if refused is not None:
                yield from self._carry_out(refused)
                continue
            try:
                message = decode(received.frames, self._limits)
            except WireError as error:
                yield from self._carry_out(self.hub.on_garbage(now, peer, error))
                continue
            yield from self._carry_out(
                self.hub.on_message(
                    now, peer, message, size=received.size(), user_id=received.user_id
                )
            )

    def tick(self) -> Iterator[Received]:
        """Let time pass: acknowledge, report holes, forget the silent, expel the revoked."""
        now = read_clock()
        yield from self._carry_out(self.hub.on_tick(now))
        if self._network.protected and now.mono >= self._expel_at:
            self._expel_at = now.mono + EXPEL_EVERY_S
            yield from self._carry_out(self.hub.expel(now, self._network.allows))

    def accept(self, asked: Asked) -> None:
        """Let a stream begin."""
        self._send_all(self.hub.accept(read_clock(), asked.peer, asked.hello))

    def refuse(self, asked: Asked, reason: str, message: str) -> None:
        """Refuse a stream with a sentence for its operator."""
        boot_id = asked.hello.manifest.boot_id
        self._send_all(
            self.hub.refuse(read_clock(), asked.peer, boot_id, reason=reason, message=message)
        )

    def processed(self, boot_id: str, messages: int = 1) -> None:
        """The oldest delivered messages of a stream are done with; their credit comes back."""
        self._send_all(self.hub.processed(read_clock(), boot_id, messages))

    def close(self) -> None:
        """Acknowledge what was processed, then close the socket.

        Without these last words a sender would declare rows lost that were processed.
        """
        now = read_clock()
        soon = now._replace(mono=now.mono + self.hub.config.ack_interval)
        self._send_all(self.hub.on_tick(soon))
        self.socket.close(linger=LAST_WORDS_MS)

    def _send_all(self, instructions: list[HubInstruction]) -> None:
        for _ in self._carry_out(instructions):
            pass

    def _carry_out(self, instructions: list[HubInstruction]) -> Iterator[Received]:
        for instruction in instructions:
            if isinstance(instruction, Reply):
                self._reply(instruction)
            else:
                yield instruction

    def _reply(self, reply: Reply) -> None:
        # A peer that went away or does not read hears nothing; its own timeout brings it back.
        send_to(self.socket, reply.peer, encode_message(reply.message))
