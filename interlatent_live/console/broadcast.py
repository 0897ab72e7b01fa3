"""The feed on its way to any number of HTTP clients, none of which can slow it or fill the memory.

There is one ring of encoded events, bounded in number and in bytes, and every client is only a
place in it. A client that is too slow, or was away for too long, finds that the ring has gone on:
it is told how many events it missed, and goes on with the oldest that is left. That is a bounded
queue for each client that drops the oldest, at the price of one for all.

An event's id is ``EPOCH-NUMBER``; the epoch names this process's ring, so that the id of a ring
that is gone is known as such.
"""

from __future__ import annotations

import secrets
import threading
from collections import deque
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import msgspec

from interlatent_live.errors import UserError
from interlatent_live.feed.documents import Topic, document_payload

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

BATCH = 32
"""Events that a client is handed at once."""


class ClientKind(StrEnum):
    """How a client gets its events."""

    EVENTS = "events"
    """Server-sent events."""
    LINES = "lines"
    WEBSOCKET = "websocket"


@dataclass(frozen=True, slots=True)
class Event:
    """One document, encoded once for all clients; ``subject`` is what it is the newest word on."""

    number: int
    topic: Topic
    time_ns: int
    value: bytes
    subject: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Batch:
    """Events that a client has not had. ``missed`` came before them and are gone.

    ``missed`` counts events of all topics; ``None`` says that nobody knows how many.
    """

    events: tuple[Event, ...]
    missed: int | None = 0
    closed: bool = False


@dataclass(frozen=True, slots=True)
class Counts:
    """What the ring and its clients have been through."""

    clients: Mapping[ClientKind, int]
    """Open now."""
    missed: Mapping[ClientKind, int]
    """Events, of all topics, that were gone before a client came to them."""
    refused: int
    """Clients turned away because there were too many."""
    published: int
    held_bytes: int


class Broadcast:
    """The ring. Safe to use from several threads.

    Args:
        most_events: kept for those who come back.
        most_bytes: of their encoded values together; one larger event is still kept alone.
        most_clients: at once.
    """

    def __init__(
        self, *, most_events: int = 2000, most_bytes: int = 16 * 2**20, most_clients: int = 64
    ) -> None:
        self.epoch = secrets.token_hex(4)
        self._most_events = most_events
        self._most_bytes = most_bytes
        self._most_clients = most_clients
        self._ring: deque[Event] = deque()
        self._bytes = 0
        self._last = 0
        self._closed = False
        self._lock = threading.Lock()
        self._places: dict[Place, None] = {}
        self._missed = dict.fromkeys(ClientKind, 0)
        self._refused = 0

    @property
    def clients(self) -> int:
        """Open feeds."""
        return len(self._places)

    def counts(self) -> Counts:
        """Open feeds, and what became of clients so far."""
        with self._lock:
            kinds = [place.kind for place in self._places]
            return Counts(
                clients={kind: kinds.count(kind) for kind in ClientKind},
                missed=dict(self._missed),
                refused=self._refused,
                published=self._last,
                held_bytes=self._bytes,
            )

    def publish(self, topic: Topic, time_ns: int, document: msgspec.Struct) -> None:
        """Take a document in and wake whoever waits; never blocks on a client."""
        value = msgspec.json.encode(document_payload(document))
        with self._lock:
            self._last += 1
            event = Event(self._last, topic, time_ns, value, _subject(topic, document))
            self._ring.append(event)
            self._bytes += len(value)
            while len(self._ring) > self._most_events or (
                self._bytes > self._most_bytes and len(self._ring) > 1
            ):
                self._bytes -= len(self._ring.popleft().value)
            places = list(self._places)
        for place in places:
            place.wake()

    def close(self) -> None:
        """End every feed, once its client has what there is."""
        with self._lock:
            self._closed = True
            places = list(self._places)
        for place in places:
            place.wake()

    def join(
        self,
        wake: Callable[[], None],
        topics: frozenset[Topic],
        last_id: str | None = None,
        kind: ClientKind = ClientKind.EVENTS,
    ) -> Place:
        """A new client's place in the ring.

        Without ``last_id`` it begins with the newest word on every subject, with the id of a ring
        that is gone likewise, after being told that it missed something; with an id of this ring
        it goes on behind that event.

        Raises:
            UserError: when there are too many clients, or ``last_id`` was never given out.
        """
        epoch, dash, text = (last_id or "").rpartition("-")
        with self._lock:
            if len(self._places) >= self._most_clients:
                self._refused += 1
                raise UserError(
                    f"{self._most_clients} feeds are open already; close one, or raise "
                    "console.clients"
                )
            if last_id and not (dash and text.isascii() and text.isdecimal() and len(text) < 20):
                raise UserError(f"{last_id!r} is no id of an event; leave Last-Event-ID out")
            known = bool(last_id) and epoch == self.epoch
            if known and int(text) > self._last:
                raise UserError(f"there is no event {last_id} yet; leave Last-Event-ID out")
            place = Place(self, wake, topics, kind)
            if known:
                place.after = int(text)
            else:
                newest = {one.subject: one for one in self._ring}
                place.snapshot = [one for one in newest.values() if one.topic in topics]
                place.snapshot.sort(key=lambda one: one.number)
                place.after = self._last
                place.missed = None if last_id else 0
            self._places[place] = None
        return place

    def leave(self, place: Place) -> None:
        """Forget a client; one that is forgotten already is no error."""
        with self._lock:
            self._places.pop(place, None)

    def next(self, place: Place) -> Batch:
        """What a client has not had; an empty batch when there is nothing now."""
        with self._lock:
            missed, place.missed = place.missed, 0
            if place.snapshot:
                events, place.snapshot = place.snapshot[:BATCH], place.snapshot[BATCH:]
                return Batch(tuple(events), missed)
            oldest = self._ring[0].number if self._ring else self._last + 1
            if place.after < oldest - 1:
                gone = oldest - 1 - place.after
                self._missed[place.kind] += gone
                missed = None if missed is None else missed + gone
                place.after = oldest - 1
            found: list[Event] = []
            # Numbers are consecutive, so a place is an index.
            for index in range(place.after - oldest + 1, len(self._ring)):
                event = self._ring[index]
                place.after = event.number
                if event.topic in place.topics:
                    found.append(event)
                    if len(found) == BATCH:
                        break
            return Batch(tuple(found), missed, closed=self._closed and not found)


class Place:
    """One client's place; made by :meth:`Broadcast.join`."""

    __slots__ = ("_broadcast", "after", "kind", "missed", "snapshot", "topics", "wake")

    def __init__(
        self,
        broadcast: Broadcast,
        wake: Callable[[], None],
        topics: frozenset[Topic],
        kind: ClientKind,
    ) -> None:
        self._broadcast = broadcast
        self.kind = kind
        self.wake = wake
        self.topics = topics
        self.after = 0
        self.missed: int | None = 0
        self.snapshot: list[Event] = []

    def next(self) -> Batch:
        """See :meth:`Broadcast.next`."""
        return self._broadcast.next(self)

    def leave(self) -> None:
        """See :meth:`Broadcast.leave`."""
        self._broadcast.leave(self)


def _subject(topic: Topic, document: Any) -> tuple[str, ...]:
    names = (getattr(document, name, "") for name in ("run_id", "hook_point", "env", "writer"))
    return (topic.value, *(str(name) for name in names))
