"""What every adapter of the engine port has in common: one thread, the supervisor, the port's face.

An adapter says how a service is started and told to end, and feeds what happens to its processes
back into the one thread; what follows from it is the
:class:`~interlatent_live.engine.supervisor.Supervisor`'s to decide.
"""

from __future__ import annotations

import collections
import queue
import random
import threading
import time
from abc import ABC, abstractmethod
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Final, Self

from interlatent_live.engine import supervisor as machine
from interlatent_live.engine.interrupts import sigterm_interrupts
from interlatent_live.errors import UserError
from interlatent_live.logs import get_logger, relay_line

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from interlatent_live.engine.port import EngineEvent, OutputLine, ServiceSpec, ServiceStatus

EPOCH_VARIABLE: Final = "INTERLATENT_EPOCH"
"""Environment variable with the number of a service's start: larger than that of every earlier one,
also by an engine before this one. Who must not be mistaken for its successor shows it."""

_KEPT_EVENTS: Final = 1000


class SupervisedEngine(ABC):
    """The engine port around a supervisor.

    An adapter's thread runs :meth:`_serve_requests` and :meth:`_handle` until :attr:`_finished`,
    then :meth:`_end`.

    Args:
        on_line: gets every line that a service writes, on a thread of the engine's; by default the
            lines go into this process's own structured log.
        seed: fixes the jitter of restarts.
    """

    def __init__(self, on_line: Callable[[OutputLine], None] | None, seed: int | None) -> None:
        self._log = get_logger("engine")
        self._on_line = on_line or self._log_line
        self._machine = machine.Supervisor(random.Random(seed))
        self._requests: queue.SimpleQueue[_Request] = queue.SimpleQueue()
        self._changed = threading.Condition()
        self._events: collections.deque[EngineEvent] = collections.deque(maxlen=_KEPT_EVENTS)
        self._status: tuple[ServiceStatus, ...] = ()
        self._interrupts = ExitStack()
        self._closing = False
        self._closed = threading.Event()
        self._epoch = 0

    # ----------------------------------------------------------------------------- the port

    def start(self, spec: ServiceSpec) -> None:
        """See :meth:`interlatent_live.engine.port.Engine.start`."""
        self._ask(machine.Start(spec))

    def stop(self, name: str) -> None:
        """See :meth:`interlatent_live.engine.port.Engine.stop`."""
        self._ask(machine.Stop(name))

    def stop_all(self, *, at_once: bool = False) -> None:
        """See :meth:`interlatent_live.engine.port.Engine.stop_all`."""
        self._ask(machine.StopAll(at_once))

    def status(self) -> tuple[ServiceStatus, ...]:
        """See :meth:`interlatent_live.engine.port.Engine.status`."""
        with self._changed:
            return self._status

    def events(self, after: int = 0, timeout_s: float = 0.0) -> tuple[EngineEvent, ...]:
        """See :meth:`interlatent_live.engine.port.Engine.events`."""
        with self._changed:
            self._changed.wait_for(
                lambda: (
                    self._closed.is_set()
                    or (bool(self._events) and self._events[-1].sequence > after)
                ),
                timeout_s,
            )
            return tuple(event for event in self._events if event.sequence > after)

    def close(self) -> None:
        """See :meth:`interlatent_live.engine.port.Engine.close`."""
        if not self._closed.is_set():
            with suppress(UserError):  # closed by another thread meanwhile
                self._ask(machine.StopAll())
            self._closing = True
            self._wake()
        # An interrupt during this wait ends the patience, not the children's supervision.
        try:
            self._join()
        except KeyboardInterrupt:
            with suppress(UserError):
                self._ask(machine.StopAll(at_once=True))
            self._join()

    def __enter__(self) -> Self:
        """The engine itself; until it is closed, SIGTERM interrupts as SIGINT does."""
        self._interrupts.enter_context(sigterm_interrupts())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close."""
        with self._interrupts:
            self.close()

    # ------------------------------------------------------------------- what an adapter brings

    @abstractmethod
    def _spawn(self, spec: ServiceSpec, attempt: int) -> machine.Event | None:
        """Start a process; what came of it, or ``None`` when that will be told later."""

    @abstractmethod
    def _signal(self, instruction: machine.Signal) -> None:
        """Tell a process to end, or end it."""

    @abstractmethod
    def _wake(self) -> None:
        """Have the engine's thread look at the requests; from any thread."""

    @abstractmethod
    def _join(self) -> None:
        """Wait for every thread of the engine."""

    def _status_changed(self, status: tuple[ServiceStatus, ...]) -> bool:
        """Called with the condition held; whether others than readers of events must wake."""
        del status
        return False

    # ------------------------------------------------------------------------- for the thread

    @property
    def _finished(self) -> bool:
        return self._closing and self._machine.idle() and self._requests.empty()

    def _next_epoch(self) -> str:
        """The number of one start, for :data:`EPOCH_VARIABLE`."""
        self._epoch = max(self._epoch + 1, time.time_ns())
        return str(self._epoch)

    def _serve_requests(self) -> None:
        while not self._requests.empty():
            request = self._requests.get()
            try:
                self._handle(request.event)
            except UserError as error:
                request.refuse(error)
            else:
                request.grant()

    def _handle(self, event: machine.Event) -> None:
        todo = collections.deque(self._machine.handle(event, time.monotonic()))
        reports = []
        while todo:
            match todo.popleft():
                case machine.Spawn(spec, attempt):
                    answer = self._spawn(spec, attempt)
                    if answer is not None:
                        todo.extend(self._machine.handle(answer, time.monotonic()))
                case machine.Signal() as instruction:
                    self._signal(instruction)
                case machine.Report(report):
                    reports.append(report)
        status = self._machine.status()
        with self._changed:
            news = self._status_changed(status) or bool(reports)
            self._status = status
            self._events.extend(reports)
            if news:
                self._changed.notify_all()
        for report in reports:
            self._log.info(
                report.kind.value, service=report.service, pid=report.pid, detail=report.message
            )

    def _end(self) -> None:
        """The last thing that the engine's thread does."""
        with self._changed:
            self._closed.set()
            self._changed.notify_all()
        while not self._requests.empty():
            self._requests.get().refuse(UserError("the engine is closed"))

    def _tell(self, line: OutputLine) -> None:
        try:
            self._on_line(line)
        except Exception:  # noqa: BLE001 - a listener's bug must not end the supervision
            self._log.exception("listener-failed", service=line.service)

    def _log_line(self, line: OutputLine) -> None:
        relay_line(self._log, line.service, line.stream, line.text)

    def _ask(self, event: machine.Event) -> None:
        request = _Request(event)
        if self._closed.is_set():
            raise UserError("the engine is closed")
        self._requests.put(request)
        self._wake()
        request.wait(self._closed)


class _Request:
    """An event from another thread, and the answer it waits for."""

    def __init__(self, event: machine.Event) -> None:
        self.event = event
        self._answered = threading.Event()
        self._error: UserError | None = None

    def grant(self) -> None:
        self._answered.set()

    def refuse(self, error: UserError) -> None:
        self._error = error
        self._answered.set()

    def wait(self, closed: threading.Event) -> None:
        while not self._answered.wait(0.5):
            if closed.is_set() and not self._answered.is_set():
                raise UserError("the engine is closed")
        if self._error is not None:
            raise self._error
