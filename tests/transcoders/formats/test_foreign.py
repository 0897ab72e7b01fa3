from __future__ import annotations

from dataclasses import replace

import pytest

from interlatent_live.errors import MismatchError
from interlatent_live.transcoders.acting import acting_policy
from interlatent_live.transcoders.collect import RolloutSettings, collect_rollouts
from interlatent_live.transcoders.dataset import ActivationDataset
from interlatent_live.transcoders.formats.foreign import bind
from interlatent_live.transcoders.formats.saelens import export_saelens, read_saelens
from interlatent_live.transcoders.native import load_transcoder
from interlatent_live.transcoders.training.recipe import Recipe
from interlatent_live.transcoders.training.run import TrainRequest, train_dataset


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """(dataset, our transcoder, folder that SAELens could have written)."""
    folder = tmp_path_factory.mktemp("foreign")
    settings = RolloutSettings(episodes=20, copies=20, max_steps=60, epsilon=0.2)
    collect_rollouts(acting_policy("cartpole"), ["hidden.0", "hidden.1"], folder / "data", settings)
    dataset = ActivationDataset(folder / "data")
    request = TrainRequest(("hidden.1",), n_features=(64,), k=8, seeds=1)
    (one,) = train_dataset(dataset, folder / "out", request, Recipe(steps=300, batch=128))
    export_saelens(load_transcoder(one.path), folder / "sae")
    return dataset, one, folder / "sae"


def test_a_foreign_file_is_bound_after_measuring_it(exported, tmp_path):
    dataset, one, folder = exported
    bound = bind(read_saelens(folder), dataset, "hidden.1", tmp_path)
    assert bound.provenance.policy_hash == dataset.header.policy_hash
    assert bound.provenance.source == "SAELens"
    assert bound.provenance.evaluation["fvu"] == pytest.approx(one.summary["fvu"], rel=1e-4)
    assert bound.transcoder.config.k == 8  # measured: SAELens' file does not say
    again = load_transcoder(tmp_path, policy_hash=dataset.header.policy_hash)
    assert again.transcoder.identity == bound.transcoder.identity
    assert again.transcoder.baselines is not None


def test_one_that_explains_nothing_here_is_refused(exported, tmp_path):
    dataset, _, folder = exported
    weights = read_saelens(folder)
    strange = {**weights.tensors, "W_dec": weights.tensors["W_dec"].flip(0) * 3}
    with pytest.raises(MismatchError, match="another policy"):
        bind(replace(weights, tensors=strange), dataset, "hidden.1", tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_another_hook_point_is_refused(exported, tmp_path):
    dataset, _, folder = exported
    with pytest.raises(MismatchError, match="64 to 64"):
        bind(read_saelens(folder), dataset, "hidden.0", tmp_path)
