"""The feed over a WebSocket: the same events as over HTTP, resumed, refused, and ended."""

from __future__ import annotations

import json

import pytest
from fastapi.testclient import TestClient
from starlette.testclient import WebSocketDenialResponse
from starlette.websockets import WebSocketDisconnect

from interlatent_live.console.app import Sources, make_app
from interlatent_live.console.asking import Asking
from interlatent_live.console.broadcast import Broadcast, ClientKind
from interlatent_live.console.live import LiveHub
from interlatent_live.feed.documents import Topic
from tests.support.feeds import narration_document


@pytest.fixture
def broadcast():
    return Broadcast(most_events=5, most_clients=2)


@pytest.fixture
def http(broadcast):
    sources = Sources(None, broadcast, LiveHub(), Asking(), "t" * 43, None, dict)
    with TestClient(make_app(sources), base_url="http://127.0.0.1:28480") as client:
        yield client


def say(broadcast, *words):
    for word in words:
        broadcast.publish(Topic.NARRATION, 9, narration_document(word))


def heard(socket):
    said = json.loads(socket.receive_text())
    if said["topic"] == "missed":
        return said["value"]
    return said["value"]["lines"][0]["text"]


def connect(http, query=""):
    return http.websocket_connect(f"/api/v1/feed/ws{query}", headers={"Host": "127.0.0.1:28480"})


def test_events_come_as_text_frames_and_go_on_behind_the_last_one(http, broadcast):
    say(broadcast, "one")
    with connect(http, "?topics=narration") as socket:
        first = json.loads(socket.receive_text())
        assert (first["topic"], first["time_ns"]) == ("narration", 9)
        assert first["value"]["lines"][0]["text"] == "one"
        say(broadcast, "two")
        assert heard(socket) == "two"
        assert broadcast.counts().clients[ClientKind.WEBSOCKET] == 1
    say(broadcast, "three")
    with connect(http, f"?after={first['id']}") as socket:
        assert [heard(socket), heard(socket)] == ["two", "three"]
    assert broadcast.counts().clients[ClientKind.WEBSOCKET] == 0


def test_a_client_that_was_away_for_long_is_told_what_it_missed(http, broadcast):
    say(broadcast, "0")
    say(broadcast, *(str(n) for n in range(1, 10)))
    with connect(http, f"?after={broadcast.epoch}-1") as socket:
        assert heard(socket) == {"events": 4}
        assert [heard(socket) for _ in range(5)] == ["5", "6", "7", "8", "9"]
    assert broadcast.counts().missed[ClientKind.WEBSOCKET] == 4
    with connect(http, "?after=00000000-3") as socket:
        assert heard(socket) == {"events": None}


def test_the_end_of_the_console_ends_the_feed_behind_the_last_event(http, broadcast):
    with connect(http) as socket:
        say(broadcast, "last")
        broadcast.close()
        assert heard(socket) == "last"
        with pytest.raises(WebSocketDisconnect) as end:
            socket.receive_text()
    assert end.value.code == 1001


@pytest.mark.parametrize(
    ("query", "status", "sentence"),
    [
        ("?topics=features", 422, "there is no topic 'features'"),
        ("?after=x", 422, "no id of an event"),
    ],
)
def test_what_cannot_be_had_is_refused_in_a_sentence(http, query, status, sentence):
    with pytest.raises(WebSocketDenialResponse) as refused, connect(http, query):
        pass
    assert refused.value.status_code == status
    assert sentence in refused.value.json()["detail"]


def test_too_many_are_turned_away_and_counted(http, broadcast):
    with connect(http), connect(http):
        with pytest.raises(WebSocketDenialResponse) as refused, connect(http):
            pass
        assert refused.value.status_code == 503
    assert broadcast.counts().refused == 1
    assert broadcast.clients == 0


def test_a_page_of_another_site_may_not_listen(http):
    with (
        pytest.raises(WebSocketDisconnect),
        http.websocket_connect(
            "/api/v1/feed/ws",
            headers={"Host": "127.0.0.1:28480", "Origin": "http://evil.example"},
        ),
    ):
        pass
