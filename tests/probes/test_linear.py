import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit

from interlatent_live.errors import UserError
from interlatent_live.probes.linear import Logistic, calibrate, fit_logistic
from interlatent_live.probes.scores import (
    auroc,
    balanced_accuracy,
    best_threshold,
    calibration_error,
    paired_auroc,
    score_probe,
)


def sample(n, seed=0, weight=(1.5, -2.0, 0.0), bias=-0.5):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 3)) * [1.0, 5.0, 100.0] + [0.0, 3.0, 1000.0]
    p = expit((x - [0.0, 3.0, 1000.0]) / [1.0, 5.0, 100.0] @ np.array(weight) + bias)
    return x, rng.random(n) < p, p


def test_the_fit_finds_the_truth_whatever_the_scales():
    x, positive, p = sample(40_000)
    fitted = fit_logistic(x, positive, l2=1e-3)
    scale = np.array([1.0, 5.0, 100.0])
    assert fitted.weight * scale == pytest.approx([1.5, -2.0, 0.0], abs=0.06)
    assert np.abs(fitted.probability(x) - p).mean() < 0.01


def test_the_fit_is_the_minimum_that_scikit_learn_finds():
    linear_model = pytest.importorskip("sklearn.linear_model")
    x, positive, _ = sample(500, seed=4)
    z = (x - x.mean(0)) / x.std(0)
    theirs = linear_model.LogisticRegression(C=1 / 3.0, tol=1e-10, max_iter=1000).fit(z, positive)
    ours = fit_logistic(x, positive, l2=3.0)
    assert ours.margin(x) == pytest.approx(theirs.decision_function(z), abs=1e-4)


def test_constant_columns_and_separable_rows_do_no_harm():
    x = np.array([[0.0, 7.0], [1.0, 7.0], [2.0, 7.0], [3.0, 7.0]])
    fitted = fit_logistic(x, np.array([False, False, True, True]), l2=0.01)
    assert np.isfinite(fitted.weight).all()
    assert fitted.weight[1] == 0.0
    with pytest.raises(UserError, match="same label"):
        fit_logistic(x, np.ones(4, bool))


def test_platt_scaling_repairs_an_overconfident_probe_and_never_turns_one_around():
    x, positive, _ = sample(20_000)
    honest = fit_logistic(x, positive, l2=1.0)
    loud = Logistic(honest.weight * 4, honest.bias * 4 + 1.0)
    x2, positive2, _ = sample(20_000, seed=9)
    repaired = calibrate(loud, x2, positive2)
    before = calibration_error(loud.probability(x2), positive2)
    after = calibration_error(repaired.probability(x2), positive2)
    assert before > 0.08
    assert after < 0.015
    backwards = Logistic(-honest.weight, -honest.bias)
    assert calibrate(backwards, x2, positive2) is backwards
    assert calibrate(honest, x2, np.ones(len(x2), bool)) is honest


@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=2, max_size=30))
def test_auroc_is_the_share_of_pairs(pairs):
    score = np.array([s for s, _ in pairs], float)
    positive = np.array([p for _, p in pairs])
    found = auroc(score, positive)
    a, b = score[positive], score[~positive]
    if not len(a) or not len(b):
        assert found is None
    else:
        wins = (a[:, None] > b).mean() + 0.5 * (a[:, None] == b).mean()
        assert found == pytest.approx(wins)


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=25))
def test_no_threshold_is_better_than_the_best(pairs):
    score = np.array([s for s, _ in pairs], float)
    positive = np.array([p for _, p in pairs])
    if positive.all() or not positive.any():
        return
    chosen = balanced_accuracy(score > best_threshold(score, positive), positive)
    cuts = np.arange(-0.5, 6, 0.5)
    others = [balanced_accuracy(score > cut, positive) or 0.0 for cut in cuts]
    assert chosen == pytest.approx(max(others))


@settings(max_examples=20)
@given(st.integers(0, 1000))
def test_perfect_calibration_has_a_small_error_and_a_shift_shows(seed):
    rng = np.random.default_rng(seed)
    p = rng.random(4000)
    positive = rng.random(4000) < p
    assert calibration_error(p, positive) < 0.05
    assert calibration_error(np.clip(p + 0.3, 0, 1), positive) > 0.15


def test_intervals_are_of_episodes_not_of_rows():
    # 12 episodes, each one label throughout and one score: 12 facts, whatever the number of rows.
    rng = np.random.default_rng(0)
    episode = np.repeat(np.arange(12), 200)
    positive = np.repeat(np.arange(12) % 2 == 0, 200)
    score = np.repeat(rng.normal(size=12) + (np.arange(12) % 2 == 0), 200)
    scores = score_probe(expit(score), positive, episode, threshold=0.5)
    assert scores.auroc.low is not None
    assert scores.auroc.high is not None
    assert scores.auroc.high - scores.auroc.low > 0.2
    assert scores.episodes == 12
    assert scores.episodes_positive == 6
    few = score_probe(expit(score[:1000]), positive[:1000], episode[:1000], threshold=0.5)
    assert few.auroc.low is None


def test_a_paired_difference_is_zero_for_the_same_score():
    x, positive, _ = sample(1000)
    episode = np.repeat(np.arange(20), 50)
    same = paired_auroc(x[:, 0], x[:, 0], positive, episode)
    assert (same.value, same.low, same.high) == (0.0, 0.0, 0.0)
    better = paired_auroc(x[:, 0], x[:, 2], positive, episode)
    assert better.low is not None
    assert better.low > 0
