from dataclasses import replace
from itertools import pairwise

import pytest

from interlatent_live.errors import UserError
from interlatent_live.explanations import ExplainerConfig, Interval
from interlatent_live.explanations.detection import Detection
from interlatent_live.explanations.evidence import collect_evidence
from interlatent_live.explanations.predicates import parse
from interlatent_live.explanations.writers import Draft
from interlatent_live.feed.documents import (
    AlertsDocument,
    AlertStatus,
    ClaimCost,
    ClaimsDocument,
    DriftStatus,
    NarrationDocument,
    document_payload,
    parse_document,
)
from interlatent_live.pipeline.explainer import (
    MOST_ENDED,
    Calibration,
    ExplainerCore,
    Pace,
    calibrations_from,
)
from interlatent_live.stream import SparseCodes, Steps
from interlatent_live.wire.codec import check_payload
from tests.support.planted_stream import HOOK, LEAN, TRANSCODER, episodes, manifest

SECOND = 1_000_000_000


class Clock:
    def __init__(self):
        self.ns = 0

    def __call__(self):
        self.ns += 1000
        return self.ns


def calibration(**changes):
    said = manifest(**changes)
    return Calibration(said, collect_evidence(episodes(30, seed=9), said.metrics, HOOK))


def core(clock, *, calibrated=True, words=False, draws=29):
    return ExplainerCore(
        ExplainerConfig(null_draws=draws),
        calibrations=calibrations_from([calibration()] if calibrated else []),
        pace=Pace(rescore_s=1.0, narrate_s=1.0),
        writer="built-in (no LLM)",
        words=words,
        clock=clock,
    )


def drive(explainer, clock, batches, documents):
    """Feed batches at their own time and work in between, as the service does."""
    for batch in batches:
        clock.ns = max(clock.ns, int(batch.steps.time_ns[-1]))
        explainer.features(batch)
        for _ in range(6):
            documents += explainer.work()


def finish(explainer, documents, boot_id="boot"):
    explainer.goodbye(boot_id)
    for _ in range(5):
        documents += explainer.work()
    return [one for one in documents if isinstance(one, ClaimsDocument)]


def claim_of(document, feature):
    address = f"{HOOK}/{feature}@{TRANSCODER}"
    return next(one for one in document.claims if one["address"] == address)


def test_claims_from_a_calibration_are_verified_on_live_episodes_and_narrated():
    clock, documents = Clock(), []
    explainer = core(clock)
    assert explainer.prepare() >= 1
    explainer.hello(manifest(), {HOOK: TRANSCODER})
    drive(explainer, clock, episodes(40, seed=1, start_ns=10 * SECOND), documents)
    claims = finish(explainer, documents)
    last = claims[-1]
    assert last.final
    assert last.processed_seq == 40 * 120
    lean = claim_of(last, LEAN)
    assert lean["verdict"] == "verified"
    assert lean["balanced_accuracy"] > 0.95
    assert "lean > 0.8" in lean["predicate"]
    assert lean["episodes_heldout"] == 40
    assert last.counts["verified"] == 1
    assert last.time_to_first_verified_s > 0
    assert not claims[0].final
    said = [one for one in documents if isinstance(one, NarrationDocument)]
    assert said
    addresses = {one["address"] for one in last.claims}
    for document in said:
        for line in document.lines:
            assert line.references
            for reference in line.references:
                assert reference["address"] in addresses
                assert f"{reference['metrics'][0]['value']:.3g}" in line.text


def test_without_calibration_claims_come_from_the_first_episodes_and_are_scored_on_later_ones():
    clock, documents = Clock(), []
    explainer = core(clock, calibrated=False)
    assert explainer.prepare() == 0
    explainer.hello(manifest(), {HOOK: TRANSCODER})
    drive(explainer, clock, episodes(80, seed=2, start_ns=SECOND), documents)
    lean = claim_of(finish(explainer, documents)[-1], LEAN)
    assert lean["verdict"] == "verified"
    assert 20 <= lean["episodes_heldout"] <= 50


