from typing import Any

import gymnasium
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from interlatent_live.environments import cartpole_vectorised as vectorised


@pytest.mark.parametrize("first", [0, 12345])
def test_whole_episodes_are_bit_equal_to_gymnasium(first):
    seeds = range(first, first + 40)
    rng = np.random.default_rng(first)
    envs: list[Any] = [gymnasium.make("CartPole-v1") for _ in seeds]
    theirs = [env.reset(seed=seed)[0] for env, seed in zip(envs, seeds, strict=True)]
    state = vectorised.start_states(seeds)
    assert np.array_equal(vectorised.observation(state), np.stack(theirs))
    alive = np.ones(len(envs), bool)
    steps = 0
    while alive.any():
        # Lean against the fall most of the time, so that episodes are long.
        action = np.where(rng.random(len(envs)) < 0.2, rng.integers(0, 2, len(envs)), 0)
        action = np.where(rng.random(len(envs)) < 0.9, state[:, 2] + state[:, 3] > 0, action)
        before, state = state, vectorised.step(state, action)
        ended = vectorised.terminated(state)
        for i in np.nonzero(alive)[0]:
            obs, reward, terminated, truncated, _ = envs[i].step(int(action[i]))
            assert np.array_equal(obs, vectorised.observation(state)[i])
            assert np.array_equal(np.asarray(envs[i].unwrapped.state), state[i])
            assert terminated == ended[i]
            assert reward == 1.0
            assert truncated == (steps + 1 == vectorised.TIME_LIMIT)
            alive[i] = not (terminated or truncated)
        assert not np.array_equal(before, state)
        steps += 1
    assert steps > 100


@settings(max_examples=50)
@given(
    arrays(np.float64, (37, 4), elements=st.floats(-2, 2)),
    arrays(np.int64, 37, elements=st.integers(0, 1)),
)
def test_any_single_step_is_bit_equal_whatever_the_batch(state, action):
    env: Any = gymnasium.make("CartPole-v1").unwrapped
    env.reset(seed=0)
    together = vectorised.step(state, action)
    for i in range(len(state)):
        env.state = state[i].copy()
        env.steps_beyond_terminated = None
        _, _, terminated, _, _ = env.step(int(action[i]))
        assert np.array_equal(env.state, together[i])
        assert terminated == vectorised.terminated(together)[i]
