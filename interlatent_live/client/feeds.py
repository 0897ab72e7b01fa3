"""Feeds as iterators: server-sent events, JSON lines, WebSocket or ZeroMQ, all of one shape.

Over HTTP a broken connection is made anew and goes on behind the last event that came; what the
console could not keep meanwhile is said as :class:`Missed`. ZeroMQ's publishers keep nothing for
those who were away, but repeat their newest documents to whoever joins.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, cast

import httpx2
import msgspec

from interlatent_live.client.errors import ConsoleError, nobody, refusal
from interlatent_live.feed.documents import (
    AgentsDocument,
    AlertsDocument,
    ClaimsDocument,
    CostsDocument,
    NarrationDocument,
    ProfilesDocument,
    parse_document,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence
    from contextlib import AbstractContextManager

    from interlatent_live.wire.keys import ClientKeys

Transport = Literal["lines", "sse", "websocket"]
FeedDocument = (
    AgentsDocument
    | ProfilesDocument
    | ClaimsDocument
    | NarrationDocument
    | AlertsDocument
    | CostsDocument
)

SILENT_FOR_S: Final = 45.0
"""A console says at least every 15 s that it is there."""
CONNECT_WITHIN_S: Final = 10.0
PAUSE_S: Final = 0.25
LONGEST_PAUSE_S: Final = 2.0


@dataclass(frozen=True, slots=True)
class FeedItem:
    """One document.

    ``id`` is what to go on behind, empty over ZeroMQ.
    """

    id: str
    topic: str
    time_ns: int
    value: FeedDocument


@dataclass(frozen=True, slots=True)
class Missed:
    """Events of all topics that were lost before what comes next; ``None``: nobody knows."""

    events: int | None


def feed_over(
    transport: Transport,
    base: str,
    topics: Sequence[str],
    *,
    last_id: str | None,
    patience_s: float,
) -> Generator[FeedItem | Missed]:
    """The feed of a console; see :meth:`interlatent_live.client.ConsoleClient.feed`."""
    connect = _CONNECT[transport]
    away_since: float | None = None
    pause = PAUSE_S
    while True:
        try:
            with connect(base, ",".join(topics), last_id) as words:
                # None says only that the console is there.
                for word in words:
                    away_since, pause = None, PAUSE_S
                    if word is None:
                        continue
                    found = _read(word)
                    if isinstance(found, FeedItem):
                        last_id = found.id
                    yield found
        except _LostError:
            pass
        # The console ended the feed, or the connection broke: it may be coming back.
        now = time.monotonic()
        away_since = now if away_since is None else away_since
        if now - away_since >= patience_s:
            raise nobody(base)
        time.sleep(pause)
        pause = min(pause * 2, LONGEST_PAUSE_S)


def zeromq_feed(
    endpoints: Sequence[str],
    topics: Sequence[str] = (),
    *,
    keys: ClientKeys | None = None,
    poll_s: float = 0.2,
) -> Generator[FeedItem | Missed]:
    """The documents of the services' own feeds, without a console; see :class:`FeedClient`.

    Args:
        endpoints: of the feeds, such as ``settings.endpoints.feeds()``.
        topics: names of topics; none: all that carry documents.
        keys: a viewer's key, for feeds beyond this machine.
        poll_s: how long to wait at a time.

    Raises:
        ConsoleError: for a topic that there is not.
    """
    from interlatent_live.feed.client import FeedClient  # noqa: PLC0415 - HTTP needs no ZeroMQ
    from interlatent_live.feed.documents import DOCUMENTS, Topic  # noqa: PLC0415

    known = {one.value: one for one in DOCUMENTS}
    for name in topics:
        if name not in known:
            raise ConsoleError(f"there is no topic {name!r}; there are: {', '.join(sorted(known))}")
    wanted: list[Topic] = [known[name] for name in topics or known]
    missed = 0
    with FeedClient(endpoints, wanted, keys=keys) as client:
        while True:
            for event in client.events(poll_s):
                if client.counters.documents_missed > missed:
                    yield Missed(client.counters.documents_missed - missed)
                    missed = client.counters.documents_missed
                if isinstance(event.value, msgspec.Struct):
                    value = cast("FeedDocument", event.value)
                    yield FeedItem("", event.topic.value, event.received_ns, value)


# ------------------------------------------------------------------------------------- one word


class _LostError(Exception):
    """The connection broke, or nobody listens now."""


class _Word(msgspec.Struct, frozen=True):
    topic: str
    value: dict[str, Any]
    id: str = ""
    time_ns: int = 0


def _read(word: str | bytes) -> FeedItem | Missed:
    try:
        said = msgspec.json.decode(word, type=_Word)
        if said.topic == "missed":
            return Missed(said.value["events"])
        value = parse_document(said.topic, said.value)
        return FeedItem(said.id, said.topic, said.time_ns, cast("FeedDocument", value))
    except (msgspec.DecodeError, msgspec.ValidationError, KeyError, ValueError) as error:
        raise ConsoleError(f"the feed is none of this version: {error}") from error


# -------------------------------------------------------------------------------- the transports


@contextmanager
def _http(
    base: str, topics: str, last_id: str | None, accept: str, parse: Callable[..., Any]
) -> Iterator[Iterator[str | None]]:
    timeout = httpx2.Timeout(CONNECT_WITHIN_S, read=SILENT_FOR_S)
    headers = {"Accept": accept} | ({"Last-Event-ID": last_id} if last_id else {})
    query = {"topics": topics} if topics else {}
    try:
        with (
            httpx2.Client(timeout=timeout, trust_env=False) as client,
            client.stream("GET", f"{base}/feed", params=query, headers=headers) as answer,
        ):
            if not answer.is_success:
                answer.read()
                if answer.status_code == httpx2.codes.SERVICE_UNAVAILABLE:
                    raise _LostError  # it is ending, or has too many clients just now
                raise refusal(answer.status_code, answer.content)
            yield parse(answer.iter_lines())
    except httpx2.TransportError as error:
        raise _LostError from error


def _lines(lines: Iterator[str]) -> Iterator[str | None]:
    for line in lines:
        yield line or None


def _events(lines: Iterator[str]) -> Iterator[str | None]:
    """Server-sent events (HTML standard, section 9.2.6), as the words of JSON lines."""
    kind, data = "message", list[str]()
    for line in lines:
        if not line:
            if data:
                text = "\n".join(data)
                yield f'{{"topic":"missed","value":{text}}}' if kind == "missed" else text
            kind, data = "message", []
        elif line.startswith(":"):
            yield None
        else:
            name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if name == "event":
                kind = value
            elif name == "data":
                data.append(value)


def _over_lines(
    base: str, topics: str, last_id: str | None
) -> AbstractContextManager[Iterator[str | None]]:
    return _http(base, topics, last_id, "application/x-ndjson", _lines)


def _over_events(
    base: str, topics: str, last_id: str | None
) -> AbstractContextManager[Iterator[str | None]]:
    return _http(base, topics, last_id, "text/event-stream", _events)


@contextmanager
def _over_websocket(
    base: str, topics: str, last_id: str | None
) -> Iterator[Iterator[str | bytes | None]]:
    from websockets.exceptions import ConnectionClosed, InvalidStatus  # noqa: PLC0415 - only here
    from websockets.sync.client import connect  # noqa: PLC0415

    query = httpx2.QueryParams(
        {name: value for name, value in (("topics", topics), ("after", last_id)) if value}
    )
    address = f"ws{base.removeprefix('http')}/feed/ws?{query}"
    try:
        with connect(address, open_timeout=CONNECT_WITHIN_S, proxy=None, max_size=None) as socket:
            yield iter(socket)
    except InvalidStatus as error:
        if error.response.status_code == httpx2.codes.SERVICE_UNAVAILABLE:
            raise _LostError from error
        raise refusal(error.response.status_code, bytes(error.response.body or b"")) from error
    except (ConnectionClosed, OSError, TimeoutError) as error:
        raise _LostError from error


_CONNECT: Final[dict[str, Callable[..., AbstractContextManager[Iterator[Any]]]]] = {
    "lines": _over_lines,
    "sse": _over_events,
    "websocket": _over_websocket,
}
