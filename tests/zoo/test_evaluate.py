"""Evaluating and reporting a small entry from end to end, and what a report says is missing."""

import json

import pytest

from interlatent_live.errors import UserError
from interlatent_live.policies.files import load_policy
from interlatent_live.zoo.evaluate import evaluate_entry, transcoders_of
from interlatent_live.zoo.report import (
    EVALUATION,
    LIVE,
    evaluation_lines,
    live_lines,
    make_report,
    markdown,
    not_found,
    write_files,
)
from interlatent_live.zoo.table import zoo_table


@pytest.fixture(scope="module")
def found(small, built):
    return evaluate_entry(small, built[1], draws=19)


def live_run(policy_hash, transcoder="sha256:x"):
    claim = {
        "verdict": "verified",
        "label": "cart position above 1 m",
        "balanced_accuracy": 0.9,
        "precision": 0.8,
    }
    return {
        "policy_hash": policy_hash,
        "hook_points": [{"name": "hidden.1", "transcoder": transcoder}],
        "agent": {"copies": 8, "control_hz": 100.0, "wall_s": 10.0, "episodes": 20},
        "steps": {"sent": 8000, "encoded": 8000, "dropped_declared": 0, "gaps_undeclared": 0},
        "latency_ms": {"step_to_feature": {"p50": 9.0, "p99": 20.0}},
        "agent_step_us": {"tap_on": 90.0, "tap_off": 70.0},
        "fvu": 0.001,
        "fvu_affine": 0.002,
        "claims": {"live": 50, "eligible": 40, "verified": 1},
        "time_to_first_verified_claim_s": 4.0,
        "narration": [{"text": "For the last 1 s, cart position is above 1 m."}],
        "features": [
            {"address": "hidden.1/3@sha256:abc", "density": 0.1, "claim": claim},
            {"address": "hidden.1/4@sha256:abc", "density": 0.2, "claim": None},
        ],
    }


@pytest.fixture
def report(small, built, found):
    work = built[1]
    live = live_run(load_policy(small.policy).policy_hash, found["transcoders"]["hidden.1"])
    (work / LIVE).write_text(json.dumps(live), encoding="utf-8")
    (work / EVALUATION).write_text(json.dumps(found), encoding="utf-8")
    return make_report(small, work)


def test_fidelity_is_of_every_training_seed(small, found):
    fidelity = found["fidelity"]["hidden.1"]
    assert fidelity["median"]["seeds"] == small.training.seeds
    assert fidelity["original_return"]["episodes"] == small.evaluation.episodes
    assert fidelity["median"]["fvu"] > 0
    changes = [row["changes_action"] for row in fidelity["strongest"]]
    assert changes == sorted(changes, reverse=True)


def test_a_verified_share_stands_beside_its_controls(found):
    claims = found["judged"]["hidden.1"]["claims"]
    assert claims["judged_on"] == 12
    assert [one["name"] for one in claims["controls"]] == [
        "raw units", "random dictionary", "principal components",
    ]  # fmt: skip
    assert claims["verified"] == len(claims["claims"])
    assert sum(claims["verdicts"].values()) == claims["eligible"]
    for one in claims["claims"]:
        assert one["balanced_accuracy"]["value"] >= 0.85
        assert one["p"] <= 0.05


def test_a_question_is_answered_by_feature_and_unit_on_later_episodes(found):
    edge = found["judged"]["hidden.1"]["questions"][0]
    assert edge["target"] == "edge_distance < 0.8"
    if "feature" in edge:
        assert 0 <= edge["unit"]["auroc"]["value"] <= 1
        assert edge["claim"]["verdict"] in {"verified", "weak", "contradicted", "pending"}
    else:
        assert edge["reason"]
    for line in evaluation_lines(found):
        assert "nan" not in line.lower()


def test_the_report_and_its_page_say_the_same_and_what_is_missing(report, tmp_path):
    file, page = write_files(report, tmp_path)
    text = page.read_text(encoding="utf-8")
    assert json.loads(file.read_text(encoding="utf-8"))["name"] == "cartpole"
    claims = report["judged"]["hidden.1"]["claims"]
    assert f"{claims['verified']} of {claims['eligible']} eligible features" in text
    assert "## What was not found" in text
    for sentence in report["not_found"]:
        assert f"- {sentence}" in text
    assert report["live"]["hz_reached"] == pytest.approx(100.0)
    table = zoo_table(tmp_path)
    assert "[cartpole](docs/zoo/cartpole.md) `hidden.1`" in table
    assert "20 µs" in table


