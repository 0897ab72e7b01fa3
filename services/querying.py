"""Answering questions on a ROUTER socket, in turns with the rows and never instead of them.

Rows come first: while any wait, questions get at most a quarter of the time, one at a time. What
waits is bounded per asker and in all; beyond it the answer is "busy", which clients try again.
"""

from __future__ import annotations

import time
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Final

from interlatent_live.errors import UserError, WireError
from interlatent_live.logs import get_logger
from interlatent_live.queries.codec import (
    decode_request,
    encode_answer,
    encode_refusal,
    request_id,
)
from interlatent_live.wire.security import Domain
from interlatent_live.wire.sockets import receive_from, send_to

if TYPE_CHECKING:
    from collections.abc import Callable

    from interlatent_live.queries.answering import Answerer
    from interlatent_live.queries.messages import Request
    from interlatent_live.services.network import Network

MOST_WAITING: Final = 64
MOST_PER_ASKER: Final = 8
SHARE: Final = 0.25
"""Of the time, while rows wait."""


def understood(
    frames: list[bytes | memoryview], refuse: Callable[[int, str, str], None]
) -> Request | None:
    """The question of a message; one that is not understood is refused by ``refuse``.

    Args:
        frames: of the message.
        refuse: takes the question's number, 0 where it has none, the reason's word, a sentence.
    """
    try:
        return decode_request(frames)
    except WireError as error:
        number = request_id(frames[0]) if len(frames) == 1 else 0
        refuse(number, error.reason, str(error))
        return None


class QueryServer:
    """The query endpoint of a correlator. Not thread-safe: it belongs to the service's loop.

    Viewers' keys may ask, as they may read the feeds.
    """

    def __init__(
        self, network: Network, endpoint: str, answerer: Answerer, limit_bytes: int
    ) -> None:
        self.socket = network.router(endpoint, "endpoints.correlator_queries", Domain.FEED)
        self.answered = 0
        self.refused = 0
        self.slowest_ms = 0.0
        self._network = network
        self._answerer = answerer
        self._limit = limit_bytes
        self._waiting: deque[tuple[bytes, Request]] = deque()
        self._free_at = 0.0
        self._log = get_logger("services.querying")

    @property
    def waiting(self) -> bool:
        """Whether a question waits for its turn."""
        return bool(self._waiting)

    def turn(self, *, rows_wait: bool) -> None:
        """Take in what was asked, and answer at most one question."""
        for _ in range(MOST_WAITING):
            received = receive_from(self.socket, protected=self._network.protected)
            if received is None:
                break
            self._take(received.peer, received.frames)
        if self._waiting and not (rows_wait and time.monotonic() < self._free_at):
            peer, request = self._waiting.popleft()
            self._answer(peer, request)

    def close(self) -> None:
        """Close the socket."""
        self.socket.close()

    def _take(self, peer: bytes, frames: list[bytes | memoryview]) -> None:
        request = understood(frames, partial(self._refuse, peer))
        if request is None:
            return
        own = sum(1 for other, _ in self._waiting if other == peer)
        if len(self._waiting) >= MOST_WAITING or own >= MOST_PER_ASKER:
            self._refuse(peer, request.id, "busy", "the correlator is busy; ask again")
            return
        self._waiting.append((peer, request))

    def _answer(self, peer: bytes, request: Request) -> None:
        began = time.monotonic()
        try:
            answer, arrays = self._answerer.answer(request.question)
            took = time.monotonic() - began
            frames = encode_answer(request.id, answer, arrays, took_us=int(took * 1e6))
            if sum(len(frame) for frame in frames) > self._limit:
                self._refuse(peer, request.id, "long", "the answer is too long; ask for less")
            else:
                send_to(self.socket, peer, frames)
                self.answered += 1
        except UserError as error:
            self._refuse(peer, request.id, "unknown", str(error))
        except Exception:  # noqa: BLE001 - logged with its traceback
            # One question that meets a bug must not stop the statistics of every agent.
            self._log.exception("question failed", ask=type(request.question).__name__)
            self._refuse(peer, request.id, "failed", "the correlator failed; see its log")
        spent = time.monotonic() - began
        self.slowest_ms = max(self.slowest_ms, spent * 1e3)
        self._free_at = began + spent / SHARE

    def _refuse(self, peer: bytes, number: int, word: str, sentence: str) -> None:
        self.refused += 1
        send_to(self.socket, peer, encode_refusal(number, word, sentence))
