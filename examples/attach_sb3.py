"""Stable-Baselines3: stream a model while it learns, then while it predicts."""

import sys

from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env

import interlatent_live
from interlatent_live.agent.sb3 import InterlatentCallback, TappedVecEnv

endpoint, steps = sys.argv[1], int(sys.argv[2])
hook_points = ["mlp_extractor.policy_net.0", "mlp_extractor.policy_net.2"]
env = make_vec_env("CartPole-v1", n_envs=2)
model = PPO("MlpPolicy", env, n_steps=32, batch_size=64, device="cpu")
model.learn(steps, callback=InterlatentCallback(hook_points, endpoint=endpoint, agent="learner"))

with interlatent_live.attach(model.policy, hook_points, env=env, endpoint=endpoint) as tap:
    tapped = TappedVecEnv(env, tap)
    obs = tapped.reset()
    for _ in range(steps // 2):
        action, state = model.predict(obs, deterministic=True)
        obs, reward, done, info = tapped.step(action)
