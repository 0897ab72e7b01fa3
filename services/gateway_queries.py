"""Questions handed to the shard that owns the run they are about; lists of runs put together.

A run lies whole in one shard, so its answers are that shard's as they are. What several shards say
of one run, as around a rebalancing, is judged by the leases: the owner's word counts.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Final

import msgspec

from interlatent_live.errors import UserError, WireError
from interlatent_live.queries import messages as m
from interlatent_live.queries.codec import (
    decode_reply,
    encode_answer,
    encode_refusal,
    encode_request,
)
from interlatent_live.queries.paging import page_of_list
from interlatent_live.services.querying import understood
from interlatent_live.wire.security import Domain
from interlatent_live.wire.sockets import receive_from, receive_message, send_message, send_to

if TYPE_CHECKING:
    import zmq

    from interlatent_live.engine.leases import Leases
    from interlatent_live.services.network import Network

MOST_WAITING: Final = 256
PATIENCE_S: Final = 30.0
RUNS_WITHIN_S: Final = 2.0
"""How long a list of runs waits for a shard that says nothing."""

Start = tuple[str, int]


@dataclass(slots=True, eq=False)
class _Asked:
    """A question that one or several shards are to answer."""

    peer: bytes
    number: int
    until: float
    question: m.AnyQuestion
    runs: list[m.RunItem] = field(default_factory=list)
    missing: set[int] = field(default_factory=set)
    """Numbers under which shards were asked and have not answered."""


class QueryRelay:
    """The endpoint ``endpoints.correlator_queries`` in the place of one correlator's.

    Raises:
        UserError: when the endpoint is taken.
    """

    def __init__(self, network: Network, endpoint: str, leases: Leases, poller: zmq.Poller) -> None:
        self._network = network
        self._leases = leases
        self._poller = poller
        self._front = network.router(endpoint, "endpoints.correlator_queries", Domain.FEED)
        poller.register(self._front, 1)
        self._backs: dict[Start, zmq.Socket[bytes]] = {}
        self._asked: dict[int, tuple[_Asked, Start]] = {}
        self._number = 0

    def follow(self) -> None:
        """Leases changed: connect to who is new, and no longer to who owns nothing."""
        holders = self._leases.holders()
        for start in [one for one in self._backs if one not in holders]:
            socket = self._backs.pop(start)
            self._poller.unregister(socket)
            socket.close()
        for start, claim in holders.items():
            if start not in self._backs:
                self._backs[start] = self._network.dealer(claim.queries)
                self._poller.register(self._backs[start], 1)

    def turn(self, newest_run: str) -> None:
        """Hand on what was asked and answered; a question without a run is about ``newest_run``."""
        for _ in range(MOST_WAITING):
            received = receive_from(self._front, protected=self._network.protected)
            if received is None:
                break
            self._take(received.peer, received.frames, newest_run)
        for start, socket in self._backs.items():
            while (frames := receive_message(socket)) is not None:
                self._answered(start, frames)
        now = time.monotonic()
        for number in [one for one, (asked, _) in self._asked.items() if now >= asked.until]:
            asked, _ = self._asked.pop(number)
            asked.missing.discard(number)
            if isinstance(asked.question, m.Runs):
                self._tell_runs(asked)

    def close(self) -> None:
        """Close every socket."""
        for socket in self._backs.values():
            socket.close()
        self._front.close()

    def _take(self, peer: bytes, frames: list[bytes | memoryview], newest_run: str) -> None:
        request = understood(frames, partial(self._refuse, peer))
        if request is None:
            return
        if len(self._asked) >= MOST_WAITING:
            self._refuse(peer, request.id, "busy", "the statistics are busy; ask again")
            return
        question = request.question
        if isinstance(question, m.Runs):
            asked = _Asked(peer, request.id, time.monotonic() + RUNS_WITHIN_S, question)
            everything = m.Runs(limit=m.MAX_LIMIT)
            for start in tuple(self._backs):
                self._ask(start, asked, everything)
            self._tell_runs(asked)
            return
        run = question.run or newest_run
        holder = self._leases.holder(self._leases.slot(run))
        owner = ("", 0) if holder is None else (holder.shard, holder.epoch)
        if owner not in self._backs:
            self._refuse(peer, request.id, "busy", f"no shard has the run {run!r} just now")
            return
        asked = _Asked(peer, request.id, time.monotonic() + PATIENCE_S, question)
        self._ask(owner, asked, msgspec.structs.replace(question, run=run))

    def _ask(self, start: Start, asked: _Asked, question: m.AnyQuestion) -> None:
        self._number += 1
        if send_message(self._backs[start], encode_request(self._number, question)):
            self._asked[self._number] = (asked, start)
            asked.missing.add(self._number)

    def _answered(self, start: Start, frames: list[bytes]) -> None:
        try:
            reply, _ = decode_reply(frames)
        except WireError:
            return
        asked, who = self._asked.get(reply.id, (None, start))
        if asked is None or who != start:
            return
        del self._asked[reply.id]
        asked.missing.discard(reply.id)
        if not isinstance(asked.question, m.Runs):
            head = msgspec.msgpack.encode(msgspec.structs.replace(reply, id=asked.number))
            send_to(self._front, asked.peer, [head, *frames[1:]])
            return
        if isinstance(reply.answer, m.RunsAnswer):
            asked.runs += [
                one for one in reply.answer.items if self._leases.admits(*start, one.run_id)
            ]
        self._tell_runs(asked)

    def _tell_runs(self, asked: _Asked) -> None:
        if asked.missing:
            return
        question = asked.question
        runs = sorted(asked.runs, key=lambda one: (one.ended, one.run_id))
        try:
            page, cursor = page_of_list(question, runs, lambda one: one.run_id)
        except UserError as error:
            self._refuse(asked.peer, asked.number, "unknown", str(error))
            return
        answer = m.RunsAnswer(items=page, next_cursor=cursor, matched=len(runs))
        send_to(self._front, asked.peer, encode_answer(asked.number, answer))

    def _refuse(self, peer: bytes, number: int, word: str, sentence: str) -> None:
        send_to(self._front, peer, encode_refusal(number, word, sentence))
