from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from interlatent_live.explanations.evidence import collect_evidence
from interlatent_live.explanations.nulls import NullKind, NullModel, partners
from interlatent_live.explanations.planted import HOOK, Kind, Plan, plant, sparse_codes
from interlatent_live.explanations.rules import induce_rules
from interlatent_live.explanations.scores import (
    Interval,
    balanced_accuracy_interval,
    score,
    unit_counts,
)
from interlatent_live.explanations.search import (
    PLAIN_TERMS,
    RuleScores,
    bin_terms,
    grow,
    leaf_counts,
    pair,
    rule_scores,
)


def planted(**changes):
    plan = Plan(**{"per_kind": 3, "episodes": 45, "steps": 150, "metrics": 3, **changes})
    stream = plant(plan)
    return stream, collect_evidence(stream.batches, stream.specs, HOOK)


def ragged(seed, episodes):
    _, evidence = planted(episodes=episodes, steps=40, per_kind=1, seed=seed)
    random = np.random.default_rng(seed)
    lengths = random.integers(10, 41, evidence.n_units)
    keep = evidence.t < lengths[evidence.unit]
    stream = plant(Plan(per_kind=1, episodes=episodes, steps=40, metrics=3, seed=seed))
    batches = []
    for batch, length in zip(stream.batches, lengths, strict=True):
        batches.append(cut(batch, int(length)))
    evidence = collect_evidence(batches, stream.specs, HOOK)
    assert len(evidence) == keep.sum()
    return evidence


def cut(batch, rows):
    columns = ("env", "episode", "t", "time_ns", "controller", "flags", "metrics")
    steps = replace(batch.steps, **{c: getattr(batch.steps, c)[:rows] for c in columns})
    codes = batch.codes[HOOK]
    end = int(codes.indptr[rows])
    short = replace(
        codes,
        indptr=codes.indptr[: rows + 1],
        index=codes.index[:end],
        value=codes.value[:end],
        error=codes.error[:rows],
        error_affine=codes.error_affine[:rows],
    )
    return replace(batch, steps=steps, codes={HOOK: short})


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 100), st.integers(8, 30))
def test_episodes_change_partners_whole_and_step_by_step(seed, episodes):
    evidence = ragged(seed, episodes)
    partner, method = partners(evidence, np.random.default_rng(seed))
    assert method is NullKind.REASSIGN
    used = partner[partner >= 0]
    assert len(np.unique(used)) == len(used)
    rows = np.flatnonzero(partner >= 0)
    np.testing.assert_array_equal(evidence.t[rows], evidence.t[partner[rows]])
    for unit in range(evidence.n_units):
        own = partner[(evidence.unit == unit) & (partner >= 0)]
        assert len(np.unique(evidence.unit[own])) <= 1
    assert len(used) >= 0.5 * len(evidence)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 100), st.integers(1, 7))
def test_with_few_episodes_time_is_shifted_in_a_circle(seed, episodes):
    evidence = ragged(seed, episodes)
    partner, method = partners(evidence, np.random.default_rng(seed))
    assert method is NullKind.SHIFT
    assert sorted(partner) == list(range(len(evidence)))
    np.testing.assert_array_equal(evidence.unit, evidence.unit[partner])


def verify(evidence, families, draws, seed=0, kind=NullKind.REASSIGN):
    half = np.arange(evidence.n_units) < 2 * evidence.n_units // 3
    a, b = evidence.select(half).split(0.5)
    held_out = evidence.select(~half)
    features = np.arange(evidence.n_features)
    rules = induce_rules(a, b, features, families=families)
    found = [
        Interval(0.5, error=0.0)
        if rule.predicate is None
        else score(held_out, rule.feature, rule.predicate).balanced_accuracy
        for rule in rules
    ]
    observed = RuleScores(
        np.array([0.5 if x.value is None else x.value for x in found]),
        np.array([x.error or 0.0 for x in found]),
    )
    null = NullModel(a, b, features, draws=draws, families=families, seed=seed, kind=kind)
    null.search()
    return rules, observed, null, held_out


def test_planted_features_stand_out_and_noise_does_not():
    stream, evidence = planted(density=(0.03, 0.2), seed=2)
    rules, observed, null, held_out = verify(evidence, None, 39)
    result = null.judge(held_out, observed)
    for index, truth in enumerate(stream.truth):
        if truth.kind in (Kind.NOISE, Kind.IRRELEVANT):
            assert result.p[index] > 0.05
        elif truth.kind in (Kind.THRESHOLD, Kind.DELTA, Kind.INTERVAL):
            assert rules[index].predicate is not None
            assert result.p[index] <= 0.05
    assert result.draws == 39
    assert result.p.min() == pytest.approx(1 / 40)
    place = int(np.argmax(observed.balanced_accuracy))
    value, error = observed.balanced_accuracy[place], observed.error[place]
    assert result.p_of(place, value, error) == result.p[place]
    assert result.p_of(place, 0.5, 0.02) > 0.5


