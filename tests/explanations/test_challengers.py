"""A person's claim is checked beside the one that stands, and takes its place where better."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from interlatent_live.errors import UserError
from interlatent_live.explanations import Verdict
from interlatent_live.explanations import explainer as module
from interlatent_live.explanations.explainer import EPISODES_FOR_A_DRAFT
from interlatent_live.explanations.planted import HOOK, Kind, Plan, plant
from interlatent_live.explanations.predicates import parse, to_text
from interlatent_live.explanations.writers.person import draft_by_person
from tests.explanations.test_explainer import CALIBRATION, calibrated, time_of

PLAN = Plan(
    per_kind=2, episodes=90, steps=150, metrics=3, density=(0.04, 0.2),
    kinds=(Kind.THRESHOLD, Kind.INTERVAL), seed=8,
)  # fmt: skip
FEATURE = 0


@pytest.fixture(scope="module")
def stream():
    return plant(PLAN)


@pytest.fixture
def explainer(stream):
    return calibrated(stream)


def say(explainer, stream, text, at, *, challenge=True):
    draft = draft_by_person(text, stream.specs, person="ada")
    tell = explainer.challenge if challenge else explainer.adopt
    return tell(FEATURE, draft, time_of(stream.batches[at - 1]))


def watch(explainer, stream, start, end):
    """Episodes ``start`` to ``end``, rescored now and then and at the end."""
    for number, batch in enumerate(stream.batches[start:end], start):
        explainer.observe(batch)
        if number % 10 == 9:
            explainer.rescore(time_of(batch))
    explainer.rescore(time_of(stream.batches[end - 1]), last=True)


def standing(explainer):
    (claim,) = [one for one in explainer.claims if one.address.index == FEATURE]
    return claim


def truth(stream):
    return to_text(stream.truth[FEATURE].predicate)


def test_a_worse_claim_is_refused_with_its_reason_and_disturbs_nothing(explainer, stream):
    machine = standing(explainer)
    made = say(explainer, stream, f"{stream.specs[0].name} < -100 or {truth(stream)} and "
               f"{stream.specs[1].name} > 0", CALIBRATION)  # fmt: skip
    assert (made.version, made.verdict) == (1, Verdict.PENDING)
    assert standing(explainer) == machine, "a pending claim takes nothing away"
    watch(explainer, stream, CALIBRATION, 90)
    claim, (challenger,) = standing(explainer), explainer.challengers
    assert (claim.version, claim.verdict) == (0, Verdict.VERIFIED)
    assert challenger.verdict is not Verdict.VERIFIED
    assert challenger.reason
    assert challenger.scores.episodes == 90 - CALIBRATION
    report = json.loads(json.dumps(explainer.report(), allow_nan=False))
    shown = {one["address"]: one["claim"] for one in report["features"]}[str(claim.address)]
    assert shown["verdict"] == "verified"
    assert shown["challenger"]["writer"] == "person:ada"
    assert shown["challenger"]["reason"] == challenger.reason


def test_a_verified_claim_that_is_better_takes_the_place_and_all_versions_are_kept(
    explainer, stream
):
    predicate = stream.truth[FEATURE].predicate
    rough = to_text(predicate).replace(f"{_bound(predicate):g}", f"{_bound(predicate) * 1.1:g}")
    assert rough != truth(stream)
    say(explainer, stream, rough, CALIBRATION, challenge=False)
    watch(explainer, stream, CALIBRATION, 60)
    before = standing(explainer)
    made = say(explainer, stream, truth(stream), 60)
    watch(explainer, stream, 60, 90)
    claim = standing(explainer)
    assert explainer.challengers == ()
    assert (claim.version, claim.verdict) == (made.version, Verdict.VERIFIED)
    assert claim.version == before.version + 1
    assert claim.created_ns == made.created_ns, "its own ledger goes on"
    assert claim.rewrites == before.rewrites + 1
    assert to_text(claim.predicate) == truth(stream)
    assert [event.version for event in claim.history][-1] == claim.version
    assert {event.version for event in claim.history} == {0, 1, 2}
    watch(explainer, stream, 60, 90)
    assert standing(explainer).verdict is Verdict.VERIFIED


def _bound(predicate):
    """The planted threshold."""
    text = to_text(predicate)
    return float(text.rpartition(" ")[2])


def test_the_same_rule_again_is_no_better(explainer, stream):
    machine = standing(explainer)
    say(explainer, stream, to_text(machine.predicate), CALIBRATION)
    watch(explainer, stream, CALIBRATION, 90)
    assert standing(explainer).version == 0
    (challenger,) = explainer.challengers
    assert challenger.verdict is Verdict.VERIFIED


def test_the_newest_challenger_of_a_feature_is_checked_and_there_are_not_too_many(
    explainer, stream, monkeypatch
):
    say(explainer, stream, truth(stream), CALIBRATION)
    made = say(explainer, stream, truth(stream), CALIBRATION)
    assert made.version == 2
    assert explainer.challengers == (made,)
    watch(explainer, stream, CALIBRATION, 50)
    assert say(explainer, stream, truth(stream), 50).rewrites == 1, "each scored try spends of α"
    monkeypatch.setattr(module, "MOST_CHALLENGERS", 1)
    again = say(explainer, stream, truth(stream), CALIBRATION)
    assert explainer.challengers == (again,)
    draft = draft_by_person(truth(stream), stream.specs, person="ada")
    with pytest.raises(UserError, match="1 claims by people are being checked"):
        explainer.challenge(1, draft, 0)
    with pytest.raises(UserError, match=f"feature {HOOK}/99 has no claim"):
        explainer.challenge(99, draft, 0)


def offer(explainer, stream, text, at, feature=FEATURE):
    draft = replace(draft_by_person(text, stream.specs, person="ada"), writer="model")
    return explainer.offer(feature, draft, time_of(stream.batches[at - 1]))


def test_a_writer_s_draft_waits_beside_what_stands_and_replaces_what_failed(explainer, stream):
    machine = standing(explainer)
    assert machine.verdict is Verdict.PENDING
    made = offer(explainer, stream, f"{truth(stream)} and {stream.specs[1].name} > 0", CALIBRATION)
    assert (standing(explainer), explainer.challengers) == (machine, (made,))
    watch(explainer, stream, CALIBRATION, CALIBRATION + EPISODES_FOR_A_DRAFT - 1)
    assert explainer.challengers[0].verdict is Verdict.WEAK
    watch(explainer, stream, CALIBRATION + EPISODES_FOR_A_DRAFT - 1, 90)
    claim = standing(explainer)
    assert (claim.version, claim.verdict, claim.rewrites) == (0, Verdict.VERIFIED, 0)
    assert explainer.challengers == (), "it had its episodes"
    assert [event.version for event in claim.history] == [0, 0]
    again = offer(explainer, stream, truth(stream), 90)
    assert (again.version, again.rewrites) == (1, 1), "what it spent of α stays spent"
    wrong = say(explainer, stream, f"{stream.specs[1].name} > 0", 90, challenge=False)
    assert offer(explainer, stream, truth(stream), 90) != wrong
    assert standing(explainer) == wrong, "pending ones are left their episodes too"


def test_a_withdrawn_claim_makes_way_at_once(explainer, stream):
    say(explainer, stream, f"{stream.specs[1].name} > 0", CALIBRATION, challenge=False)
    watch(explainer, stream, CALIBRATION, 90)
    assert standing(explainer).verdict is not Verdict.VERIFIED
    made = offer(explainer, stream, truth(stream), 90)
    assert (standing(explainer), explainer.challengers) == (made, ())


def test_a_model_s_words_for_the_built_in_s_rule_are_shown_once_they_are_verified(
    explainer, stream
):
    made = offer(explainer, stream, to_text(standing(explainer).predicate), CALIBRATION)
    watch(explainer, stream, CALIBRATION, 90)
    claim = standing(explainer)
    assert (claim.version, claim.writer) == (made.version, "model")
    assert claim.verdict is Verdict.VERIFIED


def test_writers_wait_for_persons_and_for_room(explainer, stream, monkeypatch):
    say(explainer, stream, truth(stream), CALIBRATION)
    assert not explainer.takes_drafts(FEATURE)
    assert offer(explainer, stream, truth(stream), CALIBRATION) is None
    assert explainer.challengers[0].writer == "person:ada"
    monkeypatch.setattr(module, "MOST_DRAFTS", 1)
    other, third = 1, 2
    assert offer(explainer, stream, truth(stream), CALIBRATION, other) is not None
    assert offer(explainer, stream, truth(stream), CALIBRATION, third) is None
    assert explainer.takes_drafts(other), "a newer draft replaces its older one"
    # People never wait for writers.
    monkeypatch.setattr(module, "MOST_CHALLENGERS", 2)
    draft = draft_by_person(truth(stream), stream.specs, person="ada")
    assert explainer.challenge(other, draft, 0).writer == "person:ada"


def test_people_s_claims_that_were_judged_make_room_for_others(explainer, stream, monkeypatch):
    monkeypatch.setattr(module, "MOST_CHALLENGERS", 1)
    say(explainer, stream, to_text(standing(explainer).predicate), CALIBRATION)
    watch(explainer, stream, CALIBRATION, 90)
    draft = draft_by_person(truth(stream), stream.specs, person="ada")
    made = explainer.challenge(1, draft, 0)
    assert explainer.challengers == (made,)


def test_a_predicate_of_the_truth_is_a_threshold(stream):
    assert parse(truth(stream), stream.specs) == stream.truth[FEATURE].predicate