def test_a_run_too_short_to_propose_from_ends_with_an_empty_final_document():
    clock, documents = Clock(), []
    explainer = core(clock, calibrated=False)
    explainer.hello(manifest(), {HOOK: TRANSCODER})
    drive(explainer, clock, episodes(2, start_ns=SECOND), documents)
    (document,) = finish(explainer, documents)
    assert document.final
    assert document.claims == []


def test_a_calibration_with_other_metrics_is_not_used():
    clock, documents = Clock(), []
    explainer = core(clock)
    explainer.prepare()
    said = manifest(metrics=manifest().metrics[:2])
    explainer.hello(said, {HOOK: TRANSCODER})
    batch = next(iter(episodes(1, start_ns=SECOND)))
    explainer.features(
        replace(batch, steps=replace(batch.steps, metrics=batch.steps.metrics[:, :2]))
    )
    assert finish(explainer, documents)[-1].claims == []


def test_a_second_run_gets_claims_of_its_own():
    clock, documents = Clock(), []
    explainer = core(clock)
    explainer.prepare()
    for run in ("one", "two"):
        said = manifest(run_id=run, boot_id=run)
        explainer.hello(said, {HOOK: TRANSCODER})
        batches = episodes(30, seed=4, boot_id=run, run_id=run, start_ns=clock.ns + SECOND)
        drive(explainer, clock, batches, documents)
        finish(explainer, documents, run)
    finals = {one.run_id: one for one in documents if getattr(one, "final", False)}
    assert set(finals) == {"one", "two"}
    assert all(claim_of(one, LEAN)["verdict"] == "verified" for one in finals.values())


def test_all_runs_together_hold_no_more_rows_than_one_limit_allows():
    clock, documents = Clock(), []
    limit = 300_000
    explainer = ExplainerCore(
        ExplainerConfig(null_draws=0, limit_bytes=limit),
        calibrations={},
        pace=Pace(rescore_s=1.0, narrate_s=1.0),
        writer="built-in (no LLM)",
        words=False,
        clock=clock,
    )
    runs = 2 * MOST_ENDED
    for number in range(runs):
        said = manifest(run_id=f"run-{number}", boot_id=f"boot-{number}")
        explainer.hello(said, {HOOK: TRANSCODER})
        rows = episodes(8, seed=number, start_ns=clock.ns, run_id=said.run_id, boot_id=said.boot_id)
        drive(explainer, clock, rows, documents)
        finish(explainer, documents, said.boot_id)
        assert explainer.evidence_bytes <= limit
    assert explainer.evidence_bytes > limit / 4
    assert explainer.inquiries <= MOST_ENDED + 1
    assert len({one.run_id for one in documents if one.final}) == runs


def test_runs_without_rows_take_no_part_of_the_memory_and_no_turn():
    clock = Clock()
    explainer = core(clock, calibrated=False, draws=0)
    explainer.hello(manifest(), {HOOK: TRANSCODER})
    for number in range(50):
        silent = manifest(run_id=f"silent-{number}", boot_id=f"silent-{number}")
        explainer.hello(silent, {HOOK: TRANSCODER})
    drive(explainer, clock, episodes(2), [])
    assert explainer.inquiries == 1
    explainer.goodbye("silent-7")
    with pytest.raises(UserError, match="before its manifest"):
        explainer.features(next(iter(episodes(1, run_id="silent-7", boot_id="silent-7"))))


