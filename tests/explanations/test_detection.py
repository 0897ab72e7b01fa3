from __future__ import annotations

import asyncio
import json

import numpy as np
import pytest

from interlatent_live.explanations.budget import Budget, Limits
from interlatent_live.explanations.claims import Claim
from interlatent_live.explanations.detection import detect, sample_steps
from interlatent_live.explanations.evidence import collect_evidence
from interlatent_live.explanations.planted import HOOK, Kind, Plan, plant
from interlatent_live.explanations.predicates import evaluate
from interlatent_live.explanations.writers.llm import Completion, LlmWriter
from interlatent_live.explanations.writers.port import Usage
from interlatent_live.stream import FeatureAddress


@pytest.fixture(scope="module")
def case():
    plan = Plan(
        per_kind=1,
        episodes=60,
        steps=100,
        metrics=2,
        kinds=(Kind.THRESHOLD,),
        density=(0.1, 0.2),
        seed=1,
    )
    stream = plant(plan)
    evidence = collect_evidence(stream.batches, stream.specs, HOOK)
    claim = Claim(
        FeatureAddress(HOOK, 0, "sha256:planted"),
        "high",
        "the signal is high",
        (),
        stream.truth[0].predicate,
        "test",
        "",
        0,
        0,
    )
    return evidence, claim


class Judge:
    """Knows the predicate, or guesses, or answers badly."""

    name = "judge"

    def __init__(self, evidence, claim, mode):
        self.mode = mode
        self.seen = []
        holds = evaluate(claim.predicate, evidence.columns()).holds
        self.on = {
            self.key(row): bool(hit) for row, hit in zip(evidence.metrics, holds, strict=True)
        }

    @staticmethod
    def key(row):
        return tuple(float(f"{value:.4g}") for value in row)

    async def complete(self, system, messages, schema, max_tokens):
        text = messages[-1].text
        self.seen.append(text)
        steps = json.loads(text.splitlines()[1])["steps"]
        if self.mode == "bad":
            return Completion('{"on": "all"}', Usage(10, 5, 1))
        if self.mode == "all":
            named = [step["step"] for step in steps]
        else:
            named = [step["step"] for step in steps if self.on[tuple(step["metrics"])]]
        return Completion(json.dumps({"on": named}), Usage(10, 5, 1))

    async def aclose(self):
        pass


def run(case, mode):
    evidence, claim = case
    judge = Judge(evidence, claim, mode)
    return asyncio.run(detect(LlmWriter(judge), claim, evidence)), judge


def test_a_judge_that_understands_scores_high_and_one_that_does_not_scores_half(case):
    found, judge = run(case, "good")
    assert found.balanced_accuracy.value > 0.95
    assert (found.steps, found.asked, found.failed) == (80, 4, 0)
    assert not any("signal_a >" in text for text in judge.seen), "the predicate is not shown"
    blind, _ = run(case, "all")
    assert blind.balanced_accuracy.value == pytest.approx(0.5)


def test_unusable_answers_are_counted_not_scored(case):
    found, _ = run(case, "bad")
    assert (found.failed, found.asked) == (4, 0)
    assert found.balanced_accuracy.value is None
    assert found.usage == Usage(40, 20, 4), "they cost the same"


def test_what_a_limit_refuses_ends_the_asking_and_what_came_is_scored(case):
    evidence, claim = case
    writer = LlmWriter(Judge(evidence, claim, "good"), budget=Budget(Limits(requests_per_hour=2)))
    found = asyncio.run(detect(writer, claim, evidence))
    assert "2 requests an hour" in found.refused
    assert (found.asked, found.usage.requests) == (2, 2)
    assert found.balanced_accuracy.value > 0.9


def test_sampled_steps_are_balanced_and_spread_over_episodes(case):
    evidence, _ = case
    rows, on = sample_steps(evidence, 0, 20, np.random.default_rng(0))
    assert on.sum() == 10
    for side in (True, False):
        assert len(np.unique(evidence.unit[rows[on == side]])) == 10
