"""The benchmark of the tap's cost runs as the command runs it, and its arithmetic is right."""

from __future__ import annotations

import numpy as np
import pytest

from interlatent_live.bench import hook, paired
from interlatent_live.bench.registry import BENCHES


def test_added_time_is_the_paired_difference():
    rng = np.random.default_rng(0)
    bare = rng.normal(100.0, 1.0, (40, 50)) + rng.normal(0, 30, (40, 1))
    tapped = bare + 7.0
    assert paired.added_median(tapped, bare) == pytest.approx(7.0)
    assert paired.added_p99(tapped, bare) == pytest.approx(7.0)
    assert paired.upper_bound(tapped, bare, paired.added_median) == pytest.approx(7.0)


@pytest.mark.slow
def test_the_benchmark_runs():
    assert BENCHES["hook"] == "interlatent_live.bench.hook:run"
    report = hook.run(quick=True)
    assert len(report.rows) == 29
    added = [row for row in report.rows if row.case.endswith("added time per step")]
    assert len(added) == 8
    assert all(row.value > 0 for row in added)
    assert any("Humanoid" in row.case for row in report.rows)
