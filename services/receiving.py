"""Receiving rows: one ROUTER socket with a :class:`ReceiverHub` behind it.

The encoder receives steps from agents this way, and correlator, explainer and recorder receive
features from encoders; the shell of each only says what it does with rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import zmq

from interlatent_live.errors import WireError
from interlatent_live.services.runtime import explained
from interlatent_live.wire.clock import read_clock
from interlatent_live.wire.codec import decode, encode_message
from interlatent_live.wire.limits import DEFAULT_LIMITS, Limits
from interlatent_live.wire.receiver_link import ReceiverConfig, ReceiverHub, Reply

if TYPE_CHECKING:
    from collections.abc import Iterator

    from interlatent_live.wire.receiver_link import Asked, Deliver, Detached, Ended, HubInstruction

    Received = Asked | Deliver | Detached | Ended

MESSAGES_PER_TURN = 256
"""Messages read before the shell's loop gets its turn, so that a flood cannot starve it."""


class RowReceiver:
    """A bound ROUTER socket and the hub that keeps its books.

    Not thread-safe. ``what`` and ``setting`` name the endpoint in the sentence for a taken port.
    """

    def __init__(
        self,
        context: zmq.Context[Any],
        endpoint: str,
        *,
        what: str,
        setting: str,
        config: ReceiverConfig | None = None,
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        self.hub = ReceiverHub(config)
        self._limits = limits
        self.socket: zmq.Socket[bytes] = context.socket(zmq.ROUTER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self.socket.setsockopt(zmq.MAXMSGSIZE, limits.message_bytes())
        with explained(what, endpoint, setting):
            self.socket.bind(endpoint)

    def receive(self) -> Iterator[Received]:
        """What arrived: hellos to answer, rows to process, streams that went or ended."""
        for _ in range(MESSAGES_PER_TURN):
            try:
                frames = self.socket.recv_multipart(zmq.NOBLOCK, copy=True)
            except zmq.Again:
                return
            peer, body = frames[0], frames[1:]
            now = read_clock()
            try:
                message = decode(body, self._limits)
            except WireError as error:
                yield from self._carry_out(self.hub.on_garbage(now, peer, error))
                continue
            size = sum(len(frame) for frame in body)
            yield from self._carry_out(self.hub.on_message(now, peer, message, size=size))

    def tick(self) -> Iterator[Received]:
        """Let time pass: acknowledge, report holes, forget the silent."""
        yield from self._carry_out(self.hub.on_tick(read_clock()))

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
        """Close the socket."""
        self.socket.close()

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
        frames = [reply.peer, *encode_message(reply.message)]
        try:
            self.socket.send_multipart(frames, zmq.NOBLOCK)
        except zmq.ZMQError:
            # The peer went away or does not read; its own timeout makes it connect again.
            return
