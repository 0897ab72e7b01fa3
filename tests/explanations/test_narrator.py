from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from interlatent_live.explanations.claims import Claim
from interlatent_live.explanations.dictionaries import with_features
from interlatent_live.explanations.evidence import collect_evidence
from interlatent_live.explanations.narrator import Narrator, measure, sentence_json
from interlatent_live.explanations.planted import HOOK, Kind, Plan, plant
from interlatent_live.explanations.predicates import evaluate, parse
from interlatent_live.explanations.verification import Verdict
from interlatent_live.stream import FeatureAddress


@pytest.fixture(scope="module")
def evidence():
    plan = Plan(
        per_kind=1, episodes=20, steps=200, metrics=2, phi=0.99, kinds=(Kind.NOISE,), seed=3
    )
    stream = plant(plan)
    base = collect_evidence(stream.batches, stream.specs, HOOK)
    on = np.stack(
        [
            evaluate(parse(text, stream.specs), base.columns()).holds
            for text in ("signal_a > 1", "signal_b < -0.5", "time_in_episode >= 2")
        ],
        axis=1,
    )
    return with_features(base, on)


def claim(evidence, feature, text, verdict=Verdict.VERIFIED, **changes):
    made = Claim(
        FeatureAddress(HOOK, feature, "sha256:planted"),
        "a label nobody checked",
        "",
        (),
        parse(text, evidence.specs),
        "built-in (no LLM)",
        "",
        0,
        0,
    )
    return replace(made, verdict=verdict, **changes)


def claims(evidence):
    return [
        claim(evidence, 0, "signal_a > 1"),
        claim(evidence, 1, "signal_b < -0.5"),
        claim(evidence, 2, "time_in_episode >= 2"),
    ]


def test_sentences_name_features_and_the_values_they_rest_on(evidence):
    narrator = Narrator(evidence, claims(evidence), windows=(20,), seconds_per_step=0.02)
    row = next(r for r in range(len(evidence)) if narrator.narrate_at(r))
    sentence = narrator.narrate_at(row)[0]
    assert sentence.text.startswith("For the last 0.4 s, signal ")
    assert f"[feature {HOOK}/" in sentence.text
    assert "nobody checked" not in sentence.text
    reference = sentence.references[0]
    assert narrator.statement_index(reference) is not None
    name, value, unit = reference.values[0]
    rows = slice(row - 19, row + 1)
    assert value == pytest.approx(evidence.columns().column(name)[rows].mean())
    assert unit in sentence.text
    assert sentence.last_t - sentence.first_t == 19
    shown = sentence_json(sentence)
    assert shown["references"][0]["metrics"][0]["name"] == name


def test_only_verified_claims_speak_and_trivial_ones_never(evidence):
    weak = [replace(c, verdict=Verdict.WEAK) for c in claims(evidence)]
    assert not any(Narrator(evidence, weak).narrate_at(r) for r in range(0, len(evidence), 7))
    trivial = Narrator(evidence, claims(evidence)[2:])
    assert not any(trivial.narrate_at(r) for r in range(0, len(evidence), 7))
    assert Narrator(evidence, []).narrate_at(10) == ()


def test_the_predicate_alone_is_not_enough_the_feature_must_be_on(evidence):
    silent = with_features(evidence, np.zeros((len(evidence), 3), bool))
    narrator = Narrator(silent, claims(evidence))
    assert not any(narrator.narrate_at(r) for r in range(0, len(evidence), 7))


def test_a_window_never_reaches_into_another_episode(evidence):
    narrator = Narrator(evidence, claims(evidence), windows=(50, 10))
    for row in range(len(evidence)):
        for sentence in narrator.narrate_at(row):
            assert sentence.last_t - sentence.first_t + 1 in (10, 50)
            assert sentence.first_t >= 0
            assert evidence.t[row] == sentence.last_t


def test_the_measures_are_those_of_the_definition(evidence):
    narrator = Narrator(evidence, claims(evidence), windows=(40, 20))
    quality = measure(narrator, evidence, 20)
    assert quality.true_share == 1.0
    assert quality.elsewhere_share <= 0.5
    assert quality.matcher_share >= 0.4, "chance is .2"
    assert 0 < quality.coverage <= 1
    assert quality.references_resolve
    nothing = measure(Narrator(evidence, []), evidence, 20)
    assert (nothing.sentences, nothing.true_share, nothing.coverage) == (0, None, 0.0)


def test_of_an_or_only_the_part_that_holds_is_said(evidence):
    either = claim(evidence, 0, "signal_a > 1 or signal_b < -0.5")
    base = with_features(
        evidence,
        evaluate(either.predicate, evidence.columns()).holds[:, None],
    )
    narrator = Narrator(base, [either], windows=(10,))
    said = {s.references[0].said for r in range(0, len(base), 3) for s in narrator.narrate_at(r)}
    assert {"signal_a > 1", "signal_b < -0.5"} <= said
    row = next(
        r
        for r in range(len(base))
        if any(s.references[0].said == "signal_a > 1" for s in narrator.narrate_at(r))
    )
    rows = slice(row - 9, row + 1)
    assert (base.columns().column("signal_a")[rows] > 1).mean() >= 0.8
    assert "signal b" not in narrator.narrate_at(row)[0].text


def test_what_was_just_said_gives_way_to_something_else(evidence):
    both = claims(evidence)[:2]
    narrator = Narrator(evidence, both, windows=(6,))
    row = next(r for r in range(len(evidence)) if len(narrator.narrate_at(r)) == 2)
    first, second = narrator.narrate_at(row)
    assert narrator.narrate_at(row, first.keys)[0].keys == second.keys
    alone = next(r for r in range(len(evidence)) if len(narrator.narrate_at(r)) == 1)
    only = narrator.narrate_at(alone)[0]
    assert narrator.narrate_at(alone, only.keys)[0].keys == only.keys, "better than silence"


def test_each_copy_has_its_newest_row(evidence):
    narrator = Narrator(evidence, claims(evidence))
    rows = narrator.latest_rows()
    assert len(rows) == 1, "one copy in this stream"
    assert evidence.time_ns[rows[0]] == evidence.time_ns.max()
