"""The commands that step in: what their options come to."""

import pytest
from typer.testing import CliRunner

from interlatent_live.cli import intervene
from interlatent_live.cli.intervene import app
from interlatent_live.control.commands import Operation


@pytest.fixture
def said(monkeypatch):
    seen = []
    for name in ("_intervene", "_still", "_energise"):
        monkeypatch.setattr(
            intervene, name, lambda *given, name=name, **more: seen.append((name, given, more))
        )
    return seen


def run(*words):
    done = CliRunner().invoke(app, list(words), catch_exceptions=False)
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize(
    ("words", "kind", "value"),
    [
        (["steer", "--by", "-0.5"], "steer", -0.5),
        (["clamp", "--to", "2"], "clamp", 2.0),
        (["scale", "--by", "3"], "scale", 3.0),
        (["ablate"], "ablate", 0.0),
    ],
)
def test_interventions_share_their_options(said, words, kind, value):
    run(
        *words, "net.0/3", "net.0/4", "--ttl", "7", "--agent", "walker", "-r", "to see",
        "--max-norm", "1.5", "--when", "tilt > 0", "--dry-run",
    )  # fmt: skip
    [(name, (asked, features, got_kind, got_value, bounds), _)] = said
    assert name == "_intervene"
    assert (asked.agent, asked.reason) == ("walker", "to see")
    assert features == ["net.0/3", "net.0/4"]
    assert (got_kind, got_value) == (kind, value)
    assert (bounds.ttl, bounds.max_norm) == (7.0, 1.5)
    assert (bounds.when, bounds.dry_run) == ("tilt > 0", True)


def test_what_is_left_out_is_as_before(said):
    run("steer", "net.0/3", "--by", "1")
    [(_, (asked, _, _, _, bounds), _)] = said
    assert (asked.agent, asked.reason, asked.config) == ("", "", None)
    assert (bounds.ttl, bounds.max_norm, bounds.when, bounds.dry_run) == (10.0, None, None, False)


@pytest.mark.parametrize("operation", ["stop", "revert", "hold"])
def test_being_still_needs_no_more_than_a_name(said, operation):
    run(operation, "--agent", "walker")
    [(name, (asked, got, *_), _)] = said
    assert (name, asked.agent, got) == ("_still", "walker", Operation(operation))


@pytest.mark.parametrize("operation", ["step", "resume", "refuse", "escalate"])
def test_what_adds_energy_or_answers(said, operation):
    run(operation)
    [(name, (_, got, *_), _)] = said
    assert (name, got) == ("_energise", Operation(operation))


def test_an_approval_may_bring_another_action(said):
    run("approve", "--action", "0.5, -1")
    assert said[0][1][1:] == (Operation.APPROVE, (0.5, -1.0))


def test_a_value_is_required():
    done = CliRunner().invoke(app, ["steer", "net.0/3"])
    assert done.exit_code == 2
