"""The engine port: what it means to place a service, supervise it, and stop it.

Commands such as ``up`` and ``demo`` speak only to :class:`Engine`; which machine a service lands on
is an adapter's business. The behaviour that every adapter owes is the suite in
``tests/engine/behaviour.py``, which an adapter's tests inherit.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Literal, Protocol

from interlatent_live.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


class Phase(StrEnum):
    """Where a service is in its life."""

    WAITING = "waiting"
    """Asked for, but something it depends on is not ready yet."""
    STARTING = "starting"
    """The process runs and has not said that it is ready."""
    READY = "ready"
    BACKOFF = "backoff"
    """It ended unasked; the next try has a date."""
    STOPPING = "stopping"
    """Told to end, by request or because it hung; killed when its grace is over."""
    STOPPED = "stopped"
    """Ended by request, or finished when its policy says that finishing is fine."""
    FAILED = "failed"
    """Given up: it crashed too often, or it said that only the user can mend it."""


FINAL_PHASES = frozenset({Phase.STOPPED, Phase.FAILED})


class EventKind(StrEnum):
    """What happened to a service."""

    WAITING = "waiting"
    STARTED = "started"
    READY = "ready"
    UNRESPONSIVE = "unresponsive"
    EXITED = "exited"
    BACKOFF = "backoff"
    STOPPING = "stopping"
    KILLED = "killed"
    STOPPED = "stopped"
    FAILED = "failed"


class Restart(StrEnum):
    """When a process that ended unasked is started again."""

    ALWAYS = "always"
    ON_FAILURE = "on-failure"
    NEVER = "never"


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """How a crashed service comes back.

    The n-th try in a row waits ``min(maximum_s, initial_s · factorⁿ⁻¹)``, times a uniform draw from
    ``1 ± jitter`` so that many services do not come back in step. A service that stayed ready for
    ``settled_s`` starts counting anew. More than ``crash_limit`` crashes within ``crash_window_s``
    mean that trying again does not help. An exit status in ``permanent`` means the same at once:
    2 is how our commands say that only the user can mend it.
    """

    when: Restart = Restart.ALWAYS
    initial_s: float = 0.25
    factor: float = 2.0
    maximum_s: float = 10.0
    jitter: float = 0.2
    settled_s: float = 10.0
    crash_limit: int = 8
    crash_window_s: float = 60.0
    permanent: tuple[int, ...] = (2, 127)

    def __post_init__(self) -> None:
        """Refuse a policy that would spin or wait backwards."""
        if self.initial_s <= 0 or self.maximum_s < self.initial_s or self.factor < 1:
            raise ValueError("a restart policy needs 0 < initial_s <= maximum_s and factor >= 1")
        if not 0 <= self.jitter < 1:
            raise ValueError("a restart policy's jitter is a share in [0, 1)")


@dataclass(frozen=True, slots=True)
class SpawnReady:
    """Ready as soon as the process exists; for commands that serve nobody."""


@dataclass(frozen=True, slots=True)
class HttpReady:
    """Ready when ``url`` answers 200.

    When the answer is a JSON object with a ``pid``, it must be the started process's: an older
    instance on the same port must not vouch for the new one.
    """

    url: str


@dataclass(frozen=True, slots=True)
class LineReady:
    """Ready when a line of the process's output contains ``text``."""

    text: str


Readiness = SpawnReady | HttpReady | LineReady