def test_a_model_is_asked_once_per_feature_and_its_draft_is_checked_beside_what_stands():
    clock, documents = Clock(), []
    explainer = core(clock, words=True, draws=99)
    explainer.prepare()
    explainer.hello(manifest(), {HOOK: TRANSCODER})
    rows = [*episodes(41, start_ns=clock.ns + SECOND)]
    drive(explainer, clock, rows[:1], documents)
    asked = explainer.profiles_to_write(10)
    assert (asked[0].run_id, asked[0].hook_point, asked[0].by_person) == ("run", HOOK, False)
    assert {one.profile.address.index for one in asked} >= {LEAN}
    weights = [one.importance for one in asked]
    assert weights == sorted(weights, reverse=True)
    assert explainer.profiles_to_write(10) == []
    guess = parse("lean > 0.8", manifest().metrics)
    draft = Draft("a guess", "A guess.", (), guess, "model", "sha256:prompt")
    explainer.adopt("run", HOOK, LEAN, draft)
    documents.clear()
    drive(explainer, clock, rows[1:], documents)
    claims = [claim_of(one, LEAN) for one in finish(explainer, documents)]
    # Until its words are verified the rule that was there is shown, and they are shown beside it.
    first, last = claims[0], claims[-1]
    assert (first["writer"], first["version"]) == ("built-in (no LLM)", 0)
    assert (first["challenger"]["writer"], first["challenger"]["version"]) == ("model", 1)
    assert (last["writer"], last["version"], last["verdict"]) == ("model", 1, "verified")
    assert last["challenger"] is None
    shown = [one["verdict"] for one in claims]
    assert "verified" in shown
    assert set(shown[shown.index("verified") :]) == {"verified"}, "never without a verified claim"


def test_a_worse_draft_of_a_model_never_takes_the_place_of_a_verified_claim():
    clock, documents = Clock(), []
    explainer = core(clock, words=True)
    explainer.prepare()
    explainer.hello(manifest(), {HOOK: TRANSCODER})
    drive(explainer, clock, episodes(40, start_ns=SECOND), documents)
    worse = Draft("worse", "Worse.", (), parse("lean > 1.4", manifest().metrics), "model", "")
    explainer.adopt("run", HOOK, LEAN, worse)
    later = [*episodes(60, seed=3, start_ns=clock.ns + SECOND)]
    for number, batch in enumerate(later):
        batch.steps.episode[:] = 40 + number
    before = len(documents)
    drive(explainer, clock, later, documents)
    finish(explainer, documents)
    claims = [claim_of(d, LEAN) for d in documents[before:] if isinstance(d, ClaimsDocument)]
    assert {(one["writer"], one["verdict"]) for one in claims} == {
        ("built-in (no LLM)", "verified")
    }
    beside = [one["challenger"] for one in claims if one["challenger"]]
    assert beside[-1]["verdict"] == "weak"
    assert claims[-1]["challenger"] is None, "it had its episodes, and was not better"


def test_what_a_person_asks_for_is_worded_first_and_the_same_words_twice_begin_nothing_anew():
    clock = Clock()
    explainer = core(clock, words=True)
    explainer.prepare()
    explainer.hello(manifest(), {HOOK: TRANSCODER})
    drive(explainer, clock, episodes(1, start_ns=SECOND), [])
    least = explainer.profiles_to_write(10)[-1].profile.address.index
    explainer.word_first("run", HOOK, least)
    (first,) = explainer.profiles_to_write(10)
    assert (first.profile.address.index, first.by_person) == (least, True)
    assert explainer.profiles_to_write(10) == []
    draft = Draft("a", "A.", (), parse("lean > 0.8", manifest().metrics), "model", "")
    for _ in range(2):
        explainer.adopt("run", HOOK, least, draft)
    worded = explainer.explainer("run", HOOK)
    (claim,) = [one for one in (*worded.claims, *worded.challengers) if one.writer == "model"]
    assert (claim.version, claim.address.index) == (1, least)
    worded.adopt(least, draft, 0)
    with pytest.raises(UserError, match="was worded by model"):
        explainer.word_first("run", HOOK, least)
    with pytest.raises(UserError, match="has no claim"):
        explainer.word_first("run", HOOK, 999)
    nobody = core(clock)
    nobody.prepare()
    nobody.hello(manifest(), {HOOK: TRANSCODER})
    drive(nobody, clock, episodes(1, start_ns=SECOND), [])
    with pytest.raises(UserError, match="no language model words claims"):
        nobody.word_first("run", HOOK, LEAN)


