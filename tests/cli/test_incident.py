"""``incident`` on a recording: nothing needs to be up."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner

from interlatent_live.cli.main import app
from interlatent_live.store import open_store
from tests.support.feeds import claim, claims_document

RECORDING = (
    Path(__file__).resolve().parents[2]
    / "interlatent_live"
    / "data"
    / "recordings"
    / "cartpole.mcap"
)
STEPS = "20"


@pytest.fixture
def run(tmp_path):
    def invoke(*arguments):
        state = ["--set", f"console.state={tmp_path}"]
        return CliRunner().invoke(
            app, ["incident", *arguments, "--steps", STEPS, *state], env={"COLUMNS": "80"}
        )

    return invoke


def unusual_end(run):
    """An episode of the recording whose end has something unusual, and what is said of it."""
    for episode in (0, 32, 64, 96):
        found = run(str(RECORDING), str(episode), "--json")
        if found.exit_code == 0 and json.loads(found.stdout)["items"][0]["features"]:
            return str(episode), json.loads(found.stdout)
    raise AssertionError("no unusual end in the recording")


def test_a_recording_is_looked_at_and_claims_come_from_the_store(run, tmp_path):
    episode, before = unusual_end(run)
    (incident,) = before["items"]
    assert incident["window_steps"] == int(STEPS)
    assert all(feature["as_extreme"] <= 0.05 for feature in incident["features"])
    assert not any(feature["label"] for feature in incident["features"])
    first = incident["features"][0]
    index = int(first["address"].partition("@")[0].rpartition("/")[2])
    digest = first["address"].partition("@")[2]
    said = claim(index, feature=index, version=0, created_ns=5, writer="x", prompt_hash="",
                 reason="", judged_ns=6) | {"address": first["address"]}  # fmt: skip
    store = open_store(f"sqlite:///{tmp_path}/store.sqlite3")
    store.take(msgspec.structs.replace(claims_document([said]), transcoder=digest))
    store.close()
    (again,) = json.loads(run(str(RECORDING), episode, "--json").stdout)["items"]
    assert again["features"][0]["label"] == "pole leans right"
    assert again["features"][0]["verdict"] == "verified"
    text = run(str(RECORDING), episode).stdout
    assert "pole leans right (verified)" in text
    assert "nothing is claimed" in text
    assert max(map(len, text.splitlines())) <= 80


def test_it_is_drawn(run, tmp_path):
    png = tmp_path / "out.png"
    assert run(str(RECORDING), "32", "--plot", str(png)).exit_code == 0
    assert png.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((str(RECORDING), "33333"), "episode 33333 of copy 0 is not among"),
        ((str(RECORDING), "32", "--hook-point", "x"), "has no hook point 'x'; it has hidden.1"),
        ((str(RECORDING), "32", "--seconds", "1"), "give --steps or --seconds, not both"),
        ((str(RECORDING), "32", "--plot", "out.pdf"), "write a .png or an .html file"),
        (("nothing.mcap", "32"), "there is no recording nothing.mcap"),
        (("no-run", "32", "--set", "console.http=127.0.0.1:9"), "no console answers"),
    ],
)
def test_what_cannot_be_looked_at_is_one_sentence(run, arguments, sentence):
    failed = run(*arguments)
    assert failed.exit_code == 1
    assert sentence in str(failed.exception)
