"""A CleanRL-style loop: many copies, sampled actions; learning is never taken for acting."""

import sys

import gymnasium as gym
import torch

import interlatent_live

envs = gym.make_vec("CartPole-v1", num_envs=8, vectorization_mode="sync")
actor = torch.nn.Sequential(torch.nn.Linear(4, 64), torch.nn.Tanh(), torch.nn.Linear(64, 2))
optimiser = torch.optim.Adam(actor.parameters(), lr=1e-3)
tap = interlatent_live.attach(actor, ["0"], env=envs, endpoint=sys.argv[1], learning=True)
with tap:
    envs = tap.wrap(envs)
    obs, _ = envs.reset(seed=0)
    for _ in range(int(sys.argv[2]) // 8):
        with torch.no_grad():
            chances = actor(torch.as_tensor(obs)).softmax(-1)
        action = torch.multinomial(chances, 1).squeeze(1).numpy()
        obs, reward, terminated, truncated, info = envs.step(action)
        (actor(torch.as_tensor(obs)).square().mean() * 1e-3).backward()
        optimiser.step()
