from __future__ import annotations

import numpy as np
import pytest

from interlatent_live.explanations.dictionaries import (
    matched_controls,
    share_difference,
    verify_dictionary,
    with_features,
)
from interlatent_live.explanations.evidence import collect_evidence
from interlatent_live.explanations.planted import DESCRIBABLE, HOOK, Kind, Plan, plant
from interlatent_live.explanations.search import PLAIN_TERMS


def evidence_of(**changes):
    settings = {"per_kind": 3, "episodes": 60, "steps": 150, "metrics": 3, "seed": 6}
    stream = plant(Plan(**{**settings, "density": (0.05, 0.2), **changes}))
    return stream, collect_evidence(stream.batches, stream.specs, HOOK)


def halves(evidence):
    first = np.arange(evidence.n_units) < evidence.n_units // 2
    return evidence.select(first), evidence.select(~first)


def test_a_dictionary_of_planted_features_is_told_from_noise():
    kinds = (Kind.THRESHOLD, Kind.INTERVAL, Kind.NOISE)
    stream, evidence = evidence_of(kinds=kinds)
    found = verify_dictionary(*halves(evidence), draws=29, families=PLAIN_TERMS)
    truth = [stream.truth[f].kind in DESCRIBABLE for f in found.features]
    assert found.verified.tolist() == truth
    assert (found.accurate | ~found.verified).all()
    assert found.share == pytest.approx(np.mean(truth))
    assert found.null_draws == 29


def test_nothing_eligible_gives_no_share():
    _, evidence = evidence_of(kinds=(Kind.NOISE,), density=(0.0001, 0.0002))
    found = verify_dictionary(*halves(evidence), draws=3)
    assert found.features == ()
    assert found.share is None
    assert share_difference(found.verified, found.verified).value is None


def test_controls_fire_as_often_as_the_features_they_stand_beside():
    random = np.random.default_rng(0)
    mixing = random.normal(size=(12, 12))
    activations = np.tanh(random.normal(size=(4000, 12)) @ mixing)
    activations[:, 3] = 0.5
    density = np.exp(random.uniform(np.log(0.005), np.log(0.5), 40))
    controls = matched_controls(activations, density, seed=1)
    assert [control.name for control in controls] == [
        "raw units",
        "random dictionary",
        "principal components",
    ]
    for control in controls:
        on = control.on(activations)
        np.testing.assert_allclose(on.mean(0), density, atol=2e-3)
        assert on.sum(1).mean() == pytest.approx(density.sum(), rel=0.02)
    raw = controls[0].directions
    assert (np.abs(raw).sum(0) == 1).all()
    assert not raw[3].any(), "a dead unit is no control"


def test_features_can_be_exchanged_on_the_same_rows():
    _, evidence = evidence_of(kinds=(Kind.THRESHOLD,))
    random = np.random.default_rng(0)
    on = random.random((len(evidence), 4)) < 0.1
    other = with_features(evidence, on)
    for feature in range(4):
        np.testing.assert_array_equal(other.on(feature), on[:, feature])
    assert other.n_features == 4
    np.testing.assert_array_equal(other.metrics, evidence.metrics)


def test_the_difference_is_paired_by_feature():
    random = np.random.default_rng(0)
    ours = random.random(400) < 0.6
    same = share_difference(ours, ours)
    assert (same.value, same.low, same.high) == (0.0, 0.0, 0.0)
    less = ours & (random.random(400) < 0.5)
    interval = share_difference(ours, less)
    assert interval.low > 0.2
    assert interval.low < interval.value < interval.high
