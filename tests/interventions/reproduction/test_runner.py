import json
from dataclasses import replace

import numpy as np
import pytest

from interlatent_live.errors import MismatchError, UserError
from interlatent_live.interventions.reproduction import experiment
from interlatent_live.interventions.reproduction.arms import UNSTEERED
from interlatent_live.interventions.reproduction.document import render
from interlatent_live.interventions.reproduction.plots import draw
from interlatent_live.interventions.reproduction.reinforce import train_into_band
from interlatent_live.interventions.reproduction.rollouts import Net, episodes, returns
from interlatent_live.interventions.reproduction.runner import (
    PLAN,
    RESULT,
    finished,
    run_policies,
    run_policy,
)
from interlatent_live.interventions.reproduction.settings import STAGES, Settings

SMALL = Settings(
    policies=1,
    layers=(4, 16, 8, 2),
    target_return=45.0,
    tolerance=10.0,
    quick_episodes=60,
    band_episodes=150,
    widths=(2, 4),
    transcoder_rows=900,
    transcoder_steps=40,
    alphas=(-2, 2),
    biases=(-0.5, 0.5),
    condition_alphas=(2,),
    condition_biases=(0.5,),
    condition_width=2,
    screening_episodes=4,
    finalists=3,
    selection_episodes=8,
    held_out_episodes=40,
    control_directions=4,
    control_episodes=8,
)


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    folder = tmp_path_factory.mktemp("work") / "policy-0"
    stages: list[str] = []
    return folder, run_policy(SMALL, 0, folder, stages.append), stages


def test_one_policy_from_training_to_held_out_episodes(ran):
    folder, result, stages = ran
    assert len(stages) == STAGES
    families = [row["family"] for row in result["arms"]]
    assert families == [experiment.UNSTEERED_NAME, *experiment.FAMILIES]
    assert all(row["return"]["n"] == 40 for row in result["arms"])
    assert result["arms"][0]["over"]["unsteered"]["mean"] == 0.0
    assert result["arms"][1]["tried"] == result["arms"][3]["tried"] == (2 + 4) * 2
    assert {(row["width"], row["replaced"]) for row in result["replacement"]} == {
        (width, where) for width in (2, 4) for where in ("both", "hidden.0", "hidden.1")
    }
    assert all(0 <= share <= 1 for share in result["percentile"].values())
    assert json.loads((folder / RESULT).read_text(encoding="utf-8")) == result


def test_the_plan_names_every_arm_before_the_test(ran):
    folder, result, _ = ran
    plan = json.loads((folder / PLAN).read_text(encoding="utf-8"))
    assert [arm["arm"] for arm in plan["arms"]] == [row["arm"] for row in result["arms"][1:]]
    assert plan["policy_hash"] == result["policy_hash"]
    assert "higher mean return" in plan["prediction"]


def test_the_same_settings_give_the_same_result(ran, tmp_path):
    _, result, _ = ran
    again = run_policy(SMALL, 0, tmp_path, lambda _: None)
    timeless = {"seconds": 0, "cpu_seconds": 0}
    assert {**again, **timeless} == {**result, **timeless}


def test_a_plan_of_another_version_is_not_overwritten(tmp_path, monkeypatch):
    class Other:
        def plan(self, settings):
            return {"policy_hash": "another"}

    monkeypatch.setattr(experiment, "prepare", lambda *_: Other())
    monkeypatch.setattr(experiment, "run_test", lambda *_: pytest.fail("it was tested"))
    (tmp_path / PLAN).write_text("{}", encoding="utf-8")
    with pytest.raises(MismatchError, match="remove"):
        run_policy(SMALL, 0, tmp_path, lambda _: None)
    assert (tmp_path / PLAN).read_text(encoding="utf-8") == "{}"


def test_finished_policies_are_read_and_not_run_again(ran, tmp_path):
    _, result, _ = ran
    folder = tmp_path / SMALL.digest() / "policy-0"
    folder.mkdir(parents=True)
    (folder / RESULT).write_text(json.dumps(result), encoding="utf-8")
    assert finished(SMALL, tmp_path) == 1
    seen: list[object] = []
    assert run_policies(SMALL, tmp_path, 1, seen.append) == [result]
    assert seen == []


def test_a_mistake_in_a_worker_reaches_the_user(tmp_path, monkeypatch):
    # Nothing learns to hold a pole for 499 of 500 steps and not for 500.
    impossible = replace(SMALL, layers=(4, 1, 1, 2), target_return=499.9, tolerance=0.01)
    monkeypatch.setattr(experiment, "_MAX_SEED_TRIES", 1)
    monkeypatch.setattr(experiment, "train_into_band", lambda *_: None)
    with pytest.raises(UserError, match="no REINFORCE policy stopped"):
        run_policy(impossible, 0, tmp_path, lambda _: None)


def test_training_stops_in_the_band_on_episodes_it_never_saw():
    trained = train_into_band(SMALL, 1)
    assert trained is not None
    fresh = returns(Net(trained.policy), [UNSTEERED], episodes(9_000_000, 1000))[0]
    margin = 4 * fresh.std() / np.sqrt(len(fresh))
    assert abs(fresh.mean() - SMALL.target_return) <= SMALL.tolerance + margin


def test_the_page_and_the_plots_can_be_made_of_any_result(ran, tmp_path):
    pytest.importorskip("matplotlib")
    _, result, _ = ran
    other = json.loads(json.dumps(result))
    other["training_seed"] = 99
    data = {
        "settings": {
            "layers": list(SMALL.layers),
            "widths": list(SMALL.widths),
            "target_return": SMALL.target_return,
            "tolerance": SMALL.tolerance,
            "held_out_episodes": 40,
            "selection_episodes": 8,
        },
        "settings_digest": SMALL.digest(),
        "seconds": 3.0,
        "workers": 1,
        "resumed": 0,
        "policies": [result, other],
    }
    page = render(data)
    assert page.count("\n| ") > 15
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        draw(data, folder)
    for name in ("reproduction-arms.svg", "reproduction-replacement.svg"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
