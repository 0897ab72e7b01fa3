"""Requests of HTTP threads on their way to the one socket that speaks to the explainer.

A ZeroMQ socket belongs to one thread, and routes run on many. They leave their request here and
wait; the service's loop takes the requests out, sends them, and brings the answers.
"""

from __future__ import annotations

import queue
import threading
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import TYPE_CHECKING

from interlatent_live.errors import UserError

if TYPE_CHECKING:
    from interlatent_live.explanations.requests import Answer, Incoming

MOST_WAITING = 16
WITHIN_S = 25.0
"""The explainer answers between two units of work, and a long run makes those long."""


class NotAnsweredError(UserError):
    """Nobody answered in time, or too many ask."""


class Asking:
    """Questions in from any thread, out to one; answers back. Bounded by ``MOST_WAITING``."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: dict[str, Future[Answer]] = {}
        self._out: queue.SimpleQueue[Incoming] = queue.SimpleQueue()

    def ask(self, request: Incoming, timeout_s: float = WITHIN_S) -> Answer:
        """Wait for the answer to a request.

        Raises:
            NotAnsweredError: when none comes in time, the same id is being asked already, or too
                many wait.
        """
        future: Future[Answer] = Future()
        with self._lock:
            if len(self._waiting) >= MOST_WAITING:
                raise NotAnsweredError("too many requests wait for the explainer; ask again later")
            if request.id in self._waiting:
                raise NotAnsweredError(f"the request {request.id} is being carried out already")
            self._waiting[request.id] = future
        try:
            self._out.put(request)
            return future.result(timeout_s)
        except FutureTimeoutError as error:
            raise NotAnsweredError(
                f"the explainer did not answer within {timeout_s:g} s; ask again with the same "
                "id, which is carried out once"
            ) from error
        finally:
            with self._lock:
                self._waiting.pop(request.id, None)

    def requests(self) -> list[Incoming]:
        """What is to be sent now."""
        found = []
        while not self._out.empty():
            found.append(self._out.get())
        return found

    def answered(self, answer: Answer) -> bool:
        """Bring an answer; ``False`` when nobody here asked for it."""
        with self._lock:
            future = self._waiting.pop(answer.id, None)
        if future is None:
            return False
        future.set_result(answer)
        return True
