"""What /metrics says of HTTP clients, with labels that nobody can multiply."""

from __future__ import annotations

import pytest
from fastapi.testclient import TestClient
from prometheus_client import CollectorRegistry, generate_latest

from interlatent_live.console.app import Sources, make_app
from interlatent_live.console.asking import Asking
from interlatent_live.console.broadcast import Broadcast
from interlatent_live.console.live import LiveHub
from interlatent_live.console.metrics import HttpMetrics
from interlatent_live.feed.documents import Topic
from interlatent_live.store import open_store
from tests.support.feeds import narration_document


@pytest.fixture
def registry():
    return CollectorRegistry()


@pytest.fixture
def broadcast():
    return Broadcast(most_events=5, most_clients=1)


@pytest.fixture
def http(registry, broadcast, tmp_path):
    store = open_store(f"sqlite:///{tmp_path}/store.sqlite3")
    app = make_app(Sources(store, broadcast, LiveHub(), Asking(), "t" * 43, None, dict))
    base = "http://127.0.0.1:28480"
    with TestClient(HttpMetrics(app, broadcast, registry), base_url=base) as client:
        yield client
    store.close()


def shown(registry):
    return generate_latest(registry).decode()


def test_requests_are_counted_by_the_route_that_matched_not_by_what_was_asked(http, registry):
    for path in ("/runs/a", "/runs/b", "/runs"):
        http.get(f"/api/v1{path}")
    for path in ("/x", "/y", "/api/v1/z", "/api/v1/claims/1/2/3"):
        http.get(path)
    http.request("PURGE", "/api/v1/runs")
    http.get("/api/v1/runs", headers={"Host": "evil.example"})
    lines = [line for line in shown(registry).splitlines() if "request_seconds_count" in line]
    series = {line.partition("{")[2].rpartition("}")[0]: line.rpartition(" ")[2] for line in lines}
    assert series['method="GET",route="/api/v1/runs/{run_id:path}",status="4xx"'] == "2.0"
    assert series['method="GET",route="/api/v1/runs",status="2xx"'] == "1.0"
    assert series['method="other",route="/api/v1/runs",status="4xx"'] == "1.0"
    assert series['method="GET",route="other",status="4xx"'] == "1.0"
    assert series['method="GET",route="/{path:path}",status="4xx"'] == "2.0"
    assert not any(word in line for line in lines for word in ("/x", "/z", "evil", "PURGE"))
    assert len(series) == 6


def test_feeds_are_counted_while_they_are_open_and_what_they_missed_stays(
    http, registry, broadcast
):
    for number in range(8):
        broadcast.publish(Topic.NARRATION, 1, narration_document(str(number)))
    address = f"/api/v1/feed/ws?after={broadcast.epoch}-1"
    with http.websocket_connect(address, headers={"Host": "127.0.0.1:28480"}) as socket:
        socket.receive_text()
        text = shown(registry)
        assert 'interlatent_http_feeds{client="websocket"} 1.0' in text
        assert 'interlatent_http_sockets{route="/api/v1/feed/ws"} 1.0' in text
        assert http.get("/api/v1/feed").status_code == 503
    text = shown(registry)
    assert 'interlatent_http_feeds{client="websocket"} 0.0' in text
    assert 'interlatent_http_sockets{route="/api/v1/feed/ws"} 0.0' in text
    assert 'interlatent_http_feed_events_missed_total{client="websocket"} 2.0' in text
    assert 'interlatent_http_feed_events_missed_total{client="lines"} 0.0' in text
    assert "interlatent_http_feeds_refused_total 1.0" in text
    assert "interlatent_http_feed_events_total 8.0" in text
