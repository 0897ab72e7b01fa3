from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from interlatent_live.engine import EventKind, Phase, ServiceSpec, wait_ready
from interlatent_live.engine.ray import RayEngine
from tests.engine.behaviour import (
    QUICK,
    SLEEPS,
    EngineBehaviour,
    exists,
    program,
    status_of,
    until,
    wait_for,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from interlatent_live.bench.ray_cluster import RayCluster

pytestmark = [
    pytest.mark.ray,
    # Ray's own, in the workers' and the driver's standard streams.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


class TestRayEngine(EngineBehaviour):
    @pytest.fixture
    def engine(self, cluster: RayCluster) -> Iterator[RayEngine]:
        with RayEngine(seed=1) as engine:
            yield engine


def test_services_are_spread_and_come_back_on_another_node_when_theirs_dies(
    cluster: RayCluster,
) -> None:
    names = ["one", "two", "three"]
    with RayEngine(seed=1, on_line=lambda _: None) as engine:
        for name in names:
            spec = program(name, SLEEPS)
            engine.start(
                ServiceSpec(name, spec.command, readiness=spec.readiness, restart=QUICK, cpus=1.0)
            )
        wait_ready(engine, names, 60)
        nodes = engine.nodes()
        assert len(set(nodes.values())) == 3
        pids = {name: status_of(engine, name).pid for name in names}
        victim = cluster.kill(nodes["two"])
        backoff = wait_for(engine, "two", EventKind.BACKOFF)
        assert "its node" in backoff.message
        wait_for(engine, "two", EventKind.READY, after=backoff.sequence)
        assert engine.nodes()["two"] not in {victim, None}
        assert status_of(engine, "one").pid == pids["one"]
        until(lambda: not exists(pids["two"] or 0), "the process died with its node")
    cluster.add_node()


def test_an_actor_that_does_not_answer_is_given_up_while_its_process_goes_on() -> None:
    """A node out of reach: the old process is a zombie, and the new one has a larger epoch."""
    code = (
        "import os, time; print('here I am', os.environ['INTERLATENT_EPOCH'], flush=True);"
        "time.sleep(600)"
    )
    lines: list[str] = []
    with RayEngine(seed=1, silence_s=1.0, on_line=lambda one: lines.append(one.text)) as engine:
        engine.start(program("one", code))
        wait_ready(engine, ["one"], 60)
        zombie = status_of(engine, "one").pid
        assert zombie is not None
        actor = _parent(zombie)
        os.kill(actor, signal.SIGSTOP)
        backoff = wait_for(engine, "one", EventKind.BACKOFF)
        wait_for(engine, "one", EventKind.READY, after=backoff.sequence)
        assert status_of(engine, "one").pid != zombie
        assert exists(zombie)
        epochs = [int(line.split()[-1]) for line in lines]
        assert epochs == sorted(set(epochs))
        assert len(epochs) == 2
        # On a busy machine its raylet may have ended it meanwhile.
        with suppress(ProcessLookupError):
            os.kill(actor, signal.SIGCONT)
        until(lambda: not exists(zombie), "it ends as soon as it can be reached")
    assert status_of(engine, "one").phase is Phase.STOPPED


def _parent(pid: int) -> int:
    stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii")
    return int(stat.rpartition(")")[2].split()[1])
