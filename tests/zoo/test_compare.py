"""The comparison of drivers on a small made-up bank, and two real drives."""

import json
from pathlib import Path
from typing import Any

import gymnasium
import msgspec
import numpy as np
import pytest

from interlatent_live.environments.driving import HIGHWAY_FAST, TARGET_SPEEDS, speed_asked
from interlatent_live.environments.families.driving import HIGHWAY
from interlatent_live.errors import UserError
from interlatent_live.transcoders.acting import acting_policy
from interlatent_live.transcoders.training.recipe import Recipe
from interlatent_live.zoo import compare
from interlatent_live.zoo.compare_report import markdown, summary_lines, write_files

EPISODES, STEPS = 20, 15


def made_up_drives(seed):
    """Random cars on three lanes; what matters is that all columns agree with each other."""
    random = np.random.default_rng(seed)
    n = EPISODES * STEPS
    obs = np.zeros((n, 5, 5))
    obs[:, :, 0] = 1
    obs[:, 1:, 1] = np.sort(random.uniform(-0.2, 0.5, (n, 4)), axis=1)
    obs[:, 0, 2], obs[:, 1:, 2] = random.integers(0, 3, n) / 3, random.uniform(-0.6, 0.6, (n, 4))
    obs[:, 0, 3] = (20 + 10 * random.random(n)) / 80
    obs[:, 1:, 3] = random.uniform(-0.1, 0.1, (n, 4))
    t = np.tile(np.arange(STEPS), EPISODES)
    flags = np.where(t == STEPS - 1, 2, 0).astype(np.uint8)
    state = HIGHWAY.measure(obs.reshape(n, 25))
    return compare.Drives(
        np.repeat(np.arange(EPISODES), STEPS),
        t.astype(np.uint32),
        flags,
        np.column_stack([state, t]),
        state[:, 0],
        np.ones(n),
        obs.reshape(n, 25).astype(np.float32),
    )


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """Three drivers compared on made-up drives, their work folder, and a way to do it again."""
    pytest.importorskip("highway_env")
    work = tmp_path_factory.mktemp("drivers")
    short = [
        msgspec.structs.replace(
            one,
            training=msgspec.structs.replace(
                one.training, n_features=32, seeds=2, recipe=Recipe(steps=60)
            ),
        )
        for one in compare.driver_entries()[:3]
    ]

    def again():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(compare, "NULL_DRAWS", 19)
            patch.setattr(compare, "CONTROL_DRAWS", 49)
            patch.setattr(
                compare, "drive", lambda drivers, *_: [made_up_drives(i) for i in range(3)]
            )
            return compare.compare_drivers(
                short, work, episodes=EPISODES, every_seed=True, transcoders=work / "chosen"
            )

    return again(), work, again


def test_every_driver_is_measured_and_scored_on_one_bank(compared):
    made, work, _ = compared
    assert [one["reward_for_speed"] for one in made["drivers"]] == [0.4, 0.5, 0.7]
    for number, one in enumerate(made["drivers"]):
        drives = made_up_drives(number)
        assert one["states"] == 3 * EPISODES * STEPS / 2
        assert one["speed"]["value"] == pytest.approx(drives.speed.mean(), abs=1e-3)
        assert one["by_episode"]["steps"] == [STEPS] * EPISODES
        assert one["crash_rate"] == 0
        assert one["mean_return"] == STEPS
        assert one["features"] <= one["verified"] <= one["eligible"]
        assert one["features"] <= one["named"]["features"] <= one["eligible"]
        shares = sum(row["share"] for row in one["shown"])
        if one["features"] <= compare.SHOWN:
            assert shares == pytest.approx(one["score"]["value"], abs=1e-6)
        assert (work / "chosen" / one["name"] / made["hook_point"] / "transcoder.json").is_file()
    assert len(made["seeds_by_error"]) == 2
    json.dumps(made, allow_nan=False)


def test_raw_advantages_are_the_policys_own(compared):
    made, *_ = compared
    bank = compare.bank_of([made_up_drives(i) for i in range(3)], 1)
    assert (bank.rows.number % 2 == 1).all()
    assert len(np.unique(bank.episode)) == 3 * EPISODES / 2
    for one in made["drivers"]:
        values = acting_policy(one["name"]).outputs(bank.rows.x.reshape(-1, 5, 5)).numpy()
        raw = (values[:, 3] - values.mean(1)).mean()
        assert one["advantage_in_value"]["value"] == pytest.approx(raw, rel=1e-4)


