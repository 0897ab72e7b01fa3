from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from interlatent_live.errors import CorruptFileError, MismatchError, UserError
from interlatent_live.transcoders.acting import acting_policy
from interlatent_live.transcoders.collect import RolloutSettings, collect_rollouts
from interlatent_live.transcoders.config import Architecture, Target
from interlatent_live.transcoders.dataset import ActivationDataset, split_by_episode
from interlatent_live.transcoders.native import find_transcoders, load_transcoder
from interlatent_live.transcoders.tails import head_metric
from interlatent_live.transcoders.training.job import Job, hook_data
from interlatent_live.transcoders.training.recipe import Recipe
from interlatent_live.transcoders.training.run import CHECKPOINT_FOLDER, TrainRequest, train_dataset
from interlatent_live.transcoders.training.trainer import CHECKPOINT_JSON, Trainer

SMALL = TrainRequest(n_features=(32,), k=4, seeds=2)
SHORT = Recipe(steps=60, batch=64)


@pytest.fixture(scope="module")
def cartpole():
    return acting_policy("cartpole")


@pytest.fixture(scope="module")
def dataset(cartpole, tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "cartpole"
    settings = RolloutSettings(episodes=24, copies=12, max_steps=120, epsilon=0.1)
    collect_rollouts(cartpole, ["hidden.0", "hidden.0..hidden.1"], path, settings)
    return ActivationDataset(path)


def identities(trained):
    return {one.job.name: one.transcoder.identity for one in trained}


@pytest.mark.parametrize("n_features", [32, 128], ids=["dense", "on the support"])
def test_training_is_deterministic_and_resumes_to_the_bit(dataset, tmp_path, n_features):
    request = TrainRequest(n_features=(n_features,), k=4, seeds=2)
    whole = train_dataset(dataset, tmp_path / "a", request, SHORT)
    assert len(whole) == 4
    assert train_dataset(dataset, tmp_path / "b", request, SHORT, stop_after=23) == []
    resumed = train_dataset(dataset, tmp_path / "b", request, SHORT)
    assert identities(resumed) == identities(whole)
    assert len(set(identities(whole).values())) == 4


def test_a_model_does_not_depend_on_what_is_trained_beside_it(dataset, tmp_path):
    together = train_dataset(dataset, tmp_path / "a", SMALL, SHORT)
    alone = train_dataset(
        dataset, tmp_path / "b", TrainRequest(("hidden.0",), n_features=(32,), k=4, seeds=1), SHORT
    )
    (one,) = alone
    (twin,) = (other for other in together if other.job.name == one.job.name)
    for name, tensor in one.transcoder.tensors().items():
        torch.testing.assert_close(twin.transcoder.tensors()[name], tensor, rtol=1e-3, atol=1e-4)


def test_what_is_saved(dataset, cartpole, tmp_path):
    trained = train_dataset(dataset, tmp_path, SMALL, SHORT, command="make it so")
    found = find_transcoders(tmp_path)
    assert set(found) == {
        (cartpole.policy_hash, "hidden.0"),
        (cartpole.policy_hash, "hidden.0..hidden.1"),
    }
    loaded = load_transcoder(trained[0].path, policy_hash=cartpole.policy_hash)
    provenance = loaded.provenance
    assert provenance.dataset_hash == dataset.hash
    assert provenance.command == "make it so"
    assert provenance.evaluation == trained[0].summary
    assert provenance.training["steps"] == 60
    baselines = loaded.transcoder.baselines
    assert baselines is not None
    rows = dataset.load(provenance.hook_point)
    split = split_by_episode(rows.episode)
    y = rows.y[split.train].astype(np.float64)
    assert baselines.y_variance == pytest.approx(((y - y.mean(0)) ** 2).sum(1).mean(), rel=1e-6)
    x1 = np.c_[rows.x[split.train].astype(np.float64), np.ones(split.train.sum())]
    fit = x1 @ np.linalg.lstsq(x1, y, rcond=None)[0]
    mine = rows.x[split.train] @ baselines.affine_weight.numpy() + baselines.affine_bias.numpy()
    assert ((y - mine) ** 2).sum() <= ((y - fit) ** 2).sum() * 1.01


@pytest.mark.parametrize("architecture", list(Architecture))
@pytest.mark.parametrize("skip", [False, True])
def test_every_architecture_learns(dataset, tmp_path, architecture, skip):
    takes_k = architecture is not Architecture.RELU
    request = TrainRequest(
        ("hidden.0..hidden.1",),
        architecture=architecture,
        n_features=(64,),
        k=8 if takes_k else None,
        l1=None if takes_k else 0.003,
        skip=skip,
        seeds=1,
    )
    (one,) = train_dataset(dataset, tmp_path, request, Recipe(steps=600, batch=128))
    assert one.summary["fvu"] < 0.15
    if architecture in (Architecture.TOPK, Architecture.BATCHTOPK, Architecture.MATRYOSHKA):
        assert one.summary["l0"] < 8 * 1.25
    assert ("feature_share" in one.summary) == skip


def test_the_threshold_leaves_k_features_on_over_the_episodes_not_reported_on(dataset, tmp_path):
    (one,) = train_dataset(
        dataset, tmp_path, TrainRequest(("hidden.0",), n_features=(64,), k=6, seeds=1), SHORT
    )
    rows = dataset.load("hidden.0")
    held = rows.x[~split_by_episode(rows.episode).test]
    l0 = (one.transcoder.encode(torch.from_numpy(held)) > 0).sum(1).float().mean()
    assert float(l0) == pytest.approx(6, abs=0.02)


def test_normalisation_leaves_no_trace(dataset, tmp_path):
    """Folding: the saved transcoder reconstructs raw rows as the normalised one did its own."""
    (one,) = train_dataset(
        dataset,
        tmp_path,
        TrainRequest(("hidden.0..hidden.1",), n_features=(64,), k=8, seeds=1, skip=True),
        Recipe(steps=400, batch=128),
    )
    rows = dataset.load("hidden.0..hidden.1")
    x, y = torch.from_numpy(rows.x), torch.from_numpy(rows.y)
    fvu = (y - one.transcoder.reconstruct(x)).square().sum() / (y - y.mean(0)).square().sum()
    assert float(fvu) < 0.05


def test_autoencoders_and_widths(dataset, tmp_path):
    request = TrainRequest(
        ("hidden.0..hidden.1",), n_features=(32, 64), k=4, seeds=1, target=Target.INPUT
    )
    trained = train_dataset(dataset, tmp_path, request, Recipe(steps=800, batch=128))
    assert [one.transcoder.config.n_features for one in trained] == [32, 64]
    assert all(one.transcoder.config.d_out == 4 for one in trained)
    assert max(one.summary["fvu"] for one in trained) < 0.3


def test_the_head_weighted_loss_needs_and_uses_the_policy(dataset, cartpole, tmp_path):
    recipe = Recipe(steps=60, batch=64, head_weight=0.1)
    with pytest.raises(UserError, match="--policy"):
        train_dataset(dataset, tmp_path / "a", SMALL, recipe)
    weighted = train_dataset(dataset, tmp_path / "b", SMALL, recipe, policy=cartpole)
    plain = train_dataset(dataset, tmp_path / "c", SMALL, SHORT)
    assert not set(identities(weighted).values()) & set(identities(plain).values())
    with pytest.raises(MismatchError, match="lunarlander"):
        train_dataset(
            dataset, tmp_path / "d", SMALL, recipe, policy=acting_policy("lunarlander-ppo")
        )


@pytest.mark.parametrize("hook", ["hidden.0..hidden.1", "hidden.0"])
def test_the_head_weighted_loss_acts_where_it_should(dataset, cartpole, tmp_path, hook):
    """Linear after hidden.1, curved after hidden.0.

    TopK, so that no threshold plays a part, and few features, so that they must choose; judged on
    all episodes that are not reported on, since two held-out ones say more of luck than of a loss.
    """
    request = TrainRequest((hook,), architecture=Architecture.TOPK, n_features=(64,), k=2, seeds=2)
    rows = dataset.load(hook)
    used = ~split_by_episode(rows.episode).test
    x, y = torch.from_numpy(rows.x[used]), torch.from_numpy(rows.y[used])
    metric = head_metric(cartpole, hook, y)
    assert metric is not None
    action_fvu = []
    for weight in (0.0, 3.0):
        recipe = Recipe(steps=800, batch=128, head_weight=weight)
        trained = train_dataset(dataset, tmp_path / str(weight), request, recipe, policy=cartpole)
        losses = [
            float(metric.loss_and_gradient(y, one.transcoder.reconstruct(x) - y)[0])
            for one in trained
        ]
        action_fvu.append(np.mean(losses))
    assert action_fvu[1] < 0.9 * action_fvu[0]


def test_the_curved_term_has_the_gradient_of_its_loss(dataset, cartpole):
    rows = dataset.load("hidden.0")
    split = split_by_episode(rows.episode)
    head = head_metric(cartpole, "hidden.0", torch.from_numpy(rows.y[split.train]))
    data = hook_data(
        rows,
        split,
        target=Target.OUTPUT,
        normalise=SHORT.normalise,
        device=torch.device("cpu"),
        head=head,
        head_weight=0.5,
    )
    job = Job("hidden.0", SMALL.config(4, 64, 32), 0)
    recipe = Recipe(steps=1, batch=64, head_weight=0.5)
    trainer = Trainer([job], {"hidden.0": data}, recipe)
    target, mixed = data.y[:20], 0.01 * torch.randn(20, 64)
    scales = data.scales
    assert scales.y_mix is not None
    assert data.head is not None
    back = torch.linalg.inv(scales.y_mix).float()
    y = target @ back * scales.y_scale + scales.y_mean
    torch.testing.assert_close(y, torch.from_numpy(rows.y[split.train][:20]), atol=1e-4, rtol=1e-3)

    def loss(value):
        error = value @ back
        weighted, _ = data.head.loss_and_gradient(y, error * scales.y_scale)
        return float(error.double().square().sum() / 20 + 0.5 * weighted.double())

    gradient = trainer._curved(data, target, mixed, 0.5) + mixed * (2 / 20)
    direction = torch.randn(20, 64)
    step = 1e-3
    slope = (loss(mixed + step * direction) - loss(mixed - step * direction)) / (2 * step)
    assert float((gradient * direction).sum()) == pytest.approx(slope, rel=2e-2, abs=1e-3)


def test_a_checkpoint_of_another_run_or_a_damaged_one_is_refused(dataset, tmp_path):
    train_dataset(dataset, tmp_path, SMALL, SHORT, stop_after=10)
    with pytest.raises(UserError, match="other settings"):
        train_dataset(dataset, tmp_path, SMALL, Recipe(steps=61, batch=64))
    folder = tmp_path / CHECKPOINT_FOLDER
    facts = folder / CHECKPOINT_JSON
    (tensors,) = folder.glob("*.safetensors")
    raw = tensors.read_bytes()
    tensors.write_bytes(raw[:-4] + b"\0\0\0\1")
    with pytest.raises(CorruptFileError):
        train_dataset(dataset, tmp_path, SMALL, SHORT)
    tensors.write_bytes(raw)
    facts.write_text(json.dumps({"step": "many"}))
    with pytest.raises(CorruptFileError, match="start anew"):
        train_dataset(dataset, tmp_path, SMALL, SHORT)


def test_what_cannot_be_honoured_is_refused(dataset, tmp_path):
    with pytest.raises(UserError, match=r"hidden\.0"):
        train_dataset(dataset, tmp_path, TrainRequest(("nope",)), SHORT)
    with pytest.raises(UserError, match="CUDA"):
        train_dataset(dataset, tmp_path, SMALL, Recipe(steps=1, bf16=True))
    with pytest.raises(UserError, match="tpu"):
        train_dataset(dataset, tmp_path, SMALL, SHORT, device="tpu")


@pytest.mark.slow
def test_kill_9_and_run_again(dataset, tmp_path):
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from interlatent_live.transcoders.dataset import ActivationDataset\n"
        "from interlatent_live.transcoders.training import trainer\n"
        "from interlatent_live.transcoders.training.recipe import Recipe\n"
        "from interlatent_live.transcoders.training.run import TrainRequest, train_dataset\n"
        "trainer.CHECKPOINT_SECONDS = 0.2\n"
        "for one in train_dataset(ActivationDataset(Path(sys.argv[1])), Path(sys.argv[2]),\n"
        "        TrainRequest(n_features=(32,), k=4, seeds=2), Recipe(steps=3000, batch=64)):\n"
        "    print(one.transcoder.identity)\n"
    )
    command = [sys.executable, "-c", code, str(dataset.path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def run(out):
        return subprocess.run(
            [*command, str(out)], check=True, env=environment, capture_output=True, text=True
        ).stdout

    whole = run(tmp_path / "whole")
    process = subprocess.Popen([*command, str(tmp_path / "parts")], env=environment)
    deadline = time.monotonic() + 120
    checkpoint = tmp_path / "parts" / CHECKPOINT_FOLDER / CHECKPOINT_JSON
    while time.monotonic() < deadline and not checkpoint.exists():
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert 0 < json.loads(checkpoint.read_text())["step"] < 3000
    assert run(tmp_path / "parts") == whole
