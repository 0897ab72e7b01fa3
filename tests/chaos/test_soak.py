"""A soak of seconds: every row is there, and what must hold at once holds."""

from __future__ import annotations

import pytest

from interlatent_live.bench.chaos.soak import run
from interlatent_live.engine.launch import SERVICES

pytestmark = pytest.mark.chaos


def test_a_short_soak_counts_every_step_and_looks_at_every_process():
    said = []
    report = run(minutes=0.3, steps=20_000, progress=lambda *words: said.append(words))
    rows = {row.case: row for row in report.rows}
    for case in (
        "steps taken by the agents",
        "time",
        "steps lost undeclared or delivered twice",
        "errors inside the taps",
    ):
        assert rows[case].met, rows[case]
    reached = rows["steps that reached the last consumer"].value
    declared = rows["steps declared lost, by agents and encoder together"].value
    assert reached + declared == rows["steps taken by the agents"].value
    for name in ("supervisor", *SERVICES, "soak-0", "soak-3"):
        assert rows[f"{name}: restarts"].value == 0
        assert rows[f"{name}: memory at the end"].value > 10
        assert rows[f"{name}: growth of descriptors, upper 95 % bound"].reference_value > 5
    assert any("minutes, steps" in words[0] for words in said)
