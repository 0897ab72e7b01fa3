"""The commands a person speaks about claims with, against a console over real sockets."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from interlatent_live.cli.main import app
from interlatent_live.console.secrets import FILE_NAME
from interlatent_live.errors import UserError
from interlatent_live.explanations.requests import Accepted, IncidentFound, Noted, Refused
from tests.client.test_api import FEATURE, INCIDENT, WRITTEN
from tests.support.console import TOKEN, RunningConsole
from tests.support.feeds import agents_document, claim, claims_document


@pytest.fixture(scope="module")
def state(tmp_path_factory):
    return tmp_path_factory.mktemp("state")


@pytest.fixture(scope="module")
def console(state):
    (state / FILE_NAME).write_text(TOKEN + "\n")
    (state / FILE_NAME).chmod(0o600)
    state.chmod(0o700)
    with RunningConsole(state) as one:
        one.store.take(agents_document())
        shown = [
            claim(index, verdict, feature=index, version=0, created_ns=5, **WRITTEN)
            for index, verdict in enumerate(["weak", "verified", "abstained"])
        ]
        shown[1]["recent"] = {
            "balanced_accuracy": 0.71, "balanced_accuracy_lo": 0.6, "balanced_accuracy_hi": 0.8,
            "precision": 0.5, "half_life_rows": 20_000.0, "effective_rows": 100.0,
            "effective_units": 12.4,
        }  # fmt: skip
        shown[0]["label"] = "[bold]not markup[/bold] " + "long " * 40
        one.store.take(claims_document(shown))
        yield one


@pytest.fixture
def run(console, state):
    def invoke(*arguments):
        places = ["--set", f"console.http={console.address}", "--set", f"console.state={state}"]
        return CliRunner().invoke(app, [*arguments, *places], env={"COLUMNS": "80"})

    return invoke


def good(result):
    assert result.exit_code == 0, result.output
    assert max(map(len, result.stdout.splitlines())) <= 80
    return result.stdout


def test_claims_are_listed_the_verified_first_and_words_are_never_markup(run):
    text = good(run("claims", "list"))
    lines = text.splitlines()
    assert "hidden.1/1" in lines[1]
    assert "[bold]not markup[/bold]" in text
    assert "0.93" in text
    assert "no claims yet" in good(run("claims", "list", "--verdict", "stale"))
    found = json.loads(run("claims", "list", "--json", "--limit", "1").stdout)
    assert [one["verdict"] for one in found] == ["verified"]
    assert "2 more" in good(run("claims", "list", "--limit", "1"))


def test_a_claim_is_shown_by_its_id_or_its_address(run):
    (one,) = json.loads(run("claims", "list", "--json", "--verdict", "verified").stdout)
    by_id = good(run("claims", "show", one["id"]))
    assert good(run("claims", "show", one["address"])) == by_id
    assert "pole_angle > 0.02" in by_id
    assert "0.71 [0.60, 0.80] on 12 episodes' worth of the newest rows" in " ".join(by_id.split())
    missing = run("claims", "show", "nothing")
    assert isinstance(missing.exception, UserError)
    assert "there is no claim nothing" in str(missing.exception)


def test_a_person_makes_a_claim_about_the_run_that_goes_on(run, console):
    console.answer = lambda one: Accepted(
        one.id, "hidden.1/3@x", 1, one.predicate, "the pole leans", "pending", 7
    )
    text = good(run("claims", "add", "hidden.1/3", "pole_angle > 0", "--person", "ada"))
    assert "accepted as version 1 of hidden.1/3@x" in text
    request = console.asked[-1]
    assert (request.run_id, request.hook_point, request.feature) == ("run-1", "hidden.1", 3)
    assert (request.predicate, request.person) == ("pole_angle > 0", "ada")


def test_a_refused_claim_says_why_and_where(run, console):
    console.answer = lambda one: Refused(one.id, "predicate", "a number is missing", 12)
    refused = run("claims", "add", "hidden.1/3", "pole_angle >", "--person", "ada")
    assert isinstance(refused.exception, UserError)
    assert str(refused.exception) == "a number is missing\n  pole_angle >\n  " + " " * 12 + "^"
    wrong = run("claims", "add", "three", "pole_angle > 0")
    assert "'three' is no feature" in str(wrong.exception)


def test_a_feature_is_worded_first(run, console):
    console.answer = lambda one: Noted(one.id)
    assert "hidden.1/3 is worded next" in good(run("claims", "word", "hidden.1/3"))
    assert console.asked[-1].feature == 3


def test_a_correction_is_kept_and_shown_in_the_history(run):
    (one,) = json.loads(run("claims", "list", "--json", "--verdict", "weak").stdout)
    said = good(run("claims", "correct", one["id"], "reject", "--note", "no", "--person", "ada"))
    assert said == "kept: ada says reject of version 0 (weak)\n"
    history = good(run("claims", "history", one["id"]))
    assert "version 0" in history
    assert "weak" in history
    assert "ada: reject  no" in history
    whole = json.loads(run("claims", "history", "--json", one["address"]).stdout)
    assert [word["person"] for word in whole["corrections"]] == ["ada"]


def test_an_incident_of_a_run_that_is_up_is_asked_of_the_console(run, console, tmp_path):
    console.answer = lambda request: IncidentFound(request.id, INCIDENT)
    text = good(run("incident", "run-1", "4", "--seconds", "0.3"))
    assert console.asked[-1].window == 30
    assert "17 ↑" in text
    assert "pole leans (verified)" in text
    assert "0.1 s" in text
    assert "Ended most alike: episode 2 of copy 0" in text
    assert json.loads(run("incident", "run-1", "4", "--json").stdout)["items"] == [INCIDENT]
    unknown = run("incident", "run-2", "4")
    assert "there is no run run-2" in str(unknown.exception)
    page = tmp_path / "out.html"
    console.answer = lambda request: IncidentFound(request.id, hostile())
    good(run("incident", "run-1", "4", "--plot", str(page)))
    drawn = page.read_text(encoding="utf-8")
    assert "<svg" in drawn
    assert "<script>alert" not in drawn
    assert "&lt;script&gt;alert" in drawn


def hostile():
    return INCIDENT | {"features": [FEATURE | {"label": "<script>alert(1)</script> $x_$"}]}
