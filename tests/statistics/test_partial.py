from __future__ import annotations

import numpy as np
import pytest

from interlatent_live.errors import UserError
from interlatent_live.statistics.config import CorrelatorConfig
from interlatent_live.statistics.correlator import Correlator
from interlatent_live.statistics.partial import partial_associations
from interlatent_live.stream import MetricSpec, Role
from tests.statistics.streams import codes_from_dense, known, part, steps_of

SPECS = (
    MetricSpec("cause"),
    MetricSpec("copy"),
    MetricSpec("free"),
    MetricSpec("torque", role=Role.ACTION),
)
CONFIG = CorrelatorConfig(grid_rows=64, pass_rows=256)


def fed(noise=0.5, n=8000, offset=1e6):
    rng = np.random.default_rng(0)
    cause, free = rng.normal(size=n), rng.normal(size=n)
    copy = cause + noise * rng.normal(size=n)
    metrics = np.column_stack([cause, copy, free, rng.normal(size=n)]) + offset
    dense = np.zeros((n, 2), np.float32)
    dense[:, 0] = np.maximum(cause + 0.3 * rng.normal(size=n), 0)
    dense[:, 1] = np.maximum(rng.normal(size=n), 0)
    steps = steps_of(metrics, envs=2, episode_steps=100)
    correlator = Correlator(SPECS, 2, CONFIG)
    for low in range(0, n, 1000):
        correlator.update(part(steps, low, low + 1000), codes_from_dense(dense[low : low + 1000]))
    return correlator, dense, metrics


def test_agrees_with_least_squares_on_the_rows():
    correlator, dense, metrics = fed()
    profile = partial_associations(correlator, [0], ridge=0.0)[0]
    x = metrics[:, :3] - metrics[:, :3].mean(axis=0)
    x /= x.std(axis=0)
    y = (dense[:, 0] - dense[:, 0].mean()) / dense[:, 0].std()
    beta = np.linalg.lstsq(x, y, rcond=None)[0]
    got = [known(item.beta) for item in profile.metrics]
    assert [item.metric for item in profile.metrics] == ["cause", "copy", "free"]
    np.testing.assert_allclose(got, beta, atol=1e-6)
    assert profile.condition_number == pytest.approx(np.linalg.cond(np.corrcoef(x.T)), rel=1e-6)


def test_a_relation_only_through_another_metric_vanishes():
    correlator, _, _ = fed()
    marginal = correlator.profile(0).metric("copy")
    assert known(marginal.r) > 0.6
    cause, copy, free = partial_associations(correlator, [0])[0].metrics
    assert known(cause.lo) > 0.5
    assert known(copy.lo) < 0 < known(copy.hi)
    assert abs(known(copy.beta)) < 0.05
    assert known(free.lo) < 0 < known(free.hi)


def test_metrics_that_determine_each_other_give_null_with_the_reason():
    correlator, _, _ = fed(noise=0.05)
    cause, copy, free = partial_associations(correlator, [0])[0].metrics
    assert cause.beta is None
    assert "VIF" in cause.reasons["beta"]
    assert known(copy.vif) > 30
    assert free.beta is not None


def test_constant_metrics_are_left_out_with_the_reason():
    rng = np.random.default_rng(1)
    metrics = np.column_stack([np.full(2000, 3.0), rng.normal(size=(2000, 3))])
    dense = (rng.random((2000, 2)) < 0.3).astype(np.float32)
    correlator = Correlator(SPECS, 2, CONFIG)
    correlator.update(steps_of(metrics), codes_from_dense(dense))
    first, second, _ = partial_associations(correlator, [0])[0].metrics
    assert first.beta is None
    assert "did not vary" in first.reasons["beta"]
    assert second.beta is not None


def test_refusals():
    correlator, _, _ = fed(n=2000)
    with pytest.raises(UserError, match="ridge"):
        partial_associations(correlator, [0], ridge=-1)
    with pytest.raises(UserError, match="episodic"):
        partial_associations(Correlator(SPECS, 2, CorrelatorConfig.core()), [0])
