from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from interlatent_live.explanations.evidence import collect_evidence
from interlatent_live.explanations.planted import DESCRIBABLE, HOOK, Kind, Plan, plant
from interlatent_live.explanations.predicates import evaluate, leaf_count, metric_names, to_text
from interlatent_live.explanations.rules import _absorbed, _Bound, fit, induce_rules, round_to
from interlatent_live.explanations.search import (
    BINS,
    LEAVES,
    PLAIN_TERMS,
    TermFamilies,
    bin_terms,
    choose_leaves,
    edges_of,
    grow,
    leaf_counts,
    pack,
    pair,
)

PLAN = Plan(per_kind=4, episodes=60, steps=300, metrics=3, density=(0.02, 0.2), seed=11)


@pytest.fixture(scope="module")
def stream():
    return plant(PLAN)


@pytest.fixture(scope="module")
def halves(stream):
    evidence = collect_evidence(stream.batches, stream.specs, HOOK)
    first = np.arange(evidence.n_units) < 40
    return *evidence.select(first).split(0.5), evidence.select(~first)


@pytest.fixture(scope="module")
def rules(halves):
    a, b, _ = halves
    return induce_rules(a, b, np.arange(a.n_features))


@pytest.mark.parametrize("kind", DESCRIBABLE)
def test_planted_features_are_described_by_the_metrics_they_follow(stream, halves, rules, kind):
    held_out = halves[2]
    scores, cited = [], []
    for index, truth in enumerate(stream.truth):
        if truth.kind is not kind:
            continue
        predicate = rules[index].predicate
        assert predicate is not None
        holds = evaluate(predicate, held_out.columns()).holds
        scores.append(fit(holds, held_out.on(index)).f1)
        cited.append(set(metric_names(predicate)) == set(metric_names(truth.predicate)))
    assert np.mean(np.array(scores) >= 0.9) >= 0.75
    assert np.mean(cited) >= 0.75


def test_nothing_is_said_of_what_no_metric_describes(stream, rules):
    for index, truth in enumerate(stream.truth):
        if truth.kind in (Kind.NOISE, Kind.IRRELEVANT):
            assert rules[index].predicate is None


def test_fits_are_those_of_the_rule_as_it_is_written(halves, rules):
    a, b, _ = halves
    for rule in rules:
        if rule.predicate is None:
            continue
        for side, claimed in ((a, rule.fit_a), (b, rule.fit_b)):
            found = fit(evaluate(rule.predicate, side.columns()).holds, side.on(rule.feature))
            assert found.balanced_accuracy == pytest.approx(claimed.balanced_accuracy)
            assert found.precision == pytest.approx(claimed.precision)


def test_rules_of_each_size_are_at_hand(rules):
    for rule in rules:
        if rule.predicate is None:
            assert rule.of_size(9) is None
            continue
        best = rule.of_size(rule.size)
        assert best is not None
        assert leaf_count(best) <= rule.size
        assert rule.of_size(0) is None


def test_thresholds_have_few_digits(rules):
    digits = [
        len(word.replace("-", "").replace(".", "").strip("0"))
        for rule in rules
        if rule.predicate is not None
        for word in to_text(rule.predicate).replace(",", " ").replace(")", " ").split()
        if word.lstrip("-").replace(".", "").isdigit()
    ]
    assert np.mean(digits) <= 3.5


def test_the_search_finds_the_same_rules_again(halves, rules):
    a, b, _ = halves
    assert induce_rules(a, b, np.arange(a.n_features)) == rules


def test_no_features_or_no_terms_give_no_rules(halves):
    a, b, _ = halves
    assert induce_rules(a, b, []) == ()
    (rule,) = induce_rules(a, b, [0], families=TermFamilies(delta=False, lags=(), role="none"))
    assert rule.predicate is None


@given(st.integers(0, 1000), st.integers(1, 300))
def test_bit_sets_count_like_booleans(seed, rows):
    random = np.random.default_rng(seed)
    flags = random.random((3, rows)) < 0.5
    words = -(-rows // 64)
    packed = pack(flags, words)
    np.testing.assert_array_equal(np.bitwise_count(packed).sum(1), flags.sum(1))
    np.testing.assert_array_equal(
        np.bitwise_count(packed[0] & packed[1]).sum(), (flags[0] & flags[1]).sum()
    )


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=200))
def test_edges_ascend_and_split_few_distinct_values_exactly(values):
    edges = edges_of(np.array(values))
    assert len(edges) == BINS - 1
    assert (np.diff(edges) >= 0).all()
    distinct = np.unique(values)
    if len(distinct) < BINS:
        codes = np.searchsorted(edges, distinct, side="left")
        middle = (distinct[:-1] + distinct[1:]) / 2
        if ((middle > distinct[:-1]) & (middle < distinct[1:])).all():
            assert len(np.unique(codes)) == len(distinct)


