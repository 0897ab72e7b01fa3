import math
from typing import Any

import gymnasium
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from interlatent_live.environments.arcade import MSPACMAN_PIXELS, MSPACMAN_RAM
from interlatent_live.environments.driving import HIGHWAY_FAST
from interlatent_live.environments.families import cartpole
from interlatent_live.environments.families.fetch import FETCH_REACH
from interlatent_live.environments.metric_packs import (
    FAMILIES,
    OutputKind,
    StepMetrics,
    internal_metrics,
    internal_specs,
    metric_pack_for,
    metric_pack_of,
)
from interlatent_live.errors import UserError
from interlatent_live.stream import Role

PACKAGE = {
    "LunarLander-v3": "Box2D",
    "CartPole-v1": "gymnasium",
    MSPACMAN_RAM: "ale_py",
    HIGHWAY_FAST: "highway_env",
    FETCH_REACH: "gymnasium_robotics",
}
MISSING_AT_TIMES = {MSPACMAN_RAM, MSPACMAN_PIXELS, HIGHWAY_FAST}
"""Packs with distances to what need not be there."""
STEP_SECONDS = {MSPACMAN_RAM: 4 / 60, MSPACMAN_PIXELS: 4 / 60, HIGHWAY_FAST: 1.0}
"""Of environments that do not say it themselves."""


def column(env_id, obs, name):
    pack = metric_pack_for(env_id)
    return pack.extract_batch(obs)[:, [spec.name for spec in pack.specs].index(name)]


@pytest.mark.parametrize("env_id", FAMILIES)
def test_a_pack_fits_its_environment(env_id):
    pytest.importorskip(PACKAGE.get(env_id, "mujoco"))
    env: Any = gymnasium.make(env_id)
    pack = metric_pack_for(env_id)
    obs, info = env.reset(seed=1)
    batch = [obs]
    for _ in range(5):
        obs, *_ = env.step(env.action_space.sample())
        batch.append(obs)
    rows = pack.extract_batch(np.stack(batch))
    assert rows.dtype == np.float64
    assert rows.shape == (6, len(pack.specs))
    assert not np.isinf(rows).any()
    assert env_id in MISSING_AT_TIMES or not np.isnan(rows).any()
    assert np.array_equal(pack.extract(batch[0], info, env), rows[0], equal_nan=True)
    names = [spec.name for spec in pack.specs]
    assert len(set(names)) == len(names)
    assert {spec.role for spec in pack.specs} == {Role.STATE}
    family = pack.family
    if family.actions:
        assert env.action_space.n == len(family.actions)
    else:
        assert env.action_space.shape == (len(family.joints),)
    dt = getattr(env.unwrapped, "dt", None) or getattr(env.unwrapped, "tau", None)
    dt = dt or STEP_SECONDS.get(env_id, 1 / 50)
    assert family.step_seconds == pytest.approx(dt)
    env.close()


@pytest.mark.parametrize("env_id", ["HalfCheetah-v5", "Walker2d-v5", "Humanoid-v5"])
def test_joints_have_the_names_mujoco_gives_them(env_id):
    mujoco = pytest.importorskip("mujoco")
    env: Any = gymnasium.make(env_id)
    obs, _ = env.reset(seed=3)
    for _ in range(20):
        obs, *_ = env.step(env.action_space.sample())
    pack = metric_pack_for(env_id)
    model, data = env.unwrapped.model, env.unwrapped.data
    theirs = {
        "back_thigh": "bthigh",
        "back_shin": "bshin",
        "back_foot": "bfoot",
        "front_thigh": "fthigh",
        "front_shin": "fshin",
        "front_foot": "ffoot",
        "right_thigh": "thigh_joint",
        "right_leg": "leg_joint",
        "right_foot": "foot_joint",
        "left_thigh": "thigh_left_joint",
        "left_leg": "leg_left_joint",
        "left_foot": "foot_left_joint",
    }
    joints = [s.name.removesuffix("_angle") for s in pack.specs if s.name.endswith("_angle")]
    for joint in joints:
        name = joint if env_id == "Humanoid-v5" else theirs[joint]
        index = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_JOINT, name)
        assert index >= 0, name
        angle = column(env_id, obs[None], f"{joint}_angle")[0]
        assert angle == pytest.approx(data.qpos[model.jnt_qposadr[index]])
        rate = column(env_id, obs[None], f"{joint}_velocity")[0]
        assert rate == pytest.approx(np.clip(data.qvel[model.jnt_dofadr[index]], -10, 10)) or (
            env_id != "Walker2d-v5" and rate == pytest.approx(data.qvel[model.jnt_dofadr[index]])
        )
    actuators = [
        mujoco.mj_id2name(model, mujoco.mjtObj.mjOBJ_JOINT, int(model.actuator_trnid[i, 0]))
        for i in range(model.nu)
    ]
    ours = pack.family.joints
    expected = ours if env_id == "Humanoid-v5" else [theirs[joint] for joint in ours]
    assert actuators == list(expected)
    env.close()


