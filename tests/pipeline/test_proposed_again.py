"""A claim that a regime change broke is withdrawn; what follows explains the feature anew."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from interlatent_live.explanations.planted import sparse_codes
from interlatent_live.explanations.verification import Verdict
from interlatent_live.pipeline.explainer import ExplainerCore, calibrations_from
from interlatent_live.pipeline.looks import LookKind, RecordedLooks
from tests.pipeline.test_explainer import (
    SECOND,
    Clock,
    calibration,
    claim_of,
    core,
    drive,
    finish,
)
from tests.support.planted_stream import HOOK, LEAN, TRANSCODER, episodes, manifest

BEFORE, AFTER = 40, 90


def later(batches, first, clock_ns):
    """The same batches as episodes that come after ``first`` others."""
    for number, batch in enumerate(batches):
        batch.steps.episode[:] = first + number
        steps = replace(batch.steps, first_seq=batch.steps.first_seq + first * 120)
        yield replace(batch, steps=replace(steps, time_ns=steps.time_ns + clock_ns))


def regimes(*, second):
    """Episodes in which the feature follows the lean, and later ones of another regime."""
    yield from episodes(BEFORE, seed=1, start_ns=10 * SECOND)
    yield from later(second, BEFORE, (10 + BEFORE * 2) * SECOND)


def flipped():
    return episodes(AFTER, seed=5, flipped=True)


def unrelated():
    rng = np.random.default_rng(3)
    for batch in episodes(AFTER, seed=5):
        dense = batch.codes[HOOK].dense()
        dense[:, LEAN] = rng.random(len(dense)) < 0.3
        yield replace(batch, codes={HOOK: sparse_codes(dense)})


def looks_of(told):
    """All looks that the documents tell of, each once."""
    return {one.number: one for document in told for one in document.looks}.values()


def run(second):
    clock, documents = Clock(), []
    explainer = core(clock, draws=99)
    explainer.prepare()
    explainer.hello(manifest(), {HOOK: TRANSCODER})
    drive(explainer, clock, regimes(second=second), documents)
    return explainer, finish(explainer, documents)


@pytest.fixture(scope="module")
def changed():
    return run(flipped())


def test_the_feature_is_explained_by_what_follows_the_change_and_versions_are_kept(changed):
    explainer, told = changed
    versions = [claim_of(one, LEAN) for one in told]
    verdicts = [(one["version"], one["verdict"]) for one in versions]
    order = list(dict.fromkeys(verdicts))
    wanted = [(0, "verified"), (0, "stale"), (1, "pending"), (1, "verified")]
    assert [one for one in order if one in wanted] == wanted
    last = versions[-1]
    assert (last["version"], last["verdict"]) == (1, "verified")
    assert last["predicate"].startswith("lean < -0.")
    assert "Proposed anew" in last["description"]
    assert last["p_adjusted"] <= 0.025, "a rewrite has half of α"
    history = explainer.explainer("run", HOOK).claims[0].history
    assert [event.version for event in history] == sorted(event.version for event in history)
    assert {event.version for event in history} == {0, 1}
    assert Verdict.STALE in {event.verdict for event in history if event.version == 0}


def test_no_row_from_before_the_withdrawal_is_looked_at_and_none_is_used_twice(changed):
    explainer, told = changed
    of = explainer.explainer("run", HOOK)
    withdrawn_ns = max(e.at_ns for e in of.claims[0].history if e.verdict is Verdict.STALE)
    search = of._search_of[LEAN]
    proposed = next(one for one in looks_of(told) if one.kind == LookKind.AGAIN)
    assert search.evidence.unit_begun_ns.min() > withdrawn_ns
    assert search.evidence.time_ns.max() <= proposed.at_ns
    assert of.evidence().begun_after(proposed.at_ns).unit_begun_ns.min() > proposed.at_ns
    assert claim_of(told[-1], LEAN)["created_ns"] == proposed.at_ns
    assert claim_of(told[-1], LEAN)["episodes_heldout"] <= AFTER - search.evidence.n_units
    # Other features keep the search that they had.
    assert of._search_of[1] is not search
    assert of.profile(LEAN).density == pytest.approx(search.evidence.density()[LEAN])


def test_a_replay_proposes_at_the_very_same_rows(changed):
    _, told = changed
    again = ExplainerCore(
        core(Clock(), draws=99)._config,
        calibrations=calibrations_from([calibration()]),
        pace=core(Clock())._pace, writer="built-in (no LLM)", words=False, clock=lambda: 0,
        looks=RecordedLooks(told),
    )  # fmt: skip
    again.hello(manifest(), {HOOK: TRANSCODER})
    found = []
    for batch in regimes(second=flipped()):
        again.features(batch)
        found += again.work()
    last = finish(again, found)[-1]
    assert (last.claims, last.looks) == (told[-1].claims, told[-1].looks)


def test_where_nothing_describes_it_any_more_the_withdrawn_claim_stays_withdrawn():
    explainer, told = run(unrelated())
    last = claim_of(told[-1], LEAN)
    assert (last["version"], last["verdict"]) == (0, "stale")
    assert "withdrawn" in last["reason"]
    tries = [one for one in looks_of(told) if one.kind == LookKind.AGAIN]
    assert 2 <= len(tries) <= 3, "again at twice as much, and not at every rescoring"
    assert len(explainer.explainer("run", HOOK)._searches) == 1
