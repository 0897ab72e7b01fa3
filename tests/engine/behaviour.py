"""What every adapter of the engine port owes; an adapter's tests inherit :class:`EngineBehaviour`.

An adapter's test class overrides the ``engine`` fixture. The services are tiny Python programs, so
the suite runs wherever the adapter can start a process.
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
import time
from typing import TYPE_CHECKING

import pytest

from interlatent_live.engine import (
    Engine,
    EngineEvent,
    EventKind,
    LineReady,
    Phase,
    Restart,
    RestartPolicy,
    ServiceSpec,
    ServiceStatus,
    wait_ready,
)
from interlatent_live.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable

QUICK = RestartPolicy(initial_s=0.05, maximum_s=0.2, crash_limit=3, jitter=0.1)
SLEEPS = "import time; print('here I am', flush=True); time.sleep(600)"
DEAF = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
    "print('here I am', flush=True); time.sleep(600)"
)


def program(
    name: str,
    code: str,
    *,
    depends_on: tuple[str, ...] = (),
    restart: RestartPolicy = QUICK,
    grace_s: float = 5.0,
    ready_within_s: float = 30.0,
) -> ServiceSpec:
    return ServiceSpec(
        name,
        (sys.executable, "-I", "-S", "-c", code),
        depends_on=depends_on,
        readiness=LineReady("here I am"),
        restart=restart,
        grace_s=grace_s,
        ready_within_s=ready_within_s,
    )


def status_of(engine: Engine, name: str) -> ServiceStatus:
    return next(status for status in engine.status() if status.name == name)


def until(condition: Callable[[], bool], what: str, timeout_s: float = 30.0) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, f"never happened: {what}"
        time.sleep(0.02)


def wait_for(engine: Engine, name: str, kind: EventKind, after: int = 0) -> EngineEvent:
    end = time.monotonic() + 30
    while time.monotonic() < end:
        for event in engine.events(after, timeout_s=1.0):
            after = event.sequence
            if event.service == name and event.kind is kind:
                return event
    raise AssertionError(f"{name} was never {kind}; {engine.status()}")


def exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


class EngineBehaviour:
    @pytest.fixture
    def engine(self) -> Engine:
        raise AssertionError("an adapter's tests provide the engine")

    def test_a_started_service_becomes_ready_and_stops_on_request(self, engine: Engine) -> None:
        engine.start(program("one", SLEEPS))
        wait_ready(engine, ["one"], 30)
        status = status_of(engine, "one")
        assert status.phase is Phase.READY
        assert status.pid is not None
        assert exists(status.pid)
        engine.stop("one")
        wait_for(engine, "one", EventKind.STOPPED)
        stopped = status_of(engine, "one")
        assert (stopped.phase, stopped.pid) == (Phase.STOPPED, None)
        until(lambda: not exists(status.pid or 0), "the process is gone")

    def test_a_killed_service_comes_back_as_another_process(self, engine: Engine) -> None:
        engine.start(program("one", SLEEPS))
        engine.start(program("other", SLEEPS))
        wait_ready(engine, ["one", "other"], 30)
        first, other = status_of(engine, "one").pid, status_of(engine, "other").pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        backoff = wait_for(engine, "one", EventKind.BACKOFF)
        assert "SIGKILL" in backoff.message
        wait_for(engine, "one", EventKind.READY, after=backoff.sequence)
        again = status_of(engine, "one")
        assert again.pid not in {None, first}
        assert again.restarts == 1
        assert status_of(engine, "other").pid == other

    def test_a_service_that_keeps_crashing_is_given_up_with_its_own_words(
        self, engine: Engine
    ) -> None:
        engine.start(
            program("bad", "import sys; print('the disk is on fire', file=sys.stderr); sys.exit(7)")
        )
        failed = wait_for(engine, "bad", EventKind.FAILED)
        assert "4 times" in failed.message
        assert "exited with 7" in failed.message
        assert "the disk is on fire" in failed.message
        status = status_of(engine, "bad")
        assert (status.phase, status.restarts, status.exit_code) == (Phase.FAILED, 3, 7)

    def test_a_users_mistake_is_not_tried_again(self, engine: Engine) -> None:
        engine.start(
            program("bad", "import sys; sys.stderr.write('error: port 1 is in use'); sys.exit(2)")
        )
        with pytest.raises(UserError, match="bad did not start: port 1 is in use"):
            wait_ready(engine, ["bad"], 30)
        assert status_of(engine, "bad").restarts == 0

    def test_a_command_that_does_not_exist_fails_at_once(self, engine: Engine) -> None:
        engine.start(ServiceSpec("ghost", ("no-such-command-anywhere",)))
        with pytest.raises(UserError, match="no-such-command-anywhere"):
            wait_ready(engine, ["ghost"], 30)

    def test_a_finished_job_stays_finished(self, engine: Engine) -> None:
        once = RestartPolicy(when=Restart.NEVER)
        engine.start(program("job", "print('here I am')", restart=once))
        wait_for(engine, "job", EventKind.STOPPED)
        status = status_of(engine, "job")
        assert (status.phase, status.exit_code, status.restarts) == (Phase.STOPPED, 0, 0)

    def test_dependents_start_later_and_stop_earlier(self, engine: Engine) -> None:
        slow = "import time; time.sleep(0.3); print('here I am', flush=True); time.sleep(600)"
        engine.start(program("first", slow))
        engine.start(program("second", SLEEPS, depends_on=("first",)))
        assert status_of(engine, "second").phase is Phase.WAITING
        wait_ready(engine, ["first", "second"], 30)
        engine.stop_all()
        wait_for(engine, "first", EventKind.STOPPED)
        order = [
            (event.service, event.kind)
            for event in engine.events()
            if event.kind in {EventKind.STARTED, EventKind.STOPPED}
        ]
        assert order == [
            ("first", EventKind.STARTED),
            ("second", EventKind.STARTED),
            ("second", EventKind.STOPPED),
            ("first", EventKind.STOPPED),
        ]

    def test_a_service_that_ignores_the_request_is_killed_after_its_grace(
        self, engine: Engine
    ) -> None:
        engine.start(program("deaf", DEAF, grace_s=0.3))
        wait_ready(engine, ["deaf"], 30)
        engine.stop("deaf")
        killed = wait_for(engine, "deaf", EventKind.KILLED)
        stopped = wait_for(engine, "deaf", EventKind.STOPPED, after=killed.sequence)
        assert "SIGKILL" in stopped.message

    def test_stopping_at_once_skips_the_grace(self, engine: Engine) -> None:
        engine.start(program("deaf", DEAF, grace_s=600))
        wait_ready(engine, ["deaf"], 30)
        engine.stop_all(at_once=True)
        wait_for(engine, "deaf", EventKind.STOPPED)

    def test_a_service_that_never_gets_ready_is_restarted(self, engine: Engine) -> None:
        engine.start(
            program("mute", "import time; time.sleep(600)", ready_within_s=0.3, grace_s=0.5)
        )
        event = wait_for(engine, "mute", EventKind.BACKOFF)
        assert "was not ready within 0.3 s" in event.message

    def test_requests_that_make_no_sense_are_refused(self, engine: Engine) -> None:
        engine.start(program("one", SLEEPS))
        with pytest.raises(UserError, match=r"one is \w+ already"):
            engine.start(program("one", SLEEPS))
        with pytest.raises(UserError, match="depends on 'nobody'"):
            engine.start(program("two", SLEEPS, depends_on=("nobody",)))
        with pytest.raises(UserError, match="no service is named 'three'; known: one"):
            engine.stop("three")
        with pytest.raises(UserError, match="no service named 'three'"):
            wait_ready(engine, ["three"], 1)

    def test_a_stopped_service_can_be_started_again(self, engine: Engine) -> None:
        engine.start(program("one", SLEEPS))
        wait_ready(engine, ["one"], 30)
        engine.stop("one")
        stopped = wait_for(engine, "one", EventKind.STOPPED)
        engine.start(program("one", SLEEPS))
        wait_for(engine, "one", EventKind.READY, after=stopped.sequence)

    def test_events_are_numbered_without_holes(self, engine: Engine) -> None:
        engine.start(program("one", SLEEPS))
        wait_ready(engine, ["one"], 30)
        numbers = [event.sequence for event in engine.events()]
        assert numbers == list(range(1, len(numbers) + 1))
        assert engine.events(after=numbers[-1]) == ()
        pairs = itertools.pairwise(event.at_s for event in engine.events())
        assert all(earlier <= later for earlier, later in pairs)

    def test_close_leaves_no_process(self, engine: Engine) -> None:
        engine.start(program("one", SLEEPS))
        engine.start(program("deaf", DEAF, grace_s=0.2))
        wait_ready(engine, ["one", "deaf"], 30)
        pids = [status.pid for status in engine.status()]
        engine.close()
        assert not any(exists(pid) for pid in pids if pid is not None)
        assert {status.phase for status in engine.status()} == {Phase.STOPPED}
        with pytest.raises(UserError, match="closed"):
            engine.start(program("late", SLEEPS))
