"""What runs inside a Ray actor: one service as a process of the actor's node.

The actor holds Ray's resources and an engine for local processes; the service is the same command
under the same guard as on one machine, and dies with the actor. It imports no Ray: a test can use
it as it is.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Literal

from interlatent_live.engine import supervisor as machine
from interlatent_live.engine.local import LocalEngine
from interlatent_live.engine.port import EventKind, OutputLine, Phase, Restart, RestartPolicy
from interlatent_live.engine.supervised import EPOCH_VARIABLE

if TYPE_CHECKING:
    from interlatent_live.engine.port import EngineEvent, ServiceSpec

MORE_GRACE_S: Final = 30.0
"""How much longer than the engine's own patience the actor's is, should the engine be out of
reach."""
OVERTAKEN_S: Final = 10.0
"""Longest that a signal waits for the start that it is meant for."""
KEPT_NEWS: Final = 10_000

What = machine.Spawned | machine.SpawnFailed | machine.Answered | machine.Exited | OutputLine


@dataclass(frozen=True, slots=True)
class News:
    """Something that happened at the host; numbers count from 1."""

    number: int
    what: What


class ServiceHost:
    """Starts one service as often as it is told, and tells what becomes of its process."""

    def __init__(self) -> None:
        self._engine = LocalEngine(on_line=self._add)
        self._changed = threading.Condition()
        self._news: deque[News] = deque(maxlen=KEPT_NEWS)
        self._count = 0
        self._name = ""
        self._attempt = 0
        self._ended = 0
        self._began = False
        threading.Thread(target=self._follow, name="host", daemon=True).start()

    def spawn(self, spec: ServiceSpec, attempt: int, epoch: str) -> None:
        """Start the service's process; what comes of it is told in :meth:`news`."""
        self._name, self._began = spec.name, False
        self._engine.start(
            replace(
                spec,
                environment={**spec.environment, EPOCH_VARIABLE: epoch},
                depends_on=(),
                grace_s=spec.grace_s + MORE_GRACE_S,
                # Whether and where it starts again is for the engine to say.
                restart=RestartPolicy(when=Restart.NEVER, permanent=()),
            )
        )
        with self._changed:
            self._attempt = attempt
            self._changed.notify_all()

    def signal(self, attempt: int, how: Literal["terminate", "kill"]) -> None:
        """``terminate`` a start's process or ``kill`` it; calls may overtake each other."""
        with self._changed:
            self._changed.wait_for(lambda: self._attempt >= attempt, OVERTAKEN_S)
            if self._attempt != attempt:
                return
        if how == "kill":
            self._engine.stop_all(at_once=True)
        else:
            self._engine.stop(self._name)

    def news(self, after: int, timeout_s: float) -> tuple[list[News], bool]:
        """What is newer than number ``after``, waiting for the first; older news is forgotten.

        Beside it, whether the service is ready and not hung.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._count > after, timeout_s)
            while self._news and self._news[0].number <= after:
                self._news.popleft()
            found = list(self._news)
        return found, any(one.phase is Phase.READY for one in self._engine.status())

    def close(self) -> None:
        """End the process and wait for it."""
        self._engine.close()

    def _add(self, what: What) -> None:
        with self._changed:
            self._count += 1
            self._news.append(News(self._count, what))
            self._changed.notify_all()

    def _follow(self) -> None:
        seen = 0
        while True:
            for event in self._engine.events(seen, timeout_s=60.0):
                seen = event.sequence
                self._translate(event)

    def _translate(self, event: EngineEvent) -> None:
        with self._changed:
            # Told of before the start itself has returned.
            self._changed.wait_for(lambda: self._attempt > self._ended, OVERTAKEN_S)
            name, attempt = self._name, self._attempt
        match event.kind:
            case EventKind.STARTED:
                self._began = True
                self._add(machine.Spawned(name, attempt, event.pid or 0))
            case EventKind.READY:
                self._add(machine.Answered(name, attempt))
            case EventKind.STOPPED | EventKind.FAILED if self._began:
                (status,) = self._engine.status()
                code = status.exit_code or 0
                words = status.reason or event.message
                said = words.removeprefix(machine.describe_exit(code)).removeprefix(": ")
                self._ended = attempt
                self._add(machine.Exited(name, attempt, code, said))
            case EventKind.FAILED:
                self._ended = attempt
                self._add(machine.SpawnFailed(name, attempt, event.message))
            case _:
                pass
