"""FetchReach in a row is FetchReach; its metrics are the simulator's; the policy reaches."""

from typing import Any

import gymnasium
import numpy as np
import pytest

from interlatent_live.environments.disturbance import Disturbance, disturbed
from interlatent_live.environments.families.fetch import FETCH_REACH
from interlatent_live.environments.metric_packs import metric_pack_for
from interlatent_live.policies.files import load_policy

pytest.importorskip("gymnasium_robotics")
PACK = metric_pack_for(FETCH_REACH)
MEASURED = (-2.0, -1.0, -2.0)
"""Returns of the seeds 2000, 2001 and 2002 in the original environment."""


def columns(obs):
    rows = PACK.extract_batch(np.atleast_2d(obs)).T
    return dict(zip((spec.name for spec in PACK.specs), rows, strict=True))


def test_the_policy_reaches_its_goals_as_it_was_measured_to():
    policy = load_policy("fetchreach").module
    env = gymnasium.make(FETCH_REACH)
    base: Any = env.unwrapped
    for seed, expected in enumerate(MEASURED, start=2000):
        obs, _ = env.reset(seed=seed)
        total, ended, far = 0.0, False, []
        while not ended:
            far.append(float(columns(obs)["goal_distance"][0]))
            obs, reward, _, ended, _ = env.step(policy.act(obs[None])[0])
            gripper = base.data.site("robot0:grip").xpos
            assert columns(obs)["goal_distance"][0] == pytest.approx(
                np.linalg.norm(gripper - base.goal), abs=2e-3
            )
            total += float(reward)
        assert total == expected
        assert columns(obs)["at_goal"][0] == 1
        assert far[-1] < 0.05 < far[0]
    env.close()


def test_a_push_moves_the_goal_within_reach_and_the_next_observation_says_so():
    push = Disturbance(push=1.0, push_interval_s=0.2)
    env = disturbed(gymnasium.make(FETCH_REACH), push)
    base: Any = env.unwrapped
    seen = []
    for _ in range(2):
        obs, _ = env.reset(seed=7)
        goals = [obs[3:6]]
        for _ in range(49):
            obs, *_ = env.step(np.zeros(4, np.float32))
            assert np.array_equal(obs[3:6], base.goal)
            goals.append(obs[3:6])
        seen.append(np.array(goals))
    assert np.array_equal(*seen)
    assert 3 <= len(np.unique(seen[0], axis=0)) <= 30
    assert np.abs(seen[0] - base.initial_gripper_xpos[:3]).max() <= base.target_range
    env.close()
