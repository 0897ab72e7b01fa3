"""The table of faults: one row each, and the report that carries it beside the judged figures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from interlatent_live.bench.chaos.steptime import MEDIAN_BOUND_US, P99_BOUND_US
from interlatent_live.bench.report import (
    BenchReport,
    bench_row,
    machine_facts,
    version_facts,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from interlatent_live.bench.chaos.faults.fault import Fault
    from interlatent_live.bench.chaos.measure import Outcome
    from interlatent_live.bench.report import BenchRow

HEADER: Final = (
    "fault",
    "×",
    "p50",
    "p99",
    "floor",
    "sent",
    "lost",
    "at end",
    "silent",
    "back",
    "remarks",
)
"""Short enough for a terminal of 80 columns; docs/faults.md says what each means."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultRow:
    """One fault as it is committed; rows are steps of one agent copy, times µs unless said.

    The ``added`` and ``floor`` figures are upper ends of 95 % intervals, see :mod:`.steptime`; all
    times are ``None`` when the fault was over before one pair of blocks was kept.
    """

    name: str
    about: str
    rounds: int
    nobody_us: float | None
    fault_us: float | None
    ratio: float | None
    added_median_upper_us: float | None
    added_p99_upper_us: float | None
    floor_median_upper_us: float | None = None
    floor_p99_upper_us: float | None = None
    sent: int
    acknowledged: int
    declared: Mapping[str, int]
    received: int
    """Rows that reached the last consumer."""
    declared_at_end: int
    """Rows that the last consumer was told are lost, by agent or encoder."""
    undeclared: int
    recovered_s: float | None
    leaks: Sequence[str]
    complaints: Sequence[str]
    memory_bytes: int

    @property
    def median_held(self) -> bool:
        """Whether the bound of the median step holds."""
        return _within(self.added_median_upper_us, MEDIAN_BOUND_US)

    @property
    def p99_held(self) -> bool:
        """Whether the bound of the 99th percentile holds."""
        return _within(self.added_p99_upper_us, P99_BOUND_US)

    @property
    def floor_held(self) -> bool:
        """Whether two taps with nobody listening keep the bound of the 99th percentile."""
        return _within(self.floor_p99_upper_us, P99_BOUND_US)

    @property
    def held(self) -> bool:
        """Whether nothing was lost in silence and all came back."""
        return self.undeclared == 0 and self.recovered_s is not None


@dataclass(frozen=True, slots=True)
class ChaosReport(BenchReport):
    """A report with the whole table."""

    faults: tuple[FaultRow, ...] = ()

    @property
    def failed(self) -> bool:
        """Whether a fault lost rows in silence or was not recovered from."""
        return not all(row.held for row in self.faults)

    def details(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """The table in words: its header and its rows."""
        return HEADER, [cells(row) for row in self.faults]


def row_of(outcome: Outcome) -> FaultRow:
    """What is kept of one outcome."""
    times = outcome.times
    return FaultRow(
        name=outcome.fault.name,
        about=outcome.fault.about,
        rounds=times.rounds if times else 0,
        nobody_us=times.nobody_us if times else None,
        fault_us=times.fault_us if times else None,
        ratio=times.fault_us / times.nobody_us if times else None,
        added_median_upper_us=times.added_median_upper_us if times else None,
        added_p99_upper_us=times.added_p99_upper_us if times else None,
        floor_median_upper_us=times.floor_median_upper_us if times else None,
        floor_p99_upper_us=times.floor_p99_upper_us if times else None,
        sent=outcome.steps,
        acknowledged=outcome.acknowledged,
        declared=outcome.declared,
        received=outcome.received,
        declared_at_end=outcome.declared_at_witness,
        undeclared=outcome.undeclared,
        recovered_s=outcome.recovered_s,
        leaks=outcome.leaks,
        complaints=outcome.complaints,
        memory_bytes=outcome.memory_bytes,
    )


def unmeasured(kind: type[Fault], why: str) -> FaultRow:
    """The row of a fault under which nothing could be measured: it counts as not recovered from."""
    return FaultRow(
        name=kind.name,
        about=kind.about,
        rounds=0,
        nobody_us=None,
        fault_us=None,
        ratio=None,
        added_median_upper_us=None,
        added_p99_upper_us=None,
        sent=0,
        acknowledged=0,
        declared={},
        received=0,
        declared_at_end=0,
        undeclared=0,
        recovered_s=None,
        leaks=(),
        complaints=(why,),
        memory_bytes=0,
    )


def chaos_report(rows: Sequence[FaultRow], notes: Sequence[str]) -> ChaosReport:
    """The table with the figures that have a bound."""
    return ChaosReport(
        "chaos", tuple(_judged(rows)), machine_facts(), version_facts(), tuple(notes), tuple(rows)
    )


def _judged(rows: Sequence[FaultRow]) -> list[BenchRow]:
    found = [
        bench_row(
            "steps lost undeclared, all faults together",
            float(sum(row.undeclared for row in rows)),
            "steps",
            reference="steps sent",
            reference_value=float(sum(row.sent for row in rows)),
            goal="value <= 0",
        ),
        bench_row(
            "faults that were not recovered from",
            float(sum(row.recovered_s is None for row in rows)),
            "faults",
            reference="faults",
            reference_value=float(len(rows)),
            goal="value <= 0",
        ),
    ]
    for row in rows:
        if row.nobody_us is None:
            continue
        for what, value, floor, bound in (
            ("median", row.added_median_upper_us, row.floor_median_upper_us, MEDIAN_BOUND_US),
            ("p99", row.added_p99_upper_us, row.floor_p99_upper_us, P99_BOUND_US),
        ):
            found.append(
                bench_row(
                    f"{row.name}: added to the {what} step, upper 95 % bound",
                    float(value or 0.0),
                    "µs",
                    reference="the same of two taps with nobody listening",
                    reference_value=float(floor or 0.0),
                    goal=f"value <= {bound:g}",
                )
            )
    return found


def cells(row: FaultRow) -> tuple[str, ...]:
    """One row in words, as :data:`HEADER` has it."""
    return (
        row.name,
        "–" if row.ratio is None else f"{row.ratio:.2f}",
        _us(row.added_median_upper_us, ".1f"),
        _us(row.added_p99_upper_us, ".0f"),
        _us(row.floor_p99_upper_us, ".0f"),
        f"{row.sent:,}",
        f"{sum(row.declared.values()):,}",
        f"{row.declared_at_end:,}",
        f"{row.undeclared:,}",
        "never" if row.recovered_s is None else f"{row.recovered_s:.1f}",
        "; ".join((*row.leaks, *row.complaints)) or "–",
    )


def _us(value: float | None, digits: str) -> str:
    return "–" if value is None else f"{value:{digits}}"


def _within(value: float | None, bound: float) -> bool:
    return value is not None and value <= bound