@dataclass(frozen=True, slots=True)
class ServiceSpec:
    """One service to place.

    ``environment`` is added to the engine's own. ``depends_on`` names services that must be ready
    before this one starts and that are stopped after it. ``nice`` and ``threads`` keep services
    from competing with the agent on its machine: two compute threads on two busy cores collapse.
    ``hang_after_s`` restarts a ready service whose ``/healthz`` has not answered for so long; it
    needs :class:`HttpReady`, and ``None`` leaves a hung service alone. ``cpus`` and ``gpus`` are
    what an adapter with several nodes keeps free for it on one of them; one machine has no choice.
    """

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    depends_on: tuple[str, ...] = ()
    readiness: Readiness = field(default_factory=SpawnReady)
    ready_within_s: float = 60.0
    hang_after_s: float | None = None
    grace_s: float = 5.0
    restart: RestartPolicy = field(default_factory=RestartPolicy)
    nice: int = 5
    threads: int = 1
    folder: str | None = None
    cpus: float = 0.0
    gpus: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what could not be honoured."""
        if not self.name or not self.command:
            raise ValueError("a service needs a name and a command")
        if self.hang_after_s is not None and not isinstance(self.readiness, HttpReady):
            raise ValueError("hang_after_s needs a /healthz to ask: use HttpReady")


@dataclass(frozen=True, slots=True)
class ServiceStatus:
    """What is known of a service now.

    ``since_s`` is monotonic seconds at which the phase began; ``exit_code`` is the last exit's
    status, negative for a signal, as :mod:`subprocess` counts.
    """

    name: str
    phase: Phase
    since_s: float
    pid: int | None = None
    restarts: int = 0
    exit_code: int | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class EngineEvent:
    """One thing that happened; ``sequence`` counts from 1 without holes."""

    sequence: int
    at_s: float
    service: str
    kind: EventKind
    message: str = ""
    pid: int | None = None


@dataclass(frozen=True, slots=True)
class OutputLine:
    """One line that a service wrote."""

    service: str
    pid: int
    stream: Literal["stdout", "stderr"]
    text: str


class Engine(Protocol):
    """Places services and keeps them up. Every method may be called from any thread."""

    def start(self, spec: ServiceSpec) -> None:
        """Ask for a service; returns at once.

        Raises:
            UserError: when a service of that name already runs, or it depends on an unknown one.
        """

    def stop(self, name: str) -> None:
        """Ask one service to end and stay down; returns at once. Stopping twice is fine.

        Raises:
            UserError: when no service has that name.
        """

    def stop_all(self, *, at_once: bool = False) -> None:
        """Ask all to end, dependents first; returns at once. ``at_once`` skips order and grace."""

    def status(self) -> tuple[ServiceStatus, ...]:
        """Every service ever asked for, in the order of asking."""

    def events(self, after: int = 0, timeout_s: float = 0.0) -> tuple[EngineEvent, ...]:
        """Events later than sequence number ``after``, waiting up to ``timeout_s`` for the first.

        The engine keeps the last 1,000.
        """

    def close(self) -> None:
        """Stop all in order, wait until no process is left, and release everything."""


def wait_ready(engine: Engine, names: Iterable[str], timeout_s: float = 60.0) -> None:
    """Wait until every named service is ready, or has finished as its policy allows.

    Raises:
        UserError: when one has failed or was stopped with an error, with its own words, or when the
            time is over.
    """
    wanted = tuple(names)
    until = time.monotonic() + timeout_s
    seen = 0
    while True:
        known = {status.name: status for status in engine.status()}
        pending = []
        for name in wanted:
            status = known.get(name)
            if status is None:
                raise UserError(f"no service named {name!r} was started")
            if status.phase is Phase.FAILED or (
                status.phase is Phase.STOPPED and status.exit_code not in (0, None)
            ):
                raise UserError(f"{name} did not start: {status.reason}")
            if status.phase not in (Phase.READY, Phase.STOPPED):
                pending.append(f"{name} ({status.phase})")
        if not pending:
            return
        left = until - time.monotonic()
        if left <= 0:
            raise UserError(
                f"not ready after {timeout_s:.0f} s: {', '.join(pending)}; their logs say why"
            )
        for event in engine.events(after=seen, timeout_s=min(left, 1.0)):
            seen = event.sequence


def service_command(*arguments: str) -> tuple[str, ...]:
    """The command line that runs ``interlatent-live ARGUMENTS`` with this very interpreter."""
    return (sys.executable, "-m", "interlatent_live", *arguments)
