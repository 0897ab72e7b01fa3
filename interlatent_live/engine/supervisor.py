"""Supervision as a pure state machine: events in, instructions out, no process and no clock.

Everything that is hard to get right about restarting (order, backoff, crash loops, grace, answers
from a process that is gone already) is decided here and tested in virtual time; an adapter only
carries the instructions out. Time is any monotonic count of seconds that the caller passes in.
"""

from __future__ import annotations

import signal
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from interlatent_live.engine.port import (
    FINAL_PHASES,
    EngineEvent,
    EventKind,
    Phase,
    Restart,
    ServiceSpec,
    ServiceStatus,
    SpawnReady,
)
from interlatent_live.errors import UserError

if TYPE_CHECKING:
    import random

# ---------------------------------------------------------------------------------------- events


@dataclass(frozen=True, slots=True)
class Start:
    """Somebody asks for a service."""

    spec: ServiceSpec


@dataclass(frozen=True, slots=True)
class Stop:
    """Somebody asks a service to end and stay down."""

    name: str


@dataclass(frozen=True, slots=True)
class StopAll:
    """Somebody asks all services to end; ``at_once`` skips order and grace."""

    at_once: bool = False


@dataclass(frozen=True, slots=True)
class Spawned:
    """The adapter carried out a :class:`Spawn`."""

    name: str
    attempt: int
    pid: int


@dataclass(frozen=True, slots=True)
class SpawnFailed:
    """The adapter could not carry out a :class:`Spawn`."""

    name: str
    attempt: int
    reason: str


@dataclass(frozen=True, slots=True)
class Answered:
    """The process said that it is ready: a probe answered, or the ready line came."""

    name: str
    attempt: int


@dataclass(frozen=True, slots=True)
class Exited:
    """The process is gone. ``code`` is negative for a signal; ``last_words`` is for people."""

    name: str
    attempt: int
    code: int
    last_words: str = ""


@dataclass(frozen=True, slots=True)
class Tick:
    """Time went by."""


Event = Start | Stop | StopAll | Spawned | SpawnFailed | Answered | Exited | Tick

# ---------------------------------------------------------------------------------- instructions


@dataclass(frozen=True, slots=True)
class Spawn:
    """Start the process; answer with :class:`Spawned` or :class:`SpawnFailed`."""

    spec: ServiceSpec
    attempt: int


@dataclass(frozen=True, slots=True)
class Signal:
    """Tell the process to end (``terminate``), or end it (``kill``)."""

    name: str
    attempt: int
    how: Literal["terminate", "kill"]


@dataclass(frozen=True, slots=True)
class Report:
    """Tell those who listen."""

    event: EngineEvent


Instruction = Spawn | Signal | Report


@dataclass(slots=True)
class _Service:
    spec: ServiceSpec
    phase: Phase
    since: float
    wanted: bool = True
    attempt: int = 0
    """Numbers the processes of this name, so that a late answer of an old one is recognised."""
    alive: bool = False
    pid: int | None = None
    due: float | None = None
    """When the phase's own deadline falls: ready by, restart at, kill at, answer by."""
    tries: int = 0
    """Crashes in a row, which set the backoff."""
    restarts: int = 0
    crashes: list[float] = field(default_factory=list)
    exit_code: int | None = None
    reason: str = ""


