"""A small trained group on CartPole that the evaluation's tests share."""

from __future__ import annotations

import pytest

from interlatent_live.transcoders.acting import acting_policy
from interlatent_live.transcoders.collect import RolloutSettings, collect_rollouts
from interlatent_live.transcoders.dataset import ActivationDataset
from interlatent_live.transcoders.native import load_transcoder
from interlatent_live.transcoders.training.recipe import Recipe
from interlatent_live.transcoders.training.run import TrainRequest, train_dataset

HOOK = "hidden.0..hidden.1"


@pytest.fixture(scope="session")
def cartpole():
    return acting_policy("cartpole")


@pytest.fixture(scope="session")
def trained(cartpole, tmp_path_factory):
    """(dataset, transcoders of two seeds)."""
    folder = tmp_path_factory.mktemp("evaluation")
    settings = RolloutSettings(episodes=40, copies=20, max_steps=100, epsilon=0.1)
    collect_rollouts(cartpole, [HOOK], folder / "data", settings)
    dataset = ActivationDataset(folder / "data")
    request = TrainRequest(n_features=(64,), k=6, seeds=2)
    done = train_dataset(dataset, folder / "out", request, Recipe(steps=800, batch=256))
    return dataset, [load_transcoder(one.path) for one in done]
