"""Environments and policies that say in every number which step they belong to."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn

torch.set_num_threads(1)


class CounterEnv(gym.Env):
    """Its observation is 1000 × episode + step; its reward is the action plus half; ends as told.

    Even episodes of a copy terminate, odd ones truncate. ``info["seen"]`` is the observation it
    comes with, ``info["paid"]`` exists only after a step.
    """

    observation_space = spaces.Box(0, np.inf, (1,), np.float64)
    action_space = spaces.Box(-np.inf, np.inf, (1,), np.float64)

    def __init__(self, length=5, stagger=0):
        self.length = length + stagger
        self.episode = -1
        self.step_in_episode = 0

    def _obs(self):
        return np.array([1000.0 * self.episode + self.step_in_episode])

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episode += 1
        self.step_in_episode = 0
        return self._obs(), {"seen": float(self._obs()[0])}

    def step(self, action):
        self.step_in_episode += 1
        ended = self.step_in_episode >= self.length
        obs = self._obs()
        info = {"seen": float(obs[0]), "paid": float(np.asarray(action).reshape(-1)[0])}
        even = self.episode % 2 == 0
        reward = float(np.asarray(action).reshape(-1)[0]) + 0.5
        return obs, reward, ended and even, ended and not even, info


class CounterPolicy(nn.Module):
    """Its action is twice the observation; layer 0 sees the observation, layer 1 minus it."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(1, 2, bias=False)
        self.second = nn.Linear(2, 1, bias=False)
        with torch.no_grad():
            self.first.weight.copy_(torch.tensor([[-1.0], [1.0]]))
            self.second.weight.copy_(torch.tensor([[-1.0, 1.0]]))

    def forward(self, obs):
        return self.second(self.first(obs))


def act(policy, obs):
    with torch.no_grad():
        return policy(torch.as_tensor(obs, dtype=torch.float32)).numpy()


@pytest.fixture
def policy():
    return CounterPolicy()