def test_what_a_model_adds_without_support_is_dropped_in_a_new_version():
    clock, documents = Clock(), []
    explainer = core(clock, words=True, draws=99)
    explainer.prepare()
    explainer.hello(manifest(), {HOOK: TRANSCODER})
    rows = [*episodes(61, start_ns=SECOND)]
    drive(explainer, clock, rows[:1], documents)
    both = parse("lean > 0.8 and speed > -50", manifest().metrics)
    guess = Draft("a guess", "A guess.", (), both, "model", "")
    explainer.explainer("run", HOOK).adopt(LEAN, guess, clock.ns)
    drive(explainer, clock, rows[1:], documents)
    claim = claim_of(finish(explainer, documents)[-1], LEAN)
    assert (claim["predicate"], claim["version"], claim["writer"]) == ("lean > 0.8", 2, "model")
    assert claim["rewrites"] == 2, "its ledger began anew, at half of the α"
    assert "1 clause(s) had no support" in claim["description"]


@pytest.mark.parametrize("fallback", ["", "the server is gone"])
def test_a_model_that_fails_or_abstains_takes_no_rule_away(fallback):
    clock, documents = Clock(), []
    explainer = core(clock, words=True)
    explainer.prepare()
    explainer.hello(manifest(), {HOOK: TRANSCODER})
    drive(explainer, clock, episodes(10, start_ns=clock.ns + SECOND), documents)
    explainer.adopt(
        "run", HOOK, LEAN, Draft("", "", (), None, "model", "", fallback_reason=fallback)
    )
    claim = claim_of(finish(explainer, documents)[-1], LEAN)
    assert (claim["writer"], claim["version"]) == ("built-in (no LLM)", 0)


def test_a_second_opinion_is_asked_once_a_version_and_shown_with_that_version_only():
    clock, documents = Clock(), []
    explainer = core(clock, words=True)
    explainer.prepare()
    assert explainer.claim_to_judge() is None
    explainer.hello(manifest(), {HOOK: TRANSCODER})
    drive(explainer, clock, episodes(40, start_ns=clock.ns + SECOND), documents)
    run_id, hook_point, claim, held_out = explainer.claim_to_judge()
    assert (run_id, hook_point, claim.address.index) == ("run", HOOK, LEAN)
    assert held_out.n_units >= 30
    assert explainer.claim_to_judge() is None
    found = Detection(Interval(0.9, 0.8, 0.95), 80, 4, 0, "model")
    explainer.note_opinion(run_id, hook_point, LEAN, claim.version + 1, found)
    drive(explainer, clock, episodes(1, start_ns=clock.ns + SECOND), documents)
    explainer.note_opinion(run_id, hook_point, LEAN, claim.version, found)
    shown = [claim_of(one, LEAN)["second_opinion"] for one in finish(explainer, documents)]
    assert shown[-2] is None, "that was of another version"
    assert shown[-1] == {
        "judge": "model", "balanced_accuracy": 0.9, "balanced_accuracy_lo": 0.8,
        "balanced_accuracy_hi": 0.95, "reason": None, "steps": 80, "answers": 4, "failed": 0,
    }  # fmt: skip
    assert claim_of(documents[-1], LEAN)["verdict"] == "verified"


class SlowClock(Clock):
    """10 ms go by between two looks at it."""

    def __call__(self):
        self.ns += 10_000_000
        return self.ns


def test_rows_wait_for_one_slow_draw_of_the_null_and_not_for_several():
    explainer = core(SlowClock())
    explainer.prepare()
    (prepared,) = explainer._prepared.values()
    done = []
    while not done or done[-1] < 29:
        assert explainer.work() == []
        done.append(prepared.null_draws_done)
    assert done == list(range(1, 30))
    quick = core(Clock())
    quick.prepare()
    quick.work()
    (prepared,) = quick._prepared.values()
    assert prepared.null_draws_done == Pace().null_draws_at_once


