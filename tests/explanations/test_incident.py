from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from interlatent_live.errors import UserError
from interlatent_live.explanations.claims import Claim
from interlatent_live.explanations.dictionaries import with_features
from interlatent_live.explanations.evidence import collect_evidence
from interlatent_live.explanations.incident import (
    analyse_incident,
    known_claims,
    small_enough,
)
from interlatent_live.explanations.planted import HOOK, Kind, Plan, plant
from interlatent_live.explanations.verification import Verdict
from interlatent_live.stream import FeatureAddress

STEPS, EPISODES = 120, 30


@pytest.fixture(scope="module")
def evidence():
    """Feature 0 fires, and feature 1 falls silent, at the end of episodes 7 and 21 only."""
    plan = Plan(per_kind=1, episodes=EPISODES, steps=STEPS, metrics=1, kinds=(Kind.NOISE,), seed=2)
    stream = plant(plan)
    base = collect_evidence(stream.batches, stream.specs, HOOK)
    random = np.random.default_rng(0)
    on = random.random((len(base), 6)) < 0.3
    on[:, 0] = random.random(len(base)) < 0.02
    on[:, 1] = random.random(len(base)) < 0.9
    for episode in (7, 21):
        end = (episode + 1) * STEPS
        on[end - 30 : end, 0] = True
        on[end - 20 : end, 1] = False
    return with_features(base, on)


def claim(feature, verdict):
    address = FeatureAddress(HOOK, feature, "sha256:planted")
    made = Claim(address, "near the edge", "", (), None, "test", "", 0, 0)
    return replace(made, verdict=verdict)


def test_what_was_unusual_at_the_end_is_named_with_its_lead_and_its_claim(evidence):
    found = analyse_incident(
        evidence, env=0, episode=7, window=20, claims=known_claims([claim(0, Verdict.VERIFIED)])
    )
    by_feature = {f.feature: f for f in found.features}
    assert by_feature[0].excess
    assert not by_feature[1].excess
    assert by_feature[0].activity == 1.0
    assert by_feature[0].usual < 0.1
    assert by_feature[0].as_extreme <= 0.05
    assert 10 <= by_feature[0].lead_steps <= 45
    assert (by_feature[0].claim.label, by_feature[0].claim.verdict) == ("near the edge", "verified")
    assert by_feature[1].claim is None
    assert len(by_feature[0].course) == 20
    assert min(by_feature[0].course) > 0
    assert by_feature[1].course == (0.0,) * 20
    assert set(by_feature) <= {0, 1, 2, 3, 4, 5}
    assert found.reference_episodes == EPISODES - 1
    json.dumps(found.to_json(), allow_nan=False)


def test_the_nearest_past_case_is_the_one_that_ended_alike(evidence):
    found = analyse_incident(evidence, env=0, episode=7, window=20)
    assert found.nearest[0].episode == 21
    assert found.nearest[0].similarity > found.nearest[1].similarity
    assert found.nearest[0].steps == STEPS


def test_an_ordinary_end_has_little_to_say(evidence):
    found = analyse_incident(evidence, env=0, episode=3, window=20)
    assert not {0, 1} & {f.feature for f in found.features}


def test_a_long_run_is_cut_to_its_newest_episodes_and_the_one_asked_for(evidence):
    assert small_enough(evidence, env=0, episode=1) is evidence
    cells = 10 * STEPS * evidence.n_features
    cut = small_enough(evidence, env=0, episode=1, cells=cells)
    kept = sorted(cut.unit_key[:, 2])
    assert kept == [1, *range(EPISODES - 10, EPISODES)]
    assert analyse_incident(cut, env=0, episode=1, window=20).reference_episodes == 10


def test_what_is_not_there_is_said(evidence):
    with pytest.raises(
        UserError, match=r"episode 99 of copy 0 is not among .*: 30 episodes of it, from 0 to 29"
    ):
        analyse_incident(evidence, env=0, episode=99)
    with pytest.raises(UserError, match="only copies 0"):
        analyse_incident(evidence, env=7, episode=1)
    alone = evidence.select(np.arange(evidence.n_units) == 3)
    with pytest.raises(UserError, match="no other episode"):
        analyse_incident(alone, env=0, episode=3)
