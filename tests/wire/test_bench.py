from __future__ import annotations

import pytest

from interlatent_live.bench.wire import run


@pytest.mark.slow
def test_the_bench_measures_both_ends_and_loses_nothing():
    report = run(quick=True)
    judged = [row for row in report.rows if row.goal != "shown"]
    assert {row.case for row in judged} == {"messages, no encryption", "messages, CURVE"}
    assert all(row.value > 0 and row.reference_value > 0 for row in report.rows)
