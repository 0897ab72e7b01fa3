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
import selectors
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal
from urllib.parse import urlsplit

from interlatent_live.engine import supervisor as machine
from interlatent_live.engine.port import (
    HttpReady,
    LineReady,
    OutputLine,
    Phase,
    ServiceSpec,
    ServiceStatus,
)
from interlatent_live.engine.supervised import EPOCH_VARIABLE, SupervisedEngine

if TYPE_CHECKING:
    from collections.abc import Callable

PARENT_PIPE_VARIABLE: Final = "INTERLATENT_PARENT_FD"
"""Environment variable that names the descriptor whose end-of-file means: the parent is gone."""

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


class LocalEngine(SupervisedEngine):
    """Runs services as child processes, each in a session of its own.

    ``on_line`` gets every line that a child writes, on the engine's thread; by default the lines go
    into this process's own structured log. ``seed`` fixes the jitter of restarts.
    """

    def __init__(
        self, *, on_line: Callable[[OutputLine], None] | None = None, seed: int | None = None
    ) -> None:
        super().__init__(on_line, seed)
        self._children: dict[str, _Child] = {}
        self._answers: queue.SimpleQueue[machine.Answered] = queue.SimpleQueue()
        self._targets: dict[str, _Target] = {}
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._parent_read, self._parent_write = os.pipe()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._wake_fd, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._prober = threading.Thread(target=self._probe, name="engine-probe", daemon=True)
        self._thread.start()
        self._prober.start()

    # ------------------------------------------------------------------------- other threads

    def _join(self) -> None:
        self._thread.join()
        self._prober.join()

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
                    self._answers.put(machine.Answered(*key))
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
            while not self._finished:
                deadline = self._machine.deadline()
                wait = None if deadline is None else max(0.0, deadline - time.monotonic())
                for key, _ in self._selector.select(wait):
                    self._on_readable(key)
                with suppress(BlockingIOError):
                    os.eventfd_read(self._wake_fd)
                while not self._answers.empty():
                    self._handle(self._answers.get())
                self._serve_requests()
                self._handle(machine.Tick())
        finally:
            # Reached with children only by a bug above; they die with this thread in any case.
            for child in self._children.values():
                _signal_group(child.process.pid, signal.SIGKILL)
            self._selector.close()
            for fd in (self._parent_read, self._parent_write, self._wake_fd):
                os.close(fd)
            self._end()

    def _status_changed(self, status: tuple[ServiceStatus, ...]) -> bool:
        """Whom the prober is to ask; it wakes when they are others."""
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
        changed, self._targets = targets != self._targets, targets
        return changed

    def _signal(self, instruction: machine.Signal) -> None:
        number = signal.SIGTERM if instruction.how == "terminate" else signal.SIGKILL
        _signal_group(self._children[instruction.name].process.pid, number)

    def _spawn(self, spec: ServiceSpec, attempt: int) -> machine.Event:
        environment = {
            **os.environ,
            **dict.fromkeys(_THREAD_VARIABLES, str(spec.threads)),
            **spec.environment,
            EPOCH_VARIABLE: spec.environment.get(EPOCH_VARIABLE, self._next_epoch()),
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


@dataclass(frozen=True, slots=True)
class _Target:
    url: str
    attempt: int
    pid: int | None
    ready: bool


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
