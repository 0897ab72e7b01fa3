from __future__ import annotations

import numpy as np
import pytest

from interlatent_live.explanations.claims import Clause, Support
from interlatent_live.explanations.clauses import kept_clauses, prune
from interlatent_live.explanations.evidence import collect_evidence
from interlatent_live.explanations.planted import HOOK, Kind, Plan, plant
from interlatent_live.explanations.predicates import parse, to_text


@pytest.fixture(scope="module")
def case():
    plan = Plan(
        per_kind=1,
        episodes=40,
        steps=200,
        metrics=3,
        density=(0.1, 0.2),
        kinds=(Kind.CONJUNCTION, Kind.DISJUNCTION, Kind.THRESHOLD),
        seed=3,
    )
    stream = plant(plan)
    return stream, collect_evidence(stream.batches, stream.specs, HOOK)


@pytest.mark.parametrize("feature", [0, 1, 2])
def test_what_is_true_is_kept_and_what_is_idle_is_dropped(case, feature):
    stream, evidence = case
    truth = stream.truth[feature].predicate
    assert prune(truth, evidence, feature).predicate == truth
    idle = "time_in_episode >= 0"
    padded = parse(f"({to_text(truth)}) and {idle}", stream.specs)
    pruned = prune(padded, evidence, feature)
    assert pruned.predicate == truth
    assert [to_text(d.predicate) for d in pruned.dropped] == [idle]
    assert pruned.dropped[0].loss.value == pytest.approx(0.0)


def test_a_harmful_clause_goes_too(case):
    stream, evidence = case
    truth = stream.truth[2].predicate
    padded = parse(f"{to_text(truth)} and signal_a > signal_a", stream.specs)
    pruned = prune(padded, evidence, 2)
    assert pruned.predicate == truth
    assert pruned.dropped[0].loss.value < 0


def test_one_comparison_is_never_dropped(case):
    stream, evidence = case
    single = parse("time_in_episode >= 0", stream.specs)
    assert prune(single, evidence, 0).predicate == single


def test_only_unsupported_clauses_leave_the_description(case):
    stream, evidence = case
    truth = stream.truth[2].predicate
    idle = parse("time_in_episode >= 0", stream.specs)
    pruned = prune(parse(f"{to_text(truth)} and {to_text(idle)}", stream.specs), evidence, 2)
    clauses = (
        Clause("it leans", Support.PREDICATE, truth),
        Clause("time goes on", Support.PREDICATE, idle),
        Clause("it is afraid", Support.NOTHING),
    )
    assert [c.text for c in kept_clauses(clauses, pruned)] == ["it leans", "it is afraid"]
    assert np.isfinite(pruned.dropped[0].loss.value)
