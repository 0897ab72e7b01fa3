"""A recording of many agents replayed: the same statistics and verdicts, at what pace.

Twenty agents that encode beside their policies publish 10⁶ steps (17 minutes at 50 Hz) into a real
encoder, correlator, explainer and recorder, as fast as the slowest of these takes them. The files
are then replayed into fresh services, and every number of every feature × metric, every claim with
its verdict and history, and every look is held against the live run's ("Replay equality": counts,
verdicts and look times exactly, r and means to 1e-9). Last, a recorder is killed with SIGKILL while
it writes.
"""

from __future__ import annotations

import os
import signal
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import msgspec
import numpy as np

from interlatent_live.bench.report import BenchReport, bench_report, bench_row
from interlatent_live.config import Resolved, leaves, on_free_ports, resolve
from interlatent_live.engine.launch import service_specs
from interlatent_live.engine.local import LocalEngine
from interlatent_live.engine.port import Phase, wait_ready
from interlatent_live.errors import UserError
from interlatent_live.feed.client import FeedClient
from interlatent_live.feed.documents import Topic
from interlatent_live.feed.state import FeedState
from interlatent_live.queries.client import StatisticsClient
from interlatent_live.recordings import read_recording, recording_provenance
from interlatent_live.recordings.files import recorded_files
from interlatent_live.recordings.origins import with_recorded
from interlatent_live.recordings.playing import Playing, recording_files
from interlatent_live.services.network import Network
from interlatent_live.services.replay import ReplaySystem, replay_settings
from interlatent_live.services.sending import FeatureSender
from interlatent_live.stream import (
    FeatureBatch,
    HookPointSpec,
    Manifest,
    MetricSpec,
    Role,
    SparseCodes,
    Steps,
)
from interlatent_live.wire.codec import encode_features
from interlatent_live.wire.messages import FeaturesMessage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from interlatent_live.bench.report import BenchRow
    from interlatent_live.config import Settings
    from interlatent_live.feed.documents import ClaimsDocument

AGENTS: Final = 20
HZ: Final = 50.0
STEPS: Final = 1_000_000
QUICK_STEPS: Final = 200_000
"""The least from which claims are proposed and verified."""
KILL_STEPS: Final = 60_000
HOOK: Final = "policy.2"
TRANSCODER: Final = "sha256:" + "7" * 64
METRICS: Final = 8
FEATURES: Final = 32
PLANTED: Final = 4
"""Features that are on while a metric is above a threshold; the others follow nothing."""
EPISODE_STEPS: Final = 250
ROWS: Final = 16
"""Of a message of an agent."""
QUEUED_BYTES: Final = 512 * 1024
"""The agents wait while so much waits at the encoder for a consumer: nobody is to lose a row."""
CHUNK_S: Final = 1.0
TOLERANCE: Final = 1e-9
SETTLE_S: Final = 900.0
NULL_DRAWS: Final = 99
FAST_ENOUGH: Final = 10_000.0


