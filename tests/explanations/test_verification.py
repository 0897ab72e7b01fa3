from __future__ import annotations

from dataclasses import replace

import pytest

from interlatent_live.explanations.scores import Interval, Scores
from interlatent_live.explanations.verification import Verdict, alpha_of, eligibility, judge

GOOD = Scores(
    balanced_accuracy=Interval(0.9, 0.85, 0.95),
    precision=Interval(0.7, 0.6, 0.8),
    recall=0.85,
    lift=14.0,
    auc=0.9,
    rows=20_000,
    on_rows=1000,
    firings=1200,
    undefined=0,
    bouts=200,
    episodes=40,
    episodes_on=35,
)


def with_accuracy(value, low, high):
    return replace(GOOD, balanced_accuracy=Interval(value, low, high))


def test_all_five_conditions_make_a_claim_verified():
    assert judge(GOOD, 0.01).verdict is Verdict.VERIFIED


@pytest.mark.parametrize(
    ("scores", "p", "words"),
    [
        (with_accuracy(0.849, 0.8, 0.9), 0.01, "balanced accuracy 0.85"),
        (with_accuracy(0.9, 0.749, 0.95), 0.01, "lower bound 0.75"),
        (replace(GOOD, precision=Interval(0.49, 0.4, 0.6), recall=0.7), 0.01, "precision 0.49"),
        (GOOD, 0.051, "p 0.051"),
    ],
)
def test_each_condition_alone_can_make_it_weak(scores, p, words):
    judgement = judge(scores, p)
    assert judgement.verdict is Verdict.WEAK
    assert words in judgement.reason


def test_high_recall_with_low_precision_reads_silent_unless():
    scores = replace(GOOD, precision=Interval(0.2, 0.1, 0.3), recall=0.97)
    judgement = judge(scores, 0.01)
    assert judgement.verdict is Verdict.WEAK
    assert judgement.reason.startswith("silent unless")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rows": 0, "on_rows": 0}, "no episode"),
        ({"on_rows": 99}, "under 0.5%"),
        ({"on_rows": 10_001}, "over 50%"),
        ({"bouts": 19}, "19 of the 20 bouts"),
        ({"episodes_on": 5}, "5 of the 6 episodes"),
    ],
)
def test_too_little_evidence_is_pending_not_weak(change, words):
    scores = replace(GOOD, **change)
    assert words in eligibility(scores)
    judgement = judge(scores, 0.01)
    assert (judgement.verdict, words in judgement.reason) == (Verdict.PENDING, True)


def test_without_a_null_or_an_interval_it_is_pending():
    assert judge(GOOD, None).verdict is Verdict.PENDING
    bare = replace(GOOD, balanced_accuracy=Interval(0.9, reason="one episode alone"))
    assert judge(bare, 0.01).verdict is Verdict.PENDING


def test_contradicted_by_the_score_or_by_the_effect():
    assert judge(with_accuracy(0.5, 0.45, 0.599), 0.9).verdict is Verdict.CONTRADICTED
    assert judge(with_accuracy(0.5, 0.45, 0.601), 0.9).verdict is Verdict.WEAK
    against = Interval(-0.3, -0.5, -0.1)
    assert judge(GOOD, 0.01, effect_sign=1, effect=against).verdict is Verdict.CONTRADICTED
    unsure = Interval(-0.3, -0.5, 0.1)
    assert judge(GOOD, 0.01, effect_sign=1, effect=unsure).verdict is Verdict.VERIFIED
    assert judge(GOOD, 0.01, effect_sign=-1, effect=against).verdict is Verdict.VERIFIED


def test_stale_goes_before_everything():
    judgement = judge(replace(GOOD, rows=0, on_rows=0), None, stale="other hash")
    assert (judgement.verdict, judgement.reason) == (Verdict.STALE, "other hash")


def test_rewriting_halves_what_may_be_spent():
    assert [alpha_of(n) for n in range(3)] == [0.05, 0.025, 0.0125]
    assert judge(GOOD, 0.03, version=0).verdict is Verdict.VERIFIED
    assert judge(GOOD, 0.03, version=1).verdict is Verdict.WEAK
    assert sum(alpha_of(n) for n in range(1, 50)) <= 0.05
