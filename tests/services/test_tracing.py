"""Spans reach a collector, or are counted; nothing is sent unless a setting says where to."""

import os
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from prometheus_client import CollectorRegistry, generate_latest

from interlatent_live.agent.tap import Tap
from interlatent_live.config import resolve
from interlatent_live.errors import UserError
from interlatent_live.pipeline.tracing import Span, SpanRef
from interlatent_live.services import tracing as service
from interlatent_live.services.tracing import Tracing
from interlatent_live.stream import HookPointSpec, MetricSpec, Role
from interlatent_live.transcoders.config import Architecture, TranscoderConfig
from interlatent_live.transcoders.transcoder import Transcoder
from tests.services.test_writing import Server
from tests.support.otlp import Collector
from tests.support.system import HOOK, POLICY, System, save


def settings(endpoint, **changes):
    flags = {"tracing.endpoint": endpoint, "tracing.spans": 512, **changes}
    return resolve(flags=flags, environment={}).settings


def span(number=0, **changes):
    ref = SpanRef(b"t" * 16, number.to_bytes(8, "big"))
    values = {"name": "encode", "parent": None, "began_ns": 5, "ended_ns": 7, "attributes": {}}
    return Span(ref=ref, **(values | changes))


def until(condition, within_s=20.0):
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.01)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(service, "WAIT_S", 0.02)
    monkeypatch.setattr(service, "FIRST_PAUSE_S", 0.02)
    monkeypatch.setattr(service, "LAST_WORDS_S", 20.0)


def test_a_span_arrives_as_it_is_and_what_waits_at_the_end_is_sent(tmp_path):
    headers = tmp_path / "headers"
    headers.write_text("X-Key: 7f: secret\n")
    headers.chmod(0o600)
    registry = CollectorRegistry()
    with Collector() as collector:
        configured = settings(collector.url, **{"tracing.headers": str(headers)})
        with Tracing(configured, "encoder", registry) as tracing:
            attributes = {"a": "text", "b": 3, "c": 0.5, "d": True}
            parent, link = SpanRef(b"t" * 16, b"p" * 8), SpanRef(b"u" * 16, b"l" * 8)
            tracing.emit(span(1, parent=parent, attributes=attributes, links=(link,)))
            tracing.emit(span(2, failed="refused"))
        said = generate_latest(registry).decode()
    first, second = collector.spans
    assert (first.service, first.name) == ("interlatent-live.encoder", "encode")
    assert (first.trace, first.span, first.parent) == (b"t" * 16, (1).to_bytes(8, "big"), b"p" * 8)
    assert (first.began_ns, first.ended_ns, first.attributes) == (5, 7, attributes)
    assert first.links == ((b"u" * 16, b"l" * 8),)
    assert (second.parent, second.error) == (b"", "refused")
    assert collector.requests[0][0] == "/v1/traces"
    assert collector.requests[0][1]["X-Key"] == "7f: secret"
    assert 'interlatent_tracing_spans_total{outcome="sent"} 2.0' in said


def test_a_busy_collector_is_asked_again_and_gets_every_span_once():
    with (
        Collector(503, 429) as collector,
        Tracing(settings(collector.url), "encoder", CollectorRegistry()) as tracing,
    ):
        for number in range(600):
            tracing.emit(span(number))
            if number == 300:
                until(lambda: tracing.counts()["sent"] == 301)
        until(lambda: tracing.counts()["sent"] == 600)
        counts = tracing.counts()
    assert counts == {"sent": 600, "full": 0, "refused": 0, "ended": 0, "waiting": 0}
    assert sorted(int.from_bytes(one.span, "big") for one in collector.spans) == list(range(600))
    assert [status for *_, status in collector.requests[:2]] == [503, 429]


def test_what_a_collector_does_not_want_is_counted_and_not_sent_again():
    with (
        Collector(400, rejects=1) as collector,
        Tracing(settings(collector.url), "encoder", CollectorRegistry()) as tracing,
    ):
        tracing.emit(span(1))
        until(lambda: tracing.counts()["refused"] == 1)
        for number in (2, 3):
            tracing.emit(span(number))
        until(lambda: tracing.counts()["waiting"] == 0)
        counts = tracing.counts()
    # Of what came after the 400, the collector said of each request that it rejects one span.
    assert counts["sent"] + counts["refused"] == 3
    assert counts["refused"] == 1 + len(collector.requests) - 1


def test_without_a_collector_spans_are_dropped_counted_and_nobody_waits():
    with Collector() as gone:
        url = gone.url
    tracing = Tracing(settings(url), "encoder", CollectorRegistry())
    with tracing:
        began = time.monotonic()
        for number in range(2000):
            tracing.emit(span(number))
        assert time.monotonic() - began < 1.0
        assert tracing.counts()["waiting"] == 512
    counts = tracing.counts()
    assert (counts["sent"], counts["full"], counts["ended"]) == (0, 1488, 512)


