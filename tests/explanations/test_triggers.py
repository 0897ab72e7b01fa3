from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from interlatent_live.explanations.planted import sparse_codes
from interlatent_live.explanations.triggers import (
    COPIES_WATCHED,
    NEW_STEPS,
    STEADY_STEPS,
    Moment,
    TriggerKind,
    TriggerWatch,
    alert_trigger,
)
from interlatent_live.stream import Controller, StepFlag, steps_without_columns
from interlatent_live.wire.slices import slice_features
from tests.support.planted_stream import HOOK, episodes


def rows(on, *, env=0, episode=0, first_t=0):
    """Steps of one copy in which feature 3 is on where ``on`` says so."""
    on = np.asarray(on, bool)
    steps = steps_without_columns(len(on), 0)
    steps.env[:], steps.episode[:] = env, episode
    steps.t[:] = np.arange(first_t, first_t + len(on))
    dense = np.zeros((len(on), 5), np.float32)
    dense[:, 3] = on
    return steps, sparse_codes(dense)


def watching(*features):
    watch = TriggerWatch()
    watch.watch(features)
    return watch


@pytest.mark.parametrize(
    ("steady", "kind"), [(False, TriggerKind.BEGAN), (True, TriggerKind.STOPPED)]
)
def test_a_steady_feature_that_changes_is_noticed_once(steady, kind):
    on = [steady] * 80 + [not steady] * 100
    (found,) = watching(3).take(*rows(on))
    assert found.kind is kind
    assert found.subject == "3"
    # As soon as the steps before are steady and most of the newest are otherwise: 10 of 12.
    assert found.at == Moment(0, 0, 80 + 9)
    assert watching(2).take(*rows(on)) == [], "it is not watched"
    assert watching().take(*rows(on)) == []


def test_a_flickering_feature_says_nothing():
    assert watching(3).take(*rows(np.arange(400) % 20 < 10)) == []
    assert watching(3).take(*rows(np.arange(400) % 7 == 0)) == []


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.booleans(), min_size=1, max_size=8),
    st.lists(st.integers(1, 90), min_size=1, max_size=20),
)
def test_how_rows_are_cut_into_batches_changes_nothing(runs, cuts):
    on = np.repeat(runs, 70)
    whole = watching(3).take(*rows(on))
    watch, found, at = watching(3), [], 0
    for size in [*cuts, len(on)]:
        if at < len(on):
            found += watch.take(*rows(on[at : at + size], first_t=at))
            at += size
    assert found == whole
    changes = [place for place in range(1, len(runs)) if runs[place] != runs[place - 1]]
    assert len(found) == len(changes)
    for one, other in pairwise(found):
        assert other.at.t - one.at.t >= STEADY_STEPS, "two of them are as far apart as it is steady"


def test_holes_and_other_episodes_are_not_steady():
    watch = watching(3)
    assert watch.take(*rows([0] * 55)) == []
    assert watch.take(*rows([1] * NEW_STEPS, first_t=56)) == [], "a step is missing"
    assert watch.take(*rows([1] * NEW_STEPS, episode=1)) == []
    watch = watching(3)
    steps, codes = rows([0] * 60 + [1] * 20)
    steps.controller[60:] = Controller.HUMAN
    kinds = {one.kind for one in watch.take(steps, codes)}
    assert kinds == {TriggerKind.INTERVENTION}, "what a person does begins no feature"


def test_copies_are_bounded_and_told_apart():
    watch = watching(3)
    for env in range(COPIES_WATCHED + 5):
        watch.take(*rows([0] * 60, env=env))
    found = []
    for env in range(COPIES_WATCHED + 5):
        found += watch.take(*rows([1] * 12, env=env, first_t=60))
    assert [one.at.env for one in found] == list(range(COPIES_WATCHED))


def test_ends_of_episodes_are_told_apart():
    steps, codes = rows([0] * 30)
    steps.flags[9], steps.flags[19] = StepFlag.TERMINATED, StepFlag.TRUNCATED
    found = {one.kind: one for one in watching().take(steps, codes)}
    assert found[TriggerKind.TERMINATED].text == "episode 0 terminated at step 9"
    assert found[TriggerKind.TRUNCATED].at == Moment(0, 0, 19)


def test_stepping_in_is_told_when_it_begins_and_of_what_was_before():
    watch = watching()
    steps, codes = rows([0] * 30)
    steps.controller[10:20] = Controller.INTERVENTION
    steps.controller[25:] = Controller.HOLD
    (found,) = watch.take(steps, codes)
    assert (found.subject, found.at) == ("hold", Moment(0, 0, 24)), "the newest of a batch"
    steps, codes = rows([0] * 5, first_t=30)
    steps.controller[:] = Controller.HOLD
    assert watch.take(steps, codes) == [], "it goes on"


def test_an_alert_says_its_rule():
    assert alert_trigger("tilt", "the torso tilts").text == "the alert tilt fires: the torso tilts"
    assert alert_trigger("tilt", "").at is None


def test_rows_of_a_stream_are_taken_as_they_are():
    (batch,) = episodes(1)
    watch = watching(0, 1)
    watch.take(batch.steps, batch.codes[HOOK])
    empty = slice_features(batch, 0, 0)
    assert watch.take(empty.steps, empty.codes[HOOK]) == []
    assert watch.take(replace(empty.steps), empty.codes[HOOK]) == []
