"""The control service: takes commands, writes them down, hands them to agents.

It owns no data and no data service owns it: with encoder, correlator and explainer frozen, a stop
still arrives. The main thread moves messages and never waits for the disk; the audit has a thread
of its own, in order. What each message means is :mod:`interlatent_live.control.desk`.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections import Counter
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Final, Self

import zmq

from interlatent_live.audit.log import AuditLog
from interlatent_live.console.secrets import load_token, state_folder
from interlatent_live.control.desk import ControlDesk, ToAgentPeer, ToOperatorPeer, Write
from interlatent_live.control.wire import LARGEST_FROM_OUTSIDE, Envelope, Way, control_key
from interlatent_live.errors import UserError, WireError
from interlatent_live.logs import get_logger
from interlatent_live.services.control_metrics import ControlMetrics
from interlatent_live.services.network import Network
from interlatent_live.services.runtime import ServiceRuntime
from interlatent_live.wire.security import Domain
from interlatent_live.wire.sockets import SocketTuning, receive_from, send_to

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from interlatent_live.config import Settings
    from interlatent_live.control.desk import Instruction

POLL_MS: Final = 100
MESSAGES_PER_TURN: Final = 64
REOPEN_S: Final = 1.0
MEASURE_EVERY_S: Final = 0.25
TUNING: Final = SocketTuning(receive_queue=64, largest_message=LARGEST_FROM_OUTSIDE + 4096)
"""Whoever connects without a key can make the service hold no more than this for them."""


def audit_folder(settings: Settings) -> Path:
    """Where the audit lies."""
    return settings.control.audit or state_folder(settings) / "audit"


def serve(settings: Settings) -> None:
    """Run until told to stop.

    Raises:
        UserError: when the audit is damaged or cannot be written, or an address is taken.
    """
    log = get_logger("services.control")
    with (
        ServiceRuntime(
            "control",
            health=settings.endpoints.control_health,
            budget=settings.buffers("control"),
        ) as runtime,
        Network(settings.security.keys) as network,
        AuditThread(audit_folder(settings), settings.control.audit_bytes) as audit,
    ):
        key = None if network.protected else control_key(load_token(state_folder(settings)))
        metrics = ControlMetrics(runtime.registry)
        loop = _Loop(settings, network, audit, metrics, key)
        runtime.ready(control=settings.endpoints.control, audit=str(audit_folder(settings)))
        poller = zmq.Poller()
        for source in (*loop.sockets, audit.wakeup_fd, runtime.wakeup_fd):
            poller.register(source, zmq.POLLIN)
        while not runtime.stopping:
            runtime.beat()
            poller.poll(POLL_MS)
            loop.turn()
        log.info("refused", **{str(why): count for why, count in loop.refused.items()})
        loop.close()


class AuditThread:
    """Appends entries in order, on a thread of its own, and says what came of each.

    An audit that failed (a full disk) is opened again, so that commands work again when there is
    room. ``wakeup_fd`` is readable when there is something to :meth:`take`.

    Args:
        folder: of the audit.
        most_bytes: of entries that wait. What comes beyond is answered with a problem, so that what
            it would permit is refused and what agents tell is told again; entries that nobody
            waits for are counted, and an entry says how many are missing.

    Raises:
        UserError: when the audit cannot be opened at first, or another process has it open.
        CorruptFileError: when it is damaged.
    """

    def __init__(self, folder: Path, most_bytes: int) -> None:
        self.kept = 0
        """Entries that are on the disk."""
        self.failed = 0
        """Entries that the disk did not take, or for which there was no room."""
        self._folder = folder
        self._log = AuditLog(folder)
        self._most_bytes = most_bytes
        self._lock = threading.Lock()
        self._bytes = 0
        self._missing = 0
        self._todo: SimpleQueue[tuple[Write, int] | None] = SimpleQueue()
        self._done: SimpleQueue[tuple[int, str, str]] = SimpleQueue()
        self.wakeup_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._failed_at = 0.0
        self._thread = threading.Thread(target=self._run, name="audit", daemon=True)

    def __enter__(self) -> Self:
        """Begin to write."""
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        """Write what waits, and close."""
        self._todo.put(None)
        self._thread.join(5.0)
        os.close(self.wakeup_fd)

    def write(self, entry: Write) -> None:
        """Take an entry; never waits."""
        size = len(json.dumps(entry.body, default=str))
        with self._lock:
            room = self._bytes + size <= self._most_bytes
            self._bytes += size if room else 0
        if room:
            self._todo.put((entry, size))
        else:
            self._say(entry.token, "", "the audit's disk is too slow")

    def take(self) -> Iterator[tuple[int, str, str]]:
        """Token, seal and problem (empty when it is on the disk) of entries that were dealt with.

        Only of those that somebody waits for is the token of interest.
        """
        try:
            os.eventfd_read(self.wakeup_fd)
        except BlockingIOError:
            return
        while True:
            try:
                yield self._done.get_nowait()
            except Empty:
                return

    def _run(self) -> None:
        while (next_ := self._todo.get()) is not None:
            entry, size = next_
            seal = problem = ""
            try:
                self._own_up()
                seal = self._append(entry.kind, entry.body)
            except (UserError, ValueError) as error:
                problem = str(error)
                self._failed_at = time.monotonic()
            with self._lock:
                self._bytes -= size
            self._say(entry.token, seal, problem)
        self._log.close()

    def _say(self, token: int, seal: str, problem: str) -> None:
        with self._lock:
            self.kept += not problem
            self.failed += bool(problem)
            self._missing += bool(problem)
        self._done.put((token, seal, problem))
        os.eventfd_write(self.wakeup_fd, 1)

    def _own_up(self) -> None:
        """Say in the audit how many entries it lacks, before the first one that it has again."""
        with self._lock:
            missing = self._missing
        if missing:
            self._append("missing", {"entries": missing})
            with self._lock:
                self._missing -= missing

    def _append(self, kind: str, body: dict[str, Any]) -> str:
        if self._failed_at:
            if time.monotonic() - self._failed_at < REOPEN_S:
                raise UserError(f"the audit in {self._folder} failed a moment ago")
            self._log.close()
            self._log = AuditLog(self._folder)
            self._failed_at = 0.0
        return self._log.append(kind, body).seal


class _Loop:
    """Messages between sockets and desk."""

    def __init__(
        self,
        settings: Settings,
        network: Network,
        audit: AuditThread,
        metrics: ControlMetrics,
        key: bytes | None,
    ) -> None:
        self._network, self._audit, self._metrics = network, audit, metrics
        self._desk = ControlDesk(
            second_above=settings.control.second_above, most_agents=4 * settings.limits.agents
        )
        self._measure_at = 0.0
        self._agents = network.router(
            settings.endpoints.control, "endpoints.control", Domain.AGENTS, TUNING
        )
        self._operators = network.router(
            settings.endpoints.control_requests,
            "endpoints.control_requests",
            Domain.SERVICES,
            TUNING,
        )
        self._to_agents = Envelope(key, out=Way.TO_AGENT, into=Way.FROM_AGENT)
        self._to_operators = Envelope(key, out=Way.TO_OPERATOR, into=Way.FROM_OPERATOR)
        self._strangers: Counter[str] = Counter()

    @property
    def sockets(self) -> tuple[zmq.Socket[bytes], zmq.Socket[bytes]]:
        """What to poll."""
        return self._agents, self._operators

    @property
    def refused(self) -> Counter[str]:
        """Messages and requests that were refused, by a word."""
        return self._strangers + self._desk.refused

    def turn(self) -> None:
        """Move what there is."""
        # Operators first: a stop must not stand behind an agent's states.
        for peer, _, message in self._receive(self._operators, self._to_operators):
            self._carry_out(
                self._desk.from_operator(peer, message, time.monotonic_ns(), time.time_ns())
            )
        for peer, user_id, message in self._receive(self._agents, self._to_agents):
            self._carry_out(self._desk.from_agent(peer, user_id, message, time.monotonic_ns()))
        for token, seal, problem in self._audit.take():
            self._carry_out(self._desk.written(token, seal, problem, time.monotonic_ns()))
        self._carry_out(self._desk.tick(time.monotonic_ns()))
        self._measure()

    def close(self) -> None:
        """Close the sockets."""
        for socket in self.sockets:
            socket.close()

    def _measure(self) -> None:
        outcomes = self._desk.outcomes
        while outcomes:
            self._metrics.count(outcomes.popleft())
        if time.monotonic() >= self._measure_at:
            self._measure_at = time.monotonic() + MEASURE_EVERY_S
            self._metrics.update(
                self._desk.agents(), self.refused, kept=self._audit.kept, failed=self._audit.failed
            )

    def _receive(
        self, socket: zmq.Socket[bytes], envelope: Envelope
    ) -> Iterator[tuple[bytes, str, Any]]:
        for _ in range(MESSAGES_PER_TURN):
            received = receive_from(socket, protected=self._network.protected)
            if received is None:
                return
            if not self._network.allows(received.user_id):
                self._strangers["key"] += 1
                continue
            try:
                message = envelope.open(received.frames)
            except WireError as error:
                self._strangers[error.reason] += 1
                continue
            yield received.peer, received.user_id, message

    def _carry_out(self, instructions: Iterable[Instruction]) -> None:
        for one in instructions:
            match one:
                case ToAgentPeer(peer, message):
                    send_to(self._agents, peer, self._to_agents.seal(message))
                case ToOperatorPeer(peer, message):
                    send_to(self._operators, peer, self._to_operators.seal(message))
                case Write():
                    self._audit.write(one)
