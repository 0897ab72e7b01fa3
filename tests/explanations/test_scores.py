from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import mannwhitneyu
from sklearn.metrics import balanced_accuracy_score, precision_score, recall_score

from interlatent_live.explanations.evidence import collect_evidence
from interlatent_live.explanations.planted import HOOK, Kind, Plan, plant
from interlatent_live.explanations.predicates import evaluate, parse
from interlatent_live.explanations.scores import (
    UnitCounts,
    auroc,
    balanced_accuracy_interval,
    bouts,
    precision_interval,
    score,
    unit_counts,
)


@pytest.fixture(scope="module")
def evidence():
    plan = Plan(per_kind=3, episodes=20, steps=200, metrics=2, density=(0.05, 0.2), seed=4)
    stream = plant(plan)
    return collect_evidence(stream.batches, stream.specs, HOOK)


@pytest.mark.parametrize("feature", range(0, 24, 3))
@pytest.mark.parametrize("text", ["signal_a > 0.5", "signal_a > 0 or lag(signal_b, 2) < -1"])
def test_scores_agree_with_scikit_learn(evidence, feature, text):
    predicate = parse(text, evidence.specs)
    holds = evaluate(predicate, evidence.columns()).holds
    on = evidence.on(feature)
    scores = score(evidence, feature, predicate)
    assert scores.balanced_accuracy.value == pytest.approx(balanced_accuracy_score(on, holds))
    assert scores.precision.value == pytest.approx(precision_score(on, holds))
    assert scores.recall == pytest.approx(recall_score(on, holds))
    assert scores.lift == pytest.approx(precision_score(on, holds) / on.mean())
    assert scores.rows == len(evidence)
    assert scores.firings == holds.sum()
    assert scores.bouts == evidence.coverage().bouts[feature]
    assert scores.episodes_on == evidence.coverage().units[feature]


def test_rows_without_history_are_counted_as_undefined(evidence):
    predicate = parse("lag(signal_a, 5) > 100", evidence.specs)
    assert score(evidence, 0, predicate).undefined == 5 * evidence.n_units


@given(st.integers(0, 500))
def test_auroc_is_mann_whitney_with_ties(seed):
    random = np.random.default_rng(seed)
    value = np.maximum(random.normal(size=60), 0).round(1)
    event = random.random(60) < 0.3
    found = auroc(value, event)
    if not event.any() or event.all():
        assert found is None
        return
    expected = mannwhitneyu(value[event], value[~event]).statistic / (event.sum() * (~event).sum())
    assert found == pytest.approx(expected)


def test_intervals_cover_the_truth_when_episodes_differ():
    """200 streams with strong episode effects: the 95 % interval covers in ≥ 90 %."""
    random = np.random.default_rng(0)
    covered = naive = 0
    for _ in range(200):
        units, steps = 24, 100
        skill = np.clip(random.normal(0.8, 0.12, units), 0, 1)
        unit = np.repeat(np.arange(units), steps)
        on = random.random(units * steps) < 0.1
        # Whole episodes are good or bad at once, as drifting policies make them.
        agrees = random.random(units * steps) < skill[unit]
        holds = np.where(agrees, on, ~on)
        interval = balanced_accuracy_interval(unit_counts(holds, on, unit, units))
        truth = 0.8
        assert interval.low is not None
        assert interval.high is not None
        covered += interval.low <= truth <= interval.high
        spread = 1.96 * np.sqrt(0.8 * 0.2 / (2 * on.sum()))
        naive += abs(interval.value - truth) <= spread
    assert covered >= 180
    assert naive < covered


def test_a_perfect_score_from_few_episodes_is_no_certainty():
    counts = UnitCounts(*(np.full(7, x) for x in (5.0, 5.0, 5.0, 50.0)))
    interval = balanced_accuracy_interval(counts)
    assert interval.value == 1.0
    assert interval.low < 0.9


def test_what_cannot_be_had_is_none_with_a_reason():
    zeros = np.zeros(5)
    never = UnitCounts(zeros, zeros, zeros, np.full(5, 10.0))
    assert balanced_accuracy_interval(never).value is None
    assert "never" in balanced_accuracy_interval(never).reason
    assert precision_interval(never).reason == "the predicate never held"
    one = UnitCounts(np.array([3.0]), np.array([3.0]), np.array([4.0]), np.array([10.0]))
    assert precision_interval(one).low is None
    assert "one episode" in precision_interval(one).reason


def test_a_bout_ends_with_its_episode():
    on = np.array([1, 1, 0, 1, 1, 1], bool)
    past = np.array([0, 1, 2, 3, 0, 1])
    assert bouts(on, past) == 3


def test_noise_is_a_kind_the_generator_knows(evidence):
    assert evidence.n_features == 3 * len(Kind)
