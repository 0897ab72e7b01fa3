"""The live path from publishing processes to published features and statistics, on this machine.

Real services under the engine, real sockets, agents that only publish (2 hook points of width 64,
dictionaries of 256, 12 metrics). Rate: eight processes of 64 copies each offer more than the goal;
a step counts when the correlator has it, and one that it never gets is lost, wherever that was.
Latency: one process at 1,000 steps/s. Many agents: up to 200 identities at 50 Hz in eight
processes, with the encoder's processor time per step.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import msgpack  # type: ignore[import-untyped]
import msgspec
import numpy as np
import zmq

from interlatent_live.bench.progress import progress_bar
from interlatent_live.bench.publisher import Orders
from interlatent_live.bench.report import BenchReport, bench_report, bench_row, median
from interlatent_live.config import on_free_ports, resolve
from interlatent_live.engine.launch import service_specs
from interlatent_live.engine.local import LocalEngine
from interlatent_live.engine.port import wait_ready
from interlatent_live.feed.client import FeedClient
from interlatent_live.feed.documents import Topic
from interlatent_live.feed.state import FeedState

if TYPE_CHECKING:
    from collections.abc import Callable

    from interlatent_live.bench.report import BenchRow
    from interlatent_live.config import Settings
    from interlatent_live.feed.documents import AgentStatus

POLICY = "sha256:" + "b" * 64
HOOKS = {"layer.0": (64, 64), "layer.1": (64, 64)}
FEATURES = 256
METRICS = 12
PROCESSES = 8
COPIES = 64
HZ = 118.0
"""Eight processes so offer 60,416 steps/s: more than the bar, since a run's last row ends it."""
AGENTS = (8, 40, 104, 200)
MEASURED = frozenset({"encoder", "correlator"})
START_S = 5.0
"""From the order to the first step: eight interpreters start on two cores."""
CONNECT_S = 0.02
"""The same for each agent that connects."""
SETTLE_S = 15.0
"""Longest wait for the last row after the publishers ended."""
STUCK_S = 3.0
"""Nothing new for so long: what is not there then is not counted as processed."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One run of publishers against the services."""

    steps: int
    connecting: int
    """Of them, those that taps connected with, before the time began."""
    encoded: int
    processed: int
    """Steps in the newest profiles, which a correlator of many runs publishes in turns."""
    declared: int
    undeclared: int
    seconds: float
    p50_ms: float
    p99_ms: float
    publish_us: float
    agents_us: float
    """Processor time of the publishing processes per step, from their first step to their last."""
    encoder_us: float
    """Processor time of the encoder per step, from the first step to the last one correlated.

    Agents that connect, that are waited for, and that say goodbye are no part of it.
    """
    correlator_us: float

    @property
    def rate(self) -> float:
        """Steps per second, from the first step after connecting to the last one correlated."""
        return (self.processed - self.connecting) / self.seconds


def run(*, quick: bool = False) -> BenchReport:
    """All cases; ``quick`` once instead of five times."""
    # Sustained: what the last row waits for its turn to be published is small beside 20 s.
    repeats, seconds = (1, 4.0) if quick else (5, 20.0)
    rows: list[BenchRow] = []
    with tempfile.TemporaryDirectory() as folder, progress_bar(2 * repeats + len(AGENTS)) as begin:
        write_transcoders(Path(folder))
        with Services(folder) as services:
            rows += _rate_rows(services, repeats, seconds, begin)
            rows += _latency_rows(services, repeats, 4.0, begin)
            rows += _agent_rows(services, 4.0, begin)
    return bench_report(
        "pipeline",
        rows,
        notes=(
            "agents only publish; encoder and correlator are processes of their own",
            "the explainer is not started; correlator.depth is core",
            f"medians over {repeats} runs of {seconds:g} s (rate) and 4 s (latency)",
            "the curve over agents is one run of 4 s each",
            "taps connect with one step before the time begins",
        ),
    )


