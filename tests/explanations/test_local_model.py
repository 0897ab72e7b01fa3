"""A real small model through both SDKs. Its wording is never asserted; its plumbing is.

``INTERLATENT_TEST_GGUF`` names a model file; llama.cpp's server comes from the package xllamacpp.
"""

from __future__ import annotations

import asyncio
import os
import socket

import numpy as np
import pytest

from interlatent_live.explanations.evidence import collect_evidence
from interlatent_live.explanations.planted import HOOK, Kind, Plan, plant
from interlatent_live.explanations.predicates import metric_names
from interlatent_live.explanations.profile import build_profile
from interlatent_live.explanations.rules import induce_rules
from interlatent_live.explanations.scores import score
from interlatent_live.explanations.writers import BUILT_IN, LlmWriter
from interlatent_live.explanations.writers.anthropic import AnthropicCompleter
from interlatent_live.explanations.writers.openai import OpenAICompleter

pytestmark = pytest.mark.llm


@pytest.fixture(scope="module")
def address():
    llama = pytest.importorskip("xllamacpp")
    model = os.environ.get("INTERLATENT_TEST_GGUF")
    if not model:
        pytest.skip("INTERLATENT_TEST_GGUF names no model file")
    params = llama.CommonParams()
    params.model.path = model
    params.n_ctx = 8192
    params.n_parallel = 1
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        params.port = free.getsockname()[1]
    params.cpuparams.n_threads = 1
    params.cpuparams_batch.n_threads = 1
    server = llama.Server(params)
    yield server.listening_address
    del server


@pytest.fixture(scope="module")
def profiles():
    plan = Plan(per_kind=1, episodes=30, metrics=2, kinds=(Kind.THRESHOLD, Kind.NOISE), seed=1)
    stream = plant(plan)
    evidence = collect_evidence(stream.batches, stream.specs, HOOK)
    a, b = evidence.split()
    rules = induce_rules(a, b, np.arange(evidence.n_features))
    return evidence, [build_profile(a, rule, actions=("left", "right")) for rule in rules]


@pytest.mark.parametrize("api", ["openai", "anthropic"])
@pytest.mark.timeout(600)
def test_a_real_model_answers_or_is_replaced_and_its_predicate_is_scored_like_any(
    api, address, profiles
):
    evidence, (profile, _) = profiles

    async def ask():
        made = (
            OpenAICompleter("local", base_url=f"{address}/v1", timeout_s=240)
            if api == "openai"
            else AnthropicCompleter("local", base_url=address, timeout_s=240)
        )
        writer = LlmWriter(made, deadline_s=250)
        found, draft = await writer.probe(), await writer.write(profile)
        await writer.aclose()
        return found, draft, writer.budget

    found, draft, budget = asyncio.run(ask())
    assert found.reachable
    assert budget.spent.requests >= 2
    assert budget.spent.output_tokens > 0
    assert draft.writer in (f"{api}:local", BUILT_IN)
    assert (draft.writer == BUILT_IN) == bool(draft.fallback_reason)
    if draft.predicate is not None:
        assert set(metric_names(draft.predicate)) <= {s.name for s in evidence.specs}
        assert score(evidence, profile.address.index, draft.predicate).rows == len(evidence)
