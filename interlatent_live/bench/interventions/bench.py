"""``bench interventions``: from a click to an agent that holds, and what ends when things die."""

from __future__ import annotations

import random
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from interlatent_live.bench.interventions.agent_process import LEASE_S
from interlatent_live.bench.interventions.measures import (
    click_to_hold,
    end_by,
    frozen_stops,
    killer,
    moved_while_stopped,
    reverted_after,
)
from interlatent_live.bench.interventions.real import DATA, Rig
from interlatent_live.bench.interventions.schedules import random_schedule
from interlatent_live.bench.interventions.virtual import run_schedules
from interlatent_live.bench.progress import progress_bar
from interlatent_live.bench.report import BenchReport, BenchRow, bench_report, bench_row
from interlatent_live.control.commands import Operation

if TYPE_CHECKING:
    from collections.abc import Iterable

PERIOD_MS: Final = 20.0
SEED: Final = 20_261_123
LATENCY: Final = "click to "


@dataclass(frozen=True, slots=True)
class InterventionsReport(BenchReport):
    """A report whose promises decide: one that is broken fails the command."""

    happened: tuple[tuple[str, str, int], ...] = ()
    """Where, what and how often: a schedule in which nothing happened proves nothing."""

    @property
    def failed(self) -> bool:
        """Whether a promise broke; a latency over its bar alone is a missed goal."""
        return any(not row.met for row in self.rows if not row.case.startswith(LATENCY))

    def details(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """How often each thing happened in the random schedules."""
        rows: list[tuple[str, ...]] = [
            (where, what, f"{count:,}") for where, what, count in self.happened
        ]
        return ("random schedules", "what happened", "times"), rows


def run(*, quick: bool = False) -> InterventionsReport:
    """Measure; ``quick`` does little of each, to see that it works.

    Raises:
        UserError: when a process does not start.
    """
    clicks, virtual, real = (10, 100, 1) if quick else (200, 1000, 30)
    rows: list[BenchRow] = []
    with (
        tempfile.TemporaryDirectory(prefix="interlatent-interventions-") as folder,
        progress_bar(5 + real) as begin,
    ):
        begin("from click to hold")
        with Rig(Path(folder) / "watched", period_ms=PERIOD_MS, watched=True) as rig:
            for operation in (Operation.HOLD, Operation.STOP):
                rows += _latency(f"{operation}", click_to_hold(rig, clicks, operation))
            times = click_to_hold(rig, clicks, Operation.HOLD, console=True)
            rows += _latency("hold, in the console", times)
            begin("with frozen services")
            rows += _latency(
                "stop, encoder, correlator and explainer frozen",
                frozen_stops(rig, max(10, clicks // 2)),
            )
            begin("a stop while everything is restarted")
            parts: tuple[str, ...] = ("agent", "control")
            if not quick:
                parts = (*parts, "console", *DATA, "agent")
            moved = moved_while_stopped(rig, parts)
            rows.append(_none(f"stopped, then restarted {', '.join(parts)}: steps moved", moved))
            begin("with dead operators and services")
            rows += _deaths(rig, quick=quick)
        begin("schedules in virtual time")
        broken, happened = run_schedules(virtual, SEED)
        rows.append(_none(f"{virtual} schedules in virtual time: promises broken", len(broken)))
        counted = [("virtual time", happened)]
        notes = broken[:20]
        found: list[str] = []
        acts: Counter[str] = Counter()
        with Rig(Path(folder) / "schedules", period_ms=PERIOD_MS) as rig:
            for number in range(real):
                begin(f"schedule {number + 1} of {real} with real processes")
                broke, count = random_schedule(rig, random.Random(SEED + number))
                found += [f"schedule {number}: {what}" for what in broke]
                acts += count
        rows.append(_none(f"{real} schedules with real processes: promises broken", len(found)))
        counted.append(("real processes", acts))
        notes += found[:20]
    report = bench_report("interventions", rows, notes=notes)
    return InterventionsReport(
        report.name, report.rows, report.machine, report.versions, report.notes,
        tuple((where, *one) for where, counts in counted for one in counts.most_common()),
    )  # fmt: skip


def _deaths(rig: Rig, *, quick: bool) -> list[BenchRow]:
    """What ends a terminal's steering, and how long after; in a quick look only the ends of it."""
    after = reverted_after(rig, killer(rig, "operator"))
    out = [_reverted("operator killed", after, LEASE_S * 1000, "the lease")]
    cases: tuple[tuple[str, ...], ...] = (("control", "console", "encoder"),)
    if not quick:
        cases = (("control",), *cases, ("operator", "control", "console", *DATA))
    for names in cases:
        after = reverted_after(rig, killer(rig, *names))
        out.append(_reverted(f"{', '.join(names)} killed", after, LEASE_S * 1000, "the lease"))
        rig.start("control")
        if "encoder" in names and names != cases[-1]:
            rig.start("console")
            rig.start("encoder")
    after = reverted_after(rig, end_by(rig, Operation.REVERT))
    out.append(_reverted("reverted by somebody else", after, 50.0, "a click"))
    return out


def _latency(case: str, times_ms: Iterable[float]) -> list[BenchRow]:
    """P99 against one step and 50 ms, which is what was promised; p50 beside it."""
    times = list(times_ms)
    p50, p99 = (float(np.percentile(times, q)) for q in (50, 99))
    step = f"one step of {PERIOD_MS:g} ms"
    return [
        bench_row(
            f"{LATENCY}{case}, p{q} of {len(times)}", value, "ms",
            reference=step, reference_value=PERIOD_MS, goal=goal,
        )
        for q, value, goal in ((99, p99, f"value <= {PERIOD_MS + 50:g}"), (50, p50, "shown"))
    ]  # fmt: skip


def _reverted(case: str, after_ms: float, allowed_ms: float, what: str) -> BenchRow:
    return bench_row(
        f"{case}: last steered step after", after_ms, "ms",
        reference=what, reference_value=allowed_ms, goal=f"value <= {allowed_ms + PERIOD_MS:g}",
    )  # fmt: skip


def _none(case: str, count: int) -> BenchRow:
    return bench_row(
        case, float(count), "", reference="none allowed", reference_value=1.0, goal="value <= 0"
    )