def test_headers_that_others_can_read_or_that_are_none_are_refused(tmp_path):
    headers = tmp_path / "headers"
    headers.write_text("key\n")
    configured = settings("http://127.0.0.1:1", **{"tracing.headers": str(headers)})
    headers.chmod(0o644)
    with pytest.raises(UserError, match="chmod 600"):
        Tracing(configured, "encoder", CollectorRegistry())
    headers.chmod(0o600)
    with pytest.raises(UserError, match="NAME: VALUE"):
        Tracing(configured, "encoder", CollectorRegistry())


def test_without_the_extra_a_sentence_says_what_to_install(monkeypatch):
    name = "opentelemetry.proto.collector.trace.v1.trace_service_pb2"
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=r"interlatent-live\[otel\]"):
        Tracing(settings("http://127.0.0.1:1"), "encoder", CollectorRegistry())


@pytest.mark.operations
def test_no_variable_of_the_environment_sends_anything_and_off_imports_nothing():
    code = """
import sys, threading
from prometheus_client import CollectorRegistry
from interlatent_live.config import load_settings
from interlatent_live.services import encoder, correlator, explainer
from interlatent_live.services.tracing import Tracing
with Tracing(load_settings(), "encoder", CollectorRegistry()) as tracing:
    assert tracing.every == 0
    assert [one.name for one in threading.enumerate()] == ["MainThread"], threading.enumerate()
print([name for name in sys.modules if name.startswith(("opentelemetry.proto", "opentelemetry.sdk"))])
"""  # noqa: E501 - a program
    with Collector() as collector:
        base = collector.url.removesuffix("/v1/traces")
        variables = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": base,
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": collector.url,
            "OTEL_TRACES_EXPORTER": "otlp",
            "OTEL_PYTHON_TRACER_PROVIDER": "sdk_tracer_provider",
            "INTERLATENT_CONFIG": "",
        }
        said = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, **variables},
            capture_output=True,
            text=True,
            timeout=240,
            check=True,
        ).stdout
    assert said.strip() == "[]"
    assert collector.requests == []


def lean_transcoder():
    """Feature 0 is on while x0 > 0.8; the others follow coordinates of their own."""
    config = TranscoderConfig(
        architecture=Architecture.JUMPRELU, d_in=4, d_out=4, n_features=4, k=2
    )
    return Transcoder(
        config=config,
        W_enc=torch.eye(4),
        b_enc=torch.zeros(4),
        W_dec=torch.eye(4),
        b_dec=torch.zeros(4),
        threshold=torch.full((4,), 0.8),
    )


def walk(tap, episodes, length=60):
    random = np.random.default_rng(0)
    for _ in range(episodes):
        x = np.zeros(4)
        for t in range(length):
            x = 0.9 * x + random.normal(size=4)
            row = x.astype(np.float32)
            tap.publish([x[0]], x={HOOK: row}, y={HOOK: row}, terminated=t == length - 1)
            time.sleep(0.0005)


@pytest.mark.operations
def test_one_trace_leads_from_a_step_to_a_claim_that_was_judged(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "x")
    save(tmp_path, lean_transcoder())
    with Server() as llm, Collector() as collector:
        flags = {
            "encoder.transcoders": [str(tmp_path)],
            "tracing.endpoint": collector.url,
            "tracing.every_steps": 100,
            "explainer.writer": "openai",
            "explainer.model": "small",
            "explainer.base_url": llm.openai_url,
        }
        with System(without=("console", "control"), **flags) as system:
            tap = Tap(
                [MetricSpec("lean", "rad", Role.STATE)],
                agent="walker",
                endpoint=system.settings.endpoints.agents,
                policy_hash=POLICY,
                hook_points=(HookPointSpec(HOOK, 4, 4),),
                y_every=1,
            )
            deadline = time.monotonic() + 60
            with tap:
                while not judged(collector.spans) and time.monotonic() < deadline:
                    walk(tap, 10)
                run_id = tap.run_id
        spans = collector.spans
    by_id = {(one.trace, one.span): one for one in spans}
    assert len(by_id) == len(spans), "no span was made twice"
    assert judged(spans), {one.name for one in spans}
    for verdict in judged(spans):
        way = [verdict]
        while way[-1].parent:
            way.append(by_id[way[-1].trace, way[-1].parent])
        names = [one.name for one in way]
        below = names[names.index("take in") :]
        assert below == ["take in", "publish", "encode", "step"]
        assert names[names.index("take in") - 1] in {"propose", "chat small"}
        assert {one.attributes["interlatent.run"] for one in way} == {run_id}
        assert {one.service for one in way[:2]} == {"interlatent-live.explainer"}
        assert {one.service for one in way[-3:]} == {"interlatent-live.encoder"}
        assert way[-1].ended_ns - way[-1].began_ns < 60e9
        assert any(
            (one.name, one.service, one.trace)
            == ("correlate", "interlatent-live.correlator", verdict.trace)
            for one in spans
        )
        assert verdict.links, "the rows that brought the verdict about"
        assert "interlatent.claim.reason" in verdict.attributes
    asked = [one for one in spans if one.name == "chat small"]
    assert asked
    for one in asked:
        assert one.attributes["gen_ai.usage.input_tokens"] > 0
        assert "interlatent.cost_usd" in one.attributes
    for one in spans:
        assert one.began_ns <= one.ended_ns


def judged(spans):
    return [one for one in list(spans) if one.name.startswith("judge ")]
