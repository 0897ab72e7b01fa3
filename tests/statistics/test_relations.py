"""Planted relations are found with the right sign, lag and partial association; nothing leaks."""

from __future__ import annotations

import numpy as np
import pytest

from interlatent_live.errors import UserError
from interlatent_live.statistics.config import CorrelatorConfig, EventSpec
from interlatent_live.statistics.correlator import Correlator
from interlatent_live.statistics.partial import partial_associations
from interlatent_live.statistics.screening import discoveries_e
from interlatent_live.stream import MetricSpec, StepFlag
from tests.statistics.streams import ar1, codes_from_dense, known, part, steps_of

SPECS = tuple(MetricSpec(name) for name in ("linear", "threshold", "lagged", "failing", "through"))
CONFIG = CorrelatorConfig(grid_rows=256, pass_rows=1024, pane_steps=1024, sliding=(4096,))
ENVS, LENGTH, EPISODES = 4, 100, 240
N = LENGTH * EPISODES
QUIET = 5


@pytest.fixture(scope="module")
def planted() -> tuple[Correlator, np.ndarray, np.ndarray]:
    """Features 0 … 4 are related to the metric of their number; 5 to none."""
    rng = np.random.default_rng(0)
    z = ar1(rng, 0.8, (LENGTH, EPISODES, 6))
    d = ar1(rng, 0.8, (LENGTH, EPISODES, 5))
    failing = np.arange(EPISODES) % 3 == 0
    a = np.zeros((LENGTH, EPISODES, 6))
    a[..., 0] = np.maximum(-0.6 * d[..., 0] + 0.8 * z[..., 0] - 0.8, 0)
    a[..., 1] = (d[..., 1] > 1.0) * (1.0 + 0.1 * np.abs(z[..., 1]))
    a[..., 2] = np.maximum(z[..., 2] - 0.8, 0)
    d[7:, :, 2] = 0.9 * z[:-7, :, 2] + 0.45 * rng.normal(size=(LENGTH - 7, EPISODES))
    follows = np.where(failing[None], 0.7 * d[..., 3], 0.0)
    a[..., 3] = np.maximum(follows + 0.7 * z[..., 3] - 0.8, 0)
    d[..., 4] = 0.8 * d[..., 0] + 0.6 * rng.normal(size=(LENGTH, EPISODES))
    a[..., 4] = a[..., 0]
    a[..., QUIET] = np.maximum(z[..., QUIET] - 1.2, 0)
    # Copy e runs episodes e, e + 4, …; rows of the four copies interleave.
    order = np.arange(EPISODES).reshape(-1, ENVS)
    dense = a.transpose(1, 0, 2)[order].transpose(0, 2, 1, 3).reshape(N, 6).astype(np.float32)
    metrics = d.transpose(1, 0, 2)[order].transpose(0, 2, 1, 3).reshape(N, 5)
    steps = steps_of(metrics, envs=ENVS, episode_steps=LENGTH)
    number = steps.episode.astype(int) * ENVS + steps.env
    last = steps.t == LENGTH - 1
    steps.flags[last] = np.where(
        failing[number[last]], int(StepFlag.TERMINATED), int(StepFlag.TRUNCATED)
    )
    correlator = Correlator(SPECS, 6, CONFIG)
    for low in range(0, N, 500):
        correlator.update(part(steps, low, low + 500), codes_from_dense(dense[low : low + 500]))
    return correlator, dense, metrics


def test_linear_relation_has_its_sign_and_an_honest_interval(planted):
    correlator, dense, metrics = planted
    item = correlator.profile(0).metric("linear")
    assert known(item.hi) < -0.3
    assert item.r == pytest.approx(np.corrcoef(dense[:, 0], metrics[:, 0])[0, 1], abs=1e-9)
    assert known(item.n_eff) < N / 2
    assert known(item.auroc) < 0.4


