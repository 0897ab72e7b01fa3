"""Metric sets: names, roles and times; deferred columns are the same numbers as immediate ones."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode

from interlatent_live import attach
from interlatent_live.agent.metrics import MetricSet, action_specs, flatten, observation_specs
from interlatent_live.environments.metric_packs import StepMetrics, metric_pack_for
from interlatent_live.errors import UserError
from interlatent_live.policies.files import load_policy
from interlatent_live.stream import MetricSpec, Role

from .conftest import CounterEnv, act

DICT = spaces.Dict({"b": spaces.Box(-1, 1, (2, 2)), "a": spaces.Discrete(3)})


def test_spaces_become_names_in_the_order_of_the_numbers():
    names = [spec.name for spec in observation_specs(DICT)]
    assert sorted(names) == ["a", "b_0", "b_1", "b_2", "b_3"]
    value = DICT.sample()
    assert len(flatten(value)) == len(names)
    assert flatten(value)[names.index("a")] == value["a"]
    assert [s.name for s in action_specs(spaces.Discrete(4))] == ["action"]
    assert [s.name for s in action_specs(spaces.Box(-1, 1, (2,)))] == ["action_0", "action_1"]
    assert all(s.role is Role.ACTION for s in action_specs(spaces.MultiDiscrete([2, 3])))
    with pytest.raises(UserError, match="5 parts, but 1 names"):
        observation_specs(DICT, ["x"])


def test_an_image_is_no_row_of_metrics_unless_asked_for():
    class Pixels(gym.Env):
        observation_space = spaces.Box(0, 255, (84, 84))
        action_space = spaces.Discrete(2)

    assert [s.name for s in MetricSet.from_env(Pixels()).specs] == [
        "time_in_episode",
        "action",
        "reward",
        "terminated",
        "truncated",
    ]
    assert len(MetricSet.from_env(Pixels(), observation=True)) == 5 + 84 * 84


def test_lists_of_names():
    specs = MetricSet.of(["a", MetricSpec("b", "m")]).specs
    assert [(s.name, s.unit) for s in specs] == [("a", ""), ("b", "m")]
    with pytest.raises(UserError, match="named twice"):
        MetricSet.of(["a", "a"])
    with pytest.raises(UserError, match="a list"):
        MetricSet.of("abc")


class SpeedPack:
    """A pack that looks at the environment, and has an outcome."""

    specs = (MetricSpec("half", role=Role.STATE), MetricSpec("paid_twice", role=Role.OUTCOME))

    def extract(self, obs, info, env):
        return [float(obs[0]) / 2, 2 * info.get("paid", np.nan)]


@pytest.mark.parametrize("n", [1, 2])
def test_a_packs_state_is_of_now_and_its_outcome_of_what_came(policy, n):
    env: Any = CounterEnv(4)
    if n > 1:
        env = gym.vector.SyncVectorEnv(
            [lambda: CounterEnv(4)] * n, autoreset_mode=AutoresetMode.SAME_STEP
        )
    metrics = MetricSet.from_env(env, SpeedPack())
    with attach(policy, ["first"], metrics, env=env, endpoint=None, strict=True) as tap:
        env = tap.wrap(env)
        obs, _ = env.reset()
        for _ in range(10):
            obs, _, terminated, truncated, _ = env.step(act(policy, obs))
            if n == 1 and (terminated or truncated):
                obs, _ = env.reset()
        batch = tap.take()
    assert batch is not None
    number = 1000.0 * batch.steps.episode + batch.steps.t
    names = [s.name for s in metrics.specs]
    assert np.array_equal(batch.steps.metrics[:, names.index("half")], number / 2)
    assert np.array_equal(batch.steps.metrics[:, names.index("paid_twice")], 4 * number)


@pytest.mark.parametrize("vector", [False, True])
def test_deferred_columns_equal_what_the_environments_room_computes(vector):
    """The wrapper's rows against StepMetrics on the same CartPole episodes."""
    loaded = load_policy("cartpole")
    pack = metric_pack_for("CartPole-v1")
    env: Any = gym.make("CartPole-v1")
    n = 1
    if vector:
        n = 3
        env = gym.make_vec(
            "CartPole-v1",
            n,
            vectorization_mode="sync",
            vector_kwargs={"autoreset_mode": AutoresetMode.SAME_STEP},
        )
    metrics = MetricSet.from_env(env, pack)
    assert metrics.row_width > len(metrics)
    seen = []
    with attach(loaded.module, ["hidden.0"], metrics, env=env, endpoint=None, strict=True) as tap:
        env = tap.wrap(env)
        obs, _ = env.reset(seed=1)
        rng = np.random.default_rng(0)
        t = np.zeros(n)
        for _ in range(60):
            action = rng.integers(0, 2, n)
            before = np.array(obs).reshape(n, -1)
            obs, reward, terminated, truncated, _ = env.step(action if vector else int(action[0]))
            seen.append((before, t.copy(), action, np.ravel(reward)))
            t = np.where(np.ravel(terminated) | np.ravel(truncated), 0, t + 1)
            if not vector and (terminated or truncated):
                obs, _ = env.reset()
        batch = tap.take(10_000)
    assert batch is not None
    expected = np.concatenate([StepMetrics(pack).rows(*step) for step in seen])
    names = [s.name for s in metrics.specs]
    columns = [names.index(spec.name) for spec in StepMetrics(pack).specs]
    # The sine of a batch and of one number may differ in the last bit.
    np.testing.assert_allclose(batch.steps.metrics[:, columns], expected, rtol=1e-13)
    assert [metrics.specs[i] for i in columns][: len(pack.specs)] == list(pack.specs)


def test_whole_rows_and_deferred_rows_live_side_by_side():
    env = gym.make("CartPole-v1")
    metrics = MetricSet.from_env(env, metric_pack_for("CartPole-v1"))
    given = np.arange(len(metrics), dtype=float)
    obs = np.array([0.1, 0.2, 0.03, 0.4])
    loaded = load_policy("cartpole")
    with attach(loaded.module, ["hidden.0"], metrics, endpoint=None, strict=True) as tap:
        tap.step(given)
        tap.step(obs=obs, action=1, reward=1.0)
        tap.complete(given, True, False)
        batch = tap.take()
    assert batch is not None
    assert np.array_equal(batch.steps.metrics[[0, 2]], [given, given])
    expected = metric_pack_for("CartPole-v1").extract(obs, {}, None)
    np.testing.assert_allclose(batch.steps.metrics[1][: len(expected)], expected, rtol=1e-13)