def test_what_a_claim_has_cost_stands_on_it():
    clock, documents = Clock(), []
    lean = f"{HOOK}/{LEAN}@{TRANSCODER}"
    cost = ClaimCost(lean, 5, 500, 100, 0.07, opinion_requests=4, opinion_dollars=0.05)
    explainer = ExplainerCore(
        ExplainerConfig(null_draws=0),
        calibrations=calibrations_from([calibration()]),
        pace=Pace(rescore_s=1.0, narrate_s=1.0),
        writer="model",
        words=True,
        clock=clock,
        cost_of=lambda address: cost if address == lean else None,
    )
    explainer.prepare()
    explainer.hello(manifest(), {HOOK: TRANSCODER})
    drive(explainer, clock, episodes(2, start_ns=SECOND), documents)
    last = finish(explainer, documents)[-1]
    assert claim_of(last, LEAN)["cost"] == {
        "requests": 5, "input_tokens": 500, "output_tokens": 100, "dollars": 0.07,
        "opinion_requests": 4, "opinion_dollars": 0.05,
    }  # fmt: skip
    others = [one["cost"] for one in last.claims if one["address"] != lean]
    assert others == [None] * len(others)


def test_rows_of_an_unknown_run_are_refused():
    (batch,) = episodes(1)
    with pytest.raises(UserError, match="before its manifest"):
        core(Clock(), calibrated=False).features(batch)


def test_documents_fit_the_wire():
    clock, documents = Clock(), []
    explainer = core(clock)
    explainer.prepare()
    explainer.hello(manifest(), {HOOK: TRANSCODER})
    drive(explainer, clock, episodes(20, start_ns=SECOND), documents)
    finish(explainer, documents)
    for document in documents:
        topic = "claims" if isinstance(document, ClaimsDocument) else "narration"
        payload = document_payload(document)
        check_payload(payload)
        assert parse_document(topic, payload) == document


def endless(steps, at_once=500):
    """The same stream without a single end."""
    (whole,) = episodes(1, length=steps, seed=3, start_ns=SECOND)
    whole.steps.flags[:] = 0
    codes = whole.codes[HOOK]
    for start in range(0, steps, at_once):
        rows = slice(start, start + at_once)
        bounds = codes.indptr[start : start + at_once + 1]
        entries = slice(bounds[0], bounds[-1])
        part = SparseCodes(
            codes.n_features, bounds - bounds[0], codes.index[entries], codes.value[entries],
            codes.error[rows], codes.error_affine[rows],
        )  # fmt: skip
        columns = ("env", "episode", "t", "time_ns", "controller", "flags", "metrics")
        steps_of = {name: getattr(whole.steps, name)[rows] for name in columns}
        yield replace(whole, steps=Steps(first_seq=start, **steps_of), codes={HOOK: part})


@pytest.mark.parametrize("calibrated", [True, False])
def test_claims_about_a_run_without_ends_are_judged_on_blocks_of_it(calibrated):
    clock, documents = Clock(), []
    explainer = core(clock, calibrated=calibrated)
    explainer.prepare()
    explainer.hello(manifest(), {HOOK: TRANSCODER})
    drive(explainer, clock, endless(20_000), documents)
    lean = claim_of(finish(explainer, documents)[-1], LEAN)
    assert lean["verdict"] == "verified"
    # φ = .9: 20 autocorrelation times are some 200 steps.
    assert 60 <= lean["episodes_heldout"] <= 140


def test_a_run_with_ends_is_never_cut():
    clock, documents = Clock(), []
    explainer = core(clock)
    explainer.prepare()
    explainer.hello(manifest(), {HOOK: TRANSCODER})
    drive(explainer, clock, episodes(5, length=3000, start_ns=SECOND), documents)
    assert claim_of(finish(explainer, documents)[-1], LEAN)["episodes_heldout"] == 5


