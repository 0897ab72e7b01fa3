from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlatent_live.explanations.decayed import DecayedCounts
from interlatent_live.explanations.evidence import collect_evidence
from interlatent_live.explanations.planted import HOOK, Kind, Plan, plant
from interlatent_live.explanations.predicates import evaluate
from interlatent_live.explanations.scores import score_rows

NEVER_NS = 2**62


@pytest.fixture(scope="module")
def case():
    plan = Plan(per_kind=1, episodes=24, steps=80, kinds=(Kind.THRESHOLD,), density=(0.1, 0.2))
    stream = plant(plan)
    evidence = collect_evidence(stream.batches, stream.specs, HOOK)
    return evidence, evaluate(stream.truth[0].predicate, evidence.columns()).holds


def test_without_decay_it_is_the_ledger(case):
    evidence, holds = case
    found = DecayedCounts(1e12).after(evidence, 0, holds, NEVER_NS).scores()
    ledger = score_rows(evidence, 0, holds, np.zeros(len(evidence), bool))
    for mine, theirs in (
        (found.balanced_accuracy, ledger.balanced_accuracy),
        (found.precision, ledger.precision),
    ):
        assert mine.value == pytest.approx(theirs.value)
        assert mine.low == pytest.approx(theirs.low)
        assert mine.high == pytest.approx(theirs.high)
    assert found.effective_rows == pytest.approx(ledger.rows)
    assert found.effective_units == pytest.approx(24)


@given(st.lists(st.integers(0, 24 * 80), max_size=5))
def test_however_it_is_cut_into_batches_the_numbers_are_the_same(case, cuts):
    evidence, holds = case
    whole = DecayedCounts(300).after(evidence, 0, holds, NEVER_NS).scores()
    times = np.sort(evidence.time_ns)
    part = DecayedCounts(300)
    for cut in [*sorted(cuts), len(times) - 1]:
        part = part.after(evidence, 0, holds, int(times[min(cut, len(times) - 1)]))
    assert part.scores().effective_rows == pytest.approx(whole.effective_rows, rel=1e-9)
    assert part.scores().balanced_accuracy.value == pytest.approx(
        whole.balanced_accuracy.value, rel=1e-9
    )
    assert part.scores().precision.low == pytest.approx(whole.precision.low, rel=1e-9)


def test_it_follows_a_claim_that_breaks_where_the_ledger_hardly_moves(case):
    evidence, holds = case
    half = np.median(evidence.time_ns)
    broken = np.where(evidence.time_ns > half, ~holds, holds)
    recent = DecayedCounts(100).after(evidence, 0, broken, NEVER_NS).scores()
    ledger = score_rows(evidence, 0, broken, np.zeros(len(evidence), bool))
    assert ledger.balanced_accuracy.value > 0.3
    assert recent.balanced_accuracy.value < 0.1


def test_a_half_life_halves_and_old_units_are_forgotten(case):
    evidence, holds = case
    counts = DecayedCounts(50).after(evidence, 0, holds, NEVER_NS)
    # Σ 2^(−k / 50) over many rows, those of one moment counted alike.
    assert counts.scores().effective_rows == pytest.approx(50 / np.log(2), rel=0.05)
    assert len(counts.units) < 24


def test_nothing_seen_is_none_with_a_reason(case):
    evidence, holds = case
    empty = DecayedCounts(100).scores()
    assert empty.balanced_accuracy.value is None
    assert empty.balanced_accuracy.reason
    assert empty.effective_units == 0
    same = DecayedCounts(100).after(evidence, 0, holds, int(evidence.time_ns.min()) - 1)
    assert same.units == {}
    with pytest.raises(ValueError, match="half-life"):
        DecayedCounts(0)