def test_threshold_relation_shows_in_auroc_and_effect_size(planted):
    item = planted[0].profile(1).metric("threshold")
    assert known(item.auroc) > 0.99
    assert known(item.effect_size) > 2
    assert known(item.mean_on) > 1.0 > known(item.mean_off)


def test_lagged_relation_is_found_at_its_lag(planted):
    lagged = planted[0].lag_profiles(2)[2]
    assert lagged.metric == "lagged"
    assert lagged.peak == 7
    assert known(lagged.peak_r) > 0.5
    assert abs(lagged.r[lagged.lags.index(0)]) < known(lagged.peak_r) / 2


def test_relation_only_in_failing_episodes_shows_in_that_slice(planted):
    correlator = planted[0]
    failing = correlator.profile(3, "slice:terminated").metric("failing")
    others = correlator.profile(3, "slice:truncated").metric("failing")
    assert known(failing.lo) > 0.3
    assert abs(known(others.r)) < 0.1


def test_relation_only_through_another_metric_vanishes_in_the_partial(planted):
    correlator = planted[0]
    assert known(correlator.profile(4).metric("through").hi) < -0.2
    items = {item.metric: item for item in partial_associations(correlator, [4])[0].metrics}
    assert known(items["linear"].hi) < -0.3
    assert known(items["through"].lo) < 0 < known(items["through"].hi)


def test_discoveries_are_the_planted_ones(planted):
    found = {(f.feature, f.metric) for f in discoveries_e(planted[0]).findings}
    assert found >= {(0, "linear"), (1, "threshold"), (4, "through"), (4, "linear")}
    assert not any(feature == QUIET for feature, _ in found)


def test_lags_bouts_and_events_agree_with_a_loop_and_never_cross_an_episode(planted):
    correlator, dense, metrics = planted
    lags = correlator.lag_profiles(2)[0]
    a = dense.reshape(-1, LENGTH, ENVS, 6).transpose(0, 2, 1, 3).reshape(-1, LENGTH, 6)
    d = metrics.reshape(-1, LENGTH, ENVS, 5).transpose(0, 2, 1, 3).reshape(-1, LENGTH, 5)
    for lag in (-16, -3, 0, 7, 16):
        span = LENGTH - abs(lag)
        left, right = (0, lag) if lag >= 0 else (-lag, 0)
        x = a[:, left : left + span, 2].ravel().astype(float)
        y = d[:, right : right + span, 0].ravel()
        at = lags.lags.index(lag)
        assert lags.pairs[at] == len(x)
        assert lags.r[at] == pytest.approx(np.corrcoef(x, y)[0, 1], abs=1e-9)
    on = a[..., 2] > 0
    starts = on & ~np.concatenate([np.zeros((len(on), 1), bool), on[:, :-1]], axis=1)
    profile = correlator.profile(2)
    assert profile.bouts == starts.sum()
    assert profile.dwell_mean == pytest.approx(on.sum() / starts.sum())
    assert profile.episodes == on.any(axis=1).sum()
    fails = np.arange(EPISODES) % 3 == 0
    event = correlator.event_profile(2, "terminated")
    order = np.arange(EPISODES).reshape(-1, ENVS).ravel()
    failed = a[fails[order]]
    for h in (0, 5, 64):
        assert event.fires[h] == pytest.approx((failed[:, LENGTH - 1 - h, 2] > 0).mean())
    assert event.base == pytest.approx(on.mean())