def alerts(*rules, drift=()):
    shown = [AlertStatus(r, HOOK, "firing", "warning", "too far", 1, {}) for r in rules]
    drifting = [DriftStatus(HOOK, n, 9, 8, e, 10.0, 0.1, 0.2, "rarely") for n, e in drift]
    return AlertsDocument("run", "walker", 2, shown, drifting, [], {}, 1)


def narrated(documents):
    return [one for one in documents if isinstance(one, NarrationDocument)]


def event_core(clock):
    explainer = ExplainerCore(
        ExplainerConfig(null_draws=29),
        calibrations=calibrations_from([calibration()]),
        pace=Pace(rescore_s=1.0, narrate_s=6.0, narrate_gap_s=2.0),
        writer="built-in (no LLM)", words=True, clock=clock,
    )  # fmt: skip
    explainer.prepare()
    explainer.hello(manifest(), {HOOK: TRANSCODER})
    return explainer


def test_what_happens_is_narrated_at_once_with_what_it_was_and_never_in_a_flood():
    clock, documents = Clock(), []
    explainer = event_core(clock)
    rows = [*episodes(60, seed=1, start_ns=10 * SECOND)]
    for number, batch in enumerate(rows):
        explainer.alerts(alerts("tilt") if 40 <= number < 50 else alerts())
        drive(explainer, clock, [batch], documents)
    kinds = {one.trigger.kind for one in narrated(documents) if one.trigger is not None}
    assert {"terminated", "alert"} <= kinds
    for one in narrated(documents):
        if one.trigger is not None:
            said = one.trigger.text
            assert one.lines[0].text.startswith(f"{said[:1].upper()}{said[1:]}. For the last ")
        assert one.lines[0].references
    times = [one.published_ns for one in narrated(documents)]
    assert min(b - a for a, b in pairwise(times)) >= 2 * SECOND - 10_000
    (alert,) = [one for one in narrated(documents) if one.trigger and one.trigger.kind == "alert"]
    assert alert.trigger.text == "the alert tilt fires: too far"


def test_an_episode_s_end_is_narrated_of_its_last_steps():
    clock, documents = Clock(), []
    explainer = event_core(clock)
    drive(explainer, clock, episodes(60, seed=1, start_ns=10 * SECOND), documents)
    ends = [one for one in narrated(documents) if one.trigger and one.trigger.kind == "terminated"]
    for one in ends:
        assert one.to_t == 119
        assert one.trigger.text == f"episode {one.episode} terminated at step 119"


def test_every_line_carries_how_true_it_and_those_before_it_were():
    clock, documents = Clock(), []
    explainer = core(clock)
    explainer.prepare()
    explainer.hello(manifest(), {HOOK: TRANSCODER})
    drive(explainer, clock, episodes(40, seed=1, start_ns=10 * SECOND), documents)
    cited = 0
    for one in narrated(documents):
        cited += one.truth.cited
        assert one.truth.cited == sum(len(line.references) for line in one.lines)
        assert one.truth.true == one.truth.cited
        assert 0 <= one.truth.still <= one.truth.cited
        assert one.truth.rate == 1.0
    assert narrated(documents)[-1].truth.of == cited > 0


def test_a_feature_that_drifts_is_worded_before_one_that_is_on_more_often():
    clock = Clock()
    orders = []
    for document in (alerts(), alerts(drift=[("r:1:speed", 90.0), ("fvu", 50.0)])):
        explainer = core(clock, words=True)
        explainer.prepare()
        # Feature 1 follows nothing; a person's words make it one that could be worded.
        explainer.hello(manifest(), {HOOK: TRANSCODER})
        drive(explainer, clock, episodes(20, start_ns=clock.ns + SECOND), [])
        rare = Draft("r", "R.", (), parse("speed > 2.5", manifest().metrics), "model", "")
        explainer.explainer("run", HOOK).adopt(1, rare, clock.ns)
        explainer.alerts(document)
        orders.append([one.profile.address.index for one in explainer.profiles_to_write(10)])
    assert orders == [[LEAN, 1], [1, LEAN]]