def test_rule_scores_are_those_of_walking_the_rows():
    stream, evidence = planted(per_kind=1, episodes=12, seed=5)
    binned = bin_terms(evidence, PLAIN_TERMS.terms(stream.specs), max_rows=1000)
    on = pair(evidence, np.arange(evidence.n_features), binned)
    trees = grow(binned, on)
    mask = np.random.default_rng(0).random((evidence.n_features, 8)) < 0.5
    unit = evidence.unit[binned.row]
    found = rule_scores(trees, mask, binned, on, unit=unit, n_units=evidence.n_units)
    for feature in range(evidence.n_features):
        leaf = np.zeros(binned.n_rows, int)
        for _ in range(3):
            code = binned.codes[trees.term[feature, leaf], np.arange(binned.n_rows)]
            leaf = 2 * leaf + np.where(code <= trees.edge[feature, leaf], 1, 2)
        holds = mask[feature, leaf - 7]
        counts = unit_counts(holds, evidence.on(feature)[binned.row], unit, evidence.n_units)
        expected = balanced_accuracy_interval(counts)
        assert found.balanced_accuracy[feature] == pytest.approx(expected.value)
        assert found.error[feature] == pytest.approx(expected.error)
    assert leaf_counts(trees, binned, on)[1].sum() == binned.n_rows * evidence.n_features


def test_unrelated_streams_rarely_reach_the_bar():
    """24 streams without any relation: the smallest adjusted p is ≤ .1 in about a tenth."""
    low = 0
    for seed in range(24):
        _, evidence = planted(
            kinds=(Kind.IRRELEVANT,), per_kind=6, episodes=30, steps=100, metrics=2, seed=seed
        )
        _, observed, null, held_out = verify(evidence, PLAIN_TERMS, 19, seed)
        low += null.judge(held_out, observed).p.min() <= 0.1
    assert low <= 7, "binomial(24, .1) exceeds 7 in under 1 % of tries"


def test_only_judged_features_count():
    stream, evidence = planted(seed=2)
    _, observed, null, held_out = verify(evidence, PLAIN_TERMS, 9)
    judged = np.zeros(len(stream.truth), bool)
    judged[:2] = True
    result = null.judge(held_out, observed, judged)
    assert (result.p[2:] == 1).all()
    nobody = null.judge(held_out, observed, ~judged & False)
    assert (nobody.p == 1).all()


def test_draws_can_be_made_bit_by_bit_with_the_same_result():
    _, evidence = planted(per_kind=1, seed=2)
    _, observed, null, held_out = verify(evidence, PLAIN_TERMS, 9)
    half = np.arange(evidence.n_units) < 2 * evidence.n_units // 3
    a, b = evidence.select(half).split(0.5)
    slow = NullModel(a, b, null.features, draws=9, families=PLAIN_TERMS)
    with pytest.raises(ValueError, match="no draws"):
        slow.judge(held_out, observed)
    while slow.search(2):
        pass
    assert slow.done == 9
    np.testing.assert_array_equal(
        slow.judge(held_out, observed).p, null.judge(held_out, observed).p
    )


def test_the_null_keeps_what_only_follows_the_clock():
    """A feature and a metric that both follow the time in the episode do not look related."""
    stream = plant(Plan(per_kind=1, episodes=45, steps=100, metrics=1, kinds=(Kind.NOISE,), seed=1))
    batches = []
    for batch in stream.batches:
        metrics = batch.steps.metrics.copy()
        metrics[:, 0] = np.arange(100) / 100 + 0.02 * metrics[:, 0]
        dense = np.zeros((100, 1))
        dense[60:80, 0] = 1.0
        batches.append(
            replace(
                batch,
                steps=replace(batch.steps, metrics=metrics),
                codes={HOOK: sparse_codes(dense)},
            )
        )
    evidence = collect_evidence(batches, stream.specs, HOOK)
    rules, observed, null, held_out = verify(evidence, PLAIN_TERMS, 19)
    assert rules[0].predicate is not None
    assert observed.balanced_accuracy[0] > 0.9
    assert null.judge(held_out, observed).p[0] > 0.05
    _, observed, shifted, held_out = verify(evidence, PLAIN_TERMS, 19, kind=NullKind.SHIFT)
    result = shifted.judge(held_out, observed)
    assert result.method is NullKind.SHIFT
    assert result.p[0] <= 0.05, "a shift breaks what the clock ties together"