def write_transcoders(folder: Path) -> None:
    """Random dictionaries with about 16 features on per step, bound to :data:`POLICY`."""
    import torch  # noqa: PLC0415 - the publishers import this module's neighbour without torch

    from interlatent_live.transcoders.config import (  # noqa: PLC0415
        Architecture,
        TranscoderConfig,
    )
    from interlatent_live.transcoders.native import Provenance, save_transcoder  # noqa: PLC0415
    from interlatent_live.transcoders.transcoder import Transcoder  # noqa: PLC0415

    random = torch.Generator().manual_seed(0)
    for name, (d_in, d_out) in HOOKS.items():
        transcoder = Transcoder(
            config=TranscoderConfig(
                architecture=Architecture.BATCHTOPK,
                d_in=d_in,
                d_out=d_out,
                n_features=FEATURES,
                k=16,
            ),
            W_enc=torch.randn(d_in, FEATURES, generator=random) / d_in**0.5,
            b_enc=torch.zeros(FEATURES),
            W_dec=torch.randn(FEATURES, d_out, generator=random),
            b_dec=torch.zeros(d_out),
            threshold=torch.full((FEATURES,), 1.534),
        )
        provenance = Provenance(policy_hash=POLICY, hook_point=name)
        save_transcoder(folder / name, transcoder, provenance)


def _rate_rows(
    services: Services, repeats: int, seconds: float, begin: Callable[[str], None]
) -> list[BenchRow]:
    loops, found = [], []
    for number in range(repeats):
        begin(f"rate, run {number + 1} of {repeats}")
        loops.append(unbatched_loop(1.0))
        found.append(services.measure(PROCESSES, 1, copies=COPIES, hz=HZ, seconds=seconds))
    reference = ("unbatched build, PUSH, PULL, decode in one process", median(loops))
    lost = [1 - one.processed / one.steps for one in found]
    offered = PROCESSES * COPIES * HZ
    return [
        bench_row(
            f"steps/s encoded and correlated, {PROCESSES} processes × {COPIES} copies",
            median(one.rate for one in found),
            "steps/s",
            reference=reference[0],
            reference_value=reference[1],
            goal="value >= 50000",
        ),
        bench_row(
            "share of steps lost at that rate",
            median(lost),
            "1",
            reference="bound",
            reference_value=0.001,
            goal="value <= 0.001",
        ),
        bench_row(
            "steps lost undeclared at that rate",
            float(max(one.undeclared for one in found)),
            "steps",
            reference="bound",
            reference_value=0.0,
            goal="value <= 0",
        ),
        bench_row(
            f"publishing call of {COPIES} copies",
            median(one.publish_us for one in found),
            "µs",
            reference="time between two calls at this rate",
            reference_value=1e6 / HZ,
            goal="shown",
        ),
        *(
            bench_row(
                f"processor time per step, {who}",
                median(getattr(one, name) for one in found),
                "µs",
                reference="two cores at the offered rate",
                reference_value=2e6 / offered,
                goal="shown",
            )
            for who, name in (
                ("the eight publishing processes", "agents_us"),
                ("encoder", "encoder_us"),
                ("correlator", "correlator_us"),
            )
        ),
    ]


def _latency_rows(
    services: Services, repeats: int, seconds: float, begin: Callable[[str], None]
) -> list[BenchRow]:
    found = []
    for number in range(repeats):
        begin(f"latency, run {number + 1} of {repeats}")
        found.append(services.measure(1, 1, copies=1, hz=1000.0, seconds=seconds))
    return [
        bench_row(
            "step → published feature at 1,000 steps/s, p99",
            median(one.p99_ms for one in found),
            "ms",
            reference="p50 in the same runs",
            reference_value=median(one.p50_ms for one in found),
            goal="value <= 20",
        )
    ]


