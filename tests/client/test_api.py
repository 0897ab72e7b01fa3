"""The typed client against a console over real sockets."""

from __future__ import annotations

import pytest

from interlatent_live.client import ConsoleClient, ConsoleError
from interlatent_live.explanations.requests import Accepted, IncidentFound, Noted, Refused
from tests.support.console import TOKEN, RunningConsole
from tests.support.feeds import (
    agents_document,
    claim,
    claims_document,
    costs_document,
    narration_document,
)

WRITTEN = {"history": [], "writer": "builtin", "prompt_hash": "", "reason": "", "judged_ns": 6}
FEATURE = {
    "address": "hidden.1/17@sha256:x",
    "label": "pole leans",
    "verdict": "verified",
    "predicate": "pole_angle > 0.1",
    "activity": 1.0,
    "usual": 0.1,
    "as_extreme": 0.0,
    "direction": "more active",
    "lead_steps": 12,
    "course": [0.0, 1.0],
}
INCIDENT = {
    "hook_point": "hidden.1",
    "env": 0,
    "episode": 4,
    "steps": 120,
    "window_steps": 30,
    "reference_episodes": 9,
    "features": [FEATURE],
    "nearest": [{"env": 0, "episode": 2, "similarity": 0.9, "steps": 80}],
}


@pytest.fixture(scope="module")
def console(tmp_path_factory):
    with RunningConsole(tmp_path_factory.mktemp("store")) as one:
        one.store.take(agents_document())
        shown = [
            claim(index, verdict, feature=index, version=0, created_ns=5, **WRITTEN)
            for index, verdict in enumerate(["verified", "weak", "verified", "abstained"])
        ]
        one.store.take(claims_document(shown))
        one.store.take(costs_document())
        one.store.take(narration_document("The pole leans right."))
        yield one


@pytest.fixture
def client(console):
    with ConsoleClient(console.url, token=TOKEN) as one:
        yield one


def test_everything_that_is_kept_comes_as_values(client, monkeypatch):
    monkeypatch.setattr("interlatent_live.client.api.PAGE", 2)
    (run,) = client.runs()
    assert client.run("run-1") == run
    assert (run.control_hz, run.hook_points) == (100.0, ("hidden.1",))
    claims = list(client.claims())
    assert len({one.id for one in claims}) == 4
    assert {one.verdict for one in client.claims(verdict="verified")} == {"verified"}
    one = client.claim(claims[0].id)
    assert one == claims[0]
    assert (one.text.label, one.text.balanced_accuracy) == ("pole leans right", 0.93)
    assert [found.id for found in client.claims(address=one.address)] == [one.id]
    history = client.history(one.id)
    assert history.claim == one
    assert [version.writer for version in history.versions] == ["builtin"]
    assert [passed.verdict for passed in history.verdicts] == [one.verdict]
    (narrated,) = client.narration(run_id="run-1")
    assert narrated.lines[0]["text"] == "The pole leans right."
    (spent,) = client.costs()
    assert (spent.writer, spent.dollars) == ("openai:small", 0.02)
    assert client.health()["ready"] is True


def test_an_incident_is_looked_at(client, console):
    console.answer = lambda request: IncidentFound(request.id, INCIDENT)
    found = client.incidents("run-1", 4, window=30)
    assert found.control_hz == 100.0
    (one,) = found.items
    (feature,) = one.features
    assert (feature.feature, feature.label, feature.lead_steps) == (17, "pole leans", 12)
    assert one.nearest[0].episode == 2


def test_a_claim_is_made_or_refused_with_the_reason(client, console):
    said = {
        "run_id": "run-1",
        "hook_point": "hidden.1",
        "feature": 3,
        "predicate": "pole_angle >",
        "person": "ada",
    }
    console.answer = lambda one: Refused(one.id, "predicate", "a number is missing", 12)
    with pytest.raises(ConsoleError, match="a number is missing") as refused:
        client.add_claim(**said)
    error = refused.value
    assert (error.status, error.why, error.position) == (422, "predicate", 12)
    console.answer = lambda one: Accepted(
        one.id, "hidden.1/3@x", 1, one.predicate, "the pole leans", "pending", 7
    )
    made = client.add_claim(**said | {"predicate": "pole_angle > 0"}, request_id="mine")
    assert (made.id, made.version, made.verdict) == ("mine", 1, "pending")
    assert console.asked[-1].predicate == "pole_angle > 0"


def test_a_wish_is_passed_on_or_refused(client, console):
    wish = {"run_id": "run-1", "hook_point": "hidden.1", "feature": 3, "person": "ada"}
    console.answer = lambda one: Noted(one.id)
    client.word_first(**wish)
    assert (console.asked[-1].run_id, console.asked[-1].feature) == ("run-1", 3)
    console.answer = lambda one: Refused(one.id, "refused", "no language model words claims here")
    with pytest.raises(ConsoleError, match="no language model") as refused:
        client.word_first(**wish)
    assert refused.value.status == 409


def test_a_correction_is_kept_with_the_verdict(client):
    one = next(client.claims(verdict="weak"))
    said = client.correct(one.id, "relabel", person="ada", label="leaning", note="shorter")
    assert (said.verdict, said.label) == ("weak", "leaning")
    assert client.history(one.id).corrections == [said]
    with pytest.raises(ConsoleError, match="label"):
        client.correct(one.id, "reject", person="ada", label="x")


def test_every_failure_is_one_sentence(client, console):
    with pytest.raises(ConsoleError, match="there is no claim nothing") as missing:
        client.claim("nothing")
    assert missing.value.status == 404
    with pytest.raises(ConsoleError, match="there is no run a/b"):
        client.run("a/b")
    with (
        ConsoleClient(console.url, token="u" * 43) as stranger,
        pytest.raises(ConsoleError, match="writing needs") as refused,
    ):
        stranger.correct("x", "accept", person="ada")
    assert refused.value.status == 401
    with ConsoleClient(console.url) as reader, pytest.raises(ConsoleError, match="the token"):
        reader.correct("x", "accept", person="ada")
    with (
        ConsoleClient("http://127.0.0.1:9") as lonely,
        pytest.raises(ConsoleError, match=r"no console answers at http://127\.0\.0\.1:9") as nobody,
    ):
        lonely.health()
    assert nobody.value.status is None
