import gymnasium
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlatent_live.environments.disturbance import Disturbance, disturbed
from interlatent_live.environments.metric_packs import metric_pack_for
from interlatent_live.errors import UserError
from interlatent_live.policies.files import load_policy

STRONG = Disturbance(start=0.8, push=1.0, push_interval_s=0.5)


def episode(env, seed, steps=60, action=None):
    obs, _ = env.reset(seed=seed)
    rows, done = [obs], False
    for i in range(steps):
        if done:
            break
        chosen = (i // 3) % env.action_space.n if action is None else action
        obs, reward, terminated, truncated, _ = env.step(chosen)
        rows.append(obs)
        done = terminated or truncated
        assert np.isfinite(reward)
    return np.stack(rows)


@pytest.mark.parametrize("env_id", ["CartPole-v1", "LunarLander-v3"])
def test_a_seed_gives_the_same_episode_and_another_seed_another(env_id):
    pytest.importorskip("Box2D")
    env = disturbed(gymnasium.make(env_id), STRONG)
    a, b, c = episode(env, 7), episode(env, 7), episode(env, 8)
    assert np.array_equal(a, b)
    assert not np.array_equal(a[0], c[0])


@pytest.mark.parametrize("env_id", ["CartPole-v1", "LunarLander-v3"])
def test_starts_spread_over_every_state_metric_and_stay_observable(env_id):
    pytest.importorskip("Box2D")
    plain = gymnasium.make(env_id)
    spread = disturbed(gymnasium.make(env_id), Disturbance(start=1.0))
    pack = metric_pack_for(env_id)
    starts = [
        pack.extract_batch(np.stack([env.reset(seed=seed)[0] for seed in range(60)]))
        for env in (plain, spread)
    ]
    wider = starts[1].std(axis=0) > 2 * starts[0].std(axis=0)
    moving = {"cart_position", "pole_angle", "x_position", "tilt", "altitude"}
    assert all(wider[i] for i, spec in enumerate(pack.specs) if spec.name in moving)
    obs = np.stack([spread.reset(seed=seed)[0] for seed in range(60)])
    assert all(spread.observation_space.contains(row) for row in obs)


@pytest.mark.parametrize("env_id", ["CartPole-v1", "LunarLander-v3"])
def test_the_first_observation_is_the_state_the_physics_goes_on_from(env_id):
    pytest.importorskip("Box2D")
    env = disturbed(gymnasium.make(env_id), Disturbance(start=1.0))
    pack = metric_pack_for(env_id)
    names = [spec.name for spec in pack.specs]
    for seed in range(10):
        rows = pack.extract_batch(episode(env, seed, steps=1, action=0))
        if env_id == "CartPole-v1":
            moved, velocity = "cart_position", "cart_velocity"
        else:
            moved, velocity = "x_position", "x_velocity"
        step = rows[1, names.index(moved)] - rows[0, names.index(moved)]
        dt = pack.family.step_seconds
        assert step == pytest.approx(rows[0, names.index(velocity)] * dt, abs=0.004)


def test_lunarlander_s_first_reward_starts_from_the_moved_state():
    pytest.importorskip("Box2D")
    env = disturbed(gymnasium.make("LunarLander-v3"), Disturbance(start=1.0))
    rewards: list[float] = []
    for seed in range(20):
        env.reset(seed=seed)
        rewards.append(float(env.step(0)[1]))
    assert np.abs(rewards).max() < 8  # a stale shaping term jumps by tens


def test_pushes_come_as_often_as_stated_and_only_then():
    env = disturbed(gymnasium.make("CartPole-v1"), Disturbance(push=1.0, push_interval_s=0.5))
    policy = load_policy("cartpole").module
    jumps = steps = 0
    for seed in range(12):
        obs, _ = env.reset(seed=seed)
        done = False
        while not done:
            after, _, terminated, truncated, _ = env.step(int(policy.act(obs[None])[0]))
            # Unpushed, the cart's velocity changes by about 0.195 m/s per step, either way.
            jumps += not 0.18 < abs(after[1] - obs[1]) < 0.21
            steps += 1
            done = terminated or truncated
            obs = after
    expected = steps * (1 - np.exp(-0.02 / 0.5))
    assert abs(jumps - expected) < 4 * np.sqrt(expected) + 0.02 * expected


@given(st.floats(0, 10), st.floats(0.01, 10), st.floats(0.001, 0.1))
def test_push_probability_is_one(push, interval, dt):
    p = Disturbance(push=push, push_interval_s=interval).push_probability(dt)
    assert 0 <= p <= 1
    assert (p == 0) == (push == 0)


def test_no_disturbance_changes_nothing_and_unknown_environments_are_refused():
    env = gymnasium.make("CartPole-v1")
    assert disturbed(env, Disturbance()) is env
    with pytest.raises(UserError, match="no disturbed starts for Acrobot-v1"):
        disturbed(gymnasium.make("Acrobot-v1"), Disturbance(start=1))
    with pytest.raises(ValueError, match="negative"):
        Disturbance(start=-1)
