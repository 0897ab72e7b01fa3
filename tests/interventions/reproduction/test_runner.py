import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from interlatent_live.cli.reproduce import cartpole_multiscale
from interlatent_live.errors import CorruptFileError, MismatchError, UserError
from interlatent_live.interventions.reproduction import experiment, runner
from interlatent_live.interventions.reproduction.arms import UNSTEERED
from interlatent_live.interventions.reproduction.document import render
from interlatent_live.interventions.reproduction.plots import draw
from interlatent_live.interventions.reproduction.prepared_files import PLAN, TENSORS
from interlatent_live.interventions.reproduction.reinforce import train_into_band
from interlatent_live.interventions.reproduction.rollouts import Net, episodes, returns
from interlatent_live.interventions.reproduction.runner import (
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


def same_to_rounding(one, other):
    """Two runs of the same settings: matrix products round by memory alignment, so not to the bit.

    A last bit may flip an action now and then, and a flipped action a whole episode.
    """
    assert one["updates"] == other["updates"]
    assert one["fvu"] == pytest.approx(other["fvu"], rel=0.02)
    means = [row["return"]["mean"] for row in (one["arms"][0], other["arms"][0])]
    assert means[0] == pytest.approx(means[1], abs=3.0)
    assert [row["family"] for row in one["arms"]] == [row["family"] for row in other["arms"]]


def test_the_same_settings_give_the_same_result(ran, tmp_path):
    _, result, _ = ran
    same_to_rounding(run_policy(SMALL, 0, tmp_path, lambda _: None), result)


def test_an_interrupted_run_tests_the_plan_it_had_written(ran, tmp_path, monkeypatch):
    folder, result, _ = ran
    left = shutil.copytree(folder, tmp_path / "left")
    (left / RESULT).unlink()
    monkeypatch.setattr(experiment, "prepare", lambda *_: pytest.fail("it chose again"))
    again = run_policy(SMALL, 0, left, lambda _: None)
    assert again["plan_sha256"] == result["plan_sha256"]
    assert [row["arm"] for row in again["arms"]] == [row["arm"] for row in result["arms"]]
    same_to_rounding(again, result)


@pytest.mark.parametrize("damage", ["tensors", "plan", "weights"])
def test_a_damaged_plan_is_not_tested(ran, tmp_path, damage):
    folder, _, _ = ran
    left = shutil.copytree(folder, tmp_path / "left")
    if damage == "tensors":
        (left / TENSORS).write_bytes((left / TENSORS).read_bytes()[:500])
    elif damage == "plan":
        (left / PLAN).write_text("{", encoding="utf-8")
    else:
        plan = json.loads((left / PLAN).read_text(encoding="utf-8"))
        (left / PLAN).write_text(json.dumps({**plan, "policy_hash": "sha256:x"}), encoding="utf-8")
    with pytest.raises(CorruptFileError, match="to start over"):
        run_policy(SMALL, 0, left, lambda _: None)


def test_a_plan_of_other_settings_is_not_tested(ran, tmp_path):
    folder, _, _ = ran
    left = shutil.copytree(folder, tmp_path / "left")
    with pytest.raises(MismatchError, match="made with settings"):
        run_policy(replace(SMALL, held_out_episodes=41), 0, left, lambda _: None)


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


def test_the_command_writes_page_plots_and_json(ran, tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    _, result, _ = ran
    eight = [{**row, "width": 8} for row in result["replacement"] if row["width"] == 4]
    result = {**result, "replacement": [*result["replacement"], *eight]}
    again = {**result, "training_seed": 2}
    monkeypatch.setattr(runner, "run_policies", lambda *_: [result, again])
    cartpole_multiscale(out=tmp_path, work=None, policies=2, held_out=100, workers=1)
    names = {path.name for path in tmp_path.iterdir()}
    assert {"reproduction.json", "reproduction.md"} <= names
    data = json.loads((tmp_path / "reproduction.json").read_text(encoding="utf-8"))
    assert data["settings"]["held_out_episodes"] == 100
    assert "2 REINFORCE policies" in capsys.readouterr().out


@pytest.mark.slow
def test_processes_of_their_own_do_the_same(ran, tmp_path):
    _, result, _ = ran
    stages: list[runner.Progress] = []
    (other,) = run_policies(SMALL, tmp_path, 2, stages.append)
    assert len(stages) == STAGES
    same_to_rounding(other, result)


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
