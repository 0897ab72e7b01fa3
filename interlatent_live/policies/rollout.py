"""Acting in an environment and counting the return: the measure every policy file carries."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    import gymnasium
    import numpy as np

    from interlatent_live.policies.mlp import MlpPolicy


def episode_returns(
    policy: MlpPolicy,
    env: gymnasium.Env[Any, Any],
    seeds: Iterable[int],
    rng: np.random.Generator | None = None,
) -> list[float]:
    """Undiscounted returns of one episode per seed; the environment must end its episodes."""
    returns = []
    for seed in seeds:
        obs, _ = env.reset(seed=seed)
        total, done = 0.0, False
        while not done:
            action = policy.act([obs], rng)[0]
            obs, reward, terminated, truncated, _ = env.step(action)
            total += float(reward)
            done = terminated or truncated
        returns.append(total)
    return returns
