"""The control service: takes commands, writes them down, hands them to agents.

It owns no data and no data service owns it: with encoder, correlator and explainer frozen, a stop
still arrives. The main thread moves messages and never waits for the disk; the audit has a thread
of its own, in order. What each message means is :mod:`interlatent_live.control.desk`.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from queue import Empty, SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Any, Final, Self

import zmq

from interlatent_live.audit.log import AuditLog
from interlatent_live.console.secrets import load_token, state_folder
from interlatent_live.control.desk import ControlDesk, ToAgentPeer, ToOperatorPeer, Write
from interlatent_live.control.wire import Envelope, Way, control_key
from interlatent_live.errors import UserError, WireError
from interlatent_live.logs import get_logger
from interlatent_live.services.network import Network
from interlatent_live.services.runtime import ServiceRuntime
from interlatent_live.wire.security import Domain
from interlatent_live.wire.sockets import receive_from, send_to

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from interlatent_live.config import Settings
    from interlatent_live.control.desk import Instruction

POLL_MS: Final = 100
MESSAGES_PER_TURN: Final = 64
REOPEN_S: Final = 1.0


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
        ServiceRuntime("control", health=settings.endpoints.control_health) as runtime,
        Network(settings.security.keys) as network,
        AuditThread(audit_folder(settings)) as audit,
    ):
        key = None if network.protected else control_key(load_token(state_folder(settings)))
        loop = _Loop(settings, network, audit, key)
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

    Raises:
        UserError: when the audit cannot be opened at first, or another process has it open.
        CorruptFileError: when it is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._log = AuditLog(folder)
        self._todo: SimpleQueue[Write | None] = SimpleQueue()
        self._done: SimpleQueue[tuple[int, str, str]] = SimpleQueue()
        self.wakeup_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._failed_at = 0.0
        self._thread = Thread(target=self._run, name="audit", daemon=True)

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
        self._todo.put(entry)

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
        while (entry := self._todo.get()) is not None:
            seal = problem = ""
            try:
                seal = self._append(entry)
            except (UserError, ValueError) as error:
                problem = str(error)
                self._failed_at = time.monotonic()
            self._done.put((entry.token, seal, problem))
            os.eventfd_write(self.wakeup_fd, 1)
        self._log.close()

    def _append(self, entry: Write) -> str:
        if self._failed_at:
            if time.monotonic() - self._failed_at < REOPEN_S:
                raise UserError(f"the audit in {self._folder} failed a moment ago")
            self._log.close()
            self._log = AuditLog(self._folder)
            self._failed_at = 0.0
        return self._log.append(entry.kind, entry.body).seal


class _Loop:
    """Messages between sockets and desk."""

    def __init__(
        self, settings: Settings, network: Network, audit: AuditThread, key: bytes | None
    ) -> None:
        self._network, self._audit = network, audit
        self._desk = ControlDesk(second_above=settings.control.second_above)
        self._agents = network.router(
            settings.endpoints.control, "endpoints.control", Domain.AGENTS
        )
        self._operators = network.router(
            settings.endpoints.control_requests, "endpoints.control_requests", Domain.SERVICES
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

    def close(self) -> None:
        """Close the sockets."""
        for socket in self.sockets:
            socket.close()

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
