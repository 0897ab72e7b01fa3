"""Shards on a Ray cluster of three nodes, on one machine: throughput, and a node that dies.

Agents that only publish, in processes of their own, offer more than the shards take; a step counts
when a correlator has it. On one machine all shards share the same cores: what they can do together
at most is those cores' processor time divided by what a step costs all processes together, measured
in the same run and named in each row.
"""

from __future__ import annotations

import os
import tempfile
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from interlatent_live.bench.pipeline import (
    HOOKS,
    METRICS,
    POLICY,
    Services,
    processor_s,
    publish_all,
    until_settled,
    write_transcoders,
)
from interlatent_live.bench.progress import progress_bar
from interlatent_live.bench.publisher import Orders
from interlatent_live.bench.ray_cluster import RayCluster
from interlatent_live.bench.report import BenchReport, bench_report, bench_row, median
from interlatent_live.config import on_free_ports, resolve
from interlatent_live.engine.local import LocalEngine
from interlatent_live.engine.port import EventKind, wait_ready
from interlatent_live.engine.ray import RayEngine
from interlatent_live.engine.sharded import Shards, head_specs
from interlatent_live.engine.slots import assign, slot_of
from interlatent_live.errors import UserError
from interlatent_live.feed.client import FeedClient
from interlatent_live.feed.documents import Topic
from interlatent_live.queries.client import StatisticsClient

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from interlatent_live.bench.report import BenchRow
    from interlatent_live.config import Settings

NODES: Final = 3
SHARDS: Final = (1, 2, 3)
PROCESSES: Final = 6
COPIES: Final = 64
HZ: Final = 118.0
START_S: Final = 6.0
READY_WITHIN_S: Final = 180.0
CALM_HZ: Final = 20.0
"""Of the run in which a node dies: the point is what is missing, not how much there is."""
CALM_COPIES: Final = 8
CALM_S: Final = 90.0
AGAIN_ROWS: Final = 2 * CALM_HZ * CALM_COPIES
"""Rows beyond those at the kill that say that a stream goes on: two seconds' worth."""


def run(*, quick: bool = False) -> BenchReport:
    """All rows; ``quick`` once instead of three times.

    Raises:
        UserError: when Ray is not installed.
    """
    repeats, seconds = (1, 4.0) if quick else (3, 6.0)
    rows: list[BenchRow] = []
    with (
        tempfile.TemporaryDirectory() as folder,
        RayCluster(NODES) as cluster,
        progress_bar(repeats * (1 + len(SHARDS)) + 1) as begin,
    ):
        write_transcoders(Path(folder))
        alone = _alone(folder, repeats, seconds, begin)
        measured = [_sharded(folder, shards, repeats, seconds, begin) for shards in SHARDS]
        for shards, (rate, limit) in zip(SHARDS, measured, strict=True):
            rows += _throughput(shards, rate, limit, measured[0][0], alone)
        begin("a node dies")
        rows.append(_node_dies(Path(folder), cluster))
    return bench_report(
        "ray",
        rows,
        notes=(
            f"{NODES} nodes of one Ray cluster on one machine: all share its cores",
            f"{PROCESSES} processes of {COPIES} copies; medians of {repeats} runs of {seconds:g} s",
            "limit: cores ÷ processor time of a step in agents, gateway, encoders, correlators",
            "agents, gateway and Ray's own processes run on the same cores; no explainer runs",
            "which shard a run falls on is its hash's to say: few runs spread unevenly",
            "correlator.depth is core; the node dies with a recorder and snapshots every 5 s",
        ),
    )


def _throughput(
    shards: int, rate: float, limit: float, one: float, alone: float
) -> tuple[BenchRow, ...]:
    case = f"{shards} shard{'s' if shards > 1 else ''}"
    return (
        bench_row(
            f"{case}: throughput",
            rate,
            "steps/s",
            reference="one encoder and one correlator without a gateway, same run",
            reference_value=alone,
            goal="shown",
        ),
        bench_row(
            f"{case}: efficiency",
            rate / (shards * one),
            "share of as many times one shard",
            reference="what these cores allow, same run",
            reference_value=min(1.0, limit / (shards * one)),
            goal="shown",
        ),
        bench_row(
            f"{case}: of what the cores allow",
            rate,
            "steps/s",
            reference="cores ÷ processor time of a step in all processes, same run",
            reference_value=limit,
            goal="shown",
        ),
    )


def _alone(folder: str, repeats: int, seconds: float, begin: Callable[[str], None]) -> float:
    rates = []
    with Services(folder) as services:
        for _ in range(repeats):
            begin("one encoder and one correlator")
            rates.append(services.measure(PROCESSES, 1, copies=COPIES, hz=HZ, seconds=seconds).rate)
    return median(rates)


def _sharded(
    folder: str, shards: int, repeats: int, seconds: float, begin: Callable[[str], None]
) -> tuple[float, float]:
    """Steps/s in the statistics, and the most that the cores would allow."""
    settings = _settings(folder)
    found = []
    with _system(settings, shards, "gateway") as (head, engine):
        for number in range(repeats):
            begin(f"{shards} shards")
            pids = _pids(head, engine)
            found.append(_measure(settings, pids, f"{shards}-{number}-", seconds))
    return median(rate for rate, _ in found), median(limit for _, limit in found)


