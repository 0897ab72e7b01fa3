"""The engine's adapter for processes on this machine.

One thread owns every child: it starts them, reads what they write, sees them end and carries out
what the :class:`~interlatent_live.engine.supervisor.Supervisor` decides. Two things tie a child's
life to ours, since neither covers every case alone: the kernel kills it when our thread ends
(``PR_SET_PDEATHSIG``, set by ``exec_child.py``), and it holds the read end of a pipe whose write
end is only ours, so that end-of-file tells it that we are gone.
"""

from __future__ import annotations

import codecs
import collections
import functools
import http.client
import json
import os
import queue
import random
import selectors
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, Self
from urllib.parse import urlsplit

from interlatent_live.engine import supervisor as machine
from interlatent_live.engine.interrupts import sigterm_interrupts
from interlatent_live.engine.port import (
    EngineEvent,
    HttpReady,
    LineReady,
    OutputLine,
    Phase,
    ServiceSpec,
    ServiceStatus,
)
from interlatent_live.errors import UserError
from interlatent_live.logs import get_logger, relay_line

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

PARENT_PIPE_VARIABLE: Final = "INTERLATENT_PARENT_FD"
"""Environment variable that names the descriptor whose end-of-file means: the parent is gone."""

_KEPT_EVENTS: Final = 1000
_KEPT_LINES: Final = 20
_LINE_LIMIT: Final = 64 * 1024
_READ_SIZE: Final = 64 * 1024
_PROBE_EVERY_S: Final = 0.05
_WATCH_EVERY_S: Final = 1.0
_PROBE_TIMEOUT_S: Final = 1.0
_THREAD_VARIABLES: Final = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_EXEC_CHILD: Final = Path(__file__).with_name("exec_child.py")

Stream = Literal["stdout", "stderr"]


@dataclass(slots=True, eq=False)
class _Pipe:
    """One output stream of a child, cut into lines."""

    stream: Stream
    fd: int
    decoder: codecs.IncrementalDecoder = field(
        default_factory=lambda: codecs.getincrementaldecoder("utf-8")("replace")
    )
    rest: str = ""

    def lines(self, data: bytes, *, end: bool = False) -> list[str]:
        """Whole lines so far; a line longer than 64 Ki characters is given in pieces."""
        text = self.rest + self.decoder.decode(data, final=end)
        *whole, self.rest = text.split("\n")
        if end or len(self.rest) > _LINE_LIMIT:
            whole, self.rest = [*whole, self.rest], ""
        return [line.rstrip("\r") for line in whole if line.strip()]


@dataclass(slots=True, eq=False)
class _Child:
    spec: ServiceSpec
    attempt: int
    process: subprocess.Popen[bytes]
    pidfd: int
    pipes: list[_Pipe]
    last_lines: collections.deque[str] = field(
        default_factory=lambda: collections.deque(maxlen=_KEPT_LINES)
    )

    def last_words(self) -> str:
        """The last sentence of the child that is meant for people."""
        for line in reversed(self.last_lines):
            if line.startswith("error: "):
                return line.removeprefix("error: ")
        return self.last_lines[-1] if self.last_lines else ""