def test_what_was_judged_is_not_judged_again(compared, monkeypatch):
    made, _, again = compared
    monkeypatch.setattr(compare, "verify_dictionary", None)
    assert again()["drivers"] == made["drivers"]


def test_the_report_says_what_was_found_and_what_not(compared, tmp_path):
    pytest.importorskip("matplotlib")
    made, *_ = compared
    for path in write_files(made, tmp_path):
        assert path.stat().st_size > 0
    text = "\n".join(markdown(made))
    assert f"**{made['verdict']}**" in text
    assert all(f"### {one['name']}" in text for one in made["drivers"])
    assert made["verdict"] in summary_lines(made)[0]
    none = json.loads(json.dumps(made))
    none["drivers"][0] |= {"features": 0, "shown": []}
    assert "No verified speed claim, and so a score of 0: highway-0.4" in "\n".join(markdown(none))


def test_the_committed_report_is_what_its_figures_say():
    folder = Path(__file__).parents[2] / "docs" / "zoo"
    made = json.loads((folder / "drivers.json").read_text(encoding="utf-8"))
    assert (folder / "drivers.md").read_text(encoding="utf-8") == "\n".join(markdown(made)) + "\n"
    assert all(len(one["by_episode"]["speed"]) >= 100 for one in made["drivers"])


def test_an_order_is_found_only_when_every_pair_that_must_agree_does():
    order = {"rho": 0.9, "p_greater": 0.004, "agree": 10, "pairs": 10}
    assert compare.verdict(order) == "found"
    assert compare.verdict(order | {"agree": 9}) == "partly found"
    assert compare.verdict(order | {"p_greater": 0.06}) == "not found"
    assert compare.verdict(order | {"rho": None}) == "not found"


def test_odd_numbers_of_episodes_are_refused(tmp_path):
    with pytest.raises(UserError, match="25 episodes do not fit"):
        compare.compare_drivers(compare.driver_entries(), tmp_path, episodes=25)


def test_a_drive_is_what_the_simulator_says_and_goes_on_after_a_kill(tmp_path, monkeypatch):
    pytest.importorskip("highway_env")
    monkeypatch.setattr(compare, "PART", 1)
    said = []
    drivers = compare.driver_entries()[-1:]
    (first,) = compare.drive(drivers, tmp_path, 1, said.append)
    (drives,) = compare.drive(drivers, tmp_path, 2, said.append)
    assert said[-1] == "driving highway-1.3: part 2 of 2"
    assert (drives.x[drives.number == 0] == first.x).all()
    made = compare.episodes_of(drives)
    env: Any = gymnasium.make(HIGHWAY_FAST)
    policy = acting_policy(drivers[0].policy)
    obs, _ = env.reset(seed=compare.SEED)
    speeds, total, over = [], 0.0, False
    while not over:
        speeds.append(env.unwrapped.vehicle.speed)
        obs, reward, crashed, truncated, _ = env.step(policy.act(obs[None])[0])
        total += reward
        over = crashed or truncated
    env.close()
    assert made["steps"][0] == len(speeds)
    assert made["speed"][0] == pytest.approx(np.mean(speeds), abs=0.01)
    assert made["return"][0] == pytest.approx(total, abs=1e-3)
    assert made["crashed"][0] == crashed


def test_the_speed_asked_for_is_the_cruise_controls():
    vehicle = pytest.importorskip("highway_env.vehicle.controller").MDPVehicle
    road = pytest.importorskip("highway_env.road.road")
    straight = road.Road(road.RoadNetwork.straight_road_network(3), np_random=None)
    for set_to in TARGET_SPEEDS:
        for number, name in enumerate(("LANE_LEFT", "IDLE", "LANE_RIGHT", "FASTER", "SLOWER")):
            car = vehicle(straight, [100.0, 4.0], speed=set_to + 0.4, target_speed=set_to)
            car.act(name)
            asked = speed_asked(np.array([set_to + 0.4]), np.array([number]))[0]
            assert car.target_speed - set_to == asked
