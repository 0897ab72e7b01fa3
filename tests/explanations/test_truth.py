from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlatent_live.explanations.claims import Claim
from interlatent_live.explanations.evidence import collect_evidence
from interlatent_live.explanations.narrator import Narrator
from interlatent_live.explanations.predicates import parse
from interlatent_live.explanations.truth import Citations, TruthRate, truth_of
from interlatent_live.explanations.verification import Verdict
from interlatent_live.stream import FeatureAddress
from tests.support.planted_stream import HOOK, LEAN, TRANSCODER, episodes, manifest

SPECS = manifest().metrics


@pytest.fixture(scope="module")
def evidence():
    return collect_evidence(episodes(10, seed=4), SPECS, HOOK)


@pytest.fixture(scope="module")
def told(evidence):
    """A sentence of each window that has one, and the row that it ends at."""
    address = FeatureAddress(HOOK, LEAN, TRANSCODER)
    claim = Claim(address, "", "", (), parse("lean > 0.8", SPECS), "built-in (no LLM)", "", 0, 0)
    narrator = Narrator(evidence, [replace(claim, verdict=Verdict.VERIFIED)], windows=(8,))
    found = {row: narrator.narrate_at(row) for row in range(len(evidence))}
    return {row: sentences for row, sentences in found.items() if sentences}


def test_what_the_narrator_says_is_true_and_what_it_did_not_say_is_not(evidence, told):
    assert len(told) > 20
    total = Citations()
    for sentences in told.values():
        total += truth_of(sentences, evidence)
    assert total.rate == 1.0
    holds = (evidence.metrics[:, 0] > 0.8) & evidence.on(LEAN)
    (sentence,) = next(iter(told.values()))
    assert truth_of([sentence], evidence).still == int(holds[-1])
    other = next(row for row in range(8, len(holds)) if holds[row - 7 : row + 1].mean() < 0.5)
    moved = replace(
        sentence,
        episode=int(evidence.unit_key[evidence.unit[other], 2]),
        first_t=int(evidence.t[other]) - 7, last_t=int(evidence.t[other]),
        end_ns=int(evidence.time_ns[other]),
    )  # fmt: skip
    assert truth_of([moved], evidence).true == 0


def test_still_true_is_about_the_newest_step_of_the_copy(evidence, told):
    sentences = next(iter(told.values()))
    on = evidence.on(LEAN) & (evidence.metrics[:, 0] > 0.8)
    starts = np.searchsorted(evidence.unit, np.arange(evidence.n_units))
    ends = np.append(starts[1:], len(evidence)) - 1
    seen = {bool(x) for x in on[ends[1:]]}
    assert seen == {True, False}, "the stream shows both"
    for unit in range(sentences[0].episode, evidence.n_units):
        upto = evidence.select(np.arange(evidence.n_units) <= unit)
        assert truth_of(sentences, upto).still == int(on[ends[unit]])
        assert truth_of(sentences, upto).true == 1


@pytest.mark.parametrize(
    "change",
    [
        {"said": "lean > 5"},
        {"said": "no such words ("},
        {"said": "height > 1"},
        {"address": f"{HOOK}/3@{TRANSCODER}"},
        {"address": f"{HOOK}/999@{TRANSCODER}"},
        {"address": f"{HOOK}/0@sha256:other"},
        {"address": "nothing"},
    ],
)
def test_a_line_with_the_wrong_words_or_feature_is_found_out(evidence, told, change):
    (sentence,) = next(iter(told.values()))
    wrong = replace(sentence, references=(replace(sentence.references[0], **change),))
    assert truth_of([wrong], evidence) == Citations(1, 0, 0)


def test_rows_that_are_gone_vouch_for_nothing(evidence, told):
    (sentence,) = next(iter(told.values()))
    gone = evidence.select(evidence.unit_key[:, 2] != sentence.episode)
    assert truth_of([sentence], gone).true == 0
    assert truth_of([sentence], evidence.select(np.zeros(evidence.n_units, bool))).still == 0
    assert Citations().rate is Citations().still_rate is None


@given(st.lists(st.integers(0, 5).flatmap(
    lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(0, n))
), max_size=60))  # fmt: skip
def test_the_rate_is_that_of_the_newest_citations(lines):
    rate, most = TruthRate(most=20), 20
    for line in lines:
        rate.note(Citations(*line))
    newest = rate.newest
    taken, at = Citations(), len(lines)
    while at and taken.cited < most:
        at -= 1
        taken += Citations(*lines[at])
    assert newest.cited == taken.cited
    assert (newest.true, newest.still) == (taken.true, taken.still)