def test_humanoid_attitude_and_feet():
    pytest.importorskip("mujoco")
    env: Any = gymnasium.make("Humanoid-v5")
    obs, _ = env.reset(seed=0)
    data = env.unwrapped.data
    for _ in range(60):
        obs, *_ = env.step(np.zeros(17))
        # xmat is from before the last integration step.
        up = data.body("torso").xmat.reshape(3, 3)[2, 2]
        assert column("Humanoid-v5", obs[None], "tilt")[0] == pytest.approx(
            math.acos(min(1.0, up)), abs=5e-3
        )
        for side in ("right", "left"):
            force = data.cfrc_ext[data.body(f"{side}_foot").id][3:]
            assert column("Humanoid-v5", obs[None], f"{side}_foot_force")[0] == pytest.approx(
                np.linalg.norm(force)
            )
    env.close()


def test_lunarlander_is_in_metres_and_seconds_again():
    pytest.importorskip("Box2D")
    env: Any = gymnasium.make("LunarLander-v3")
    obs, _ = env.reset(seed=5)
    for action in (2, 1, 3, 2, 0):
        obs, *_ = env.step(action)
    base = env.unwrapped
    body = base.lander
    expected = {
        "x_position": body.position.x - 10,
        "x_velocity": body.linearVelocity.x,
        "vertical_velocity": body.linearVelocity.y,
        "tilt": body.angle,
        "angular_velocity": body.angularVelocity,
        "altitude": body.position.y - base.helipad_y - 0.6,
        "speed": body.linearVelocity.length,
    }
    for name, value in expected.items():
        assert column("LunarLander-v3", obs[None], name)[0] == pytest.approx(value, abs=1e-5), name
    env.close()


def test_the_divergent_angle_is_the_pole_s_unstable_mode():
    # Near upright and unforced, dξ/dt = ω₀ ξ: the pole falls to the side of its sign.
    env: Any = gymnasium.make("CartPole-v1").unwrapped
    env.reset(seed=0)
    env.force_mag, env.tau = 0.0, 1e-4
    for state, side in (([0, 0, 0.01, -0.02], 1), ([0, 0, 0.01, -0.06], -1)):
        env.state = np.array(state, np.float64)
        before = column("CartPole-v1", env.state[None], "pole_divergence")[0]
        env.step(1)
        after = column("CartPole-v1", env.state[None], "pole_divergence")[0]
        assert math.copysign(1, before) == side
        assert (after - before) / env.tau == pytest.approx(3.97 * before, rel=0.01)


def test_the_regulator_gains_solve_the_riccati_equation():
    from scipy.linalg import solve_continuous_are  # noqa: PLC0415 - only this test needs it

    g, mass, pole, half = 9.8, 1.1, 0.1, 0.5
    inertia = half * (4 / 3 - pole / mass)
    a, b = np.zeros((4, 4)), np.zeros((4, 1))
    a[0, 1] = a[2, 3] = 1.0
    a[3, 2], b[3, 0] = g / inertia, -1 / (mass * inertia)
    a[1, 2] = -pole * half / mass * a[3, 2]
    b[1, 0] = 1 / mass - pole * half / mass * b[3, 0]
    p = solve_continuous_are(a, b, np.eye(4), np.array([[0.1]]))
    # Gymnasium's state feedback is u = −K s with K < 0: pushing right where it leans right.
    assert pytest.approx(-(b.T @ p / 0.1)[0], rel=1e-5) == cartpole.REGULATOR_GAINS


def test_the_lander_s_demands_are_gymnasium_s_own_heuristic():
    pytest.importorskip("Box2D")
    from gymnasium.envs.box2d.lunar_lander import heuristic  # noqa: PLC0415 - needs Box2D

    env: Any = gymnasium.make("LunarLander-v3")
    obs, _ = env.reset(seed=11)
    for _ in range(150):
        turn = column("LunarLander-v3", obs[None], "turn_demand")[0]
        lift = column("LunarLander-v3", obs[None], "lift_demand")[0]
        ours = 0
        if lift > abs(turn) and lift > 0.05:
            ours = 2
        elif abs(turn) > 0.05:
            ours = 1 if turn > 0 else 3
        theirs = heuristic(env.unwrapped, obs)
        assert ours == theirs
        obs, _, terminated, *_ = env.step(theirs)
        if terminated:
            break
    env.close()


