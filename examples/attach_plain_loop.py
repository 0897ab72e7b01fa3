"""A plain PyTorch loop: attach to the policy, wrap the environment, act as before."""

import sys

import gymnasium as gym
import torch

import interlatent_live

policy = torch.nn.Sequential(torch.nn.Linear(4, 64), torch.nn.Tanh(), torch.nn.Linear(64, 2))
env = gym.make("CartPole-v1")
with interlatent_live.attach(policy, ["0"], env=env, endpoint=sys.argv[1], agent="plain") as tap:
    env = tap.wrap(env)
    obs, _ = env.reset(seed=0)
    for _ in range(int(sys.argv[2])):
        with torch.no_grad():
            action = policy(torch.as_tensor(obs)).argmax().item()
        obs, reward, terminated, truncated, info = env.step(action)
        if terminated or truncated:
            obs, _ = env.reset()
