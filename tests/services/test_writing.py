"""The thread that asks a language model, against a server on loopback that speaks both APIs."""

import asyncio
import threading
import time
from dataclasses import replace

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from interlatent_live.config import resolve
from interlatent_live.errors import UserError
from interlatent_live.explanations import Explainer
from interlatent_live.explanations.budget import Limits, Price
from interlatent_live.explanations.evidence import collect_evidence
from interlatent_live.explanations.planted import HOOK, Kind, Plan, plant
from interlatent_live.explanations.predicates import to_text
from interlatent_live.services.writing import WriterThread
from interlatent_live.services.writing_metrics import WriterMetrics
from tests.explanations.test_writers import profile
from tests.support.fake_llm import fake_llm


class Server:
    """``fake_llm`` on a loop of its own."""

    def __init__(self, *script):
        self._script = script
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)

    async def _run(self):
        async with fake_llm(*self._script, ready=True) as self.llm:
            self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
            self._ready.set()
            await self._stop.wait()

    def __enter__(self):
        self._thread.start()
        assert self._ready.wait(10)
        return self.llm

    def __exit__(self, *error):
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)


def options(kind, url, **changes):
    flags = {"explainer.writer": kind, "explainer.model": "small", "explainer.base_url": url}
    return resolve(flags=flags | changes, environment={}).settings.explainer


def answers(writer, count, timeout_s=20.0):
    found = []
    deadline = time.monotonic() + timeout_s
    while len(found) < count and time.monotonic() < deadline:
        found.extend(writer.finished())
        time.sleep(0.01)
    return found


@pytest.mark.parametrize("kind", ["openai", "anthropic"])
def test_drafts_come_back_under_their_keys(kind, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "x")
    monkeypatch.setenv("ANTHROPIC_API_KEY", "x")
    with Server() as llm:
        url = llm.openai_url if kind == "openai" else llm.anthropic_url
        writer = WriterThread(options(kind, url))
        writer.start()
        try:
            writer.ask(("run", "hook", 3), profile())
            ((key, draft),) = answers(writer, 1)
            costs = writer.costs()
        finally:
            writer.stop()
    assert key == ("run", "hook", 3)
    assert draft.writer.startswith(kind)
    assert draft.predicate is not None
    assert "> 0.5" in to_text(draft.predicate)
    assert (llm.probes, len(llm.requests)) == (1, 1), "how to ask was found out once, before"
    assert (costs.requests, costs.input_tokens, costs.output_tokens) == (2, 200, 40)
    assert [claim.requests for claim in costs.claims] == [1]
    assert costs.dollars <= costs.limit_dollars
    assert costs.dollars_per_hour is None, "not told in the first minute"


def test_an_equal_profile_is_answered_from_the_cache(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "x")
    with Server() as llm:
        writer = WriterThread(options("openai", llm.openai_url))
        writer.start()
        try:
            writer.ask(("one", "hook", 3), profile())
            assert len(answers(writer, 1)) == 1
            writer.ask(("two", "hook", 3), profile())
            ((key, draft),) = answers(writer, 1)
        finally:
            writer.stop()
    assert key == ("two", "hook", 3)
    assert draft.writer.startswith("openai")
    assert (llm.probes, len(llm.requests)) == (1, 1)


