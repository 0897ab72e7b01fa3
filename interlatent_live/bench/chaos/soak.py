"""The whole live path for minutes and millions of steps: does anything leak, stop or get lost?

All services under ``interlatent-live up``, several processes that publish steps, a last consumer
with books of its own. Once a second it is written down what every process holds; after a warm-up,
in which bounded tables fill, neither memory nor descriptors may grow (:mod:`.slope`).
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import msgspec
import numpy as np

from interlatent_live.bench.chaos.policy import HOOKS, METRICS, WIDTH, build_policy
from interlatent_live.bench.chaos.resources import holding
from interlatent_live.bench.chaos.rig import SUPERVISOR, Rig
from interlatent_live.bench.chaos.slope import BLOCK_S, slope
from interlatent_live.bench.chaos.soak_agent import Began, Books, Orders
from interlatent_live.bench.report import BenchReport, bench_report, bench_row
from interlatent_live.engine.launch import SERVICES
from interlatent_live.policies.hashing import policy_hash

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from interlatent_live.bench.report import BenchRow

MINUTES: Final = 10.0
STEPS: Final = 10_000_000
AGENTS: Final = 4
COPIES: Final = 32
MARGIN: Final = 1.1
"""Steps offered per second, over what the time and the steps asked for make."""
PATIENCE: Final = 2.0
"""So many times the minutes asked for are waited for the steps asked for."""
WARM_UP: Final = 0.3
"""Share of the time in which bounded tables may fill."""
MEMORY_BOUND: Final = 1.0
"""Bytes a step: less than one small object kept for every message of rows."""
SAMPLE_S: Final = 1.0
SHORT_BLOCKS: Final = 6
SNAPSHOT_S: Final = 60.0
KEPT_ENDS: Final = 8
SETTLES_WITHIN_S: Final = 30.0
MEBI: Final = 2**20
FLAGS: Final[Mapping[str, Any]] = {
    # Small enough that every table is full before the warm-up ends: only then can growth be told
    # from filling.
    "limits.evidence_bytes": 4 * MEBI,
    "limits.statistics_bytes": 64 * MEBI,
    "correlator.snapshot_every_s": SNAPSHOT_S,
    "correlator.publish_every_s": 5.0,
    "console.narrations_kept": 100,
    "console.replay_bytes": 4 * MEBI,
    # The supervisor says at this level why a service ended.
    "logging.level": "info",
}
ENDS: Final = ("exited", "unresponsive", "killed", "failed")
"""Words of the supervisor about a service that did not end as it should."""


@dataclass(slots=True)
class _Samples:
    """What one process held, once a second."""

    pid: int
    at: list[float] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)
    fds: list[float] = field(default_factory=list)
    restarts: int = 0

    def take(self, pid: int, at: float) -> None:
        """One sample; a new process begins anew."""
        held = holding(pid)
        if held is None:
            return
        if pid != self.pid:
            self.restarts += 1
            self.pid = pid
            for one in (self.at, self.memory, self.fds):
                one.clear()
        self.at.append(at)
        self.memory.append(float(held.anonymous_bytes))
        self.fds.append(float(held.fds))


def run(
    *,
    minutes: float = MINUTES,
    steps: int = STEPS,
    quick: bool = False,
    progress: Callable[..., None] | None = None,
) -> BenchReport:
    """At least ``minutes`` and at least ``steps``; ``quick`` two minutes at the same rate.

    Raises:
        RuntimeError: when the path does not come up, or a publishing process fails.
    """
    if quick:
        minutes, steps = minutes / 5, steps // 5
    say = progress or (lambda *_: None)
    say("starting the services")
    with tempfile.TemporaryDirectory() as folder, Rig(Path(folder), FLAGS) as rig:
        rate = MARGIN * steps / (minutes * 60)
        with _Publishers(rig.endpoint, rate) as publishers:
            samples, seconds, ends = _watch(rig, publishers, minutes, steps, say)
            say("waiting for the last rows")
            books = publishers.end()
        found = _settled(rig, publishers.boots, sum(book.steps for book in books))
    offer = (
        f"{AGENTS} processes publish {COPIES} copies each, 2 hook points 64 wide, {METRICS} "
        f"metrics, {rate:,.0f} steps/s offered"
    )
    return bench_report(
        "soak",
        _rows(minutes, steps, seconds, found, _Run(books, samples)),
        notes=(
            offer,
            "encoder, correlator (full statistics), explainer, console, one more consumer",
            (
                f"slopes: Theil–Sen over the least of {_block_s(seconds, SNAPSHOT_S):.0f} s for "
                f"memory, medians of {_block_s(seconds):.0f} s for descriptors, after the first "
                f"{WARM_UP:.0%} of the time"
            ),
            *ends[:KEPT_ENDS],
        ),
    )


class _Publishers:
    """The publishing processes; a context manager."""

    def __init__(self, endpoint: str, rate: float) -> None:
        identity = policy_hash(build_policy())
        self.boots: list[str] = []
        self._orders = [
            Orders(
                endpoint=endpoint,
                policy_hash=identity,
                hook_points=HOOKS,
                width=WIDTH,
                metrics=METRICS,
                name=f"soak-{number}",
                copies=COPIES,
                hz=rate / AGENTS / COPIES,
            )
            for number in range(AGENTS)
        ]
        self._processes: list[subprocess.Popen[bytes]] = []
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        """Start them, and wait until each has named its stream."""
        with ExitStack() as undo:
            undo.callback(self._kill)
            for orders in self._orders:
                self._processes.append(_start(orders))
            for process in self._processes:
                self.boots.append(msgspec.json.decode(_line(process), type=Began).boot_id)
            self._stack = undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        """End them, however that goes."""
        self._stack.close()

    def pids(self) -> dict[str, int]:
        """By name, of those that run."""
        return {
            orders.name: process.pid
            for orders, process in zip(self._orders, self._processes, strict=True)
        }

    def check(self) -> None:
        """Raise when one has ended by itself.

        Raises:
            RuntimeError: naming it.
        """
        for orders, process in zip(self._orders, self._processes, strict=True):
            if process.poll() is not None:
                raise RuntimeError(f"{orders.name} ended with {process.returncode}")

    def end(self) -> list[Books]:
        """Let them close their taps; their books."""
        for process in self._processes:
            if process.stdin is not None:
                process.stdin.close()
        return [msgspec.json.decode(_line(process), type=Books) for process in self._processes]

    def _kill(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()


def _start(orders: Orders) -> subprocess.Popen[bytes]:
    return subprocess.Popen(  # noqa: S603 - our own module, by this very interpreter
        [
            sys.executable,
            "-m",
            "interlatent_live.bench.chaos.soak_agent",
            msgspec.json.encode(orders).decode(),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def _line(process: subprocess.Popen[bytes]) -> bytes:
    line = b"" if process.stdout is None else process.stdout.readline()
    if not line:
        raise RuntimeError(f"a publishing process ended with {process.wait()}")
    return line


def _watch(
    rig: Rig,
    publishers: _Publishers,
    minutes: float,
    steps: int,
    say: Callable[..., None],
) -> tuple[dict[str, _Samples], float, list[str]]:
    """Until both are reached: what everybody held, how long it took, and what ended meanwhile."""
    samples: dict[str, _Samples] = {}
    ends: list[str] = []
    began = time.monotonic()
    due = began
    while True:
        at = time.monotonic() - began
        pids = rig.pids()
        for name, pid in {**pids, **publishers.pids()}.items():
            samples.setdefault(name, _Samples(pid)).take(pid, at)
        publishers.check()
        while rig.lines:
            line = rig.lines.popleft()
            if any(f'"event": "{word}"' in line for word in ENDS):
                ends.append(line)
        seen = sum(rig.witness.newest(boot) for boot in publishers.boots)
        say(f"{at / 60:.1f} of {minutes:g} minutes, steps", seen)
        done = at >= minutes * 60 and seen >= steps
        if done or at >= PATIENCE * minutes * 60:
            return samples, at, ends
        due += SAMPLE_S
        time.sleep(max(0.0, due - time.monotonic()))


@dataclass(frozen=True, slots=True)
class _Found:
    """The last consumer's books over all streams."""

    received: int
    twice: int
    declared: int
    undeclared: int