def test_decomposition_tells_within_from_between():
    rng = np.random.default_rng(1)
    episodes, length = 200, 60
    level = rng.normal(size=(episodes, 1))
    own = rng.normal(size=(episodes, length))
    a = np.maximum(2.0 + level - 0.5 * own, 0.01)
    d = 2.0 * level + own
    dense = a.reshape(-1, 1).astype(np.float32)
    steps = steps_of(d.reshape(-1, 1) + 1e5, envs=1, episode_steps=length)
    correlator = Correlator((MetricSpec("m"),), 1, CONFIG)
    correlator.update(steps, codes_from_dense(dense))
    parts = correlator.decomposition()
    x, y = dense.reshape(episodes, length).astype(float), d
    cx, cy = x - x.mean(axis=1, keepdims=True), y - y.mean(axis=1, keepdims=True)
    within = (cx * cy).sum() / np.sqrt((cx**2).sum() * (cy**2).sum())
    assert parts["within"][0, 0] == pytest.approx(within, abs=1e-8)
    between = np.corrcoef(x.mean(axis=1), y.mean(axis=1))[0, 1]
    assert parts["between"][0, 0] == pytest.approx(between, abs=1e-8)
    assert parts["within"][0, 0] < 0 < parts["between"][0, 0]
    assert np.isnan(parts["between_envs"][0, 0])


def test_a_feature_that_fires_before_the_event_peaks_at_its_lead():
    rng = np.random.default_rng(2)
    episodes, length = 120, 80
    on = rng.random((episodes, length)) < 0.05
    on[:, length - 1 - 12] = True
    dense = np.where(on, rng.random((episodes, length)) + 1, 0).reshape(-1, 1).astype(np.float32)
    steps = steps_of(rng.normal(size=(len(dense), 1)), episode_steps=length)
    correlator = Correlator((MetricSpec("m"),), 1, CONFIG)
    correlator.update(steps, codes_from_dense(dense))
    profile = correlator.event_profile(0, "terminated")
    assert profile.peak == 12
    assert profile.fires[12] == 1.0
    assert profile.follows[64] > profile.event_base[64]
    assert correlator.deep is not None
    assert correlator.deep.events.count.tolist() == [episodes]


def test_events_on_metrics_and_unknown_ones():
    rng = np.random.default_rng(3)
    config = CorrelatorConfig(
        grid_rows=64, pass_rows=256, events=(EventSpec("spike", "m", above=2.0),)
    )
    metrics = rng.normal(size=(3000, 1))
    dense = (rng.random((3000, 1)) < 0.2).astype(np.float32)
    correlator = Correlator((MetricSpec("m"),), 1, config)
    correlator.update(steps_of(metrics), codes_from_dense(dense))
    correlator.event_profile(0, "spike")
    assert correlator.deep is not None
    assert correlator.deep.events.count[0] == (metrics > 2).sum()
    with pytest.raises(UserError, match="neither a metric"):
        Correlator((MetricSpec("m"),), 1, CorrelatorConfig(events=(EventSpec("x", "nope"),)))
    with pytest.raises(UserError, match="no event"):
        correlator.event_profile(0, "other")


def test_partners_are_the_features_that_fire_together():
    rng = np.random.default_rng(4)
    n = 16_000
    dense = (rng.random((n, 4)) < 0.1).astype(np.float32)
    dense[:, 2] = dense[:, 1] * (rng.random(n) < 0.8)
    correlator = Correlator((MetricSpec("m"),), 4, CONFIG)
    correlator.update(steps_of(rng.normal(size=(n, 1))), codes_from_dense(dense))
    first = correlator.partners(1)[0]
    assert first.feature == 2
    assert first.jaccard == pytest.approx(0.8, abs=0.06)
    assert first.lift == pytest.approx(10, rel=0.15)


def test_fewer_than_eight_episodes_say_so():
    rng = np.random.default_rng(5)
    dense = (rng.random((3000, 2)) < 0.2).astype(np.float32)
    correlator = Correlator((MetricSpec("m"),), 2, CONFIG)
    correlator.update(
        steps_of(rng.normal(size=(3000, 1)), episode_steps=500), codes_from_dense(dense)
    )
    profile = correlator.profile(0)
    assert profile.scope == "within-episode only"
    assert profile.metric("m").method == "acf"
    assert known(profile.metric("m").lo) < 0 < known(profile.metric("m").hi)
