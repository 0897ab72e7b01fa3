"""Training the demo's policy: a command in the repository makes it, nobody must believe a file.

PPO by Stable-Baselines3 (extra ``[sb3]``) on the CPU, one thread, seeded; the actor is then taken
out of it as a plain :class:`~interlatent_live.policies.mlp.MlpPolicy`, greedy as it is deployed.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np

from interlatent_live.errors import UserError
from interlatent_live.policies.files import Provenance
from interlatent_live.policies.rollout import episode_returns
from interlatent_live.policies.sb3_files import policy_from_sb3_state

if TYPE_CHECKING:
    from collections.abc import Callable

    from interlatent_live.policies.mlp import MlpPolicy


@dataclass(frozen=True, slots=True)
class TrainingConfig:
    """Hyperparameters of one PPO run; ``hidden`` is the actor's and the critic's."""

    environment: str
    seed: int = 1
    steps: int = 100_000
    hidden: tuple[int, ...] = (64, 64)
    envs: int = 8
    n_steps: int = 256
    batch_size: int = 256
    epochs: int = 10
    learning_rate: float = 1e-3
    gamma: float = 0.99
    gae_lambda: float = 0.95
    entropy: float = 0.0


PRESETS: dict[str, dict[str, Any]] = {
    "CartPole-v1": {"steps": 100_000, "learning_rate": 1e-3},
    "LunarLander-v3": {
        "steps": 450_000,
        "envs": 16,
        "n_steps": 1024,
        "batch_size": 512,
        "epochs": 4,
        "learning_rate": 1e-3,
        "gamma": 0.999,
        "gae_lambda": 0.98,
        "entropy": 0.01,
    },
}
"""What differs from the defaults of :class:`TrainingConfig` for environments we know."""


def train_ppo(config: TrainingConfig, progress: Callable[[int], None]) -> MlpPolicy:
    """Train with SB3's PPO; ``progress`` gets the number of steps done so far.

    Raises:
        UserError: when the extra ``[sb3]`` is missing or the environment does not exist.
    """
    try:
        from stable_baselines3 import PPO  # noqa: PLC0415 - an extra, and slow to import
        from stable_baselines3.common.callbacks import BaseCallback  # noqa: PLC0415 - likewise
    except ImportError as error:
        raise UserError(
            "training a policy needs Stable-Baselines3: pip install 'interlatent-live[sb3]'"
        ) from error

    class Report(BaseCallback):
        def _on_step(self) -> bool:
            progress(self.num_timesteps)
            return True

    try:
        envs = gymnasium.make_vec(config.environment, config.envs, vectorization_mode="sync")
        envs.close()
    except gymnasium.error.Error as error:
        raise UserError(f"Gymnasium cannot make {config.environment!r}: {error}") from error
    from stable_baselines3.common.env_util import make_vec_env  # noqa: PLC0415 - likewise

    vec = make_vec_env(config.environment, n_envs=config.envs, seed=config.seed)
    model = PPO(
        "MlpPolicy",
        vec,
        n_steps=config.n_steps,
        batch_size=config.batch_size,
        n_epochs=config.epochs,
        learning_rate=lambda left: config.learning_rate * left,
        gamma=config.gamma,
        gae_lambda=config.gae_lambda,
        ent_coef=config.entropy,
        policy_kwargs={"net_arch": list(config.hidden)},
        seed=config.seed,
        device="cpu",
    )
    model.learn(config.steps, callback=Report())
    space = vec.action_space
    bounds = None
    if isinstance(space, gymnasium.spaces.Box):
        bounds = (tuple(map(float, space.low)), tuple(map(float, space.high)))
    vec.close()
    return policy_from_sb3_state(model.policy.state_dict(), action_bounds=bounds)


def measure(
    policy: MlpPolicy, environment: str, *, episodes: int, first_seed: int
) -> tuple[list[float], str]:
    """Returns of ``episodes`` greedy episodes and the sentence that goes into the provenance."""
    env = gymnasium.make(environment)
    seeds = range(first_seed, first_seed + episodes)
    returns = episode_returns(policy, env, seeds)
    env.close()
    text = (
        f"{np.mean(returns):.1f} ± {np.std(returns):.1f} over {episodes} episodes "
        f"(seeds {first_seed}+)"
    )
    return returns, text


def training_provenance(
    config: TrainingConfig, *, returns: list[float], measured: str, first_seed: int
) -> Provenance:
    """What a policy trained here says about itself."""
    packages = ("stable-baselines3", "torch", "gymnasium", "numpy")
    facts = {
        "config": {name: getattr(config, name) for name in TrainingConfig.__slots__},
        "versions": {name: metadata.version(name) for name in packages},
    }
    facts["config"]["hidden"] = list(config.hidden)
    return Provenance(
        source=f"interlatent-live policies train {config.environment} --seed {config.seed}",
        licence="Apache-2.0",
        algorithm="PPO (Stable-Baselines3)",
        measured=measured,
        returns=tuple(returns),
        first_seed=first_seed,
        facts=facts,
    )