def _measure(settings: Settings, pids: list[int], name: str, seconds: float) -> tuple[float, float]:
    """Steps/s in the statistics, and the most that the cores would allow, of one run."""
    feeds = (settings.endpoints.encoder_feed, settings.endpoints.correlator_feed)
    with FeedClient(feeds, [Topic.AGENTS, Topic.PROFILES]) as client:
        before = sum(processor_s(pid) for pid in pids)
        orders = _orders(settings, name, copies=COPIES, hz=HZ, seconds=seconds)
        books = publish_all(orders)
        state, at = until_settled(client, name, PROCESSES)
        used = sum(processor_s(pid) for pid in pids) - before
    agents = state.agents.agents if state.agents else []
    runs = {one.run_id for one in agents if one.agent.startswith(name)}
    steps = sum(doc.steps for (run, _), doc in state.profiles.items() if run in runs) // len(HOOKS)
    sent = sum(book["steps"] for book in books)
    each = (used + sum(book["processor_s"] for book in books)) / max(1, sent)
    rate = (steps - PROCESSES * COPIES) / max(1e-9, at - orders[0].start_at)
    return rate, len(os.sched_getaffinity(0)) / max(each, 1e-9)


@contextmanager
def _system(
    settings: Settings, shards: int, *names: str
) -> Iterator[tuple[LocalEngine, RayEngine]]:
    """So many shards on the cluster, and of what there is once the services so named."""
    with (
        LocalEngine(on_line=lambda _: None) as head,
        RayEngine(on_line=lambda _: None) as engine,
    ):
        for spec in head_specs(settings):
            if spec.name in names:
                head.start(spec)
        cluster = Shards(engine, settings)
        cluster.resize(shards)
        wait_ready(head, names, READY_WITHIN_S)
        wait_ready(engine, cluster.names, READY_WITHIN_S)
        yield head, engine


def _pids(head: LocalEngine, engine: RayEngine) -> list[int]:
    """The gateway, and the encoder and correlator of each shard."""
    heads = [one.pid for one in head.status()]
    shards = [one.pid for one in engine.status() if one.pid is not None]
    return [pid for pid in (*heads, *(c for pid in shards for c in _children(pid))) if pid]


def _children(pid: int) -> list[int]:
    folder = Path(f"/proc/{pid}/task")
    lists = [task / "children" for task in folder.iterdir()]
    return [int(word) for one in lists for word in one.read_text(encoding="ascii").split()]


def _node_dies(folder: Path, cluster: RayCluster) -> BenchRow:
    """Seconds from a node's death until its runs' later rows are in the statistics."""
    extra: dict[str, Any] = {
        "recorder.folder": str(folder / "recordings"),
        "recorder.chunk_seconds": 0.5,
        "correlator.replay": [str(folder / "recordings")],
        "correlator.snapshots": str(folder / "snapshots"),
        "correlator.snapshot_every_s": 5.0,
    }
    settings = _settings(str(folder), **extra)
    with (
        _system(settings, NODES, "gateway", "recorder") as (_, engine),
        StatisticsClient(settings.endpoints.correlator_queries, timeout_s=5.0) as client,
    ):
        orders = _orders(settings, "calm-", copies=CALM_COPIES, hz=CALM_HZ, seconds=CALM_S)
        publishing = threading.Thread(target=publish_all, args=(orders,), daemon=True)
        publishing.start()
        _until(lambda: len(seen := _seen(client)) == PROCESSES and min(seen.values()) > AGAIN_ROWS)
        dealt = assign(engine.nodes())
        run = min(_seen(client))
        victim = next(name for name, slots in dealt.items() if slot_of(run) in slots)
        before = _seen(client)[run]
        killed = time.monotonic()
        cluster.kill(engine.nodes()[victim])
        _until(lambda: _seen(client).get(run, 0) > before + AGAIN_ROWS)
        recovered = time.monotonic() - killed
        again = next(
            event.at_s - killed
            for event in engine.events()
            if event.service == victim and event.kind is EventKind.READY and event.at_s > killed
        )
        publishing.join()
    return bench_row(
        "a node dies: later rows of its runs are in the statistics after",
        recovered,
        "s",
        reference="until its shard runs on another node",
        reference_value=again,
        goal="shown",
    )


def _settings(folder: str, **more: Any) -> Settings:
    flags = {
        "encoder.transcoders": [folder],
        "correlator.depth": "core",
        "correlator.publish_every_s": 0.5,
        "console.state": str(Path(folder) / "state"),
        "limits.agents": 64,
        "logging.level": "error",
        **more,
    }
    return on_free_ports(resolve(flags=flags, environment={}).settings)


def _orders(
    settings: Settings, name: str, *, copies: int, hz: float, seconds: float
) -> list[Orders]:
    start_at = time.time() + START_S
    return [
        Orders(
            endpoint=settings.endpoints.agents,
            policy_hash=POLICY,
            hook_points=HOOKS,
            name=f"{name}{number}",
            copies=copies,
            hz=hz,
            seconds=seconds,
            metrics=METRICS,
            start_at=start_at,
        )
        for number in range(PROCESSES)
    ]


def _seen(client: StatisticsClient) -> dict[str, int]:
    """Rows in the statistics, by run; none while nobody answers."""
    try:
        return {one.run_id: one.rows for one in client.runs().items if one.hook_points}
    except UserError:
        return {}


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + CALM_S
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError(f"it did not happen within {CALM_S:g} s")
        time.sleep(0.1)