class Supervisor:
    """Decides. :meth:`handle` takes one event and the time, and returns what is to be done.

    ``jitter`` is the only source of randomness, passed in so that a test can fix it.
    """

    def __init__(self, jitter: random.Random) -> None:
        self._jitter = jitter
        self._services: dict[str, _Service] = {}
        self._stopping_all = False
        self._sequence = 0
        self._out: list[Instruction] = []

    def handle(self, event: Event, now: float) -> tuple[Instruction, ...]:
        """Take an event; return the instructions in the order they are to be carried out.

        Raises:
            UserError: when a request names a service that runs already, or one that is unknown.
        """
        match event:
            case Start(spec):
                self._start(spec, now)
            case Stop(name):
                self._stop(self._named(name), now)
            case StopAll(at_once):
                self._stop_all(now, at_once=at_once)
            case Tick():
                self._advance(now)
            case Spawned() | SpawnFailed() | Answered() | Exited():
                service = self._services.get(event.name)
                if service is not None and service.attempt == event.attempt and service.alive:
                    self._from_process(service, event, now)
        self._settle(now)
        out, self._out = tuple(self._out), []
        return out

    def deadline(self) -> float | None:
        """When the next :class:`Tick` is due; ``None`` when only an event can change anything."""
        return min((s.due for s in self._services.values() if s.due is not None), default=None)

    def status(self) -> tuple[ServiceStatus, ...]:
        """Every service ever asked for, in the order of asking."""
        return tuple(
            ServiceStatus(
                service.spec.name,
                service.phase,
                service.since,
                service.pid,
                service.restarts,
                service.exit_code,
                service.reason,
            )
            for service in self._services.values()
        )

    def idle(self) -> bool:
        """Whether no process runs and none will be started."""
        return all(s.phase in FINAL_PHASES and not s.alive for s in self._services.values())

    # ------------------------------------------------------------------------------- requests

    def _named(self, name: str) -> _Service:
        service = self._services.get(name)
        if service is None:
            known = ", ".join(self._services) or "none"
            raise UserError(f"no service is named {name!r}; known: {known}")
        return service

    def _start(self, spec: ServiceSpec, now: float) -> None:
        old = self._services.get(spec.name)
        if old is not None and old.phase not in FINAL_PHASES:
            raise UserError(f"{spec.name} is {old.phase} already; stop it before starting it anew")
        for name in spec.depends_on:
            if name == spec.name or name not in self._services:
                raise UserError(f"{spec.name} depends on {name!r}, which was not started before it")
        if self._stopping_all and not self.idle():
            raise UserError(f"{spec.name} can't start while everything is being stopped")
        self._stopping_all = False
        service = _Service(spec, Phase.WAITING, now, attempt=old.attempt if old else 0)
        self._services[spec.name] = service
        if not all(self._satisfied(name) for name in spec.depends_on):
            self._report(service, EventKind.WAITING, now, f"for {', '.join(spec.depends_on)}")

    def _stop(self, service: _Service, now: float) -> None:
        service.wanted = False
        if service.phase in FINAL_PHASES or service.phase is Phase.STOPPING:
            return
        if service.alive:
            self._terminate(service, now, "on request")
        else:
            self._enter(service, Phase.STOPPED, now)
            self._report(service, EventKind.STOPPED, now)

    def _stop_all(self, now: float, *, at_once: bool) -> None:
        self._stopping_all = True
        for service in self._services.values():
            service.wanted = False
            if not service.alive and service.phase not in FINAL_PHASES:
                self._enter(service, Phase.STOPPED, now)
                self._report(service, EventKind.STOPPED, now)
            elif service.alive and at_once:
                self._kill(service, now, "at once, on request")

    # --------------------------------------------------------------------- what processes say

    def _from_process(
        self, service: _Service, event: Spawned | SpawnFailed | Answered | Exited, now: float
    ) -> None:
        match event:
            case Spawned(pid=pid):
                service.pid = pid
                self._report(service, EventKind.STARTED, now)
                if isinstance(service.spec.readiness, SpawnReady):
                    self._ready(service, now)
            case SpawnFailed(reason=reason):
                self._gone(service)
                self._fail(service, now, reason)
            case Answered():
                if service.phase is Phase.STARTING:
                    self._ready(service, now)
                elif service.phase is Phase.READY:
                    service.due = self._answer_by(service, now)
            case Exited(code=code, last_words=last_words):
                self._exited(service, now, code, last_words)

    def _ready(self, service: _Service, now: float) -> None:
        self._enter(service, Phase.READY, now, due=self._answer_by(service, now))
        service.reason = ""
        self._report(service, EventKind.READY, now)

    def _exited(self, service: _Service, now: float, code: int, last_words: str) -> None:
        settled = (
            service.phase is Phase.READY and now - service.since >= service.spec.restart.settled_s
        )
        hung = service.phase is Phase.STOPPING and service.wanted
        how = describe_exit(code)
        service.exit_code = code
        self._gone(service)
        if not service.wanted:
            self._enter(service, Phase.STOPPED, now)
            self._report(service, EventKind.STOPPED, now, how)
            return
        self._report(service, EventKind.EXITED, now, how)
        policy = service.spec.restart
        words = f"{how}: {last_words}" if last_words else how
        if code in policy.permanent:
            self._fail(service, now, last_words or how)
        elif not hung and (
            policy.when is Restart.NEVER or (policy.when is Restart.ON_FAILURE and code == 0)
        ):
            self._enter(service, Phase.STOPPED, now)
            service.reason = "" if code == 0 else words
            self._report(service, EventKind.STOPPED, now, how)
        else:
            self._crashed(service, now, service.reason if hung else words, settled=settled)

    def _crashed(self, service: _Service, now: float, reason: str, *, settled: bool) -> None:
        policy = service.spec.restart
        if policy.when is Restart.NEVER:
            self._fail(service, now, reason)
            return
        service.tries = 1 if settled else service.tries + 1
        service.crashes = [at for at in service.crashes if now - at < policy.crash_window_s]
        service.crashes.append(now)
        if len(service.crashes) > policy.crash_limit:
            self._fail(
                service,
                now,
                f"ended {len(service.crashes)} times within {policy.crash_window_s:.0f} s; "
                f"the last time: {reason}",
            )
            return
        wait = self._backoff(service)
        service.reason = reason
        self._enter(service, Phase.BACKOFF, now, due=now + wait)
        self._report(service, EventKind.BACKOFF, now, f"next try in {wait:.2f} s; {reason}")

    def _backoff(self, service: _Service) -> float:
        policy = service.spec.restart
        # The exponent is bounded before the power is taken: a float overflows at 2^1024.
        wait = min(policy.maximum_s, policy.initial_s * policy.factor ** min(service.tries - 1, 64))
        return wait * self._jitter.uniform(1 - policy.jitter, 1 + policy.jitter)

    # ---------------------------------------------------------------------------- time and order

    def _advance(self, now: float) -> None:
        for service in self._services.values():
            if service.due is None or now < service.due:
                continue
            service.due = None
            match service.phase:
                case Phase.BACKOFF:
                    service.restarts += 1
                    self._spawn(service, now)
                case Phase.STARTING:
                    reason = f"was not ready within {service.spec.ready_within_s:g} s"
                    self._hung(service, now, reason)
                case Phase.READY:
                    reason = f"has not answered for {service.spec.hang_after_s:g} s"
                    self._hung(service, now, reason)
                case Phase.STOPPING:
                    self._kill(service, now, f"{service.spec.grace_s:g} s of grace are over")
                case Phase.WAITING | Phase.STOPPED | Phase.FAILED:
                    pass

    def _hung(self, service: _Service, now: float, reason: str) -> None:
        service.reason = reason
        self._report(service, EventKind.UNRESPONSIVE, now, reason)
        self._terminate(service, now, reason)

    def _settle(self, now: float) -> None:
        """Start what was waiting, and end what nothing depends on any more."""
        for service in self._services.values():
            if service.phase is Phase.WAITING and service.wanted:
                broken = [
                    name
                    for name in service.spec.depends_on
                    if self._services[name].phase in FINAL_PHASES and not self._satisfied(name)
                ]
                if broken:
                    self._fail(service, now, f"it needs {broken[0]}, which is not running")
                elif all(self._satisfied(name) for name in service.spec.depends_on):
                    self._spawn(service, now)
        if self._stopping_all:
            needed = {
                name
                for service in self._services.values()
                if service.alive
                for name in service.spec.depends_on
            }
            for service in self._services.values():
                if service.alive and service.spec.name not in needed:
                    self._stop(service, now)

    def _satisfied(self, name: str) -> bool:
        """Whether dependents may start: it is ready, or it finished well and is not to return."""
        service = self._services[name]
        return service.phase is Phase.READY or (
            service.phase is Phase.STOPPED and service.wanted and service.exit_code == 0
        )

    # ----------------------------------------------------------------------------------- helpers

    def _spawn(self, service: _Service, now: float) -> None:
        service.attempt += 1
        service.alive = True
        self._enter(service, Phase.STARTING, now, due=now + service.spec.ready_within_s)
        self._out.append(Spawn(service.spec, service.attempt))

    def _terminate(self, service: _Service, now: float, why: str) -> None:
        self._enter(service, Phase.STOPPING, now, due=now + service.spec.grace_s)
        self._out.append(Signal(service.spec.name, service.attempt, "terminate"))
        self._report(service, EventKind.STOPPING, now, why)

    def _kill(self, service: _Service, now: float, why: str) -> None:
        self._enter(service, Phase.STOPPING, now)
        self._out.append(Signal(service.spec.name, service.attempt, "kill"))
        self._report(service, EventKind.KILLED, now, why)

    def _fail(self, service: _Service, now: float, reason: str) -> None:
        service.reason = reason
        self._enter(service, Phase.FAILED, now)
        self._report(service, EventKind.FAILED, now, reason)

    def _answer_by(self, service: _Service, now: float) -> float | None:
        limit = service.spec.hang_after_s
        return None if limit is None else now + limit

    def _gone(self, service: _Service) -> None:
        service.alive = False
        service.pid = None

    def _enter(
        self, service: _Service, phase: Phase, now: float, *, due: float | None = None
    ) -> None:
        if service.phase is not phase:
            service.since = now
        service.phase = phase
        service.due = due

    def _report(self, service: _Service, kind: EventKind, now: float, message: str = "") -> None:
        self._sequence += 1
        event = EngineEvent(self._sequence, now, service.spec.name, kind, message, service.pid)
        self._out.append(Report(event))


def describe_exit(code: int) -> str:
    """An exit status in words: ``exited with 3``, ``was ended by SIGKILL``."""
    if code >= 0:
        return f"exited with {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"
