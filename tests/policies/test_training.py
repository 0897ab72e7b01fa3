import numpy as np
import pytest

from interlatent_live.errors import UserError
from interlatent_live.policies.files import load_policy, save_policy
from interlatent_live.policies.hashing import policy_hash
from interlatent_live.policies.training import (
    PRESETS,
    TrainingConfig,
    measure,
    train_ppo,
    training_provenance,
)

pytest.importorskip("stable_baselines3")

SHORT = TrainingConfig("CartPole-v1", seed=3, steps=1500, hidden=(16, 16), envs=2, n_steps=128)


def test_a_seed_gives_the_same_policy_and_progress_is_told(tmp_path):
    told: list[int] = []
    policy = train_ppo(SHORT, told.append)
    assert told[-1] >= SHORT.steps
    assert told == sorted(told)
    assert policy_hash(train_ppo(SHORT, lambda _: None)) == policy_hash(policy)
    returns, measured = measure(policy, "CartPole-v1", episodes=3, first_seed=50)
    assert len(returns) == 3
    assert measured.endswith("over 3 episodes (seeds 50+)")
    provenance = training_provenance(SHORT, returns=returns, measured=measured, first_seed=50)
    save_policy(
        tmp_path,
        policy,
        name="p",
        environment="CartPole-v1",
        provenance=provenance,
        licence_text="",
    )
    facts = load_policy(tmp_path).provenance.facts
    assert facts["config"]["seed"] == 3
    assert "torch" in facts["versions"]


def test_an_unknown_environment_is_one_sentence():
    with pytest.raises(UserError, match="cannot make 'Nowhere-v0'"):
        train_ppo(TrainingConfig("Nowhere-v0"), lambda _: None)


@pytest.mark.slow
def test_the_preset_solves_cartpole():
    config = TrainingConfig("CartPole-v1", seed=2, **PRESETS["CartPole-v1"])
    returns, _ = measure(
        train_ppo(config, lambda _: None), "CartPole-v1", episodes=100, first_seed=10_000
    )
    assert np.mean(returns) >= 475
