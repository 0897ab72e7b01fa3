from __future__ import annotations

import numpy as np
import pytest
import torch

from interlatent_live.environments.disturbance import Disturbance
from interlatent_live.errors import MismatchError
from interlatent_live.transcoders.acting import acting_policy
from interlatent_live.transcoders.collect import RolloutSettings, collect_rollouts
from interlatent_live.transcoders.dataset import ActivationDataset, split_by_episode
from interlatent_live.transcoders.native import find_transcoders, load_transcoder
from interlatent_live.transcoders.training.finetune import finetune, identities_kept
from interlatent_live.transcoders.training.finish import fold, unfold
from interlatent_live.transcoders.training.job import Scales
from interlatent_live.transcoders.training.recipe import Recipe
from interlatent_live.transcoders.training.run import TrainRequest, train_dataset


@pytest.fixture(scope="module")
def drifted(tmp_path_factory):
    """A transcoder of CartPole in calm, and a dataset of CartPole pushed about."""
    folder = tmp_path_factory.mktemp("drift")
    policy = acting_policy("cartpole")
    calm = RolloutSettings(
        episodes=120, copies=60, max_steps=80, seed=1, disturbance=Disturbance(start=0.4)
    )
    wild = RolloutSettings(
        episodes=120,
        copies=60,
        max_steps=80,
        seed=500,
        disturbance=Disturbance(start=0.7, push=0.5, push_interval_s=1.0),
    )
    collect_rollouts(policy, ["hidden.0..hidden.1"], folder / "calm", calm)
    collect_rollouts(policy, ["hidden.0..hidden.1"], folder / "wild", wild)
    (one,) = train_dataset(
        ActivationDataset(folder / "calm"),
        folder / "out",
        TrainRequest(n_features=(64,), k=6, seeds=1),
        Recipe(steps=800, batch=256),
    )
    return load_transcoder(one.path), ActivationDataset(folder / "wild"), folder


def test_a_drift_is_followed_and_ids_are_kept(drifted, tmp_path):
    old, wild, folder = drifted
    done = finetune(old, wild, folder / "out" / "v2", steps=600)
    assert done.after["fvu"] < 0.75 * done.recalibrated["fvu"]  # at equal L0
    assert len(done.kept) > 0.6 * (len(done.kept) + len(done.changed))
    provenance = done.loaded.provenance
    assert provenance.version == old.provenance.version + 1
    assert provenance.parent == old.transcoder.identity
    assert provenance.training["finetuned"]["changed"] == list(done.changed)
    assert load_transcoder(old.path).transcoder.identity == old.transcoder.identity
    (entries,) = find_transcoders(folder / "out").values()
    assert entries[0].identity == done.loaded.transcoder.identity  # the newest is preferred
    # Kept ids mean it: the same feature fires on the same new rows.
    rows = wild.load("hidden.0..hidden.1")
    x = torch.from_numpy(rows.x[split_by_episode(rows.episode).test])
    before, after = old.transcoder.encode(x), done.loaded.transcoder.encode(x)
    correlations = [
        np.corrcoef(before[:, f], after[:, f])[0, 1]
        for f in done.kept
        if before[:, f].std() > 0 and after[:, f].std() > 0
    ]
    assert np.median(correlations) > 0.8


def test_the_old_version_is_never_overwritten(drifted):
    old, wild, _ = drifted
    with pytest.raises(MismatchError, match="elsewhere"):
        finetune(old, wild, old.path, steps=1)


@pytest.mark.parametrize("mixed", [False, True])
def test_unfold_undoes_fold(any_transcoder, mixed):
    root = torch.randn(7, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    scales = Scales(
        x_mean=torch.randn(5),
        x_scale=torch.rand(5) + 0.1,
        y_mean=torch.randn(7),
        y_scale=2.5,
        y_mix=root @ root.T + torch.eye(7) if mixed else None,
    )
    parameters = unfold(any_transcoder, scales)
    back = fold(any_transcoder.config, parameters, scales)
    for name, tensor in back.items():
        torch.testing.assert_close(tensor, any_transcoder.tensors()[name], rtol=1e-4, atol=1e-5)


def test_a_swap_of_two_features_is_noticed(build_transcoder):
    old = build_transcoder("batchtopk")
    order = torch.arange(24)
    order[[3, 4]] = torch.tensor([4, 3])
    new = type(old)(
        old.config,
        old.W_enc[:, order],
        old.b_enc[order],
        old.W_dec[order],
        old.b_dec,
        threshold=old.threshold,
    )
    x = np.random.default_rng(0).standard_normal((3000, 5)).astype(np.float32)
    kept, changed = identities_kept(old, new, x)
    assert set(changed) == {3, 4}
    assert len(kept) + len(changed) >= 20
