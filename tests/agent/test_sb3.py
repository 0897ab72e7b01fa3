"""Stable-Baselines3's own algorithms, trained for seconds: learning and predicting, aligned."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest

pytest.importorskip("stable_baselines3")

from stable_baselines3 import DQN, PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from interlatent_live import attach
from interlatent_live.agent.metrics import MetricSet
from interlatent_live.agent.sb3 import InterlatentCallback, TappedVecEnv
from interlatent_live.errors import UserError
from interlatent_live.stream import StepFlag

from .conftest import CounterEnv
from .service import Service, until

SMALL: dict[str, Any] = {"policy_kwargs": {"net_arch": [8]}, "seed": 0, "device": "cpu"}


class CountingDiscrete(CounterEnv):
    """The counter with two actions: the reward is the action plus half."""

    action_space = gym.spaces.Discrete(2)  # type: ignore[assignment] # other actions, same counter

    def __init__(self, length=7):
        super().__init__(length)


def columns(service, tap):
    names = [spec.name for spec in tap.metrics.specs]
    metrics = service.column("metrics")
    out = {name: metrics[:, i] for i, name in enumerate(names)}
    for name in ("env", "episode", "t", "flags", "seq"):
        out[name] = service.column(name)
    return out


def check(rows, length, n):
    number = 1000.0 * rows["episode"] + rows["t"]
    assert np.array_equal(rows["obs_0"], number)
    assert np.array_equal(rows["reward"], rows["action"] + 0.5)
    last = rows["t"] == length - 1
    even = rows["episode"] % 2 == 0
    ends = rows["flags"] & 3
    assert np.array_equal(ends, np.where(last, np.where(even, 1, 2), 0))
    assert np.array_equal(rows["seq"], np.arange(len(number)))
    assert set(rows["env"]) == set(range(n))


@pytest.mark.parametrize("n", [1, 3])
def test_ppo_learns_and_every_acting_step_is_streamed(n):
    env = make_vec_env(CountingDiscrete, n_envs=n)
    model = PPO("MlpPolicy", env, n_steps=32, batch_size=32, n_epochs=2, **SMALL)
    hook = "mlp_extractor.policy_net.0"
    with Service() as service:
        callback = InterlatentCallback([hook], endpoint=service.endpoint, y_every=1, strict=True)
        model.learn(32 * n * 4, callback=callback)
        tap = callback.tap
        assert tap is not None
        assert until(lambda: len(service.column("seq")) == 32 * n * 4)
        rows = columns(service, tap)
        x = service.column(f"x:{hook}")
    check(rows, 7, n)
    # The activation is of the same observation, and learning's minibatches are not among the rows.
    assert np.array_equal(x[:, 0], rows["obs_0"])
    assert not (rows["flags"] & int(StepFlag.NO_ACTIVATION)).any()
    assert tap.stats().refused_forwards[hook].keys() <= {"grad", "batch"}
    assert tap.stats().faults == 0


def test_dqn_acts_at_random_now_and_then_and_says_so():
    env = make_vec_env(CountingDiscrete, n_envs=1)
    model = DQN(
        "MlpPolicy",
        env,
        learning_starts=50,
        batch_size=16,
        train_freq=4,
        target_update_interval=20,
        exploration_fraction=1.0,
        exploration_final_eps=0.3,
        **SMALL,
    )
    hook = "q_net.q_net.0"
    with Service() as service:
        callback = InterlatentCallback([hook], endpoint=service.endpoint, y_every=1, strict=True)
        model.learn(400, callback=callback)
        tap = callback.tap
        assert tap is not None
        assert until(lambda: len(service.column("seq")) == 400)
        rows = columns(service, tap)
        messages = list(service.delivered)
    check(rows, 7, 1)
    silent = (rows["flags"] & int(StepFlag.NO_ACTIVATION)) != 0
    assert silent[:50].all()
    assert 0.2 < silent[50:].mean() < 0.95
    for message in messages:
        if hook not in message.batch.activations:
            assert (message.batch.steps.flags & int(StepFlag.NO_ACTIVATION)).all()
            continue
        acted = (message.batch.steps.flags & int(StepFlag.NO_ACTIVATION)) == 0
        x = message.batch.activations[hook].x[acted, 0]
        steps = message.batch.steps
        assert np.array_equal(x, (1000.0 * steps.episode + steps.t)[acted])


@pytest.mark.parametrize("n", [1, 2])
def test_a_loop_of_predictions(n):
    env = make_vec_env(CountingDiscrete, n_envs=n)
    model = PPO("MlpPolicy", env, n_steps=32, batch_size=32, n_epochs=1, **SMALL)
    model.learn(64)
    hook = "mlp_extractor.policy_net.0"
    metrics = MetricSet.from_env(env, info=["paid"])
    with Service() as service:
        with attach(
            model.policy,
            [hook],
            metrics,
            env=env,
            endpoint=service.endpoint,
            y_every=1,
            strict=True,
        ) as tap:
            tapped = TappedVecEnv(env, tap)
            obs = tapped.reset()
            start = env.get_attr("episode")[0]
            for _ in range(50):
                action, _ = model.predict(obs)
                obs, *_ = tapped.step(action)
        assert until(lambda: len(service.column("seq")) == 50 * n)
        rows = columns(service, tap)
        x = service.column(f"x:{hook}")
    number = 1000.0 * (rows["episode"] + start) + rows["t"]
    assert np.array_equal(rows["obs_0"], number)
    assert np.array_equal(x[:, 0], number)
    assert np.array_equal(rows["reward"], rows["action"] + 0.5)
    assert np.array_equal(rows["paid"], rows["action"])


def test_normalised_environments_are_told_in_their_own_numbers():
    env = VecNormalize(make_vec_env(CountingDiscrete, n_envs=2))
    model = PPO("MlpPolicy", env, n_steps=32, batch_size=32, n_epochs=1, **SMALL)
    with Service() as service:
        callback = InterlatentCallback(
            ["mlp_extractor.policy_net.0"], endpoint=service.endpoint, strict=True
        )
        model.learn(128, callback=callback)
        tap = callback.tap
        assert tap is not None
        assert until(lambda: len(service.column("seq")) == 128)
        rows = columns(service, tap)
    check(rows, 7, 2)


def test_continuous_actions_are_what_reached_the_environment():
    model = PPO("MlpPolicy", "Pendulum-v1", n_steps=64, batch_size=32, n_epochs=1, **SMALL)
    callback = InterlatentCallback(
        ["mlp_extractor.policy_net.0"], endpoint="tcp://127.0.0.1:9", strict=True
    )
    model.learn(64, callback=callback)
    assert callback.tap is not None
    assert [m.name for m in callback.tap.metrics.specs][-5:] == [
        "time_in_episode",
        "action_0",
        "reward",
        "terminated",
        "truncated",
    ]
    assert callback.tap.stats().steps == 64


def test_the_model_itself_is_not_a_policy():
    model = PPO("MlpPolicy", "CartPole-v1", n_steps=8, batch_size=8, **SMALL)
    with pytest.raises(UserError, match=r"model\.policy"):
        attach(model, ["x"], endpoint=None)
    with pytest.raises(UserError, match="closest are 'mlp_extractor"):
        attach(model.policy, ["mlp_extractor.policynet.0"], endpoint=None)
