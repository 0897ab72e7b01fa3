from __future__ import annotations

import numpy as np
import pytest

from interlatent_live.errors import UserError
from interlatent_live.statistics.betting import BETS, Betting, log_cosh_sums, log_evidence
from interlatent_live.statistics.config import CorrelatorConfig
from interlatent_live.statistics.correlator import Correlator
from interlatent_live.statistics.screening import (
    DiscoveryLog,
    asymptotic_radius,
    benjamini_hochberg,
    benjamini_yekutieli,
    discoveries_e,
    e_bh,
    look_level,
    screening,
    watch_pair,
)
from interlatent_live.stream import MetricSpec
from tests.statistics.streams import ar1, codes_from_dense, part, sparse_dense, steps_of

SPECS = tuple(MetricSpec(f"m{i}") for i in range(3))
CONFIG = CorrelatorConfig(grid_rows=64, pass_rows=256)


def fed(n=6000, planted=2.0, seed=0):
    rng = np.random.default_rng(seed)
    dense = sparse_dense(rng, n, 20, 0.2)
    metrics = ar1(rng, 0.9, (n, 3))
    metrics[:, 0] += planted * dense[:, 5]
    steps = steps_of(metrics, envs=2, episode_steps=50)
    correlator = Correlator(SPECS, 20, CONFIG)
    for low in range(0, n, 500):
        correlator.update(part(steps, low, low + 500), codes_from_dense(dense[low : low + 500]))
    return correlator


def test_step_up_procedures_match_their_definition():
    p = np.array([0.001, 0.011, 0.02, 0.9, np.nan, 0.04])
    ordered = np.sort(p[np.isfinite(p)])
    k = max(i for i in range(1, 6) if ordered[i - 1] <= 0.05 * i / 5)
    assert benjamini_hochberg(p, 0.05).sum() == k
    harmonic = sum(1 / i for i in range(1, 6))
    by = [i for i in range(1, 6) if ordered[i - 1] <= 0.05 * i / (5 * harmonic)]
    assert benjamini_yekutieli(p, 0.05).sum() == (max(by) if by else 0)
    assert not benjamini_hochberg(np.full(4, np.nan), 0.05).any()


def test_e_bh_keeps_the_largest_with_enough_evidence():
    log_e = np.log(np.array([1000.0, 90.0, 1.0, 0.1]))
    bars = [4 / (0.05 * k) for k in range(1, 5)]
    values = np.sort(np.exp(log_e))[::-1]
    k = max((i + 1 for i in range(4) if values[i] >= bars[i]), default=0)
    assert e_bh(log_e, 0.05).sum() == k


def test_bets_are_fair_under_any_symmetric_null():
    rng = np.random.default_rng(1)
    x = rng.choice([-1, 1], size=(20, 4000, 1)) * rng.beta(0.5, 3, size=(20, 4000, 1))
    tilt = x.sum(axis=0)
    cost = log_cosh_sums(x)
    expected = np.log(np.cosh(np.array(BETS)[:, None, None, None] * x)).sum(axis=1)
    np.testing.assert_allclose(cost, expected, atol=1e-9)
    e = np.exp(log_evidence(tilt, cost))
    assert e.mean() < 1.3
    assert (e >= 20).mean() <= 0.05


def test_betting_uses_the_within_episode_correlation():
    correlator = fed(n=400)
    correlator.finish()
    steps_per = 50
    rng = np.random.default_rng(0)
    dense = sparse_dense(rng, 400, 20, 0.2)
    metrics = ar1(rng, 0.9, (400, 3))
    metrics[:, 0] += 2.0 * dense[:, 5]
    total = 0.0
    for env in range(2):
        a, d = dense[env::2, 5].astype(float), metrics[env::2, 0]
        for low in range(0, 200, steps_per):
            total += np.corrcoef(a[low : low + steps_per], d[low : low + steps_per])[0, 1]
    assert correlator.deep.betting.tilt[5, 0] == pytest.approx(total, abs=1e-9)


def test_planted_pair_is_discovered_and_others_are_not():
    correlator = fed()
    found = discoveries_e(correlator)
    assert [(f.feature, f.metric) for f in found.findings] == [(5, "m0")]
    assert found.title == "discoveries"
    log = DiscoveryLog()
    look = log.look(correlator)
    assert look is not None
    assert [(f.feature, f.metric) for f in log.discoveries()] == [(5, "m0")]
    assert look.episodes <= look.at_episodes
    assert log.look(correlator) is None
    listed = screening(correlator)
    assert listed.title == "screening"
    assert (listed.findings[0].feature, listed.findings[0].metric) == (5, "m0")


def test_looks_spend_their_level_and_no_more():
    assert sum(look_level(0.05, k) for k in range(1, 100_000)) <= 0.05
    log = DiscoveryLog(first_look=4)
    correlator = fed(n=2000)
    look = log.look(correlator)
    assert look is not None
    assert [item.episodes for item in log.looks] == [4, 8, 16, 32]
    assert [item.level for item in log.looks[:-1]] == [0.0, 0.0, 0.0]
    assert look.level == look_level(0.05, 4)


def test_watching_a_pair_alerts_on_the_planted_one_only():
    correlator = fed()
    planted, other = watch_pair(correlator, 5, "m0"), watch_pair(correlator, 6, "m1")
    assert planted.alert
    assert planted.lo is not None
    assert planted.lo > 0
    assert not other.alert
    assert other.lo is not None
    assert other.hi is not None
    assert other.lo < 0 < other.hi


def test_confidence_sequence_is_wider_than_an_interval_and_shrinks():
    radius = [asymptotic_radius(1.0, n, 0.05) for n in (20, 200, 2000)]
    assert radius[0] > radius[1] > radius[2] > 1.96 / np.sqrt(2000)


def test_without_episodes_tests_are_refused():
    correlator = Correlator(SPECS, 4, CorrelatorConfig.core())
    with pytest.raises(UserError, match="no episodes"):
        discoveries_e(correlator)


def test_betting_merges_to_the_same_evidence():
    rng = np.random.default_rng(2)
    x = rng.uniform(-1, 1, size=(30, 6, 2))
    whole, first, second = Betting(6, 2), Betting(6, 2), Betting(6, 2)
    whole.absorb_correlations(x)
    first.absorb_correlations(x[:11])
    second.absorb_correlations(x[11:])
    second.merge(first)
    np.testing.assert_allclose(whole.log_e(), second.log_e(), atol=1e-9)
