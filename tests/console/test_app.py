"""The HTTP application on a real store: pages, sentences, the token, and what is refused."""

from __future__ import annotations

import threading
import time

import pytest
from fastapi.testclient import TestClient

from interlatent_live.console import guard
from interlatent_live.console.app import Sources, make_app
from interlatent_live.console.asking import Asking
from interlatent_live.console.broadcast import Broadcast
from interlatent_live.console.live import LiveHub
from interlatent_live.explanations.requests import Accepted, Refused
from interlatent_live.feed.documents import Topic
from interlatent_live.queries.client import StatisticsClient
from interlatent_live.store import StoreError, open_store
from tests.support.feeds import (
    agents_document,
    claim,
    claims_document,
    costs_document,
    narration_document,
)

TOKEN = "t" * 43
WRITE = {"Authorization": f"Bearer {TOKEN}"}
WRITTEN = {"history": [], "writer": "builtin", "prompt_hash": "", "reason": "", "judged_ns": 6}
CLAIM = {
    "run_id": "run-1",
    "hook_point": "hidden.1",
    "feature": 3,
    "predicate": "pole_angle >",
    "person": "ada",
}


class Health(dict):
    def __call__(self):
        return dict(self)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    one = open_store(f"sqlite:///{folder}/store.sqlite3")
    one.take(agents_document())
    shown = [
        claim(index, verdict, feature=index, version=0, created_ns=5, **WRITTEN)
        for index, verdict in enumerate(["verified", "weak", "verified", "verified", "stale"])
    ]
    one.take(claims_document(shown))
    one.take(costs_document())
    for env in range(3):
        one.take(narration_document(f"copy {env}", env=env))
    yield one
    one.close()


@pytest.fixture
def sources(store):
    return Sources(
        store,
        Broadcast(),
        LiveHub(),
        Asking(),
        TOKEN,
        lambda: StatisticsClient("tcp://127.0.0.1:9", timeout_s=0.2),
        Health(ready=True, documents_kept=4),
    )


@pytest.fixture
def http(sources):
    with TestClient(make_app(sources), base_url="http://127.0.0.1:28480") as client:
        yield client


def pages(http, path, key, **parameters):
    found, cursor = [], None
    while True:
        extra = {"cursor": cursor} if cursor else {}
        page = http.get(f"/api/v1{path}", params=parameters | extra).json()
        assert len(page["items"]) <= parameters["limit"]
        found += [one[key] for one in page["items"]]
        cursor = page["next_cursor"]
        if cursor is None:
            return found


def test_claims_are_filtered_and_paged(http):
    assert len(set(pages(http, "/claims", "id", limit=2))) == 5
    assert set(pages(http, "/claims", "verdict", limit=2, verdict="verified")) == {"verified"}
    assert len(pages(http, "/claims", "id", limit=3, verdict="verified")) == 3
    assert pages(http, "/claims", "id", limit=3, run_id="another") == []
    assert pages(http, "/runs", "run_id", limit=1) == ["run-1"]
    numbers = pages(http, "/narration", "number", limit=2, run_id="run-1")
    assert numbers == sorted(numbers, reverse=True)
    assert len(numbers) == 3
    (costs,) = http.get("/api/v1/costs").json()["items"]
    assert costs["dollars"] == 0.02


def test_a_claim_and_its_history(http):
    one = http.get("/api/v1/claims", params={"limit": 1}).json()["items"][0]
    assert http.get(f"/api/v1/claims/{one['id']}").json() == one
    history = http.get(f"/api/v1/claims/{one['id']}/history").json()
    assert history["claim"] == one
    assert len(history["versions"]) == 1
    assert history["verdicts"][0]["verdict"] == one["verdict"]
    missing = http.get("/api/v1/claims/nothing/history")
    assert (missing.status_code, missing.json()["detail"]) == (404, "there is no claim nothing")


def test_health_says_what_is_kept(http, sources):
    assert http.get("/api/v1/health").json()["documents_kept"] == 4
    sources.health["ready"] = False
    assert http.get("/api/v1/health").status_code == 503


def test_bad_parameters_and_absent_services_are_said_in_a_sentence(http, sources, monkeypatch):
    answer = http.get("/api/v1/claims", params={"limit": 0})
    assert answer.status_code == 422
    assert answer.json()["detail"].startswith("limit: ")
    answer = http.get("/api/v1/statistics/runs")
    assert answer.status_code == 503
    assert "no correlator answered" in answer.json()["detail"]

    def full(**_):
        raise StoreError("the disk is full")

    monkeypatch.setattr(sources.store, "runs", full)
    answer = http.get("/api/v1/runs")
    assert (answer.status_code, answer.json()) == (503, {"detail": "the disk is full"})


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:28480", "127.0.0.1.evil.example", "10.0.0.1", ""]
)
def test_a_page_under_another_name_reads_nothing(http, host):
    answer = http.get("/api/v1/claims", headers={"Host": host})
    assert answer.status_code == 421
    assert "items" not in answer.json()


