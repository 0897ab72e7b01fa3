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

    from interlatent_live.bench.chaos.measure import Outcome
    from interlatent_live.bench.report import BenchRow

HEADER: Final = (
    "fault",
    "step time",
    "added median",
    "added p99",
    "sent",
    "acknowledged",
    "declared",
    "at the end: arrived",
    "at the end: declared",
    "undeclared",
    "recovered after",
    "leaks and complaints",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultRow:
    """One fault as it is committed; rows are steps of one agent copy, times µs unless said.

    The two ``added`` figures are upper ends of 95 % intervals, see :mod:`.steptime`; all five times
    are ``None`` when the fault was over before one pair of blocks was kept.
    """

    name: str
    about: str
    rounds: int
    nobody_us: float | None
    fault_us: float | None
    ratio: float | None
    added_median_upper_us: float | None
    added_p99_upper_us: float | None
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
    def unchanged(self) -> bool:
        """Whether both bounds of the step time hold."""
        median, p99 = self.added_median_upper_us, self.added_p99_upper_us
        if median is None or p99 is None:
            return False
        return median <= MEDIAN_BOUND_US and p99 <= P99_BOUND_US

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
        for what, value, bound in (
            ("median", row.added_median_upper_us, MEDIAN_BOUND_US),
            ("p99", row.added_p99_upper_us, P99_BOUND_US),
        ):
            found.append(
                bench_row(
                    f"{row.name}: added to the {what} step, upper 95 % bound",
                    float(value or 0.0),
                    "µs",
                    reference="median step of the tap with nobody listening",
                    reference_value=row.nobody_us,
                    goal=f"value <= {bound:g}",
                )
            )
    return found


def cells(row: FaultRow) -> tuple[str, ...]:
    """One row in words, as :data:`HEADER` has it."""
    return (
        row.name,
        "–" if row.ratio is None else f"× {row.ratio:.2f}",
        _us(row.added_median_upper_us),
        _us(row.added_p99_upper_us),
        f"{row.sent:,}",
        f"{row.acknowledged:,}",
        ", ".join(f"{rows:,} {reason}" for reason, rows in row.declared.items()) or "0",
        f"{row.received:,}",
        f"{row.declared_at_end:,}",
        f"{row.undeclared:,}",
        "not in 60 s" if row.recovered_s is None else f"{row.recovered_s:.1f} s",
        "; ".join((*row.leaks, *row.complaints)) or "none",
    )


def _us(value: float | None) -> str:
    return "–" if value is None else f"{value:+.1f} µs"
