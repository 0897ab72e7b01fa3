"""Looking back over HTTP: one question a hook point, and every refusal a sentence."""

from __future__ import annotations

import threading
import time

import pytest
from fastapi.testclient import TestClient

from interlatent_live.console.app import Sources, make_app
from interlatent_live.console.asking import Asking
from interlatent_live.console.broadcast import Broadcast
from interlatent_live.console.live import LiveHub
from interlatent_live.explanations.requests import IncidentFound, Refused
from interlatent_live.store import open_store
from tests.support.feeds import agents_document

FOUND = {"hook_point": "hidden.1", "features": [], "nearest": []}


@pytest.fixture
def sources(tmp_path):
    store = open_store(f"sqlite:///{tmp_path}/store.sqlite3")
    store.take(agents_document())
    yield Sources(store, Broadcast(), LiveHub(), Asking(), "t" * 43, None, dict)
    store.close()


@pytest.fixture
def http(sources):
    with TestClient(make_app(sources), base_url="http://127.0.0.1:28480") as client:
        yield client


@pytest.fixture
def asked(sources):
    """Requests that were asked; answered with what ``asked.answer`` makes of them."""

    class Asked(list):
        answer = staticmethod(lambda request: IncidentFound(request.id, FOUND))

    seen, stop = Asked(), threading.Event()

    def serve():
        while not stop.is_set():
            for request in sources.asking.requests():
                seen.append(request)
                sources.asking.answered(seen.answer(request))
            time.sleep(0.005)

    thread = threading.Thread(target=serve)
    thread.start()
    yield seen
    stop.set()
    thread.join()


def look(http, **query):
    return http.get("/api/v1/incidents", params={"run_id": "run-1", "episode": 4} | query)


def test_every_hook_point_of_the_run_is_looked_at(http, asked):
    answer = look(http, env=2, window=30)
    assert answer.status_code == 200
    said = answer.json()
    assert (said["run_id"], said["items"]) == ("run-1", [FOUND])
    assert "control_hz" in said
    (request,) = asked
    assert (request.run_id, request.hook_point) == ("run-1", "hidden.1")
    assert (request.env, request.episode, request.window) == (2, 4, 30)


@pytest.mark.parametrize(
    ("query", "status", "sentence"),
    [
        ({"run_id": "another"}, 404, "there is no run another"),
        ({"hook_point": "x"}, 404, "run run-1 has no hook point 'x': hidden.1"),
        ({"window": 0}, 422, "window: "),
        ({"episode": -1}, 422, "episode: "),
    ],
)
def test_what_is_not_there_is_said_without_asking(http, asked, query, status, sentence):
    answer = look(http, **query)
    assert answer.status_code == status
    assert answer.json()["detail"].startswith(sentence)
    assert asked == []


def test_a_refusal_of_the_explainer_is_passed_on(http, asked):
    for why, status in (("refused", 404), ("busy", 503)):
        asked.answer = lambda one, why=why: Refused(one.id, why, "no other episode has 9 steps")
        answer = look(http)
        assert (answer.status_code, answer.json()["detail"]) == (
            status,
            "no other episode has 9 steps",
        )


def test_one_run_is_had_by_its_id(http):
    assert http.get("/api/v1/runs/run-1").json()["agent"]
    missing = http.get("/api/v1/runs/a%2Fb")
    assert (missing.status_code, missing.json()["detail"]) == (404, "there is no run a/b")
