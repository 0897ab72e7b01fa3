from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csc_array

from interlatent_live.transcoders.config import Architecture, TranscoderConfig
from interlatent_live.transcoders.evaluation.features import (
    benjamini_hochberg,
    feature_correlation,
    feature_statistics,
    fell_below_half,
    redundancy,
)
from interlatent_live.transcoders.transcoder import Transcoder


def pass_through(n_features):
    """Feature j is on where column j of x is positive, with that value."""
    config = TranscoderConfig(
        architecture=Architecture.RELU, d_in=n_features, d_out=n_features, n_features=n_features,
        l1=0.0,
    )  # fmt: skip
    eye = torch.eye(n_features)
    zero = torch.zeros(n_features)
    return Transcoder(config, eye, zero, eye.clone(), zero.clone())


def test_counts_by_hand():
    # Episodes 0 and 1 interleaved, as lockstep copies write them.
    episode = np.array([0, 1, 0, 1, 0, 1, 0, 1], np.uint32)
    on = np.zeros((8, 3), np.float32)
    on[[0, 2, 6], 0] = [1.0, 2.0, 3.0]  # episode 0: steps 0, 1, 3 → two bouts
    on[[1, 7], 0] = [4.0, 5.0]  # episode 1: steps 0 and 3 → two bouts
    on[[4, 5], 1] = 1.0  # one step in each episode
    stats = feature_statistics(pass_through(3), (on, episode), (on, episode))
    assert stats.density.tolist() == [5 / 8, 2 / 8, 0]
    assert stats.episodes.tolist() == [2, 2, 0]
    assert stats.bouts.tolist() == [4, 2, 0]
    assert stats.quantiles[0, 2] == 3.0
    assert np.isnan(stats.quantiles[2]).all()
    assert stats.held_out_episodes == 2
    assert not stats.live.any()  # two episodes are not three
    assert not stats.memorised.any()


def test_the_last_step_of_one_episode_and_the_first_of_the_next_are_two_bouts():
    episode = np.repeat(np.arange(2, dtype=np.uint32), 3)
    on = np.ones((6, 1), np.float32)
    stats = feature_statistics(pass_through(1), (on, episode), (on, episode))
    assert stats.bouts.tolist() == [2]


def test_live_and_eligible_are_as_defined():
    episode = np.repeat(np.arange(20, dtype=np.uint32), 500)
    on = np.zeros((10_000, 4), np.float32)
    on[[0, 600, 1200], 0] = 1.0  # 3 steps of 10,000: too rare
    on[[0, 1, 2, 3, 4, 600, 601, 602, 1200, 1201], 1] = 1.0  # 0.1 % in 3 episodes: live
    on[::100, 2] = 1.0  # 1 %, 100 bouts, all episodes: eligible
    on[:, 3] = 1.0  # always on: live, not eligible
    stats = feature_statistics(pass_through(4), (on, episode), (on, episode))
    assert stats.live.tolist() == [False, True, True, True]
    assert stats.eligible.tolist() == [False, False, True, False]


def below_half(on, train_on):
    on, train_on = np.asarray(on), np.asarray(train_on)
    return fell_below_half(on, np.full(len(on), 100), train_on, np.full(len(train_on), 100))


def test_memorised_means_significantly_below_half():
    random = np.random.default_rng(0)
    steady = random.poisson(10, 160)
    assert below_half(np.zeros(20), steady) < 1e-6
    assert below_half(random.poisson(2, 20), steady) < 1e-3
    assert below_half(random.poisson(9, 20), steady) > 0.5
    assert below_half(np.full(20, 5), steady) > 0.1  # half, not below
    assert below_half(np.zeros(20), np.full(160, 0)) == 1  # never fired: not memorised
    rare = np.zeros(160)
    rare[:3] = 90  # fires in 3 episodes of 160: silence in 20 says nothing
    assert below_half(np.zeros(20), rare) > 0.2


def test_memorised_is_calibrated_where_nothing_is():
    """Bursty features with equal densities in both sets: the share called memorised stays small."""
    random = np.random.default_rng(1)
    p_values = []
    for _ in range(400):
        share = random.uniform(0.01, 0.3)
        counts = random.poisson(30, 100) * (random.random(100) < share)
        p_values.append(below_half(counts[:10], counts[10:]))
    assert np.mean(np.array(p_values) < 0.05) < 0.05
    assert not benjamini_hochberg(np.array(p_values), 0.05).any()


def test_benjamini_hochberg_by_hand():
    p = np.array([0.01, 0.04, 0.03, 0.9])
    assert benjamini_hochberg(p, 0.05).tolist() == [True, False, False, False]
    assert benjamini_hochberg(p, 0.06).tolist() == [True, True, True, False]


@settings(max_examples=30)
@given(seed=st.integers(0, 1000), n=st.integers(5, 60))
def test_correlation_is_pearsons(seed, n):
    random = np.random.default_rng(seed)
    x = random.standard_normal((n, 4)) * (random.random((n, 4)) < 0.6)
    x[:, 3] = 0.0
    got = feature_correlation(csc_array(x), csc_array(x[:, :2]))
    for i in range(4):
        for j in range(2):
            if x[:, i].std() < 1e-9 or x[:, j].std() < 1e-9:
                assert got[i, j] == 0
            else:
                assert got[i, j] == pytest.approx(np.corrcoef(x[:, i], x[:, j])[0, 1], abs=1e-8)


def test_redundant_twins_are_found():
    random = np.random.default_rng(0)
    x = np.abs(random.standard_normal((500, 3))).astype(np.float32)
    x[:, 1] = x[:, 0]
    found = redundancy(pass_through(3), x, np.ones(3, np.bool_))
    assert found is not None
    assert found.share == pytest.approx(2 / 3)
    assert redundancy(pass_through(3), x, np.array([True, False, False])) is None