@given(arrays(np.float64, (7, 4), elements=st.floats(-3, 3)))
def test_cartpole_metrics_keep_the_observation(obs):
    rows = metric_pack_for("CartPole-v1").extract_batch(obs)
    assert np.array_equal(rows[:, :4], obs)
    assert np.allclose(rows[:, 9], 2.4 - abs(obs[:, 0]))


def test_observations_of_another_size_are_refused():
    with pytest.raises(ValueError, match=r"\[n, 4\]"):
        metric_pack_for("CartPole-v1").extract_batch(np.zeros((3, 5)))


def test_unknown_environments_are_measured_without_units_or_refused():
    with pytest.raises(UserError, match="no metric pack for Acrobot-v1"):
        metric_pack_for("Acrobot-v1")
    pack = metric_pack_for("Acrobot-v1", obs_dim=6)
    assert [spec.name for spec in pack.specs] == [f"obs_{i}" for i in range(6)]
    assert pack.extract_batch(np.ones((2, 6))).tolist() == np.ones((2, 6)).tolist()


@given(arrays(np.float64, (5, 3), elements=st.floats(-30, 30)))
def test_logit_metrics_follow_their_formulas(logits):
    actions = logits.argmax(axis=1)
    gap, entropy, chosen = internal_metrics(OutputKind.LOGITS, logits, actions).T
    ordered = np.sort(logits, axis=1)
    assert np.allclose(gap, ordered[:, 2] - ordered[:, 1])
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    expected = -(p * np.log(np.where(p > 0, p, 1))).sum(1)
    assert np.allclose(entropy, expected)
    assert (entropy <= math.log(3) + 1e-12).all()
    assert np.allclose(chosen, ordered[:, 2] - logits.mean(1))


@pytest.mark.parametrize("kind", list(OutputKind))
def test_internal_columns_match_their_specs(kind):
    outputs = np.array([[1.0, 3.0], [2.0, -2.0]])
    actions = outputs if kind is OutputKind.CONTINUOUS else np.array([1, 0])
    rows = internal_metrics(kind, outputs, actions)
    assert rows.shape == (2, len(internal_specs(kind)))


def test_a_whole_step_in_columns():
    metrics = StepMetrics(metric_pack_for("LunarLander-v3"), OutputKind.LOGITS)
    obs = np.zeros((2, 8))
    outputs = np.array([[0.0, 5.0, 1.0, 0.0], [9.0, 0.0, 0.0, 0.0]])
    rows = metrics.rows(obs, [0, 50], np.array([1, 0]), [1.5, -2.0], outputs)
    names = [spec.name for spec in metrics.specs]
    assert rows.shape == (2, len(names))
    by_name = dict(zip(names, rows.T.tolist(), strict=True))
    assert by_name["time_in_episode"] == [0.0, 1.0]
    assert by_name["action_left_engine"] == [1.0, 0.0]
    assert by_name["action_coast"] == [0.0, 1.0]
    assert by_name["logit_gap"] == [4.0, 9.0]
    assert by_name["reward"] == [1.5, -2.0]
    roles = {spec.name: spec.role for spec in metrics.specs}
    assert roles["reward"] is Role.OUTCOME
    assert roles["time_in_episode"] is Role.CLOCK
    assert roles["action_coast"] is Role.ACTION
    assert roles["entropy"] is Role.INTERNAL
    with pytest.raises(ValueError, match="outputs"):
        metrics.rows(obs, [0, 1], np.array([1, 0]), [0.0, 0.0])


def test_two_actions_need_one_column():
    specs = metric_pack_for("CartPole-v1").family.action_specs
    assert [spec.name for spec in specs] == ["action_push_right"]


def test_an_environment_is_known_by_its_pack_unless_a_wrapper_changed_what_is_observed():
    made = gymnasium.make("CartPole-v1")
    wrappers = gymnasium.wrappers
    assert metric_pack_of(made).family.environment == "CartPole-v1"
    assert metric_pack_of(wrappers.RecordEpisodeStatistics(made)) is not None
    assert metric_pack_of(wrappers.NormalizeObservation(made)) is None
    same_space = wrappers.TransformObservation(made, lambda obs: 2 * obs, made.observation_space)
    assert metric_pack_of(same_space) is None
    assert metric_pack_of(wrappers.FlattenObservation(made)) is None
    assert metric_pack_of(gymnasium.make("Pendulum-v1")) is None
    assert metric_pack_of(object()) is None
