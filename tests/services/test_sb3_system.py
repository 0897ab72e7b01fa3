"""Stable-Baselines3's own PPO, trained here for seconds, through every service."""

import gymnasium
import pytest

from interlatent_live import attach
from interlatent_live.transcoders.collect import collect_stream
from interlatent_live.transcoders.dataset import ActivationDataset
from interlatent_live.transcoders.training.recipe import Recipe
from interlatent_live.transcoders.training.run import TrainRequest, train_dataset
from tests.support.system import System

sb3 = pytest.importorskip("stable_baselines3", reason="needs the extra [sb3]")

HOOK = "mlp_extractor.policy_net"


@pytest.fixture(scope="module")
def model():
    model = sb3.PPO("MlpPolicy", "CartPole-v1", n_steps=256, seed=0, device="cpu")
    return model.learn(2048)


def act(model, tap, steps, batches=None):
    env = tap.wrap(gymnasium.make("CartPole-v1"))
    obs, _ = env.reset(seed=3)
    for step in range(steps):
        action, _ = model.predict(obs, deterministic=True)
        obs, _, terminated, truncated, _ = env.step(action)
        if terminated or truncated:
            obs, _ = env.reset()
        if batches is not None and step % 50 == 49:
            batches.append(tap.take())


def test_its_own_policy_is_explained_by_transcoders_trained_on_its_own_stream(model, tmp_path):
    env = gymnasium.make("CartPole-v1")
    batches = []
    with attach(model.policy, [HOOK], env=env, endpoint=None, y_every=1) as tap:
        act(model, tap, 3000, batches)
        manifest = tap.manifest
    dataset = tmp_path / "dataset"
    collect_stream(batches, manifest, [HOOK], dataset)
    train_dataset(
        ActivationDataset(dataset),
        tmp_path / "trained",
        TrainRequest(n_features=(64,), k=8, seeds=1),
        Recipe(steps=300),
    )
    with (
        System(**{"encoder.transcoders": [str(tmp_path / "trained")]}) as system,
        attach(
            model.policy, [HOOK], env=env, endpoint=system.settings.endpoints.agents, agent="ppo"
        ) as tap,
    ):
        act(model, tap, 1500)
        run_id = tap.run_id
        tap.close(10.0)
        system.wait(lambda state: state.settled(run_id))
    status = system.state.agent(run_id)
    assert status.steps_sent == status.steps_encoded == 1500
    assert status.policy_hash == manifest.policy_hash
    (hook,) = status.hook_points
    assert hook.fvu < 0.2
    assert hook.fvu_steps > 0
    (profiles,) = [doc for (run, _), doc in system.state.profiles.items() if run == run_id]
    assert len(profiles.features) > 5
    names = {metric.name for metric in profiles.features[0].metrics}
    assert {"reward", "pole_angle", "action_push_right"} <= names
