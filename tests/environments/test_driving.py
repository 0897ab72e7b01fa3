"""The driving pack held against what the simulator knows of the same moment."""

from typing import Any

import gymnasium
import numpy as np
import pytest

from interlatent_live.environments.driving import HIGHWAY_FAST
from interlatent_live.environments.families.driving import CAR_LENGTH
from interlatent_live.environments.metric_packs import metric_pack_for

PACK = metric_pack_for(HIGHWAY_FAST)
NAMES = [spec.name for spec in PACK.specs]
RANGE = 180.0
"""Metres within which the observation is not clipped."""


@pytest.fixture(scope="module")
def driven():
    """Rows of metrics beside the simulator's own words, over one or two short drives."""
    pytest.importorskip("highway_env")
    env: Any = gymnasium.make(HIGHWAY_FAST)
    base = env.unwrapped
    seen, truth = [], []
    for seed, actions in ((0, (3, 1, 0, 4, 2, 1)), (1, (0, 0, 3, 2, 4, 4))):
        obs, _ = env.reset(seed=seed)
        for action in actions:
            car = base.vehicle
            front, rear = base.road.neighbour_vehicles(car)
            seen.append(obs)
            truth.append(
                {
                    "speed": car.speed,
                    "heading": car.heading,
                    "lane": car.lane_index[2],
                    "front": None if front is None else front.position[0] - car.position[0],
                    "closing": None if front is None else car.velocity[0] - front.velocity[0],
                    "rear": None if rear is None else car.position[0] - rear.position[0],
                }
            )
            obs, _, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                break
    env.close()
    rows = PACK.extract_batch(np.stack(seen))
    return {name: rows[:, place] for place, name in enumerate(NAMES)}, truth


def test_speed_lane_and_heading_are_the_cars(driven):
    metrics, truth = driven
    assert metrics["speed"] == pytest.approx([one["speed"] for one in truth], abs=0.05)
    assert metrics["heading"] == pytest.approx([one["heading"] for one in truth], abs=0.01)
    assert np.abs(metrics["lane"] - [one["lane"] for one in truth]).max() <= 0.5


def test_gaps_and_times_are_to_the_cars_in_ones_lane(driven):
    metrics, truth = driven
    compared = 0
    for row, one in enumerate(truth):
        centred = abs(metrics["lane"][row] - one["lane"]) < 0.1
        gap = metrics["front_gap"][row]
        if one["front"] is None or not centred or one["front"] > RANGE or np.isnan(gap):
            continue
        assert gap == pytest.approx(one["front"] - CAR_LENGTH, abs=0.1)
        assert metrics["closing_speed"][row] == pytest.approx(one["closing"], abs=0.1)
        time = metrics["time_to_collision"][row]
        if one["closing"] > 0.2:
            assert time == pytest.approx(gap / metrics["closing_speed"][row])
        elif one["closing"] < -0.2:
            assert np.isnan(time)
        compared += 1
    assert compared >= 4


def test_what_nobody_is_at_is_missing_and_lanes_end_at_the_sides():
    alone = np.zeros((1, 5, 5))
    alone[0, 0] = [1, 1, 0, 0.3125, 0]
    row = dict(zip(NAMES, PACK.extract_batch(alone)[0], strict=True))
    assert row["speed"] == pytest.approx(25)
    assert all(np.isnan(row[name]) for name in ("front_gap", "rear_gap", "time_to_collision"))
    assert (row["left_lane_exists"], row["right_lane_exists"]) == (0, 1)
    alone[0, 0, 2] = 2 * 4 / 12
    row = dict(zip(NAMES, PACK.extract_batch(alone)[0], strict=True))
    assert (row["left_lane_exists"], row["right_lane_exists"]) == (1, 0)
    alone[0, 1] = [1, -20 / 200, -4 / 12, 0, 0]
    row = dict(zip(NAMES, PACK.extract_batch(alone)[0], strict=True))
    assert row["left_gap"] == pytest.approx(15)
    assert np.isnan(row["rear_gap"])
