"""activation(obs_t), metrics of obs_t, action_t, reward_{t+1}, shown by a counting environment."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

from interlatent_live import attach
from interlatent_live.agent.metrics import MetricSet
from interlatent_live.stream import MetricSpec, Role, StepFlag

from .conftest import CounterEnv, CounterPolicy, act

HOOKS = ["first", "second"]
STATE = MetricSpec("seen", role=Role.STATE)


def rows_of(tap):
    """Everything the tap holds, as one dict of columns."""
    batches = []
    while (batch := tap.take(16)) is not None:
        batches.append(batch)
    names = [spec.name for spec in tap.metrics.specs]
    metrics = np.concatenate([b.steps.metrics for b in batches])
    columns = {name: metrics[:, i] for i, name in enumerate(names)}
    for field in ("env", "episode", "t", "flags", "controller"):
        columns[field] = np.concatenate([getattr(b.steps, field) for b in batches])
    columns["seq"] = np.concatenate([b.steps.first_seq + np.arange(len(b.steps)) for b in batches])
    for hook in HOOKS:
        columns[f"x:{hook}"] = np.concatenate([b.activations[hook].x for b in batches])
        columns[f"y:{hook}"] = np.concatenate([b.activations[hook].y for b in batches])
        assert all(len(b.activations[hook].y) == len(b.steps) for b in batches)
    return columns


def check(rows, length, n=1):
    """Every row says the same step in every column; every step of every copy is there once."""
    number = 1000.0 * rows["episode"] + rows["t"]
    assert np.array_equal(rows["obs_0"], number)
    assert np.array_equal(rows["x:first"][:, 0], number)
    assert np.array_equal(rows["y:first"], np.stack([-number, number], 1))
    assert np.array_equal(rows["x:second"], rows["y:first"])
    assert np.array_equal(rows["action_0"], 2 * number)
    assert np.array_equal(rows["reward"], 2 * number + 0.5)
    assert np.array_equal(rows["time_in_episode"], rows["t"])
    lengths = length + rows["env"]
    last = rows["t"] == lengths - 1
    even = rows["episode"] % 2 == 0
    assert np.array_equal(rows["flags"], np.where(last, np.where(even, 1, 2), 0))
    assert np.array_equal(rows["terminated"], last & even)
    assert np.array_equal(rows["truncated"], last & ~even)
    assert np.array_equal(rows["seq"], np.arange(len(number)))
    for copy in range(n):
        mine = number[rows["env"] == copy]
        expected = [
            1000.0 * e + t
            for e in range(len(mine) // (length + copy) + 1)
            for t in range(length + copy)
        ]
        assert mine.tolist() == expected[: len(mine)]


def test_one_environment(policy):
    env = CounterEnv(4)
    metrics = MetricSet.from_env(env, info=["paid", STATE])
    with attach(policy, HOOKS, metrics, env=env, endpoint=None, y_every=1, strict=True) as tap:
        env = tap.wrap(env)
        obs, _ = env.reset()
        for _ in range(30):
            obs, _, terminated, truncated, _ = env.step(act(policy, obs))
            if terminated or truncated:
                obs, _ = env.reset()
        rows = rows_of(tap)
    check(rows, 4)
    assert len(rows["t"]) == 30
    # A state key of the info is read with obs_t, an outcome key with what came of the step.
    assert np.array_equal(rows["seen"], rows["obs_0"])
    assert np.array_equal(rows["paid"], rows["action_0"])


@pytest.mark.parametrize("mode", list(AutoresetMode))
@pytest.mark.parametrize("kind", [SyncVectorEnv, AsyncVectorEnv])
def test_vector_environments(policy, mode, kind):
    n = 3
    makers = [partial(CounterEnv, 4, stagger=i) for i in range(n)]
    env = kind(makers, autoreset_mode=mode)
    metrics = MetricSet.from_env(env, info=["paid", STATE])
    with attach(policy, HOOKS, metrics, env=env, endpoint=None, y_every=1, strict=True) as tap:
        env = tap.wrap(env)
        obs, _ = env.reset()
        for _ in range(40):
            obs, _, terminated, truncated, _ = env.step(act(policy, obs))
            ended = terminated | truncated
            if mode is AutoresetMode.DISABLED and ended.any():
                obs, _ = env.reset(options={"reset_mask": ended})
        rows = rows_of(tap)
        stats = tap.stats()
    env.close()
    check(rows, 4, n)
    assert np.array_equal(rows["seen"], rows["obs_0"])
    assert np.array_equal(rows["paid"], rows["action_0"])
    if mode is AutoresetMode.NEXT_STEP:
        ended = int(((rows["flags"] & 3) != 0).sum())
        assert 0 < stats.not_steps <= ended
        assert len(rows["t"]) + stats.not_steps == 40 * n
    else:
        assert stats.not_steps == 0
        assert len(rows["t"]) == 40 * n


def test_a_reset_in_the_middle_begins_a_new_episode(policy):
    env = CounterEnv(100)
    with attach(policy, HOOKS, env=env, endpoint=None, y_every=1, strict=True) as tap:
        env = tap.wrap(env)
        for _ in range(3):
            obs, _ = env.reset()
            for _ in range(4):
                obs, *_ = env.step(act(policy, obs))
        rows = rows_of(tap)
    assert rows["episode"].tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert np.array_equal(rows["obs_0"], 1000.0 * rows["episode"] + rows["t"])
    assert np.array_equal(rows["x:first"][:, 0], rows["obs_0"])


def test_steps_by_hand_take_observations_or_values(policy):
    env = CounterEnv(4)
    metrics = MetricSet.from_env(env, info=["paid"], declared=["mood"])
    with attach(policy, HOOKS, metrics, endpoint=None, y_every=1, strict=True) as tap:
        obs, _ = env.reset()
        for i in range(9):
            action = act(policy, obs)
            next_obs, reward, terminated, truncated, info = env.step(action)
            tap.step(
                {"mood": i},
                obs=obs,
                action=action,
                reward=reward,
                terminated=terminated,
                truncated=truncated,
                info=info,
            )
            obs = env.reset()[0] if terminated or truncated else next_obs
        rows = rows_of(tap)
    check(rows, 4)
    assert rows["mood"].tolist() == list(range(9))
    assert np.array_equal(rows["paid"], rows["action_0"])


def test_forwards_made_for_learning_are_never_steps(policy):
    """Minibatches, gradients, target networks, bootstrap values, another thread's inference."""
    target = CounterPolicy()
    optimiser = torch.optim.SGD(policy.parameters(), lr=0.0)
    env = CounterEnv(4)
    with attach(
        policy, HOOKS, env=env, endpoint=None, y_every=1, strict=True, learning=True
    ) as tap:
        env = tap.wrap(env)
        obs, _ = env.reset()
        for i in range(12):
            action = act(policy, obs)
            # Between acting and stepping is the worst place for another forward.
            with torch.no_grad():
                target(torch.full((1, 1), 77.0))
                policy(torch.full((32, 1), 88.0))
            loss = policy(torch.full((1, 1), 99.0)).sum()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            obs, _, terminated, truncated, _ = env.step(action)
            act(policy, [-1.0 - i])  # a bootstrap value after the step belongs to no step
            if terminated or truncated:
                obs, _ = env.reset()
        rows = rows_of(tap)
        refused = tap.stats().refused_forwards
    check(rows, 4)
    assert refused["first"] == {"batch": 12, "grad": 12}


