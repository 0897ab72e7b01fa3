from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from interlatent_live.errors import UserError
from interlatent_live.explanations import (
    ExpectedEffect,
    Explainer,
    ExplainerConfig,
    Interval,
    TermFamilies,
    Verdict,
    measure,
)
from interlatent_live.explanations.evidence import collect_evidence
from interlatent_live.explanations.planted import DESCRIBABLE, HOOK, Kind, Plan, plant, sparse_codes
from interlatent_live.explanations.predicates import parse, to_text
from interlatent_live.explanations.writers.person import draft_by_person

FAMILIES = TermFamilies(lags=(2, 3, 4, 5, 6, 7, 8))
KINDS = (Kind.THRESHOLD, Kind.INTERVAL, Kind.DELTA, Kind.NOISE, Kind.IRRELEVANT)
PLAN = Plan(per_kind=2, episodes=90, steps=150, metrics=3, density=(0.04, 0.2), kinds=KINDS, seed=8)
CONFIG = ExplainerConfig(null_draws=39, families=FAMILIES, narration_windows=(20, 10, 5))
CALIBRATION = 40


@pytest.fixture(scope="module")
def stream():
    return plant(PLAN)


def time_of(batch):
    return int(batch.steps.time_ns[-1])


@pytest.fixture(scope="module")
def proposed(stream):
    """An explainer with claims and a null from the calibration part."""
    return calibrated(stream)


def calibrated(stream, config=CONFIG):
    explainer = Explainer(stream.specs, HOOK, config=config, control_hz=50.0)
    calibration = collect_evidence(stream.batches[:CALIBRATION], stream.specs, HOOK)
    explainer.propose(calibration, time_of(stream.batches[CALIBRATION - 1]))
    assert explainer.search_null(10) == config.null_draws - 10
    assert explainer.search_null() == 0
    return explainer


@pytest.fixture(scope="module")
def live(stream):
    explainer = calibrated(stream)
    for number, batch in enumerate(stream.batches[CALIBRATION:]):
        explainer.observe(batch)
        if number % 5 == 4:
            explainer.rescore(time_of(batch))
    explainer.rescore(time_of(stream.batches[-1]), last=True)
    return explainer


def test_claims_start_pending_or_abstained(proposed, stream):
    for claim, truth in zip(proposed.claims, stream.truth, strict=True):
        expected = Verdict.PENDING if truth.kind in DESCRIBABLE else Verdict.ABSTAINED
        assert claim.verdict is expected
        assert claim.version == 0
        assert claim.writer == "built-in (no LLM)"
        assert claim.history[0].verdict is expected


def test_the_stream_verifies_what_is_true(live, stream):
    verified = [c.verdict is Verdict.VERIFIED for c in live.claims]
    describable = [t.kind in DESCRIBABLE for t in stream.truth]
    assert verified == describable
    for claim in live.claims:
        if claim.verdict is not Verdict.VERIFIED:
            continue
        assert claim.scores.episodes == PLAN.episodes - CALIBRATION
        assert claim.p_adjusted <= 0.05
        assert claim.null_draws == 39
        assert claim.best_rule_balanced_accuracy == claim.scores.balanced_accuracy.value
        assert not claim.loses_to_its_rule


def test_the_report_is_json_with_the_contract_s_names(live):
    report = json.loads(json.dumps(live.report(), allow_nan=False))
    claim = report["features"][0]["claim"]
    assert {
        "label",
        "description",
        "predicate",
        "verdict",
        "balanced_accuracy",
        "precision",
        "recall",
        "p_adjusted",
        "bouts",
        "episodes_heldout",
        "best_rule_balanced_accuracy",
        "writer",
    } <= set(claim)
    recent = claim["recent"]
    assert recent["balanced_accuracy_lo"] <= recent["balanced_accuracy"] <= 1
    assert 0 < recent["effective_units"] <= claim["episodes_heldout"]
    assert report["features"][-1]["claim"]["recent"] is None, "nothing is predicted of it"
    totals = report["claims"]
    assert totals["verified"] == 6
    assert totals["abstained"] == 4
    assert totals["eligible"] == 10
    assert totals["verified_share"] == 0.6
    assert report["features"][0]["address"] == f"{HOOK}/0@sha256:planted"