def _settled(rig: Rig, boots: Sequence[str], steps: int) -> _Found:
    """Once every row is in the last consumer's books, or as they stand after a while."""

    def look() -> _Found:
        found = [rig.witness.found(boot) for boot in boots]
        return _Found(
            received=sum(one.received for one in found),
            twice=sum(one.twice for one in found),
            declared=sum(one.declared for one in found),
            undeclared=sum(one.undeclared for one in found),
        )

    def complete() -> bool:
        found = look()
        return found.received + found.declared >= steps

    rig.wait(complete, SETTLES_WITHIN_S)
    return look()


@dataclass(frozen=True, slots=True)
class _Run:
    """What the agents counted and what everybody held."""

    books: Sequence[Books]
    samples: Mapping[str, _Samples]


def _rows(
    minutes: float,
    steps: int,
    seconds: float,
    found: _Found,
    measured: _Run,
) -> list[BenchRow]:
    books, samples = measured.books, measured.samples
    taken = sum(book.steps for book in books)
    lost = sum(sum(book.lost.values()) for book in books)
    at_agents = sum(abs(book.steps - book.acknowledged - sum(book.lost.values())) for book in books)
    at_end = max(found.undeclared, abs(taken - found.received - found.declared))
    rows = [
        _held("steps taken by the agents", taken, "steps", "asked for", steps),
        bench_row(
            "steps that reached the last consumer",
            float(found.received),
            "steps",
            reference="taken by the agents",
            reference_value=float(taken),
            goal="shown",
        ),
        _held("time", seconds / 60, "minutes", "asked for", minutes),
        bench_row(
            "rate, all services running",
            taken / seconds,
            "steps/s",
            reference="of them reached the last consumer",
            reference_value=found.received / seconds,
            goal="shown",
        ),
        _none("steps lost undeclared or delivered twice", at_agents + at_end + found.twice, taken),
        bench_row(
            "steps declared lost, by agents and encoder together",
            float(found.declared),
            "steps",
            reference="declared by the agents themselves",
            reference_value=float(lost),
            goal="shown",
        ),
        _none("errors inside the taps", sum(book.faults for book in books), taken),
    ]
    for name in (SUPERVISOR, *SERVICES, *sorted(samples.keys() - {SUPERVISOR, *SERVICES})):
        rows += _growth(name, samples.get(name), seconds, taken)
    return rows


