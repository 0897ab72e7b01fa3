"""The comparison's arithmetic against brute force, SciPy and worlds made by hand."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from interlatent_live.zoo.compare_scores import (
    Estimate,
    Head,
    agreement,
    clustered_mean,
    matched_sets,
    mean_over_episodes,
    rank_correlation,
)


def test_eight_drivers_in_perfect_order_are_one_order_in_40320():
    found = rank_correlation(range(8), [2.0, 3, 5, 7, 11, 13, 17, 19])
    assert found.rho == pytest.approx(1)
    assert found.orders == 40_320
    assert found.p_greater == pytest.approx(1 / 40_320)
    assert found.p_two_sided == pytest.approx(2 / 40_320)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.integers(0, 4), min_size=3, max_size=4).flatmap(
        lambda a: st.tuples(
            st.just(a), st.lists(st.integers(0, 4), min_size=len(a), max_size=len(a))
        )
    )
)
def test_rho_is_scipys_and_p_counts_every_order(sides):
    score, measured = sides
    found = rank_correlation(score, measured)
    if len(set(score)) == 1 or len(set(measured)) == 1:
        assert (found.rho, found.p_greater) == (None, None)
        return
    rho = stats.spearmanr(score, measured).statistic
    every = [stats.spearmanr(one, measured).statistic for one in itertools.permutations(score)]
    assert found.rho == pytest.approx(rho)
    assert found.p_greater == pytest.approx(np.mean([one >= rho - 1e-9 for one in every]))


def test_too_many_to_look_at_every_order_is_refused():
    with pytest.raises(ValueError, match="too many orders"):
        rank_correlation(range(10), range(10))


def test_only_pairs_with_disjoint_intervals_must_agree():
    measured = [Estimate(1, 0, 2), Estimate(1.5, 0.5, 2.5), Estimate(5, 4, 6)]
    assert agreement([2, 1, 3], measured).agree == 2
    wrong = agreement([3, 1, 3], measured)
    assert (wrong.pairs, wrong.agree, wrong.of) == (2, 1, 3)


def test_an_interval_of_episodes_is_students():
    values = np.array([1.0, 2, 3, 4])
    made = mean_over_episodes(values)
    low, high = stats.t.interval(0.95, 3, values.mean(), stats.sem(values))
    assert (made.value, made.low, made.high) == pytest.approx((2.5, low, high))


def test_whole_clusters_are_resampled():
    random = np.random.default_rng(1)
    cluster = np.repeat(np.arange(40), 50)
    values = random.normal(size=40)[cluster]  # alike within a cluster
    made = clustered_mean(values, cluster)
    assert made.value == pytest.approx(values.mean())
    error = values.reshape(40, 50)[:, 0].std() / np.sqrt(40)
    assert (made.high - made.low) / 2 == pytest.approx(1.96 * error, rel=0.15)


@pytest.fixture(scope="module")
def head():
    random = np.random.default_rng(0)
    y, weight = random.normal(size=(200, 6)), random.normal(size=(5, 6))
    decoder = random.normal(size=(12, 6))
    codes = np.maximum(random.normal(size=(200, 12)), 0).astype(np.float32)
    return Head(y @ weight.T, codes, decoder @ weight.T, 3), y, weight, decoder


def test_shares_are_what_a_forward_without_the_features_says(head):
    made, y, weight, decoder = head
    chosen = [2, 5, 7]
    without = torch.from_numpy((y - made.codes[:, chosen] @ decoder[chosen]) @ weight.T)
    changed = without[:, 3] - without.mean(1)
    assert made.advantages - made.given(chosen) == pytest.approx(changed.numpy(), abs=1e-6)
    assert made.shares()[chosen].sum() == pytest.approx(made.given(chosen).mean())
    assert (made.actions(chosen) == without.argmax(1).numpy()).all()
    assert (made.actions() == made.values.argmax(1)).all()


def test_a_score_in_own_spreads_does_not_change_with_the_values_scale(head):
    made, *_ = head
    larger = Head(made.values * 7, made.codes, made.effects * 7, made.faster)
    assert larger.given([1, 4]) / larger.spread == pytest.approx(made.given([1, 4]) / made.spread)


def test_controls_are_as_many_others_of_about_the_same_density():
    density = np.geomspace(0.005, 0.5, 60)
    chosen = [10, 30, 50]
    sets = matched_sets(chosen, range(60), density, draws=200, seed=0)
    assert len(sets) == 200
    for one in sets:
        assert len(set(one)) == 3
        assert not set(one) & set(chosen)
        assert np.abs(np.log(density[sorted(one)] / density[chosen])).max() < 0.3
    assert len({tuple(sorted(one)) for one in sets}) > 30
    assert matched_sets([0, 1], [0, 1, 2], density, draws=1, seed=0) == [[2]]
    assert matched_sets([], range(60), density, draws=2, seed=0) == [[], []]
