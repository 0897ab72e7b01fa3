from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from interlatent_live.bench import narration as bench
from interlatent_live.bench.scenes import CARTPOLE, HOOK, Stage
from interlatent_live.explanations.claims import Claim
from interlatent_live.explanations.predicates import parse
from interlatent_live.explanations.scores import score
from interlatent_live.stream import FeatureAddress


@pytest.fixture(scope="module")
def stage():
    with Stage(replace(CARTPOLE, max_steps=60), copies=4) as made:
        yield made


def test_the_clock_goes_on_and_episodes_are_numbered(stage):
    first, second = (next(iter(stage.play(4, seed))) for seed in (5, 9))
    assert first.steps.time_ns.max() < second.steps.time_ns.min()
    assert set(first.steps.episode) != set(second.steps.episode)
    assert first.codes[HOOK].n_features == 128
    assert len(first.steps) == len(first.codes[HOOK])


def test_the_same_seed_gives_the_same_rows_and_gravity_changes_them(stage):
    same = [next(iter(stage.play(4, 77))).steps.metrics for _ in range(2)]
    np.testing.assert_array_equal(*same)
    stage.set_gravity(2.0)
    other = next(iter(stage.play(4, 77))).steps.metrics
    stage.set_gravity(0.5)
    assert other.shape != same[0].shape or not np.array_equal(other, same[0])


def test_flipping_turns_one_metric_and_leaves_the_rest(stage):
    batches = [*stage.play(4, 3)]
    flipped = bench._flipped(batches, stage, "pole_angle")[0].steps.metrics
    column = [spec.name for spec in stage.specs].index("pole_angle")
    before = batches[0].steps.metrics
    np.testing.assert_array_equal(flipped[:, column], -before[:, column])
    np.testing.assert_array_equal(
        np.delete(flipped, column, axis=1), np.delete(before, column, axis=1)
    )


def claim(evidence, feature, text):
    address = FeatureAddress(HOOK, feature, evidence.transcoder_hash)
    return Claim(address, "", "", (), parse(text, evidence.specs), "", "", 0, 0)


def test_truth_is_that_of_all_later_episodes(stage):
    evidence = stage.evidence(16, 40)
    feature = int(np.argmax(np.where(evidence.density() < 0.4, evidence.density(), 0)))
    silent = claim(evidence, feature, "cart_position > 100")
    assert bench.truth_of(silent, evidence) == "broken"
    always = claim(evidence, feature, "cart_position > -100")
    assert bench.truth_of(always, evidence) == "broken"


def test_what_always_fails_can_be_told_soon_and_what_holds_never(stage):
    evidence = stage.evidence(16, 40)
    feature = int(np.argmax(np.where(evidence.density() < 0.4, evidence.density(), 0)))

    def soonest(text, recall):
        one = claim(evidence, feature, text)
        found = score(evidence, feature, one.predicate)
        before = replace(found, recall=recall, firings=found.on_rows)
        return bench._soonest(replace(one, scores=before), evidence)

    # Nobody fires: no bout of the predicate has to be waited for.
    assert soonest("cart_position > 100", 0.95) == 0
    mostly = soonest("cart_position > -100", 0.95)
    assert 0 < mostly < np.inf


def test_a_test_that_is_told_the_truth_tells_what_is_broken_and_never_what_holds(stage):
    evidence = stage.evidence(16, 40)
    feature = int(np.argmax(np.where(evidence.density() < 0.4, evidence.density(), 0)))
    begun = int(evidence.time_ns.min())

    def told(text, recall):
        one = claim(evidence, feature, text)
        found = score(evidence, feature, one.predicate)
        before = replace(found, recall=recall, firings=found.on_rows)
        return bench.told_delay(replace(one, scores=before), evidence, begun)

    assert told("cart_position > 100", 0.95) == 0, "it never fires"
    always = told("cart_position > -100", 0.95)
    assert always is not None
    # That a feature this common is off is allowed in half of the firings, and none is missed.
    on = evidence.density()[feature]
    assert (always > 0) == (on < 0.5)
    assert bench._told_row({"sign": [bench._Fate("broken", 80, told=20)]}).value == 1.0


def test_shares_count_what_fell_in_time():
    fates = [bench._Fate("broken", delay) for delay in (10, 30, 80, None)]
    assert bench._share(fates, 30) == 0.5
    assert bench._share(fates) == 0.75
    assert bench._share([]) == 0.0


def test_other_weights_are_refused():
    row = bench._refusal_row()
    assert row.value == 1.0
    assert row.met
