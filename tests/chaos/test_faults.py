"""Some faults put to the real path, as ``interlatent-live bench chaos`` puts them all."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from interlatent_live.bench.chaos.bench import put_to_the_path
from interlatent_live.bench.chaos.faults.disk import DiskFull
from interlatent_live.bench.chaos.faults.many import (
    EncoderOutOfDescriptors,
    ManyAgents,
    SupervisorFrozen,
)
from interlatent_live.bench.chaos.faults.modes import ClockJumpsBack
from interlatent_live.bench.chaos.faults.network import Cuts
from interlatent_live.bench.chaos.faults.processes import EncoderKilled

if TYPE_CHECKING:
    from interlatent_live.bench.chaos.table import FaultRow

pytestmark = pytest.mark.chaos


def test_broken_processes_and_networks_lose_nothing_in_silence() -> None:
    said: list[str] = []
    rows = put_to_the_path((EncoderKilled, Cuts), 1.0, said.append)
    assert said == ["starting the services", EncoderKilled.name, Cuts.name]
    check(rows)


def test_what_runs_out_costs_what_is_declared_and_comes_back() -> None:
    """No room on the disk, no descriptor, no reader of the log."""
    faults = (SupervisorFrozen, DiskFull, EncoderOutOfDescriptors)
    rows = put_to_the_path(faults, 2.0, lambda _: None)
    check(rows)
    assert [row.complaints for row in rows] == [()] * len(rows)


def test_a_thousand_agents_and_a_clock_that_jumps_back_are_lived_through() -> None:
    rows = put_to_the_path((ManyAgents, ClockJumpsBack), 2.0, lambda _: None)
    check(rows)
    assert not any("not let in" in said for row in rows for said in row.complaints)


def check(rows: list[FaultRow]) -> None:
    for row in rows:
        assert row.undeclared == 0, row
        assert row.recovered_s is not None, row
        assert row.sent == row.acknowledged + sum(row.declared.values()), row
        assert row.received > 0, row
        assert not row.leaks, row