def test_a_slow_run_a_failed_gate_and_a_better_unit_are_named(report):
    report["live"]["hz_reached"] = 40.0
    report["fidelity"]["hidden.1"]["gate"] = {"passed": False, "verdict": "Fail: too many dead."}
    answer = {
        "name": "a leg touches",
        "feature": {"index": 1, "auroc": {"value": 0.7}},
        "unit": {"index": 2, "auroc": {"value": 0.8}},
        "claim": {"feature": 1, "verdict": "weak", "reason": "precision under .5"},
    }
    report["judged"]["hidden.1"]["questions"] = [answer]
    text = " ".join(not_found(report))
    assert "40.0 steps per second and copy where 100 are wanted" in text
    assert "too many dead" in text
    assert "best single unit tells it at least as well" in text
    assert "no feature verifies it as a claim (precision under .5)" in text


def test_a_live_run_in_lines_for_people():
    text = "\n".join(live_lines(live_run("sha256:x")))
    assert "hidden.1/4  20.0%" in text
    assert "verified claims (1):" in text
    assert "cart position above 1 m" in text
    assert "For the last 1 s" in text


def test_results_of_another_policy_and_missing_ones_are_refused(small, built, report, tmp_path):
    work = built[1]
    (work / LIVE).write_text(json.dumps(live_run("sha256:other")), encoding="utf-8")
    with pytest.raises(UserError, match="run it again"):
        make_report(small, work)
    with pytest.raises(UserError, match="zoo evaluate cartpole"):
        make_report(small, tmp_path)
    other = live_run(load_policy(small.policy).policy_hash)
    (work / LIVE).write_text(json.dumps(other), encoding="utf-8")
    with pytest.raises(UserError, match="is about"):
        make_report(small, work)


def test_without_a_live_run_the_report_says_so(small, found, tmp_path):
    (tmp_path / EVALUATION).write_text(json.dumps(found), encoding="utf-8")
    made = make_report(small, tmp_path)
    assert made["live"] is None
    assert made["not_found"][0] == "No live run is part of this report."
    write_files(made, tmp_path / "out")
    assert "## Live" not in (tmp_path / "out" / "cartpole.md").read_text(encoding="utf-8")
    assert "| – |" in zoo_table(tmp_path / "out")


def test_the_work_folders_own_transcoder_comes_before_the_shipped_one(small, built, tmp_path):
    policy = load_policy(small.policy).policy_hash
    own = transcoders_of(small, built[1], policy)["hidden.1"]
    shipped = transcoders_of(small, tmp_path, policy)["hidden.1"]
    assert own.transcoder.config.n_features == 64
    assert shipped.transcoder.config.n_features == 128


def test_an_empty_folder_has_no_table(tmp_path):
    with pytest.raises(UserError, match="holds no report"):
        zoo_table(tmp_path)


def test_probes_and_alarms_have_tables_and_their_gaps_are_named(report):
    def interval(value):
        return {"value": value, "low": value - 0.01, "high": value + 0.01}

    report["decoding"] = {
        "hidden.1": [
            {"metric": "knee", "unit": "rad", "layer": interval(0.9), "input": interval(0.95),
             "untrained": interval(0.5)},
            {"metric": "speed", "unit": "m/s", "layer": interval(0.8), "input": interval(0.4),
             "untrained": interval(0.3)},
        ]
    }  # fmt: skip
    alarm = {
        "kind": "feature", "name": "7", "announced": 10, "failures": 30, "recall": interval(0.33),
        "failure_given_alarm": 0.5, "alarms_per_hour": 60.0, "false_alarms_per_10_min": 1.0,
        "median_lead_s": 0.5, "near_misses": 40, "near_misses_alarmed": 0.1,
    }  # fmt: skip
    other = {**alarm, "kind": "metric", "name": "tilt", "recall": interval(0.5)}
    report["precursors"] = {
        "hidden.1": {
            "horizon_s": 1.0, "episodes": 120, "failures": 60, "chosen_on": 60,
            "alarms": [alarm, other],
        }
    }  # fmt: skip
    report["not_found"] = not_found(report)
    text = markdown(report)
    assert "| knee [rad] | 0.900 [0.890, 0.910] | 0.950" in text
    assert "| metric tilt | 10 of 30 | 0.500" in text
    assert "not shown to tell better than the input: knee." in text
    assert "a metric announces failures at least as well as the best feature: recall 50%" in text
    assert "a unit announces" not in text
