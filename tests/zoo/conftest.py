"""A small entry of the zoo that a test can build in seconds, and its build."""

import msgspec
import pytest

import tests.environments.conftest  # noqa: F401 - imports Box2D with its warnings off
from interlatent_live.transcoders.training.recipe import Recipe
from interlatent_live.zoo.build import build_entry
from interlatent_live.zoo.entry import Episodes, find_entry


@pytest.fixture(scope="session")
def small():
    """The CartPole entry with few episodes and a short recipe."""
    entry = find_entry("cartpole")
    training = msgspec.structs.replace(
        entry.training, episodes=16, n_features=64, seeds=2, recipe=Recipe(steps=60)
    )
    return msgspec.structs.replace(
        entry,
        training=training,
        calibration=Episodes(episodes=12, seed=200_000),
        evaluation=Episodes(episodes=3, seed=400_000),
        max_episode_steps=150,
    )


@pytest.fixture(scope="session")
def built(small, tmp_path_factory):
    """The small entry's build, its work folder, and what it said on the way."""
    work = tmp_path_factory.mktemp("zoo")
    said = []
    return build_entry(small, work, work, said.append), work, said
