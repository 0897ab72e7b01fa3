"""Unitree's G1 walks as its policies were measured to, and its metrics are the simulator's."""

from typing import Any

import gymnasium
import numpy as np
import pytest

from interlatent_live.environments.disturbance import Disturbance, disturbed
from interlatent_live.environments.families.unitree import UNITREE_G1, UNITREE_G1_LEGS
from interlatent_live.environments.metric_packs import metric_pack_for
from interlatent_live.policies.files import load_policy

mujoco = pytest.importorskip("mujoco")
BOTH = pytest.mark.parametrize("env_id", [UNITREE_G1, UNITREE_G1_LEGS])
POLICY = {UNITREE_G1: "unitree-g1", UNITREE_G1_LEGS: "unitree-g1-legs"}
SETTLED = 50


def columns(env_id, obs):
    pack = metric_pack_for(env_id)
    return dict(zip((spec.name for spec in pack.specs), pack.extract_batch(obs).T, strict=True))


def walked(env_id, steps, *, seed, command=None, disturbance=None):
    """Observations, and what the simulator says beside each."""
    policy = load_policy(POLICY[env_id]).module
    env = disturbed(gymnasium.make(env_id), disturbance or Disturbance())
    base: Any = env.unwrapped
    options = {} if command is None else {"command": command}
    obs, _ = env.reset(seed=seed, options=options)
    seen, truth, ended = [], [], False
    for _ in range(steps):
        data, model = base.data, base.model
        joints = [model.joint(f"{joint}_joint") for joint in base.layout.joints]
        seen.append(obs)
        truth.append(
            {
                "torso_height": data.qpos[2],
                **{
                    f"{joint}_angle": data.qpos[one.qposadr[0]]
                    for joint, one in zip(base.layout.joints, joints, strict=True)
                },
                "right_knee_velocity": data.qvel[model.joint("right_knee_joint").dofadr[0]],
                "left_knee_torque": data.qfrc_actuator[model.joint("left_knee_joint").dofadr[0]],
                "mechanical_power": np.abs(data.qfrc_actuator[6:] * data.qvel[6:]).sum(),
                "tilt": np.arccos(np.clip(1 - 2 * (data.qpos[4] ** 2 + data.qpos[5] ** 2), -1, 1)),
            }
        )
        obs, _, ended, *_ = env.step(policy.act(obs[None])[0])
        if ended:
            break
    env.close()
    return np.stack(seen), truth, ended


@pytest.fixture(scope="module")
def walks():
    """4 s of each form, told to walk at 0.5 m/s."""
    return {env_id: walked(env_id, 200, seed=1, command=(0.5, 0.0, 0.0)) for env_id in POLICY}


@pytest.mark.parametrize(("env_id", "reached"), [(UNITREE_G1, 0.60), (UNITREE_G1_LEGS, 0.47)])
def test_it_walks_as_fast_as_was_measured_and_does_not_fall(walks, env_id, reached):
    obs, _, fallen = walks[env_id]
    found = columns(env_id, obs[SETTLED:])
    assert not fallen
    assert found["forward_velocity"].mean() == pytest.approx(reached, abs=0.06)
    assert abs(found["sideways_velocity"].mean()) < 0.12
    assert found["wanted_forward_velocity"] == pytest.approx(0.5)
    assert found["tilt"].max() < 0.3


@BOTH
def test_metrics_are_what_the_simulator_says(walks, env_id):
    obs, truth, _ = walks[env_id]
    found = columns(env_id, obs)
    for name in truth[0]:
        expected = np.array([row[name] for row in truth])
        # Attitude is sensed before the last 2 ms of physics in the whole body.
        near = 0.02 if name == "tilt" else 1e-9
        assert found[name] == pytest.approx(expected, abs=near), name


@BOTH
def test_feet_take_turns_with_the_clock(walks, env_id):
    obs, *_ = walks[env_id]
    found = columns(env_id, obs[SETTLED:])
    left, right = found["left_foot_contact"] > 0, found["right_foot_contact"] > 0
    assert (left | right).mean() > 0.9
    assert 0.3 < left.mean() < 0.95
    assert 0.3 < right.mean() < 0.95
    lifted = np.corrcoef(found["left_foot_lift"], right.astype(float) - left)[0, 1]
    assert lifted > 0.5
    clock = np.unwrap(np.arctan2(found["gait_phase_sin"], found["gait_phase_cos"]))
    hz = np.diff(clock) / (2 * np.pi) * 50
    assert hz == pytest.approx(1.5 if env_id == UNITREE_G1 else 1 / 0.8)


@BOTH
def test_without_a_policy_it_falls_and_the_episode_ends(env_id):
    env = gymnasium.make(env_id)
    env.reset(seed=0)
    rng = np.random.default_rng(0)
    terminated, steps = False, 0
    while not terminated and steps < 250:
        action = np.clip(rng.normal(size=env.action_space.shape), -1, 1).astype(np.float32)
        obs, _, terminated, truncated, _ = env.step(action)
        steps += 1
        assert not truncated
    found = columns(env_id, obs[None])
    assert terminated
    assert found["torso_height"][0] < 0.4 or found["tilt"][0] > np.radians(55)
    env.close()


@BOTH
def test_a_seed_gives_the_same_walk_and_pushes_move_it(env_id):
    push = Disturbance(push=1.0, push_interval_s=0.3)
    first, second, other, quiet = (
        walked(env_id, 40, seed=seed, disturbance=disturbance)[0]
        for seed, disturbance in ((5, push), (5, push), (6, push), (5, None))
    )
    assert np.array_equal(first, second)
    assert not np.array_equal(first, other)
    assert np.array_equal(first[0], quiet[0])
    assert np.abs(first[-1] - quiet[-1]).max() > 0.1


def test_commands_are_drawn_anew_and_standing_is_among_them():
    env: Any = gymnasium.make(UNITREE_G1_LEGS)
    told = []
    for seed in range(60):
        obs, _ = env.reset(seed=seed)
        found = columns(UNITREE_G1_LEGS, obs[None])
        told.append(
            [found[f"wanted_{name}_velocity"][0] for name in ("forward", "sideways", "yaw")]
        )
    drawn = np.array(told)
    still = ~drawn.any(1)
    assert 1 <= still.sum() <= 20
    assert (drawn.min(0) >= (-0.3, -0.3, -0.5)).all()
    assert (drawn.max(0) <= (0.8, 0.3, 0.5)).all()
    assert drawn.std(0).min() > 0.1
    env.close()
