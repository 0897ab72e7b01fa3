"""A node dies, goes out of reach, or comes: the statistics stay those of one process."""

from __future__ import annotations

import time
import urllib.request
from typing import TYPE_CHECKING

import psutil
import pytest

from interlatent_live.engine import EventKind, wait_ready
from interlatent_live.engine.ray import RayEngine
from interlatent_live.engine.slots import assign, slot_of
from interlatent_live.services.replaying import FollowedRecordings
from interlatent_live.wire.limits import DEFAULT_LIMITS
from interlatent_live.wire.messages import FeaturesMessage
from tests.engine.behaviour import status_of, until, wait_for
from tests.support.sharded import Herd, Sharded, assert_equal_answers

if TYPE_CHECKING:
    from pathlib import Path

    from interlatent_live.bench.ray_cluster import RayCluster

pytestmark = [
    pytest.mark.ray,
    pytest.mark.timeout(280),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
HZ = 50.0
RUNS = [f"run-{number}" for number in range(6)]


def shard_of(run: str) -> str:
    dealt = assign(["shard-0", "shard-1", "shard-2"])
    return next(name for name, slots in dealt.items() if slot_of(run) in slots)


def herd(system: Sharded, folder: Path) -> Herd:
    """Agents with a spool, each with a connection of its own: what is lost is lost by services."""
    return Herd(system, RUNS, HZ, folder=folder)


def test_a_node_killed_under_load_costs_declared_rows_only_and_the_answer_is_that_of_one_process(
    cluster: RayCluster, tmp_path: Path
) -> None:
    engine = RayEngine(seed=1, on_line=lambda _: None)
    with Sharded(tmp_path, None, engine) as system, herd(system, tmp_path) as walkers:
        assert len({shard_of(run) for run in RUNS}) == 3
        for run in RUNS:
            system.wait(lambda _, run=run: system.rows(run) > 200, 60)
        victim = shard_of(RUNS[0])
        node = engine.nodes()[victim]
        before = {run: system.rows(run) for run in RUNS}
        cluster.kill(node)
        killed = time.monotonic()
        hit = [run for run in RUNS if shard_of(run) == victim]
        for run in hit:
            system.wait(lambda _, run=run: system.rows(run) > before[run] + HZ, 120)
        recovered = time.monotonic() - killed
        print(f"\na node died: its runs went on after {recovered:.1f} s")  # noqa: T201 - the figure
        assert engine.nodes()[victim] != node
        walkers.halt()
        for walker, run in zip(walkers.walkers, RUNS, strict=True):
            settle(system, run, walker.steps)
            # What died inside an encoder is declared, and nothing else is missing.
            recorded, declared = books(system, walker.tap.boot_id)
            assert recorded + declared == walker.steps, run
            assert declared <= (5 * HZ if run in hit else 0), run
            assert system.rows(run) == recorded, run
        assert_equal_answers(system, RUNS)
    cluster.add_node()


def test_a_zombie_is_fenced_and_ends_when_it_hears_of_its_successor(
    cluster: RayCluster, tmp_path: Path
) -> None:
    engine = RayEngine(seed=1, on_line=lambda _: None)
    with Sharded(tmp_path, 3, engine) as system, herd(system, tmp_path) as walkers:
        victim = shard_of(RUNS[0])
        for run in RUNS:
            system.wait(lambda _, run=run: system.rows(run) > 100, 60)
        zombie = psutil.Process(status_of(engine, victim).pid or 0)
        services = zombie.children()
        assert len(services) == 2
        # Its node is out of everybody's reach, and it hears nothing: its services go on.
        actor = zombie.parent()
        assert actor is not None
        raylet = actor.parent()
        assert raylet is not None
        assert raylet.name() == "raylet"
        for one in (raylet, actor, zombie):
            one.suspend()
        wait_for(engine, victim, EventKind.BACKOFF)
        wait_ready(engine, [victim], 120)
        before = system.rows(RUNS[0])
        system.wait(lambda _: system.rows(RUNS[0]) > before + 50, 60)
        assert all(one.is_running() for one in services)
        zombie.resume()
        until(lambda: not any(one.is_running() for one in services), "the zombie ended")
        until(lambda: fenced(system) >= 1, "what it said was refused")
        for one in (actor, raylet):
            one.resume()
        walkers.halt()
        assert_equal_answers(system, RUNS)
    cluster.add_node()


def test_a_node_that_comes_gets_a_shard_and_the_answer_is_that_of_one_process(
    cluster: RayCluster, tmp_path: Path
) -> None:
    engine = RayEngine(seed=1, on_line=lambda _: None)
    with Sharded(tmp_path, 2, engine) as system, herd(system, tmp_path) as walkers:
        for run in RUNS:
            system.wait(lambda _, run=run: system.rows(run) > 100, 60)
        system.up.shards.resize(3)
        wait_ready(engine, system.up.shards.names, 120)
        assert len(set(engine.nodes().values())) == 3
        before = {run: system.rows(run) for run in RUNS}
        for run in RUNS:
            system.wait(lambda _, run=run: system.rows(run) > before[run] + 50, 60)
        walkers.halt()
        for walker, run in zip(walkers.walkers, RUNS, strict=True):
            settle(system, run, walker.steps)
        assert_equal_answers(system, RUNS)


def settle(system: Sharded, run: str, steps: int) -> None:
    """Wait until the statistics have seen a run's last row."""

    def seen(_: object) -> bool:
        with system.statistics() as client:
            return client.hook_points(run=run).items[0].source.processed_seq >= steps

    system.wait(seen, 60)


def books(system: Sharded, boot_id: str) -> tuple[int, int]:
    """Rows of a boot that were recorded, and those that its recording declares lost."""
    time.sleep(1.0)  # the recorder's chunk
    rows = declared = 0
    for message in FollowedRecordings([system.recordings], 0, DEFAULT_LIMITS).read():
        if isinstance(message, FeaturesMessage) and message.batch.boot_id == boot_id:
            rows += len(message.batch.steps)
            declared += sum(drop.count for drop in message.drops)
    return rows, declared


def fenced(system: Sharded) -> float:
    address = f"http://{system.settings.endpoints.encoder_health}/metrics"
    with urllib.request.urlopen(address, timeout=5) as answer:
        lines = answer.read().decode().splitlines()
    return next(
        float(line.split()[-1]) for line in lines if line.startswith("interlatent_gateway_fenced ")
    )