def _growth(
    name: str, samples: _Samples | None, seconds: float, steps: int
) -> tuple[BenchRow, ...]:
    """How memory and descriptors of one process grew.

    Raises:
        RuntimeError: when it was never there.
    """
    if samples is None:
        raise RuntimeError(f"{name} was never up")
    restarts = _none(f"{name}: restarts", samples.restarts, 1)
    at, memory, fds = (np.array(one) for one in (samples.at, samples.memory, samples.fds))
    kept = at >= WARM_UP * seconds
    try:
        # A copy for a snapshot comes and goes: its block has moments without it.
        growing = slope(
            at[kept], memory[kept], block_s=_block_s(seconds, SNAPSHOT_S), of_block=np.min
        )
        opening = slope(at[kept], fds[kept], block_s=_block_s(seconds))
    except ValueError:
        # It was there for too short a time to say more than that it had to be started again.
        return (restarts,)
    per_step = seconds / steps
    return (
        bench_row(
            f"{name}: growth of memory, upper 95 % bound",
            growing.high * per_step,
            "bytes/step",
            reference="lower bound",
            reference_value=growing.low * per_step,
            goal=f"value <= {MEMORY_BOUND:g}",
        ),
        bench_row(
            f"{name}: memory at the end",
            memory[-1] / MEBI,
            "MiB",
            reference="after the warm-up",
            reference_value=memory[kept][0] / MEBI,
            goal="shown",
        ),
        bench_row(
            f"{name}: growth of descriptors, upper 95 % bound",
            opening.high * 60,
            "1/minute",
            reference="descriptors at the end",
            reference_value=float(fds[-1]),
            goal="value <= 0",
        ),
        restarts,
    )


def _block_s(seconds: float, longest_s: float = BLOCK_S) -> float:
    """Seconds of a block of samples: a short look has short ones."""
    return min(longest_s, (1 - WARM_UP) * seconds / SHORT_BLOCKS)


def _held(case: str, value: float, unit: str, reference: str, wanted: float) -> BenchRow:
    return bench_row(
        case, float(value), unit, reference=reference, reference_value=float(wanted),
        goal=f"value >= {wanted:g}",
    )  # fmt: skip


def _none(case: str, value: float, of: float) -> BenchRow:
    return bench_row(
        case, float(value), "", reference="of", reference_value=float(of), goal="value <= 0"
    )
