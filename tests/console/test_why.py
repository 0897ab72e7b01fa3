"""Asking why over HTTP, with the typed client and at the command line; refusals are sentences."""

from __future__ import annotations

import json
import time

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from interlatent_live.cli.main import app
from interlatent_live.client import ConsoleClient, ConsoleError
from interlatent_live.console import why as route
from interlatent_live.console.access import DeniedError, denied_response
from interlatent_live.console.asking import Asking
from interlatent_live.errors import UserError
from interlatent_live.explanations.requests import Refused
from interlatent_live.explanations.why_relay import AskWhy, WhyAnswered
from tests.support.console import TOKEN, RunningConsole
from tests.support.feeds import HASH, claim, claims_document

WRITTEN = {"history": [], "writer": "builtin", "prompt_hash": "", "reason": "", "judged_ns": 6}
HOOK = "hidden.1"


def term(name, kind, contribution, label, **more):
    return {"name": name, "kind": kind, "contribution": contribution, "label": label} | more


def feature(index, contribution):
    name = f"feature:{HOOK}/{index}"
    return term(
        name, "feature", contribution, f"feature {index} of {HOOK}", hook_point=HOOK, index=index
    )


ACCOUNT = {
    "agent": "cart", "run_id": "run-1", "env": 2, "episode": 7, "t": 40, "time_ns": 5,
    "age_s": 0.25, "sample_every": 16, "hook_points": [HOOK], "mean": None, "note": "",
    "label": "push left over push right", "value": 1.5, "chosen": "push left",
    "runner_up": "push right", "feature_share": 0.9, "verdict": "features carry 90% of the terms",
    "levels": [
        [feature(3, 2.0), feature(4, -1.0), term("bias:hidden.1", "bias", 0.5, "constant")],
        [
            term(
                "observation:2", "observation", 1.25, "pole_angle",
                index=2, unit="rad", value=0.1, usual=0.01,
            ),
            term("others:1", "others", 0.25, "lighter terms together", count=9),
        ],
    ],
    "edges": [{"source": f"feature:{HOOK}/3", "target": "action", "weight": 2.0}],
    "edges_left_out": 0, "rank_agreement": 1.0, "residual": 1e-7,
    "ablations": [{"name": f"feature:{HOOK}/3", "contribution": 2.0, "measured": 1.9}],
}  # fmt: skip


@pytest.fixture(scope="module")
def console(tmp_path_factory):
    with RunningConsole(tmp_path_factory.mktemp("store")) as one:
        shown = [
            claim(index, verdict, feature=index, version=1, created_ns=5, **WRITTEN)
            for index, verdict in ((3, "verified"), (4, "weak"))
        ]
        one.store.take(claims_document(shown))
        yield one


@pytest.fixture(autouse=True)
def an_answer(console):
    # A copy: what is attached must not be seen by the next test.
    told = json.loads(json.dumps(ACCOUNT))
    console.answer = lambda request: WhyAnswered(request.id, time.time_ns(), told)
    console.asked.clear()


@pytest.fixture
def client(console):
    with ConsoleClient(console.url, token=TOKEN) as one:
        yield one


def test_the_account_comes_typed_and_with_verified_claims(client, console):
    found = client.why("a/cart", env=2, episode=7, t=40, component="1", run_id="run-1")
    asked = console.asked[-1]
    assert isinstance(asked, AskWhy)
    assert (asked.agent, asked.run_id, asked.env, asked.episode, asked.t, asked.component) == (
        "a/cart", "run-1", 2, 7, 40, "1",
    )  # fmt: skip
    first, second, _ = found.levels[0]
    assert (first.claim.label, first.claim.predicate) == ("pole leans right", "pole_angle > 0.02")
    assert first.claim.version == 1
    assert client.claim(first.claim.id).address == f"{HOOK}/3@{HASH}"
    assert second.claim is None, "a weak claim says nothing here"
    assert (found.levels[1][0].value, found.levels[1][0].unit) == (0.1, "rad")
    assert found.ablations[0].measured == 1.9
    client.why("newest")
    assert (console.asked[-1].episode, console.asked[-1].t) == (None, None)


@pytest.mark.parametrize(
    ("why", "status"),
    [("unknown", 404), ("cannot", 409), ("refused", 409), ("busy", 503), ("silent", 504)],
)
def test_what_cannot_be_answered_says_why(client, console, why, status):
    console.answer = lambda request: WhyAnswered(request.id, 1, None, why, "because of that")
    with pytest.raises(ConsoleError, match="because of that") as refused:
        client.why(f"cart {why}")
    assert (refused.value.status, refused.value.why) == (status, why)


def test_another_answer_is_not_shown(client, console):
    console.answer = lambda request: Refused(request.id, "stale", "too old")
    with pytest.raises(ConsoleError, match="too old"):
        client.why("cart stale")


def test_it_is_asked_now_and_then_only(client):
    def often():
        for _ in range(20):
            client.why("asked all the time")

    with pytest.raises(ConsoleError, match="too often") as refused:
        often()
    assert (refused.value.status, refused.value.why) == (429, "rate")
    assert client.why("another one").value == 1.5


def test_an_explainer_that_is_not_there_is_named_in_time():
    alone = FastAPI()
    alone.include_router(route.router(None, Asking(), within_s=0.1))
    alone.add_exception_handler(DeniedError, denied_response)
    with TestClient(alone) as http:
        answer = http.get("/agents/cart/why")
    assert answer.status_code == 504
    assert answer.json()["why"] == "silent"
    assert "the explainer" in answer.json()["detail"]
    assert "acts without it" in answer.json()["detail"]


@pytest.mark.parametrize("query", [{"env": -1}, {"t": -1}, {"run_id": "x" * 500}])
def test_what_is_out_of_bounds_is_refused(console, query):
    with ConsoleClient(console.url) as client, pytest.raises(ConsoleError) as refused:
        client._get("/agents/cart/why", dict, **query)
    assert refused.value.status == 422


def test_the_command_shows_it(console, tmp_path):
    def run(*arguments):
        flags = ["--set", f"console.http={console.address}", "--set", f"console.state={tmp_path}"]
        return CliRunner().invoke(app, ["why", "shown", *arguments, *flags], env={"COLUMNS": "90"})

    found = run("--copy", "2")
    assert found.exit_code == 0, found.output
    for words in (
        "step 40 of episode 7, copy 2, 0.2 s ago",
        "push left over push right: +1.5000",
        "feature 3 of hidden.1: pole leans right",
        "pole_angle 0.1 rad (usual 0.01)",
        "9 lighter terms together",
        "+1.9000",
        "ρ = 1.00",
    ):
        assert words in found.output
    assert "2 more" in run("--rows", "1").output
    assert json.loads(run("--json").output)["value"] == 1.5
    refused = run("--episode", "3")
    assert isinstance(refused.exception, UserError)
