"""The humanoid's derived metrics held against the simulator that made the observation."""

from typing import Any

import gymnasium
import numpy as np
import pytest

from interlatent_live.environments.disturbance import Disturbance, disturbed
from interlatent_live.environments.metric_packs import metric_pack_for
from interlatent_live.policies.files import load_policy

pytest.importorskip("mujoco")
PACK = metric_pack_for("Humanoid-v5")
NAMES = [spec.name for spec in PACK.specs]


def metric(obs, name):
    return PACK.extract_batch(np.atleast_2d(obs))[:, NAMES.index(name)]


@pytest.fixture(scope="module")
def walk():
    """300 steps of the expert: observations, and what the simulator says beside each."""
    policy = load_policy("humanoid").module
    env = gymnasium.make("Humanoid-v5")
    base: Any = env.unwrapped
    obs, _ = env.reset(seed=1)
    seen, truth = [], []
    for _ in range(300):
        data, model = base.data, base.model
        feet = np.stack([data.xipos[model.body(f"{side}_foot").id] for side in ("right", "left")])
        middle = data.subtree_com[1] - feet.mean(0)
        truth.append(
            {
                "com_height": data.subtree_com[1][2] - feet[:, 2].min(),
                "com_ahead": middle[0],
                "com_beside": middle[1],
                "right_foot_lift": feet[0, 2] - feet[1, 2],
                "right_knee_torque": data.qfrc_actuator[model.joint("right_knee").dofadr[0]],
                "mechanical_power": np.abs(data.qfrc_actuator[6:] * data.qvel[6:]).sum(),
            }
        )
        seen.append(obs)
        obs, _, terminated, *_ = env.step(policy.act(obs[None])[0])
        assert not terminated
    env.close()
    return np.stack(seen), truth


@pytest.mark.parametrize(
    "name",
    ["com_height", "com_ahead", "com_beside", "right_foot_lift", "right_knee_torque",
     "mechanical_power"],
)  # fmt: skip
def test_balance_and_effort_are_the_simulators(walk, name):
    obs, truth = walk
    expected = np.array([row[name] for row in truth])
    # The first observation after a reset has no actuator forces yet.
    assert metric(obs, name)[1:] == pytest.approx(expected[1:], abs=1e-6 * np.abs(expected).max())


def test_the_gait_phase_turns_once_per_stride(walk):
    obs, _ = walk
    angle = np.arctan2(metric(obs, "gait_phase_sin"), metric(obs, "gait_phase_cos"))[100:]
    turned = np.unwrap(angle)
    seconds = 0.015 * (len(angle) - 1)
    strides = (turned[-1] - turned[0]) / (2 * np.pi)
    stride = metric(obs, "stride")[100:]
    crossings = int(((stride[:-1] < 0) & (stride[1:] >= 0)).sum())
    assert strides == pytest.approx(crossings, abs=1.1)
    assert 2 < strides / seconds < 3.2
    assert (np.diff(turned) > 0).mean() > 0.85


def test_the_capture_point_leads_the_centre_of_mass_when_walking(walk):
    obs, _ = walk
    ahead = metric(obs, "capture_ahead") - metric(obs, "com_ahead")
    height = metric(obs, "com_height")
    expected = metric(obs, "forward_velocity") * np.sqrt(height / 9.81)
    assert ahead == pytest.approx(expected)


def test_a_push_moves_the_whole_body_and_is_drawn_from_the_seed():
    push = Disturbance(push=3.0, push_interval_s=0.1)
    speeds = []
    for _ in range(2):
        env = disturbed(gymnasium.make("Humanoid-v5"), push)
        env.reset(seed=3)
        seen = []
        for _ in range(40):
            obs, *_ = env.step(np.zeros(17, np.float32))
            seen.append([metric(obs, "forward_velocity")[0], metric(obs, "sideways_velocity")[0]])
        speeds.append(np.array(seen))
        env.close()
    assert np.array_equal(*speeds)
    assert np.hypot(*np.diff(speeds[0], axis=0).T).max() > 0.3


@pytest.mark.parametrize("env_id", ["Walker2d-v5", "HalfCheetah-v5", "Humanoid-v5"])
def test_a_disturbed_start_is_what_the_physics_goes_on_from(env_id):
    env = disturbed(gymnasium.make(env_id), Disturbance(start=1.0))
    starts = [env.reset(seed=seed)[0] for seed in range(12)]
    pack = metric_pack_for(env_id)
    place = [spec.name for spec in pack.specs].index("forward_velocity")
    speeds = pack.extract_batch(np.stack(starts))[:, place]
    assert speeds.std() > 0.15
    base: Any = env.unwrapped
    assert base.data.qvel[0] == pytest.approx(speeds[-1])
    env.close()