def run(
    *, steps: int | None = None, quick: bool = False, progress: Callable[..., None] | None = None
) -> BenchReport:
    """Record, replay, compare, kill.

    Args:
        steps: of all agents together; 10⁶ unless ``quick``.
        quick: 2 × 10⁵ steps.
        progress: told what runs now.

    Raises:
        UserError: when a service does not start or does not finish.
    """
    total = steps or (QUICK_STEPS if quick else STEPS)
    say = progress or (lambda *_: None)
    with tempfile.TemporaryDirectory(prefix="interlatent-replay-bench-") as text:
        folder = Path(text)
        say("recording of", total)
        with _Live(folder / "live", folder / "recordings") as live:
            seconds = live.publish(total)
            live.settle()
            before = _outcome(live.settings, live.state)
        files = recording_files([folder / "recordings"])
        size = sum(path.stat().st_size for path in files)
        resolved = Resolved(_base(folder), {n: "default" for n, _ in leaves(_base(folder))}, None)
        settings = with_recorded(resolved, recording_provenance(files[0]))
        settings = replay_settings(settings, files, folder / "again")
        say("replaying of", total)
        with ReplaySystem(settings) as system:
            counts = system.play(Playing(files).messages(), speed=None)
            if not system.settle(SETTLE_S):
                raise UserError("the replayed runs were not finished in time; the machine is busy")
            after = _outcome(system.settings, system.state)
        say("killing a recorder at about", KILL_STEPS // 2)
        killed = _kill(folder, KILL_STEPS)
    differences = _differences(before, after)
    rows = [
        bench_row(
            f"rows replayed of {total:,}", counts.rows, "rows",
            reference="published", reference_value=total, goal="ratio >= 1",
        ),
        *differences.rows(),
        bench_row(
            "replay through correlator and explainer", counts.rows_per_s, "steps/s",
            reference="live, as fast as they took it", reference_value=total / seconds,
            goal=f"value >= {FAST_ENOUGH:.0f}",
        ),
        bench_row(
            "the same in real time of the recording", counts.rows / (AGENTS * HZ) , "s",
            reference="replayed in (s)",
            reference_value=(counts.ended or counts.began) - counts.began, goal="shown",
        ),
        bench_row(
            "recording", size / total, "bytes/step", reference="files", reference_value=len(files),
            goal="shown",
        ),
        *killed,
    ]  # fmt: skip
    return bench_report(
        "replay",
        rows,
        notes=(
            f"{AGENTS} agents, {FEATURES} features, {METRICS} metrics, {EPISODE_STEPS} steps each.",
            f"{NULL_DRAWS} draws of the null, {differences.looks} looks compared.",
            f"{differences.verified} claims verified.",
            *differences.examples,
        ),
    )


# -- the live run ------------------------------------------------------------------------------


def _base(folder: Path) -> Settings:
    flags = {"logging.level": "warning", "console.state": str(folder / "state")}
    return resolve(flags=flags, environment={}).settings


class _Live:
    """A whole system with a recorder, and agents that publish as fast as it takes them."""

    def __init__(self, state: Path, recordings: Path) -> None:
        flags = {
            "logging.level": "warning",
            "console.state": str(state),
            "recorder.folder": str(recordings),
            "recorder.chunk_seconds": CHUNK_S,
            "explainer.null_draws": NULL_DRAWS,
        }
        self.settings = on_free_ports(resolve(flags=flags, environment={}).settings)
        self.state = FeedState()
        self.runs: set[str] = set()
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        settings = self.settings
        with ExitStack() as stack:
            self.engine = stack.enter_context(LocalEngine(on_line=lambda _: None))
            specs = [
                one for one in service_specs(settings) if one.name not in {"console", "control"}
            ]
            for spec in specs:
                self.engine.start(spec)
            wait_ready(self.engine, [spec.name for spec in specs], 120.0)
            topics = [topic for topic in Topic if topic is not Topic.FEATURES]
            self._client = stack.enter_context(FeedClient(settings.endpoints.feeds(), topics))
            network = stack.enter_context(Network(None))
            agents = settings.endpoints.agents
            self._sender = FeatureSender(network, agents, 64 * 1024 * 1024)
            stack.callback(self._sender.close)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def publish(self, total: int, *, halfway: Callable[[], None] = lambda: None) -> float:
        """Publish ``total`` rows of all agents; the seconds until the encoder had them."""
        agents = [_Agent(number) for number in range(AGENTS)]
        for agent in agents:
            self.runs.add(agent.manifest.run_id)
            self._sender.open_stream(agent.manifest, {HOOK: TRANSCODER}, 0)
        began, sent, half = time.monotonic(), 0, False
        while sent < total:
            for agent in agents:
                rows = min(ROWS, total - sent)
                if rows:
                    batch = agent.batch(rows)
                    self._sender.offer(batch, encode_features(batch, sent_ns=time.time_ns()))
                    sent += rows
            self._turn()
            while self._behind():
                self._turn(wait_s=0.01)
            if not half and sent * 2 >= total:
                half = True
                halfway()
        for agent in agents:
            self._sender.end_stream(agent.manifest.boot_id, SETTLE_S)
        deadline = time.monotonic() + SETTLE_S
        while self._sender.link.boot_ids() and time.monotonic() < deadline:
            self._turn(wait_s=0.01)
        return time.monotonic() - began

    def settle(self) -> None:
        """Wait until statistics and claims have seen everything and the recorder has written it.

        Raises:
            UserError: when that takes too long, or a consumer lost rows.
        """
        deadline = time.monotonic() + SETTLE_S
        while not all(self.state.settled(run_id) for run_id in self.runs):
            self._turn(wait_s=0.05)
            if time.monotonic() > deadline:
                raise UserError("the live runs were not finished in time; the machine is busy")
        self._turn(wait_s=2 * CHUNK_S)
        agents = self.state.agents
        lost = {} if agents is None else {
            one["endpoint"]: one["lost"] for one in agents.service["consumers"] if one["lost"]
        }  # fmt: skip
        if lost:
            raise UserError(f"a consumer lost rows of the live run: {lost}; nothing to compare")

    def kill_recorder(self) -> None:
        """SIGKILL; the engine brings it back."""
        (status,) = [one for one in self.engine.status() if one.name == "recorder"]
        if status.pid is not None and status.phase is Phase.READY:
            os.kill(status.pid, signal.SIGKILL)

    def wait(self, seconds: float) -> None:
        """Let the services work."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self._turn(wait_s=0.05)

    def _behind(self) -> bool:
        queued = self._sender.queued_bytes
        agents = self.state.agents
        if agents is not None:
            queued = max([queued, *(one["queued_bytes"] for one in agents.service["consumers"])])
        return queued > QUEUED_BYTES

    def _turn(self, wait_s: float = 0.0) -> None:
        self._sender.receive()
        self._sender.tick()
        for event in self._client.events(wait_s):
            self.state.take(event)


@dataclass(slots=True)
class _Agent:
    """Metrics that wander and features, some of which follow them; it encodes by itself."""

    number: int
    seq: int = 0
    state: NDArray[np.float64] = field(default_factory=lambda: np.zeros(METRICS))
    random: np.random.Generator = field(init=False)
    manifest: Manifest = field(init=False)

    def __post_init__(self) -> None:
        self.random = np.random.default_rng(self.number)
        name = f"agent-{self.number}"
        self.manifest = Manifest(
            agent=name,
            run_id=f"run-{self.number}",
            boot_id=f"boot-{self.number}",
            policy_hash="sha256:" + "6" * 64,
            hook_points=(HookPointSpec(HOOK, 16, 16),),
            metrics=tuple(
                MetricSpec(f"m{i}", "m", Role.ACTION if i == METRICS - 1 else Role.STATE)
                for i in range(METRICS)
            ),
            control_hz=HZ,
            environment="planted",
        )

    def batch(self, rows: int) -> FeatureBatch:
        """The next rows, as of now."""
        metrics = np.empty((rows, METRICS))
        noise = self.random.normal(size=(rows, METRICS))
        for row in range(rows):
            self.state = 0.9 * self.state + noise[row]
            metrics[row] = self.state
        on = self.random.random((rows, FEATURES)) < 0.05
        for feature in range(PLANTED):
            on[:, feature] = metrics[:, feature] > 2.0
        at, index = np.nonzero(on)
        seqs = np.arange(self.seq, self.seq + rows)
        codes = SparseCodes(
            n_features=FEATURES,
            indptr=np.concatenate([[0], np.cumsum(on.sum(1))]).astype(np.uint32),
            index=index.astype(np.uint32),
            value=(0.5 + self.random.random(len(at))).astype(np.float32),
            error=np.full(rows, np.nan, np.float32),
            error_affine=np.full(rows, np.nan, np.float32),
        )
        steps = Steps(
            first_seq=self.seq,
            env=np.zeros(rows, np.uint16),
            episode=(seqs // EPISODE_STEPS).astype(np.uint32),
            t=(seqs % EPISODE_STEPS).astype(np.uint32),
            time_ns=np.full(rows, time.time_ns(), np.int64) + np.arange(rows),
            controller=np.zeros(rows, np.uint8),
            flags=(seqs % EPISODE_STEPS == EPISODE_STEPS - 1).astype(np.uint8),
            metrics=metrics,
        )
        self.seq += rows
        return FeatureBatch(
            self.manifest.run_id,
            self.manifest.boot_id,
            steps,
            {HOOK: codes},
            {HOOK: TRANSCODER},
            time.time_ns(),
        )


# -- comparing ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Outcome:
    """All numbers of all runs, their discoveries, and their claims."""

    columns: dict[str, dict[str, Any]]
    looks: dict[str, Any]
    claims: dict[str, ClaimsDocument]


@dataclass(slots=True)
class _Differences:
    counts: int = 0
    counts_compared: int = 0
    largest: float = 0.0
    numbers_compared: int = 0
    undefined: int = 0
    """Numbers that are defined in one and not in the other."""
    verdicts: int = 0
    claims: int = 0
    claims_compared: int = 0
    looks_differ: int = 0
    looks: int = 0
    verified: int = 0
    examples: list[str] = field(default_factory=list)

    def rows(self) -> Iterator[BenchRow]:
        """As rows of the report: differences beside how many were compared."""
        for case, value, unit, compared, bar in (
            ("counts that differ", self.counts, "counts", self.counts_compared, 0),
            ("largest difference of r, means and all else", self.largest, "of max(1, |x|)",
             self.numbers_compared, TOLERANCE),
            ("numbers undefined in one only", self.undefined, "numbers", self.numbers_compared, 0),
            ("verdicts that differ", self.verdicts, "verdicts", self.claims_compared, 0),
            ("claims that differ in anything", self.claims, "claims", self.claims_compared, 0),
            ("looks that differ in rows, draws or time", self.looks_differ, "looks", self.looks, 0),
        ):  # fmt: skip
            yield bench_row(
                case, value, unit, reference="compared", reference_value=compared,
                goal=f"value <= {bar:g}",
            )  # fmt: skip


def _outcome(settings: Settings, state: FeedState) -> _Outcome:
    columns, looks = {}, {}
    with StatisticsClient(settings.endpoints.correlator_queries, timeout_s=60.0) as client:
        for number in range(AGENTS):
            run = f"run-{number}"
            columns[run] = client.columns(run=run, hook_point=HOOK)
            found = client.discoveries(run=run, hook_point=HOOK, procedure="by", limit=200)
            looks[run] = [msgspec.to_builtins(one) for one in found.looks]
    claims = {run: document for (run, _), document in state.claims.items()}
    return _Outcome(columns, looks, claims)


def _differences(before: _Outcome, after: _Outcome) -> _Differences:
    found = _Differences()
    for run, live in before.columns.items():
        for name, values in live.items():
            _compare_column(found, f"{run} {name}", values, after.columns[run][name])
        _compare_looks(found, run, before.looks[run], after.looks[run])
        _compare_claims(found, run, before.claims[run], after.claims[run])
    return found


def _compare_column(found: _Differences, name: str, live: Any, again: Any) -> None:
    if not isinstance(live, np.ndarray) or live.dtype.kind != "f":
        different = sum(bool(a != b) for a, b in zip(list(live), list(again), strict=True))
        found.counts += different
        found.counts_compared += len(live)
        if different:
            found.examples.append(f"{name}: {different} differ")
        return
    defined = ~np.isnan(live)
    unlike = int((defined != ~np.isnan(again)).sum())
    both = defined & ~np.isnan(again)
    a, b = live[both].astype(np.float64), again[both].astype(np.float64)
    same = a == b
    gap = np.abs(a - b)[~same] / np.maximum(1.0, np.abs(a[~same]))
    worst = float(gap.max(initial=0.0))
    found.undefined += unlike
    found.numbers_compared += len(live)
    found.largest = max(found.largest, worst)
    if unlike or worst > TOLERANCE:
        found.examples.append(f"{name}: {worst:.3g}, {unlike} undefined in one")


def _compare_looks(found: _Differences, run: str, live: list[Any], again: list[Any]) -> None:
    found.looks += len(live)
    different = sum(a != b for a, b in zip(live, again, strict=False))
    different += abs(len(live) - len(again))
    found.looks_differ += different
    if different:
        found.examples.append(f"{run} discoveries: {live} then {again}")


def _compare_claims(
    found: _Differences, run: str, live: ClaimsDocument, again: ClaimsDocument
) -> None:
    _compare_looks(
        found, run,
        [msgspec.to_builtins(one) for one in live.looks],
        [msgspec.to_builtins(one) for one in again.looks],
    )  # fmt: skip
    theirs = {one["address"]: one for one in again.claims}
    found.claims_compared += len(live.claims)
    for claim in live.claims:
        other = theirs.pop(claim["address"], None)
        found.verified += claim["verdict"] == "verified"
        found.verdicts += other is None or claim["verdict"] != other["verdict"]
        if other is None or claim != other:
            found.claims += 1
            keys = [key for key in claim if other is None or claim[key] != other.get(key)]
            found.examples.append(f"{run} {claim['address']}: {', '.join(keys)} differ")
    found.claims += len(theirs)
    found.verdicts += len(theirs)


# -- killing -----------------------------------------------------------------------------------


def _kill(folder: Path, total: int) -> list[BenchRow]:
    """What a killed recorder costs: every row is in a file or declared lost in the next one."""
    recordings = folder / "killed"
    with _Live(folder / "live-2", recordings) as live:
        seconds = live.publish(total, halfway=live.kill_recorder)
        live.wait(6 * CHUNK_S)
    rows: set[tuple[str, int]] = set()
    declared: set[tuple[str, int]] = set()
    files = recorded_files(recordings)
    for file in files:
        for one in read_recording(file.path):
            if not isinstance(one.message, FeaturesMessage):
                continue
            boot_id, steps = one.message.batch.boot_id, one.message.batch.steps
            rows.update((boot_id, steps.first_seq + row) for row in range(len(steps)))
            for drop in one.message.drops:
                declared.update((boot_id, drop.first_seq + row) for row in range(drop.count))
    everything = {
        (f"boot-{number}", seq)
        for number in range(AGENTS)
        for seq in range(_rows_of(number, total))
    }
    return [
        bench_row(
            "kill -9 of the recorder: rows neither in a file nor declared lost",
            len(everything - rows - declared), "rows",
            reference="published", reference_value=total, goal="value <= 0",
        ),
        bench_row(
            "kill -9 of the recorder: rows lost", len(everything - rows), "rows",
            reference=f"published in a chunk's {CHUNK_S:g} s",
            reference_value=total / seconds * CHUNK_S, goal="ratio <= 1",
        ),
        bench_row(
            "kill -9 of the recorder: files that open", len(files), "files",
            reference="recorders", reference_value=2, goal="ratio >= 1",
        ),
    ]  # fmt: skip


def _rows_of(number: int, total: int) -> int:
    """Rows of one agent: they publish in turns, ``ROWS`` at a time, until all are published."""
    turns, rest = divmod(total, AGENTS * ROWS)
    return turns * ROWS + max(0, min(ROWS, rest - number * ROWS))