@pytest.mark.parametrize("host", ["localhost:1", "LOCALHOST", "[::1]:28480", "[::1]", "127.0.0.9"])
def test_every_name_of_loopback_is_let_in(http, host):
    assert http.get("/api/v1/runs", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "path", ["/api/v1/runs", "/api/v1/nothing", "/", "/api/v1/openapi.json", "/docs"]
)
def test_every_answer_carries_the_headers(http, path):
    headers = http.get(path).headers
    assert headers["content-security-policy"].startswith("default-src 'none';")
    assert headers["x-content-type-options"] == "nosniff"
    assert "access-control-allow-origin" not in headers


def test_a_large_body_is_refused_before_it_is_read(http):
    large = b"x" * (guard.LARGEST_BODY + 1)
    assert http.post("/api/v1/claims", content=large, headers=WRITE).status_code == 413
    parts = (b"x" * 1024 for _ in range(40))
    assert http.post("/api/v1/claims", content=parts, headers=WRITE).status_code == 413


@pytest.mark.parametrize(
    "header", ["", "Bearer", "Bearer " + "u" * 43, "Basic " + TOKEN, "Bearer täuschung"]
)
@pytest.mark.parametrize("path", ["/api/v1/claims", "/api/v1/corrections"])
def test_writing_needs_the_token(http, path, header):
    headers = {"Authorization": header.encode()} if header else {}
    answer = http.post(path, json=CLAIM, headers=headers)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert TOKEN not in answer.text


def answering(asking, make):
    """A thread that answers the next request, as the service's loop does."""

    def serve():
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            for request in asking.requests():
                asking.answered(make(request))
                return
            time.sleep(0.005)

    thread = threading.Thread(target=serve)
    thread.start()
    return thread


def test_a_predicate_that_does_not_parse_comes_back_with_its_position(http, sources):
    asked = []

    def refuse(request):
        asked.append(request)
        return Refused(request.id, "predicate", "a number is missing", 12)

    thread = answering(sources.asking, refuse)
    answer = http.post("/api/v1/claims", json=CLAIM, headers=WRITE)
    thread.join()
    assert answer.status_code == 422
    assert answer.json() == {"detail": "a number is missing", "why": "predicate", "position": 12}
    assert (asked[0].predicate, asked[0].feature, asked[0].person) == ("pole_angle >", 3, "ada")


def test_a_claim_by_a_person_is_accepted(http, sources):
    thread = answering(
        sources.asking,
        lambda one: Accepted(one.id, "hidden.1/3@x", 1, one.predicate, "english", "pending", 7),
    )
    answer = http.post("/api/v1/claims", json=CLAIM | {"id": "mine"}, headers=WRITE)
    thread.join()
    assert answer.status_code == 201
    assert (answer.json()["id"], answer.json()["verdict"]) == ("mine", "pending")


@pytest.mark.parametrize(
    "change", [{"feature": -1}, {"predicate": ""}, {"id": "a b"}, {"more": 1}, {"person": " "}]
)
def test_a_body_that_does_not_fit_is_refused(http, change):
    answer = http.post("/api/v1/claims", json=CLAIM | change, headers=WRITE)
    assert answer.status_code == 422
    assert answer.json()["detail"].startswith(next(iter(change)) + ": ")


def test_corrections_are_kept_once(http):
    one = http.get("/api/v1/claims", params={"limit": 1}).json()["items"][0]
    body = {"id": "c1", "claim_id": one["id"], "kind": "reject", "person": "ada", "note": "no"}
    first = http.post("/api/v1/corrections", json=body, headers=WRITE)
    again = http.post("/api/v1/corrections", json=body, headers=WRITE)
    assert first.status_code == again.status_code == 201
    assert first.json() == again.json()
    assert first.json()["verdict"] == one["verdict"]
    (kept,) = http.get(f"/api/v1/claims/{one['id']}/history").json()["corrections"]
    assert (kept["note"], kept["person"]) == ("no", "ada")
    for change, status in (
        ({"note": "yes"}, 409),
        ({"claim_id": "nothing", "id": "c2"}, 404),
        ({"kind": "relabel"}, 422),
        ({"label": "x"}, 422),
    ):
        answer = http.post("/api/v1/corrections", json=body | change, headers=WRITE)
        assert answer.status_code == status, answer.text


def test_a_feed_is_refused_for_topics_and_ids_that_there_are_not(http):
    for query, headers in (
        ("?topics=claims,features", {}),
        ("?topics=,", {}),
        ("", {"Last-Event-ID": "x"}),
    ):
        answer = http.get(f"/api/v1/feed{query}", headers=headers)
        assert answer.status_code == 422, answer.text


def test_openapi_names_every_route(http):
    paths = http.get("/api/v1/openapi.json").json()["paths"]
    assert {"/api/v1/claims", "/api/v1/feed", "/api/v1/statistics/pairs"} <= set(paths)
    assert set(paths["/api/v1/claims"]) == {"get", "post"}


def test_a_feed_that_is_ended_has_all_that_was_said(http, sources):
    sources.broadcast.publish(Topic.NARRATION, 9, narration_document("one"))
    sources.broadcast.close()
    text = http.get("/api/v1/feed", headers={"Accept": "text/event-stream"}).text
    assert f"id: {sources.broadcast.epoch}-1\nevent: narration\ndata: {{" in text
