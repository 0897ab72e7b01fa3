from __future__ import annotations

import numpy as np
import pytest

from interlatent_live.errors import UserError
from interlatent_live.statistics.config import CorrelatorConfig
from interlatent_live.statistics.correlator import Correlator
from interlatent_live.statistics.drift import DriftMonitor, FeatureDrift, power_bet
from interlatent_live.stream import MetricSpec
from tests.statistics.streams import codes_from_dense, part, sparse_dense, steps_of


def test_bets_have_mean_one_for_uniform_p():
    # p = exp(−s) turns the singularity at 0 into a tail: ∫ f(e^−s) e^−s ds.
    s = np.linspace(0, 400, 400_001)
    value = power_bet(np.exp(-s)) * np.exp(-s)
    assert np.trapezoid(value, s) == pytest.approx(1.0, abs=1e-3)


def test_run_length_keeps_the_stated_rate():
    rng = np.random.default_rng(0)
    alarms, panes = 0, 0
    for run in range(40):
        monitor = DriftMonitor(("x", "y"), 32, mean_panes_to_false_alarm=200, seed=run)
        for _ in range(232):
            hit = monitor.update(rng.normal(size=2))
            panes += 1
            if hit:
                alarms += 1
                break
    assert panes - 40 * 32 >= alarms * 200


def test_a_shift_is_found_soon_with_its_side_and_time():
    rng = np.random.default_rng(1)
    monitor = DriftMonitor(("a", "b", "c"), 64, mean_panes_to_false_alarm=1e4)
    for _ in range(200):
        assert monitor.update(rng.normal(size=3)) == ()
    shift = np.array([0.0, -4.0, 0.0])
    for _ in range(60):
        found = monitor.update(rng.normal(size=3) + shift)
        if found:
            break
    assert [alarm.name for alarm in found] == ["b"]
    assert found[0].pane < 220
    assert 185 <= found[0].since <= 205
    assert found[0].recent_mean < found[0].reference_mean
    monitor.acknowledge("b")
    assert all(monitor.update(rng.normal(size=3) + shift) == () for _ in range(100))


def test_unknown_values_neither_help_nor_hurt():
    rng = np.random.default_rng(2)
    x = rng.normal(size=300)
    with_gaps, without = DriftMonitor(("a",), 32), DriftMonitor(("a",), 32)
    for value in x:
        without.update([value])
    for value in x:
        with_gaps.update([np.nan])
        with_gaps.update([value])
    assert with_gaps.filled[0] == without.filled[0] == 32
    np.testing.assert_array_equal(with_gaps.values, without.values)
    with pytest.raises(UserError, match="do not fit"):
        without.update([1.0, 2.0])


def test_state_restores():
    rng = np.random.default_rng(3)
    x = rng.normal(size=(200, 2))
    straight, first = DriftMonitor(("a", "b"), 32), DriftMonitor(("a", "b"), 32)
    for row in x:
        straight.update(row)
    for row in x[:90]:
        first.update(row)
    second = DriftMonitor(("a", "b"), 32)
    second.load(first.arrays())
    for row in x[90:]:
        second.update(row)
    np.testing.assert_array_equal(straight.evidence, second.evidence)


def test_feature_drift_from_panes_of_a_stream():
    rng = np.random.default_rng(4)
    n = 20_000
    dense = sparse_dense(rng, n, 4, 0.3)
    changed = n // 2
    dense[changed:, 1] *= rng.random(n - changed) < 0.3
    metrics = rng.normal(size=(n, 1))
    metrics[:changed, 0] += dense[:changed, 2]
    steps = steps_of(metrics, envs=2, episode_steps=100)
    config = CorrelatorConfig(pane_steps=100, drift=True, episodic=False, sliding=(), half_lives=())
    correlator = Correlator((MetricSpec("m"),), 4, config)
    drift = FeatureDrift((0, 1, 2), ((2, "m"), (0, "m")), reference=48)
    found = {}
    for low in range(0, n, 500):
        codes = codes_from_dense(dense[low : low + 500])
        codes.error[:] = 0.1
        correlator.update(part(steps, low, low + 500), codes)
        for summary in correlator.drain_panes():
            assert summary.fvu == pytest.approx(0.1, abs=1e-6)
            for alarm in drift.update(summary):
                found[alarm.name] = alarm.pane
    assert set(found) == {"density:1", "r:2:m"}
    assert all(changed // 100 < pane < changed // 100 + 60 for pane in found.values())