def test_narration_rests_on_verified_active_features(live):
    quality = measure(live.narrator(live.evidence()), live.evidence(), 25)
    assert quality.sentences > 20
    assert quality.true_share == 1.0
    assert quality.elsewhere_share <= 0.5
    assert quality.matcher_share >= 0.6
    assert quality.references_resolve


def test_a_person_s_claim_goes_through_the_same_gate(stream):
    explainer = calibrated(stream)
    feature = 0
    truth = to_text(stream.truth[feature].predicate)
    wrong = "signal_a > 0 and signal_b > 0 and signal_c > 0"
    now = time_of(stream.batches[CALIBRATION - 1])
    draft = draft_by_person(wrong, stream.specs, person="ada", description="going up")
    explainer.adopt(feature, draft, now)
    for batch in stream.batches[CALIBRATION:60]:
        explainer.observe(batch)
    explainer.rescore(time_of(stream.batches[59]), last=True)
    claim = explainer.claims[feature]
    assert claim.verdict in (Verdict.WEAK, Verdict.CONTRADICTED)
    assert claim.loses_to_its_rule
    assert claim.writer == "person:ada"
    assert explainer.profile(feature).previous == wrong
    right = draft_by_person(truth, stream.specs, person="ada")
    explainer.adopt(feature, right, time_of(stream.batches[59]))
    explainer.rescore(time_of(stream.batches[59]), last=True)
    assert explainer.claims[feature].verdict is Verdict.PENDING, "its ledger starts anew"
    for batch in stream.batches[60:]:
        explainer.observe(batch)
    explainer.rescore(time_of(stream.batches[-1]), last=True)
    claim = explainer.claims[feature]
    assert claim.version == 2
    assert claim.scores.episodes == PLAN.episodes - 60
    assert claim.rewrites == 1, "the built-in's version had not been scored when it was replaced"
    # One rewrite leaves α / 2 = .025, which 39 draws can just reach.
    assert claim.p_adjusted == pytest.approx(0.025)
    assert claim.verdict is Verdict.VERIFIED
    assert [event.version for event in claim.history] == [0, 1, 1, 2, 2]
    again = explainer.adopt(feature, right, time_of(stream.batches[-1]))
    assert again.rewrites == 2


