"""The explainer's socket for requests; what they mean is explanations/requests.py."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from interlatent_live.explanations.requests import Reply, RequestDesk
from interlatent_live.wire.security import Domain
from interlatent_live.wire.sockets import receive_from, send_to

if TYPE_CHECKING:
    from collections.abc import Iterator

    from interlatent_live.explanations.requests import Answer, Request
    from interlatent_live.services.network import Network

REQUESTS_PER_TURN = 32


class RequestSocket:
    """Requests in, answers out; belongs to one thread.

    Raises:
        UserError: when the endpoint is taken or needs keys.
    """

    def __init__(self, network: Network, endpoint: str, key: bytes) -> None:
        self._desk = RequestDesk(key)
        self._protected = network.protected
        self._allows = network.allows
        # Agents' shadows report here too; what their keys may say is the desk's to judge.
        self.socket = network.router(endpoint, "endpoints.explainer_requests", Domain.AGENTS)

    @property
    def refused(self) -> dict[str, int]:
        """Messages that were not carried out, by reason."""
        return dict(self._desk.refused)

    def receive(self) -> Iterator[Request]:
        """Requests that are to be carried out; what can be answered at once is."""
        for late in self._desk.overdue(time.time_ns()):
            send_to(self.socket, late.peer, late.frames)
        for _ in range(REQUESTS_PER_TURN):
            received = receive_from(self.socket, protected=self._protected)
            if received is None:
                return
            if not self._allows(received.user_id):
                continue
            found = self._desk.receive(
                received.peer, received.frames, time.time_ns(), received.user_id
            )
            if isinstance(found, Reply):
                send_to(self.socket, found.peer, found.frames)
            elif found is not None:
                yield found

    def answer(self, answer: Answer) -> None:
        """Send the answer to who asked, if they are still there."""
        reply = self._desk.finish(answer, time.time_ns())
        if reply is not None:
            send_to(self.socket, reply.peer, reply.frames)

    def close(self) -> None:
        """Close the socket."""
        self.socket.close()
