from __future__ import annotations

import json

import pytest

from interlatent_live.errors import MismatchError, UserError
from interlatent_live.transcoders.acting import acting_policy
from interlatent_live.transcoders.evaluation.evaluate import EvaluationSettings, evaluate
from interlatent_live.transcoders.evaluation.gate import judge
from interlatent_live.transcoders.evaluation.report import markdown, write_report


@pytest.fixture(scope="module")
def report(trained, cartpole):
    dataset, loaded = trained
    return evaluate(loaded, dataset, cartpole, EvaluationSettings(episodes=6, max_steps=80))


def test_the_report_holds_what_was_asked_for(report, trained):
    _, loaded = trained
    (group,) = report["groups"]
    assert [seed["identity"] for seed in group["seeds"]] == [
        one.transcoder.identity for one in loaded
    ]
    median = group["median"]
    assert 0 < median["fvu"] < median["fvu_mean_ablation"]
    assert median["fvu_beyond_affine"] == pytest.approx(
        median["fvu"] / median["fvu_affine"], rel=0.3
    )
    assert median["l0"] == pytest.approx(6, rel=0.1)
    assert group["stability"]["seeds"] == 2
    assert median["agreement"] > 0.8
    assert {check["name"] for check in group["gate"]["checks"]} == {
        "beyond affine", "sparsity", "live features", "memorised", "behaviour", "single actions",
        "stability",
    }  # fmt: skip
    assert len(group["features"]) == group["seeds"][0]["live"] or len(group["features"]) > 0
    assert group["head"]["action_fvu"] >= 0
    assert report["original_return"]["episodes"] == 6
    summary = loaded[0].provenance.evaluation
    assert group["seeds"][0]["reconstruction"] == pytest.approx(summary)


def test_it_is_written_three_times_with_the_same_figures(report, tmp_path):
    paths = write_report(report, tmp_path)
    assert json.loads(paths["json"].read_text()) == json.loads(json.dumps(report))
    text = paths["md"].read_text()
    fvu = f"{report['groups'][0]['median']['fvu']:.5f}"
    assert fvu in text
    page = paths["html"].read_text()
    assert fvu in page
    assert page.count("data:image/png;base64,") == 4
    assert "<script" not in page


def test_without_behaviour(trained, cartpole):
    dataset, loaded = trained
    report = evaluate(loaded[:1], dataset, cartpole, EvaluationSettings(episodes=0))
    (group,) = report["groups"]
    assert report["original_return"] is None
    assert group["stability"] is None
    assert "behaviour" not in {check["name"] for check in group["gate"]["checks"]}
    assert "equivalent" not in markdown(report)


def test_what_does_not_belong_together_is_refused(trained, cartpole):
    dataset, loaded = trained
    settings = EvaluationSettings(episodes=2)
    with pytest.raises(MismatchError, match="collected from"):
        evaluate(loaded, dataset, acting_policy("lunarlander-ppo"), settings)
    with pytest.raises(UserError, match="first-seed"):
        evaluate(loaded, dataset, cartpole, EvaluationSettings(episodes=2, first_seed=30))
    with pytest.raises(UserError, match="no transcoder"):
        evaluate([], dataset, cartpole, settings)


GOOD = {
    "fvu": 0.001, "fvu_affine": 0.02, "fvu_beyond_affine": 0.05, "l0": 8.1, "live": 100,
    "memorised_share": 0.0, "agreement": 0.97, "equivalent": True, "difference": 1.0, "lo": -2.0,
    "hi": 4.0, "margin": 19.0, "stability": 0.9, "stability_random": 0.5,
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "failed"),
    [
        ({}, None),
        ({"fvu_beyond_affine": 1.2}, "beyond affine"),
        ({"l0": 13.0}, "sparsity"),
        ({"live": 3}, "live features"),
        ({"memorised_share": 0.2}, "memorised"),
        ({"equivalent": False}, "behaviour"),
        ({"agreement": 0.5}, "single actions"),
        ({"agreement": 0.5, "regret": 0.1}, None),  # ties make agreement useless on values
        ({"regret": 0.9}, "single actions"),
        ({"rmse": 0.5}, "single actions"),
        ({"stability": 0.4}, "stability"),
    ],
)
def test_the_gate_says_what_failed_and_why(change, failed):
    gate = judge({**GOOD, **change}, k=8, n_features=256)
    assert gate.passed == (failed is None)
    assert [check.name for check in gate.checks if not check.passed] == (
        [] if failed is None else [failed]
    )
    assert gate.verdict.startswith("Pass: " if failed is None else "Fail: ")
