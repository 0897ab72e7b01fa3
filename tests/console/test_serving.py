"""Uvicorn, real sockets, real clients: streams, resumption, slowness, and the end."""

from __future__ import annotations

import json
import re
import socket
import time

import httpx2
import pytest

from interlatent_live.console import streaming
from interlatent_live.console.app import Sources, make_app
from interlatent_live.console.asking import Asking
from interlatent_live.console.broadcast import Broadcast
from interlatent_live.console.live import LiveHub
from interlatent_live.console.serving import HttpServer
from interlatent_live.errors import UserError
from interlatent_live.feed.documents import Topic
from tests.support.feeds import narration_document

LINES = {"Accept": "application/x-ndjson"}


@pytest.fixture
def broadcast():
    return Broadcast(most_events=50)


@pytest.fixture
def server(broadcast):
    sources = Sources(None, broadcast, LiveHub(), Asking(), "t" * 43, None, dict)
    app = make_app(sources)
    with HttpServer(app, "127.0.0.1:0", [broadcast], feeds=4) as one:
        yield one
    assert not one.alive


def say(broadcast, *texts):
    for text in texts:
        broadcast.publish(Topic.NARRATION, 1, narration_document(text))


def objects(response):
    return (json.loads(line) for line in response.iter_lines() if line)


def text_of(one):
    return one["value"]["lines"][0]["text"]


def wait(condition):
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_lines_arrive_as_they_are_said_and_a_client_that_left_is_forgotten(server, broadcast):
    with httpx2.stream("GET", f"{server.url}/api/v1/feed", headers=LINES, timeout=10) as answer:
        assert answer.headers["content-type"].startswith("application/x-ndjson")
        assert answer.headers["x-content-type-options"] == "nosniff"
        found = objects(answer)
        for text in ("one", "two"):
            say(broadcast, text)
            assert text_of(next(found)) == text
        assert broadcast.clients == 1
    wait(lambda: broadcast.clients == 0)


def test_a_client_that_comes_back_has_what_it_missed(server, broadcast):
    say(broadcast, "one", "two", "three")
    address = f"{server.url}/api/v1/feed?topics=narration"
    back = LINES | {"Last-Event-ID": f"{broadcast.epoch}-1"}
    with httpx2.stream("GET", address, headers=back, timeout=10) as answer:
        found = objects(answer)
        assert [text_of(next(found)) for _ in range(2)] == ["two", "three"]
    with httpx2.stream(
        "GET", address, headers=LINES | {"Last-Event-ID": "00000000-9"}, timeout=10
    ) as answer:
        found = objects(answer)
        assert next(found) == {"topic": "missed", "value": {"events": None}}
        assert text_of(next(found)) == "three"


def test_a_client_that_does_not_read_misses_the_oldest_and_is_told(server, broadcast):
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16384)
        slow.connect(("127.0.0.1", server.port))
        slow.settimeout(10)
        slow.sendall(
            b"GET /api/v1/feed HTTP/1.1\r\nHost: localhost\r\nAccept: application/x-ndjson\r\n\r\n"
        )
        wait(lambda: broadcast.clients == 1)
        began = time.monotonic()
        for number in range(600):
            say(broadcast, f"{number} " + "x" * 10_000)
        assert time.monotonic() - began < 5
        received = bytearray()
        while b"599 x" not in received[-20_000:] or not received.endswith(b"\r\n"):
            received += slow.recv(1 << 20)
    told = re.findall(rb'"topic":"missed","value":\{"events":(\d+)\}', received)
    missed = sum(map(int, told))
    shown = received.count(b'"topic":"narration"')
    assert missed > 0
    assert shown + missed == 600


def test_silence_is_filled_so_that_a_dead_client_is_noticed(server, broadcast, monkeypatch):
    monkeypatch.setattr(streaming, "KEEP_ALIVE_S", 0.05)
    with httpx2.stream("GET", f"{server.url}/api/v1/feed", timeout=10) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = answer.iter_lines()
        assert [next(lines) for _ in range(4)] == [": still here", ""] * 2


def test_too_many_feeds_are_turned_away(broadcast):
    narrow = Broadcast(most_clients=1)
    sources = Sources(None, narrow, LiveHub(), Asking(), "t" * 43, None, dict)
    with HttpServer(make_app(sources), "127.0.0.1:0", [narrow], feeds=4) as server:
        address = f"{server.url}/api/v1/feed"
        with httpx2.stream("GET", address, timeout=10) as answer:
            lines = answer.iter_lines()  # once it is forgotten the answer is closed
            next(lines)
            refused = httpx2.get(address, timeout=10)
            assert refused.status_code == 503
            assert "1 feeds are open already" in refused.json()["detail"]


def test_the_end_does_not_wait_for_open_feeds(broadcast):
    sources = Sources(None, broadcast, LiveHub(), Asking(), "t" * 43, None, dict)
    server = HttpServer(make_app(sources), "127.0.0.1:0", [broadcast], feeds=4)
    with httpx2.Client(timeout=10) as client:
        with server:
            request = client.build_request("GET", f"{server.url}/api/v1/feed")
            answer = client.send(request, stream=True)
            wait(lambda: broadcast.clients == 1)
            began = time.monotonic()
        assert time.monotonic() - began < 4
        assert not server.alive
        answer.read()
    socket.create_server(("127.0.0.1", server.port)).close()


@pytest.mark.parametrize("address", ["0.0.0.0:0", "192.0.2.1:28480", "[::]:0", "somewhere:1"])
def test_it_listens_on_this_machine_only(broadcast, address):
    app = make_app(Sources(None, broadcast, LiveHub(), Asking(), "t", None, dict))
    with pytest.raises(UserError, match="needs no login: use 127"):
        HttpServer(app, address, [broadcast], feeds=1)
