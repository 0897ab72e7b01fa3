"""The page as it is served: whole, small, kept by the browser, and under a strict policy."""

import gzip
import re

import numpy as np
import pytest
from fastapi.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from interlatent_live.console.app import Sources, make_app
from interlatent_live.console.asking import Asking
from interlatent_live.console.broadcast import Broadcast
from interlatent_live.console.built_page import built_page
from interlatent_live.console.live import LiveHub
from tests.console.test_live import HOOK, batch

HOST = "127.0.0.1:28480"
BASE = f"http://{HOST}"
LIVE = f"/api/v1/live?run_id=run&hook_point={HOOK}&env=1"
MOST_BYTES = 500_000


@pytest.fixture
def hub():
    return LiveHub()


@pytest.fixture
def http(hub):
    sources = Sources(None, Broadcast(), hub, Asking(), "t" * 43, None, dict)
    with TestClient(make_app(sources), base_url=BASE) as client:
        yield client


def test_the_page_and_all_it_names_are_served(http):
    page = http.get("/")
    assert page.status_code == 200
    named = re.findall(r'(?:src|href)="(/[^"]+)"', page.text)
    assert {one.rsplit(".", 1)[1] for one in named} == {"js", "css", "svg"}
    for one in named:
        answer = http.get(one)
        assert answer.status_code == 200
        kept = "immutable" if one.startswith("/assets/") else "no-cache"
        assert kept in answer.headers["cache-control"]


def test_the_page_is_small():
    page = built_page()
    assert sum(len(one.gzipped) for name, one in page.items() if name != "index.html") < MOST_BYTES


def test_nothing_inline_and_nothing_from_elsewhere(http):
    answer = http.get("/")
    policy = answer.headers["content-security-policy"]
    assert answer.headers.get_list("content-security-policy") == [policy]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert not re.search(r"<script(?![^>]*\bsrc=)|\bstyle=|\bon\w+=", answer.text)
    # Names of namespaces are no addresses that anything is loaded from.
    found = {
        url
        for one in built_page().values()
        for url in re.findall(rb"https?://[\w./-]+", one.body)
        if b"www.w3.org" not in url and b"svelte.dev" not in url
    }
    assert found == set()


def test_the_api_stays_under_its_own_policy(http):
    answer = http.get("/api/v1/openapi.json")
    assert "script-src" not in answer.headers["content-security-policy"]


def test_a_page_that_is_known_is_not_sent_again(http):
    tag = http.get("/").headers["etag"]
    again = http.get("/", headers={"If-None-Match": tag})
    assert again.status_code == 304
    assert again.content == b""


def test_who_cannot_unzip_gets_it_plain(http):
    plain = http.get("/", headers={"Accept-Encoding": "identity"})
    assert "content-encoding" not in plain.headers
    assert gzip.decompress(built_page()[""].gzipped) == plain.content


@pytest.mark.parametrize(
    "path",
    ["/index", "/assets/", "/assets/../app.py", "/..%2fapp.py", "/%2e%2e/app.py", "//etc/passwd"],
)
def test_there_is_no_path_to_other_files(http, path):
    assert http.get(path).status_code in {404, 421}


def test_steps_come_over_the_socket(http, hub):
    with http.websocket_connect(LIVE, headers={"Host": HOST, "Origin": BASE}) as socket:
        assert set(socket.receive_json()) == {"after"}
        hub.take(batch(0, np.ones((3, 5)), 1))
        stream = socket.receive_json()["stream"]
        assert stream["n_features"] == 5
        assert np.frombuffer(socket.receive_bytes(), "<u4", 4).tolist() == [1, 3, 2, 15]
        assert hub.watched


def test_a_program_needs_no_origin(http):
    with http.websocket_connect(LIVE, headers={"Host": HOST}) as socket:
        assert "after" in socket.receive_json()


@pytest.mark.parametrize("origin", ["http://evil.example", "http://127.0.0.1:1", "null"])
def test_a_page_from_elsewhere_hears_no_step(http, origin):
    with (
        pytest.raises(WebSocketDisconnect),
        http.websocket_connect(LIVE, headers={"Host": HOST, "Origin": origin}),
    ):
        pass


def test_a_name_that_was_made_to_resolve_here_hears_no_step(http):
    with (
        pytest.raises(WebSocketDisconnect),
        http.websocket_connect(
            LIVE, headers={"Host": "evil.example", "Origin": "http://evil.example"}
        ),
    ):
        pass


@pytest.mark.parametrize("query", ["", "?run_id=a", "?run_id=a&hook_point=b&env=-1"])
def test_a_socket_without_a_view_is_refused(http, query):
    with (
        pytest.raises(WebSocketDisconnect),
        http.websocket_connect(f"/api/v1/live{query}", headers={"Host": HOST}),
    ):
        pass