def naive_leaves(trees, binned, on, feature):
    """Leaf of every binned row, one at a time."""
    out = np.zeros(binned.n_rows, int)
    for row in range(binned.n_rows):
        node = 0
        for _ in range(3):
            code = binned.codes[trees.term[feature, node], row]
            node = 2 * node + (1 if code <= trees.edge[feature, node] else 2)
        out[row] = node - 7
    return out


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 50), st.booleans())
def test_leaf_counts_are_what_walking_each_row_gives(seed, shuffled):
    plan = Plan(per_kind=1, episodes=6, steps=80, metrics=2, seed=seed, density=(0.05, 0.3))
    stream = plant(plan)
    evidence = collect_evidence(stream.batches, stream.specs, HOOK)
    binned = bin_terms(evidence, TermFamilies(lags=(2,)).terms(stream.specs), max_rows=300)
    random = np.random.default_rng(seed)
    partner = random.permutation(len(evidence)) if shuffled else None
    if partner is not None:
        partner[:7] = -1
    features = np.arange(evidence.n_features)
    on = pair(evidence, features, binned, partner)
    trees = grow(binned, on)
    positives, totals = leaf_counts(trees, binned, on)
    for feature in features:
        leaves = naive_leaves(trees, binned, on, feature)
        active = np.zeros(binned.n_rows, bool)
        used = np.zeros(binned.n_rows, bool)
        place = {int(row): i for i, row in enumerate(binned.row)}
        for row in range(len(evidence)):
            to = row if partner is None else int(partner[row])
            if to in place:
                used[place[to]] = True
                active[place[to]] = evidence.on(feature)[row]
        np.testing.assert_array_equal(
            positives[feature], np.bincount(leaves[active], minlength=LEAVES)
        )
        np.testing.assert_array_equal(totals[feature], np.bincount(leaves[used], minlength=LEAVES))


def test_the_first_split_is_the_best_gini_split_of_all():
    plan = Plan(per_kind=2, episodes=8, steps=100, metrics=2, seed=3, density=(0.05, 0.3))
    stream = plant(plan)
    evidence = collect_evidence(stream.batches, stream.specs, HOOK)
    terms = PLAIN_TERMS.terms(stream.specs)
    binned = bin_terms(evidence, terms)
    on = pair(evidence, np.arange(evidence.n_features), binned)
    trees = grow(binned, on)
    for feature in range(evidence.n_features):
        active = evidence.on(feature)
        best = -1.0
        for term in range(len(terms)):
            for edge in range(BINS - 1):
                left = binned.codes[term] <= edge
                p = (active & left).sum() / max(active.sum(), 1)
                q = (~active & left).sum() / (~active).sum()
                gain = 0.5 - sum(
                    a * b / (a + b) if a + b else 0.0 for a, b in ((p, q), (1 - p, 1 - q))
                )
                if term == trees.term[feature, 0] and edge == trees.edge[feature, 0]:
                    chosen = gain
                best = max(best, gain)
        assert chosen == pytest.approx(best)


def test_leaves_are_chosen_on_b():
    on_a = np.array([[50, 0, 0, 0, 50, 0, 0, 0]])
    all_a = np.array([[60, 100, 100, 100, 60, 100, 100, 100]])
    on_b = np.array([[50, 0, 0, 0, 0, 0, 0, 0]])
    all_b = np.array([[60, 100, 100, 100, 60, 100, 100, 100]])
    mask = choose_leaves((on_a, all_a), (on_b, all_b))
    assert mask[0].tolist() == [True, False, False, False, False, False, False, False]


@pytest.mark.parametrize(("value", "digits", "out"), [(0.123456, 2, 0.12), (-987.6, 1, -1000.0)])
def test_round_to(value, digits, out):
    assert round_to(value, digits) == out


def test_a_box_inside_another_is_not_said():
    wide, narrow = (_Bound(0, 1.0, np.inf),), (_Bound(0, 2.0, np.inf), _Bound(1, -np.inf, 3.0))
    apart = (_Bound(1, 4.0, np.inf),)
    assert _absorbed([narrow, wide, apart]) == [wide, apart]
    assert _absorbed([wide, wide]) == [wide]
