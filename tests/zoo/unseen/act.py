"""What a user writes for a policy and an environment of their own, after the README alone."""

import sys

import gymnasium

from interlatent_live import attach
from interlatent_live.policies.files import load_policy

policy = load_policy(sys.argv[2]).module  # any torch.nn.Module
env = gymnasium.make("BipedalWalker-v3")
with attach(policy, ["hidden.1"], env=env, agent="my-walker", endpoint=sys.argv[1]) as tap:
    env = tap.wrap(env)
    obs, _ = env.reset(seed=0)
    for _ in range(300):
        obs, _, terminated, truncated, _ = env.step(policy.act(obs[None])[0])
        if terminated or truncated:
            obs, _ = env.reset()