class LocalEngine:
    """Runs services as child processes, each in a session of its own.

    ``on_line`` gets every line that a child writes, on the engine's thread; by default the lines go
    into this process's own structured log. ``seed`` fixes the jitter of restarts.
    """

    def __init__(
        self, *, on_line: Callable[[OutputLine], None] | None = None, seed: int | None = None
    ) -> None:
        self._log = get_logger("engine")
        self._on_line = on_line or self._log_line
        self._machine = machine.Supervisor(random.Random(seed))
        self._children: dict[str, _Child] = {}
        self._requests: queue.SimpleQueue[_Request] = queue.SimpleQueue()
        self._changed = threading.Condition()
        self._events: collections.deque[EngineEvent] = collections.deque(maxlen=_KEPT_EVENTS)
        self._status: tuple[ServiceStatus, ...] = ()
        self._targets: dict[str, _Target] = {}
        self._interrupts = ExitStack()
        self._closing = False
        self._closed = threading.Event()
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._parent_read, self._parent_write = os.pipe()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._wake_fd, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._prober = threading.Thread(target=self._probe, name="engine-probe", daemon=True)
        self._thread.start()
        self._prober.start()

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
            self._thread.join()
        except KeyboardInterrupt:
            with suppress(UserError):
                self._ask(machine.StopAll(at_once=True))
            self._thread.join()
        self._prober.join()

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

    # ------------------------------------------------------------------------- other threads

    def _ask(self, event: machine.Event) -> None:
        request = _Request(event)
        if self._closed.is_set():
            raise UserError("the engine is closed")
        self._requests.put(request)
        self._wake()
        request.wait(self._closed)

    def _wake(self) -> None:
        with suppress(OSError):  # closed meanwhile
            os.eventfd_write(self._wake_fd, 1)

    def _probe(self) -> None:
        """Ask ``/healthz`` of those who have one, without holding up the engine's thread."""
        due: dict[tuple[str, int], float] = {}
        while True:
            wait = min(due.values()) - time.monotonic() if due else None
            with self._changed:
                # Woken early when there is somebody new to ask, and asleep when there is nobody.
                self._changed.wait_for(
                    functools.partial(self._someone_new, set(due)),
                    None if wait is None else max(0.0, wait),
                )
                targets = dict(self._targets)
            if self._closed.is_set():
                return
            now = time.monotonic()
            current = {(name, target.attempt): target for name, target in targets.items()}
            due = {key: due.get(key, now) for key in current}
            for key, target in current.items():
                if now < due[key]:
                    continue
                if _answers(target.url, target.pid):
                    self._requests.put(_Request(machine.Answered(*key)))
                    self._wake()
                pause = _WATCH_EVERY_S if target.ready else _PROBE_EVERY_S
                due[key] = time.monotonic() + pause

    def _someone_new(self, known: set[tuple[str, int]]) -> bool:
        return self._closed.is_set() or any(
            (name, target.attempt) not in known for name, target in self._targets.items()
        )

    # ------------------------------------------------------------------------ the one thread

    def _run(self) -> None:
        try:
            while not (self._closing and self._machine.idle() and self._requests.empty()):
                deadline = self._machine.deadline()
                wait = None if deadline is None else max(0.0, deadline - time.monotonic())
                for key, _ in self._selector.select(wait):
                    self._on_readable(key)
                self._serve_requests()
                self._handle(machine.Tick())
        finally:
            # Reached with children only by a bug above; they die with this thread in any case.
            for child in self._children.values():
                _signal_group(child.process.pid, signal.SIGKILL)
            self._selector.close()
            for fd in (self._parent_read, self._parent_write, self._wake_fd):
                os.close(fd)
            with self._changed:
                self._closed.set()
                self._changed.notify_all()
            while not self._requests.empty():
                self._requests.get().refuse(UserError("the engine is closed"))

    def _serve_requests(self) -> None:
        with suppress(BlockingIOError):
            os.eventfd_read(self._wake_fd)
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
            instruction = todo.popleft()
            match instruction:
                case machine.Spawn(spec, attempt):
                    answer = self._spawn(spec, attempt)
                    todo.extend(self._machine.handle(answer, time.monotonic()))
                case machine.Signal(name, _, how):
                    number = signal.SIGTERM if how == "terminate" else signal.SIGKILL
                    _signal_group(self._children[name].process.pid, number)
                case machine.Report(report):
                    reports.append(report)
        status = self._machine.status()
        targets = {
            s.name: _Target(child.spec.readiness.url, child.attempt, s.pid, s.phase is Phase.READY)
            for s in status
            if s.pid is not None
            and (child := self._children.get(s.name)) is not None
            and isinstance(child.spec.readiness, HttpReady)
            and (
                s.phase is Phase.STARTING
                or (s.phase is Phase.READY and child.spec.hang_after_s is not None)
            )
        }
        with self._changed:
            news = bool(reports) or targets != self._targets
            self._status, self._targets = status, targets
            self._events.extend(reports)
            if news:
                self._changed.notify_all()
        for report in reports:
            self._log.info(
                report.kind.value, service=report.service, pid=report.pid, detail=report.message
            )

    def _spawn(self, spec: ServiceSpec, attempt: int) -> machine.Event:
        environment = {
            **os.environ,
            **dict.fromkeys(_THREAD_VARIABLES, str(spec.threads)),
            **spec.environment,
            PARENT_PIPE_VARIABLE: str(self._parent_read),
        }
        if shutil.which(spec.command[0], path=environment.get("PATH")) is None:
            return machine.SpawnFailed(spec.name, attempt, f"{spec.command[0]} is not to be found")
        guard = (sys.executable, "-I", "-S", str(_EXEC_CHILD), str(os.getpid()), str(spec.nice))
        try:
            process = subprocess.Popen(  # noqa: S603 - the command is the operator's own
                (*guard, *spec.command),
                env=environment,
                cwd=spec.folder,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                pass_fds=(self._parent_read,),
                start_new_session=True,
            )
        except OSError as error:
            return machine.SpawnFailed(spec.name, attempt, f"can't be started: {error}")
        child = _Child(spec, attempt, process, os.pidfd_open(process.pid), [])
        for stream, file in (("stdout", process.stdout), ("stderr", process.stderr)):
            if file is None:
                raise AssertionError("Popen was asked for pipes")
            os.set_blocking(file.fileno(), False)
            pipe = _Pipe("stdout" if stream == "stdout" else "stderr", file.fileno())
            child.pipes.append(pipe)
            self._selector.register(pipe.fd, selectors.EVENT_READ, (child, pipe))
        self._selector.register(child.pidfd, selectors.EVENT_READ, (child, None))
        self._children[spec.name] = child
        return machine.Spawned(spec.name, attempt, process.pid)

    def _on_readable(self, key: selectors.SelectorKey) -> None:
        if key.data is None:
            return
        child, pipe = key.data
        if pipe is None:
            self._reap(child)
        elif pipe in child.pipes:
            self._read(child, pipe)

    def _read(self, child: _Child, pipe: _Pipe) -> bool:
        """Read once; False when there was nothing or the pipe has ended."""
        try:
            data = os.read(pipe.fd, _READ_SIZE)
        except BlockingIOError:
            return False
        for line in pipe.lines(data, end=not data):
            child.last_lines.append(line)
            self._tell(OutputLine(child.spec.name, child.process.pid, pipe.stream, line))
            readiness = child.spec.readiness
            if isinstance(readiness, LineReady) and readiness.text in line:
                self._handle(machine.Answered(child.spec.name, child.attempt))
        if not data:
            self._selector.unregister(pipe.fd)
            child.pipes.remove(pipe)
        return bool(data)

    def _reap(self, child: _Child) -> None:
        """The child has ended: end what it left behind, take its last words, forget it."""
        # Before it is reaped its group id can't have been given to anybody else.
        _signal_group(child.process.pid, signal.SIGKILL)
        for pipe in tuple(child.pipes):
            # Bounded, in case a process that left the group keeps writing.
            for _ in range(64):
                if not self._read(child, pipe):
                    break
        for pipe in child.pipes:
            self._selector.unregister(pipe.fd)
        child.pipes.clear()
        self._selector.unregister(child.pidfd)
        os.close(child.pidfd)
        code = child.process.wait()
        for file in (child.process.stdout, child.process.stderr):
            if file is not None:
                file.close()
        del self._children[child.spec.name]
        self._handle(machine.Exited(child.spec.name, child.attempt, code, child.last_words()))

    def _tell(self, line: OutputLine) -> None:
        try:
            self._on_line(line)
        except Exception:  # noqa: BLE001 - a listener's bug must not end the supervision
            self._log.exception("listener-failed", service=line.service)

    def _log_line(self, line: OutputLine) -> None:
        relay_line(self._log, line.service, line.stream, line.text)


@dataclass(frozen=True, slots=True)
class _Target:
    url: str
    attempt: int
    pid: int | None
    ready: bool


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


def _signal_group(pid: int, number: signal.Signals) -> None:
    """Signal every process of a child's group; one that has none left is no error."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


def _answers(url: str, pid: int | None) -> bool:
    """Whether ``url`` answers 200, and not in the name of another process."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=_PROBE_TIMEOUT_S)
    try:
        connection.request("GET", parts.path or "/")
        response = connection.getresponse()
        body = response.read(_LINE_LIMIT)
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
    if response.status != http.HTTPStatus.OK:
        return False
    try:
        answer = json.loads(body)
    except ValueError:
        return True
    named = answer.get("pid") if isinstance(answer, dict) else None
    return named is None or named == pid