def broken(batch, feature):
    """The same batch with one feature moved to other steps: its claim stops holding."""
    codes = batch.codes[HOOK]
    dense = codes.dense()
    dense[:, feature] = np.roll(dense[:, feature], len(dense) // 2)

    return replace(batch, codes={HOOK: sparse_codes(dense)})


def test_a_claim_that_stops_holding_is_withdrawn_and_the_others_stay(stream):
    explainer = calibrated(stream)
    middle = 65
    for batch in stream.batches[CALIBRATION:middle]:
        explainer.observe(batch)
    explainer.rescore(time_of(stream.batches[middle - 1]), last=True)
    assert explainer.claims[0].verdict is Verdict.VERIFIED
    before = [claim.verdict for claim in explainer.claims]
    for batch in stream.batches[middle:]:
        explainer.observe(broken(batch, 0))
        explainer.rescore(time_of(batch))
    after = [claim.verdict for claim in explainer.claims]
    assert after[0] is Verdict.STALE
    assert "withdrawn" in explainer.claims[0].reason
    assert after[1:] == before[1:]
    intact, fallen = explainer.recent(1), explainer.recent(0)
    assert intact.balanced_accuracy.value > 0.9 > fallen.balanced_accuracy.value
    assert explainer.recent(10**6) is None
    verdicts = [event.verdict for event in explainer.claims[0].history]
    assert verdicts == [Verdict.PENDING, Verdict.VERIFIED, Verdict.STALE]


def test_alarms_and_foreign_transcoders_make_claims_stale(stream):
    explainer = calibrated(stream)
    for batch in stream.batches[CALIBRATION:65]:
        explainer.observe(batch)
    now = time_of(stream.batches[64])
    explainer.rescore(now, last=True)
    explainer.set_alarm("reconstruction error above its bound")
    stale = explainer.rescore(now)
    assert {c.verdict for c in stale if c.predicate} == {Verdict.STALE}
    explainer.set_alarm("")
    back = explainer.rescore(now, last=True)
    assert back[0].verdict is Verdict.VERIFIED
    for batch in stream.batches[65:67]:
        explainer.observe(replace(batch, transcoders={HOOK: "sha256:other"}))
    changed = explainer.rescore(time_of(stream.batches[66]))
    assert changed[0].verdict is Verdict.STALE
    assert "sha256:other" in changed[0].reason
    assert "sha256:planted" in changed[0].reason


def test_without_a_calibration_claims_come_from_early_episodes(stream):
    explainer = Explainer(stream.specs, HOOK, config=CONFIG)
    with pytest.raises(UserError, match="propose claims first"):
        explainer.profile(0)
    assert explainer.rescore(1) == ()
    assert explainer.narrate() == ()
    for batch in stream.batches[:CALIBRATION]:
        explainer.observe(batch)
    claims = explainer.propose_from_live(time_of(stream.batches[CALIBRATION - 1]))
    explainer.rescore(time_of(stream.batches[CALIBRATION - 1]))
    assert all(c.scores is None or c.scores.episodes == 0 for c in claims)
    assert explainer.claims[0].verdict is Verdict.PENDING


def test_replaying_the_stream_gives_the_same_verdicts(live, stream):
    again = calibrated(stream)
    for batch in stream.batches[CALIBRATION:]:
        again.observe(batch)
    again.rescore(time_of(stream.batches[-1]), last=True)
    for old, new in zip(live.claims, again.claims, strict=True):
        assert old.verdict is new.verdict
        assert old.scores == new.scores
        assert old.p_adjusted == new.p_adjusted


def test_predicates_of_people_are_checked_at_once(stream):
    with pytest.raises(UserError, match="no metric 'height'"):
        draft_by_person("height > 1", stream.specs, person="ada")
    with pytest.raises(UserError, match="person's name"):
        draft_by_person("signal_a > 1", stream.specs, person=" ")
    draft = draft_by_person("signal_a > 1 and signal_b < 0", stream.specs, person="a\nb")
    assert draft.writer == "person:a b"
    assert [c.predicate for c in draft.clauses] == [
        parse("signal_a > 1", stream.specs),
        parse("signal_b < 0", stream.specs),
    ]


def test_pruning_makes_a_shorter_version_with_a_ledger_of_its_own(stream):
    explainer = calibrated(stream)
    now = time_of(stream.batches[CALIBRATION - 1])
    truth = to_text(stream.truth[0].predicate)
    padded = draft_by_person(f"{truth} and time_in_episode >= 0", stream.specs, person="ada")
    explainer.adopt(0, padded, now)
    assert explainer.prune(0, now) is None, "nothing was scored yet"
    for batch in stream.batches[CALIBRATION:65]:
        explainer.observe(batch)
    now = time_of(stream.batches[64])
    explainer.rescore(now)
    shorter = explainer.prune(0, now)
    assert to_text(shorter.predicate) == truth
    assert (shorter.version, shorter.rewrites) == (2, 1)
    assert [clause.predicate for clause in shorter.clauses] == [stream.truth[0].predicate]
    assert explainer.prune(0, now) is None
    with pytest.raises(UserError, match="has no claim"):
        explainer.prune(999, now)


def test_an_effect_of_the_opposite_sign_contradicts_the_claim(stream):
    explainer = calibrated(stream)
    now = time_of(stream.batches[CALIBRATION - 1])
    draft = draft_by_person(to_text(stream.truth[0].predicate), stream.specs, person="ada")
    draft = replace(draft, expected_effect=ExpectedEffect("right", 1))
    explainer.adopt(0, draft, now)
    for batch in stream.batches[CALIBRATION:]:
        explainer.observe(batch)
    explainer.rescore(time_of(stream.batches[-1]), last=True)
    assert explainer.claims[0].verdict is Verdict.VERIFIED
    explainer.set_effect(0, Interval(-0.4, -0.6, -0.2))
    explainer.rescore(time_of(stream.batches[-1]), last=True)
    (claim,) = explainer.claims[:1]
    assert claim.verdict == Verdict.CONTRADICTED
    assert "opposite sign" in explainer.claims[0].reason
