"""The end of the line: a consumer of features that keeps books of its own.

What the services say of themselves is not evidence. The witness is linked to the encoder as a
recorder would be, over credit, counts each row by its number, and knows what was declared lost on
the way; ``sent = received + declared`` is held against *its* figures.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import zmq

from interlatent_live.errors import WireError
from interlatent_live.wire.clock import read_clock
from interlatent_live.wire.codec import decode, encode_message
from interlatent_live.wire.ranges import RangeSet
from interlatent_live.wire.receiver_link import Asked, Deliver, Ended, ReceiverHub, Reply
from interlatent_live.wire.sockets import bind_router, bound_endpoint, receive_from, send_to

if TYPE_CHECKING:
    from collections.abc import Iterable

    from interlatent_live.wire.receiver_link import HubInstruction


@dataclass(slots=True)
class Book:
    """What arrived of one stream."""

    rows: RangeSet = field(default_factory=RangeSet)
    received: int = 0
    newest: int = 0
    """One more than the highest row that arrived."""
    ended: bool = False
    transcoders: list[dict[str, str]] = field(default_factory=list)
    """Transcoder hash by hook point, one entry each time that it changed."""

    @property
    def twice(self) -> int:
        """Rows that were delivered more than once."""
        return self.received - self.rows.total


@dataclass(frozen=True, slots=True)
class Found:
    """A stream's books as they stand."""

    received: int
    twice: int
    declared: int
    undeclared: int
    ended: bool


class Witness:
    """A bound receiver of features in a thread; a context manager."""

    def __init__(self) -> None:
        self.books: dict[str, Book] = {}
        self.endpoint = ""
        self.unreadable = 0
        self._hub = ReceiverHub()
        self._stop = threading.Event()
        self._bound = threading.Event()
        self._thread = threading.Thread(target=self._run, name="witness", daemon=True)

    def __enter__(self) -> Self:
        """Bind and begin."""
        self._thread.start()
        if not self._bound.wait(10):
            raise TimeoutError("the witness could not bind")
        return self

    def __exit__(self, *_: object) -> None:
        """Stop and close."""
        self._stop.set()
        self._thread.join()

    def newest(self, boot_id: str) -> int:
        """One more than the highest row of a stream that arrived, 0 for none."""
        book = self.books.get(boot_id)
        return 0 if book is None else book.newest

    def transcoders(self, boot_id: str) -> list[dict[str, str]]:
        """Transcoder hash by hook point, oldest first, one entry each time that it changed."""
        book = self.books.get(boot_id)
        return [] if book is None else list(book.transcoders)

    def found(self, boot_id: str) -> Found:
        """The books of a stream now."""
        book = self.books.get(boot_id)
        if book is None or boot_id not in self._hub.streams():
            return Found(0, 0, 0, 0, ended=False)
        counts = self._hub.counts(boot_id)
        return Found(
            received=book.rows.total,
            twice=book.twice,
            declared=counts.declared_total,
            undeclared=counts.undeclared,
            ended=book.ended,
        )

    def _run(self) -> None:
        context: zmq.Context[Any] = zmq.Context()
        try:
            router = bind_router(context, "tcp://127.0.0.1:*")
            self.endpoint = bound_endpoint(router)
            self._bound.set()
            while not self._stop.is_set():
                router.poll(20)
                self._turn(router)
        finally:
            context.destroy(linger=0)

    def _turn(self, router: zmq.Socket[bytes]) -> None:
        while (received := receive_from(router, protected=False)) is not None:
            now = read_clock()
            try:
                message = decode(received.frames)
            except WireError as error:
                self.unreadable += 1
                self._carry_out(router, self._hub.on_garbage(now, received.peer, error))
                continue
            self._carry_out(
                router, self._hub.on_message(now, received.peer, message, size=received.size())
            )
        self._carry_out(router, self._hub.on_tick(read_clock()))

    def _carry_out(self, router: zmq.Socket[bytes], instructions: Iterable[HubInstruction]) -> None:
        for one in instructions:
            match one:
                case Reply(peer, message):
                    send_to(router, peer, encode_message(message))
                case Asked(peer, hello):
                    self.books.setdefault(hello.manifest.boot_id, Book())
                    self._carry_out(router, self._hub.accept(read_clock(), peer, hello))
                case Deliver(boot_id, message):
                    self._take(self.books[boot_id], message)
                    self._carry_out(router, self._hub.processed(read_clock(), boot_id, 1))
                case Ended(boot_id=boot_id):
                    self.books[boot_id].ended = True
                case _:
                    pass

    @staticmethod
    def _take(book: Book, message: Any) -> None:
        steps = message.batch.steps
        first, rows = steps.first_seq, len(steps)
        book.rows.add(first, first + rows)
        book.received += rows
        book.newest = max(book.newest, first + rows)
        used = dict(message.batch.transcoders)
        if not book.transcoders or book.transcoders[-1] != used:
            book.transcoders.append(used)
