"""The main job as a user runs it, shorter, and what the contract says of its report."""

import json
import os
import subprocess
import sys
import time

import pytest

from interlatent_live.config import resolve
from interlatent_live.demo.report import CLAIM_FIELDS, METRIC_FIELDS, VERDICTS

STEPS = 6400


def command(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "interlatent_live", *arguments],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    file = tmp_path_factory.mktemp("demo") / "out.json"
    done = command(
        "demo", "--headless", "--steps", str(STEPS), "--json", str(file),
        "--set", "explainer.null_draws=99",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"{STEPS:,} sent, {STEPS:,} encoded" in done.stdout
    assert "console: http://127.0.0.1:" in done.stderr
    return json.loads(file.read_text())


def test_every_step_is_accounted_for(report):
    steps = report["steps"]
    assert steps["sent"] == steps["encoded"] == STEPS
    assert steps["dropped_declared"] == 0
    assert steps["gaps_undeclared"] == 0


def test_the_report_says_all_that_the_contract_lists(report):
    assert report["schema"] == "interlatent-live/demo/1"
    assert report["policy_hash"].startswith("sha256:")
    assert report["transcoder_hash"].startswith("sha256:")
    assert 0 < report["fvu"] < report["fvu_affine"] < 0.1
    assert 0 < report["agent_step_us"]["tap_off"] < report["agent_step_us"]["tap_on"]
    for latency in report["latency_ms"].values():
        assert 0 < latency["p50"] <= latency["p99"]
    assert set(report["claims"]) >= {"live", "eligible", "verified_share", *VERDICTS}
    assert "time_to_first_verified_claim_s" in report
    assert report["writers"] == ["built-in (no LLM)"]


def test_features_carry_metrics_with_intervals_and_claims_with_reasons(report):
    assert len(report["features"]) > 30
    for feature in report["features"]:
        assert feature["address"].startswith("hidden.1/")
        assert 0 <= feature["density"] <= 1
        for metric in feature["metrics"]:
            assert set(metric) == set(METRIC_FIELDS)
            if metric["lo"] is not None:
                assert metric["lo"] <= metric["r"] <= metric["hi"]
        if feature["claim"] is not None:
            assert set(feature["claim"]) == set(CLAIM_FIELDS)
            assert feature["claim"]["verdict"] in VERDICTS
            assert feature["claim"]["reason"]


def test_verified_claims_meet_the_definition(report):
    verified = [
        feature["claim"]
        for feature in report["features"]
        if feature["claim"] and feature["claim"]["verdict"] == "verified"
    ]
    for claim in verified:
        assert claim["balanced_accuracy"] >= 0.85
        assert claim["balanced_accuracy_lo"] >= 0.75
        assert claim["precision"] >= 0.5
        assert claim["p_adjusted"] <= 0.05
        assert claim["bouts"] >= 20
        assert claim["episodes_heldout"] >= 6
    assert report["null"]["hidden.1"]["draws"] == 99


def test_narration_names_features_and_metric_values(report):
    addresses = {feature["address"] for feature in report["features"]}
    for line in report["narration"]:
        assert line["references"]
        for reference in line["references"]:
            assert reference["address"] in addresses
            assert reference["metrics"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["demo", "--env", "Pong-v5", "--headless"], "the zoo has no entry 'Pong-v5'"),
        (
            ["demo", "--headless", "--set", "explainer.writer=anthropic", "--set",
             "explainer.model=m"],
            "ANTHROPIC_API_KEY",
        ),
        (["demo", "--headless", "--set", "explainer.writter=openai"], "did you mean"),
        (["watch", "--endpoint", "udp://1"], "is not an endpoint"),
    ],
)  # fmt: skip
def test_bad_input_is_one_sentence(arguments, sentence):
    done = command(*arguments, ANTHROPIC_API_KEY="")
    assert done.returncode == 2
    assert sentence in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("error: ")
    assert "Traceback" not in done.stderr


def test_watch_attaches_from_outside_and_leaves_cleanly():
    settings = resolve(environment={}).settings
    endpoints = [f"--endpoint={one}" for one in settings.endpoints.feeds()]
    began = time.monotonic()
    done = command("watch", "--json", "--seconds", "1", *endpoints)
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - began < 30
    for line in done.stdout.splitlines():
        assert set(json.loads(line)) == {"topic", "time_ns", "value"}