@pytest.mark.parametrize("priced", [False, True])
def test_a_second_opinion_is_asked_for_and_a_limit_refuses_it(priced, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "x")
    evidence, (claim, *_) = claims_and_rows()
    with Server(*[{"on": [1, 2, 3]}] * 4) as llm:
        writer = WriterThread(options("openai", None if priced else llm.openai_url))
        writer.start()
        try:
            writer.judge(("run", "hook", 3), claim, evidence)
            assert writer.judging == 1
            found = []
            deadline = time.monotonic() + 20
            while not found and time.monotonic() < deadline:
                found = writer.opinions()
                time.sleep(0.01)
            costs, cost = writer.costs(), writer.cost_of(str(claim.address))
        finally:
            writer.stop()
    ((key, version, opinion),) = found
    assert (key, version, writer.judging) == (("run", "hook", 3), claim.version, 0)
    assert opinion.judge == writer.name
    if priced:
        # The vendor's own server has a price, and the money limit is 0 until it is set.
        assert (opinion.steps, opinion.balanced_accuracy.value) == (0, None)
        assert "limit" in opinion.balanced_accuracy.reason
        assert (costs.requests, costs.refused) == (0, {"limit": 1})
        assert llm.probes == 0
        assert (costs.claims, cost) == ([], None)
    else:
        assert (opinion.asked, opinion.failed, costs.requests) == (4, 0, 4 + llm.probes)
        assert 0 <= opinion.balanced_accuracy.value <= 1
        # Booked on the claim, and the claims' costs and the probe's add up to all that was spent.
        assert costs.claims == [cost]
        assert (cost.address, cost.requests, cost.opinion_requests) == (str(claim.address), 4, 4)
        assert cost.input_tokens + 100 == costs.input_tokens
        assert cost.output_tokens + 20 == costs.output_tokens


def test_what_the_words_of_a_claim_and_the_opinions_of_them_cost_is_told_apart(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "x")
    evidence, (claim, *_) = claims_and_rows()
    worded = replace(profile(), address=claim.address)
    with Server("500", *[{"on": [1, 2, 3]}] * 4) as llm:
        writer = WriterThread(options("openai", llm.openai_url))
        writer._budget.price = Price(10.0, 100.0)
        writer._budget.limits = Limits(dollars=1.0)
        writer.start()
        try:
            writer.ask(("run", "hook", 3), worded)
            assert len(answers(writer, 1)) == 1
            writer.judge(("run", "hook", 3), claim, evidence)
            deadline = time.monotonic() + 20
            while not writer.opinions() and time.monotonic() < deadline:
                time.sleep(0.01)
            cost, costs = writer.cost_of(str(claim.address)), writer.costs()
        finally:
            writer.stop()
    assert (cost.requests, cost.opinion_requests) == (5, 4)
    assert cost.opinion_dollars == pytest.approx(4 * (100 * 10 + 20 * 100) / 1e6)
    # The server never said what the failed request used, so that counts as the most it can be.
    assert cost.dollars > 1.25 * cost.opinion_dollars
    assert costs.dollars == pytest.approx(cost.dollars + (100 * 10 + 20 * 100) / 1e6)


def claims_and_rows():
    stream = plant(Plan(per_kind=1, episodes=20, metrics=2, kinds=(Kind.THRESHOLD,), seed=1))
    evidence = collect_evidence(stream.batches, stream.specs, HOOK)
    explainer = Explainer(stream.specs, HOOK)
    return evidence, explainer.propose(evidence, 0)


def test_costs_are_exported(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "x")
    registry = CollectorRegistry()
    with Server("500", "500") as llm:
        writer = WriterThread(options("openai", llm.openai_url))
        WriterMetrics(writer.costs, registry)
        writer.start()
        try:
            writer.ask(("run", "hook", 3), profile())
            answers(writer, 1)
        finally:
            writer.stop()
    text = generate_latest(registry).decode()
    assert "interlatent_writer_requests_total 2.0" in text
    assert "interlatent_writer_dollars_limit 0.0" in text
    assert 'interlatent_writer_tokens_total{direction="input"}' in text


def test_a_hanging_model_does_not_keep_the_service_from_stopping(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "x")
    with Server("hang", "hang", "hang") as llm:
        writer = WriterThread(options("openai", llm.openai_url))
        writer.start()
        writer.ask(("run", "hook", 3), profile())
        time.sleep(0.2)
        began = time.monotonic()
        writer.stop()
        assert time.monotonic() - began < 4


def test_a_missing_key_is_one_sentence(monkeypatch):
    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)
    settings = resolve(
        flags={"explainer.writer": "anthropic", "explainer.model": "m"}, environment={}
    ).settings
    with pytest.raises(UserError, match="ANTHROPIC_API_KEY"):
        WriterThread(settings.explainer)
