"""Many faults in a row: everything comes back, and the supervisor keeps nothing of the dead."""

from __future__ import annotations

import os
import random
import signal
import threading
from contextlib import suppress
from dataclasses import replace

import psutil
import pytest

from interlatent_live.engine import LocalEngine, Phase, RestartPolicy, wait_ready
from tests.engine.behaviour import SLEEPS, program, status_of, until

pytestmark = pytest.mark.chaos
NAMES = ("a", "b", "c")
PATIENT = RestartPolicy(initial_s=0.05, maximum_s=0.1, crash_limit=10_000)
FATAL = (signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM, signal.SIGINT, signal.SIGABRT)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - cheap and enough


def test_sixty_faults_leave_three_services_and_nothing_else() -> None:
    draw = random.Random(7)
    me = psutil.Process()
    with LocalEngine(on_line=lambda _: None, seed=1) as engine:
        for name in NAMES:
            engine.start(replace(program(name, SLEEPS), restart=PATIENT))
        wait_ready(engine, NAMES, 60)
        files, threads = descriptors(), threading.active_count()
        killed: set[int] = set()

        def settled() -> bool:
            return all(
                one.phase is Phase.READY and one.pid not in killed for one in engine.status()
            )

        for _ in range(60):
            status = status_of(engine, draw.choice(NAMES))
            if status.pid is not None:
                with suppress(ProcessLookupError):  # hit twice before the engine saw the first
                    os.kill(status.pid, draw.choice(FATAL))
                killed.add(status.pid)
            if draw.random() < 0.5:
                until(settled, "all are ready again", 60)
        until(settled, "all are ready again", 60)
        assert len(me.children(recursive=True)) == len(NAMES)
        until(lambda: descriptors() <= files, "no descriptor of a dead child is kept")
        assert threading.active_count() == threads
        assert sum(one.restarts for one in engine.status()) >= 20
    assert me.children(recursive=True) == []