def test_acting_overrides_the_rule(policy):
    """A policy that keeps its gradient while acting, as REINFORCE does."""
    env = CounterEnv(4)
    with attach(policy, HOOKS, env=env, endpoint=None, y_every=1, strict=True) as tap:
        env = tap.wrap(env)
        obs, _ = env.reset()
        for _ in range(8):
            with tap.acting():
                action = policy(torch.as_tensor(obs, dtype=torch.float32)).detach().numpy()
            act(policy, [-5.0])  # would qualify by the usual rule
            obs, _, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                obs, _ = env.reset()
        rows = rows_of(tap)
    check(rows, 4)


def test_a_random_action_has_metrics_and_no_activation(policy):
    env = CounterEnv(6)
    with attach(policy, HOOKS, env=env, endpoint=None, y_every=1, strict=True) as tap:
        env = tap.wrap(env)
        obs, _ = env.reset()
        for i in range(6):
            action = act(policy, obs) if i % 2 == 0 else np.array([2 * obs[0]])
            obs, *_ = env.step(action)
        rows = rows_of(tap)
    silent = (rows["flags"] & int(StepFlag.NO_ACTIVATION)) != 0
    assert silent.tolist() == [False, True] * 3
    assert rows["obs_0"].tolist() == list(range(6))
    assert rows["x:first"][:, 0].tolist() == [0, 0, 2, 0, 4, 0]


def test_a_subset_of_copies_and_of_steps(policy):
    n = 4
    env = SyncVectorEnv([partial(CounterEnv, 5, stagger=i) for i in range(n)])
    with attach(
        policy, HOOKS, env=env, endpoint=None, y_every=1, envs=(1, 3), step_every=3, strict=True
    ) as tap:
        env = tap.wrap(env)
        obs, _ = env.reset()
        for _ in range(60):
            obs, *_ = env.step(act(policy, obs))
        rows = rows_of(tap)
        stats = tap.stats()
    assert set(rows["env"]) == {1, 3}
    number = 1000.0 * rows["episode"] + rows["t"]
    assert np.array_equal(rows["obs_0"], number)
    sampled = (rows["flags"] & int(StepFlag.NO_ACTIVATION)) == 0
    assert np.array_equal(rows["x:first"][sampled, 0], number[sampled])
    # Every end of an episode is there, sampled or not.
    last = rows["t"] == 4 + rows["env"]
    assert np.array_equal((rows["flags"] & 3) != 0, last)
    for copy in (1, 3):
        mine = rows["episode"][(rows["env"] == copy) & last]
        assert mine.tolist() == list(range(len(mine)))
    assert stats.sampled_out > 0
    assert stats.steps == len(number)


def test_the_last_forward_before_the_step_counts(policy):
    env = CounterEnv(4)
    with attach(policy, HOOKS, env=env, endpoint=None, y_every=1, strict=True) as tap:
        env = tap.wrap(env)
        obs, _ = env.reset()
        for _ in range(4):
            act(policy, [123.0])
            obs, *_ = env.step(act(policy, obs))
        rows = rows_of(tap)
    assert rows["x:first"][:, 0].tolist() == [0, 1, 2, 3]