def _agent_rows(services: Services, seconds: float, begin: Callable[[str], None]) -> list[BenchRow]:
    rows: list[BenchRow] = []
    first: Measured | None = None
    for agents in AGENTS:
        begin(f"{agents} agents at 50 Hz")
        one = services.measure(PROCESSES, agents // PROCESSES, copies=1, hz=50.0, seconds=seconds)
        first = first or one
        at = f"{agents} agents at 50 Hz"
        rows += [
            bench_row(
                f"encoder's processor time per step, {at}",
                one.encoder_us,
                "µs",
                reference="8 agents",
                reference_value=first.encoder_us,
                goal="ratio <= 1",
            ),
            bench_row(
                f"step → feature p99, {at}",
                one.p99_ms,
                "ms",
                reference="p50 in the same run",
                reference_value=one.p50_ms,
                goal="shown",
            ),
            bench_row(
                f"share of steps without features, {at}",
                1 - one.encoded / one.steps,
                "1",
                reference="bound at the full rate",
                reference_value=0.001,
                goal="value <= 0.001",
            ),
        ]
    return rows


class Services:
    """Encoder and correlator under an engine, for one measurement after another.

    Args:
        folder: with the transcoders of :func:`write_transcoders`.
    """

    def __init__(self, folder: str) -> None:
        self._settings = _settings(folder)
        self._stack = ExitStack()
        self._runs = 0
        self._pids: dict[str, int] = {}

    def __enter__(self) -> Self:
        """Start them and wait until they are ready."""
        with ExitStack() as stack:
            engine = stack.enter_context(LocalEngine(on_line=lambda _: None))
            specs = [one for one in service_specs(self._settings) if one.name in MEASURED]
            for spec in specs:
                engine.start(spec)
            wait_ready(engine, [spec.name for spec in specs], 120.0)
            self._pids = {one.name: one.pid for one in engine.status() if one.pid is not None}
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        """Stop them."""
        self._stack.close()

    def measure(
        self, processes: int, agents: int, *, copies: int, hz: float, seconds: float
    ) -> Measured:
        """Publish, and wait until everything is through.

        Raises:
            RuntimeError: when a publisher failed, or a service did.
        """
        self._runs += 1
        name = f"run-{self._runs}-"
        endpoints = self._settings.endpoints
        feeds = (endpoints.encoder_feed, endpoints.correlator_feed)
        with FeedClient(feeds, [Topic.AGENTS, Topic.PROFILES]) as client:
            start_at = time.time() + START_S + CONNECT_S * processes * agents
            orders = [
                Orders(
                    endpoint=endpoints.agents,
                    policy_hash=POLICY,
                    hook_points=HOOKS,
                    name=f"{name}{number}",
                    agents=agents,
                    copies=copies,
                    hz=hz,
                    seconds=seconds,
                    metrics=METRICS,
                    start_at=start_at,
                )
                for number in range(processes)
            ]
            before, after = self._processor_s(), self._processor_s()
            clock = threading.Timer(
                start_at - time.time(), lambda: before.update(self._processor_s())
            )
            clock.start()
            try:
                books = publish_all(orders)
                state, at = until_settled(
                    client, name, processes * agents, lambda: after.update(self._processor_s())
                )
            finally:
                clock.cancel()
                clock.join()
        used = {name: after[name] - before[name] for name in self._pids}
        seen = _of(state, name)
        runs = {one.run_id for one in seen}
        steps = sum(book["steps"] for book in books)
        connecting = processes * agents * copies
        timed = max(steps - connecting, 1)
        processed = [doc.steps for (run, _), doc in state.profiles.items() if run in runs]
        latencies = [one.step_to_feature_ms for one in seen]
        return Measured(
            steps=steps,
            connecting=connecting,
            encoded=sum(one.steps_encoded for one in seen),
            processed=sum(processed) // len(HOOKS),
            declared=sum(sum(book["lost"].values()) for book in books),
            undeclared=sum(one.gaps_undeclared for one in seen),
            seconds=at - start_at,
            p50_ms=median(one.p50 or 0.0 for one in latencies) if latencies else float("nan"),
            p99_ms=max((one.p99 or 0.0 for one in latencies), default=float("nan")),
            publish_us=median(book["publish_us_p50"] for book in books),
            agents_us=sum(book["processor_s"] for book in books) * 1e6 / timed,
            encoder_us=used["encoder"] * 1e6 / timed,
            correlator_us=used["correlator"] * 1e6 / timed,
        )

    def _processor_s(self) -> dict[str, float]:
        """What each service has used so far."""
        return {name: processor_s(pid) for name, pid in self._pids.items()}


def _settings(folder: str) -> Settings:
    flags = {
        "encoder.transcoders": [folder],
        "correlator.depth": "core",
        "correlator.publish_every_s": 0.5,
        "limits.agents": 256,
        "logging.level": "error",
    }
    return on_free_ports(resolve(flags=flags, environment={}).settings)


def publish_all(orders: list[Orders]) -> list[dict[str, Any]]:
    """Carry out orders, each in a process of its own; their books.

    Raises:
        RuntimeError: when one of them failed.
    """
    command = [sys.executable, "-m", "interlatent_live.bench.publisher"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    running = [
        subprocess.Popen(  # noqa: S603 - our own module, by this very interpreter
            [*command, msgspec.json.encode(one).decode()],
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for one in orders
    ]
    books = []
    try:
        for process in running:
            out, _ = process.communicate(timeout=120)
            if process.returncode:
                raise RuntimeError(f"a publisher ended with {process.returncode}")
            books.append(json.loads(out))
    finally:
        for process in running:
            process.kill()
            process.wait()
    return books


def until_settled(
    client: FeedClient, name: str, runs: int, on_growth: Callable[[], None] = lambda: None
) -> tuple[FeedState, float]:
    """Until the correlator has all rows of every run so named; the state, and when that was.

    ``on_growth`` is called whenever more rows of them are seen there: the wait for rows that do not
    come is nobody's work.
    """
    state = FeedState(max_runs=8192)
    deadline = time.monotonic() + SETTLE_S
    newest = time.time()
    total, grew_at = -1, time.monotonic()
    while time.monotonic() < min(deadline, grew_at + STUCK_S):
        for event in client.events(0.1):
            state.take(event)
        seen = {one.run_id: one for one in _of(state, name)}
        mine = [document for (run, _), document in state.profiles.items() if run in seen]
        found = sum(document.steps for document in mine)
        if found != total:
            total, grew_at = found, time.monotonic()
            on_growth()
            newest = max((document.published_ns / 1e9 for document in mine), default=newest)
        ended = [one for one in seen.values() if one.ended]
        if len(ended) >= runs and all(_through(state, one) for one in ended):
            break
    return state, newest


def _of(state: FeedState, name: str) -> list[AgentStatus]:
    agents = state.agents.agents if state.agents else []
    return [one for one in agents if one.agent.startswith(name)]


def _through(state: FeedState, status: AgentStatus) -> bool:
    documents = [document for (run, _), document in state.profiles.items() if run == status.run_id]
    wanted = status.steps_encoded
    return len(documents) == len(HOOKS) and all(one.steps >= wanted for one in documents)


def processor_s(pid: int) -> float:
    """User and system time of a process so far, in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def unbatched_loop(seconds: float) -> float:
    """Steps/s of the plainest design: one message a step, built, sent, received and decoded."""
    context: zmq.Context[Any] = zmq.Context()
    pull = context.socket(zmq.PULL)
    push = context.socket(zmq.PUSH)
    port = pull.bind_to_random_port("tcp://127.0.0.1")
    push.connect(f"tcp://127.0.0.1:{port}")
    x = [np.ones(64, np.float32) for _ in range(4)]
    metrics = np.ones(METRICS)
    header = {"run": "run", "env": 0, "t": 0, "shapes": [64, 64, 64, 64, METRICS]}
    count = 0
    began = time.perf_counter()
    while time.perf_counter() - began < seconds:
        for t in range(100):
            header["t"] = t
            push.send_multipart([msgpack.packb(header), *x, metrics])
        for _ in range(100):
            frames = pull.recv_multipart()
            msgpack.unpackb(frames[0])
            for frame in frames[1:5]:
                np.frombuffer(frame, np.float32)
            np.frombuffer(frames[5], np.float64)
        count += 100
    rate = count / (time.perf_counter() - began)
    push.close(0)
    pull.close(0)
    context.term()
    return rate
