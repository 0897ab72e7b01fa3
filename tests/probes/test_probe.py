import json
import warnings

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from interlatent_live.environments.disturbance import Disturbance
from interlatent_live.errors import CorruptFileError, MismatchError, UserError
from interlatent_live.policies.files import load_policy
from interlatent_live.probes.dataset import probe_rows
from interlatent_live.probes.linear import Logistic
from interlatent_live.probes.probe import (
    DESCRIPTION,
    WEIGHTS,
    LinearProbe,
    Side,
    append_probes,
    load_probe,
    plain,
    save_probe,
)
from interlatent_live.probes.targets import parse_target
from interlatent_live.probes.train import (
    dense_features,
    layer_activations,
    random_copy,
    train_probe,
)
from interlatent_live.transcoders.acting import acting_policy
from interlatent_live.transcoders.collect import RolloutSettings, collect_rollouts
from interlatent_live.transcoders.config import Architecture, TranscoderConfig
from interlatent_live.transcoders.dataset import ActivationDataset
from interlatent_live.transcoders.transcoder import Transcoder

HARD = Disturbance(start=1.0, push=1.5, push_interval_s=0.4)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """CartPole pushed so hard that it drifts and falls often: something to foresee."""
    out = tmp_path_factory.mktemp("data") / "cartpole"
    settings = RolloutSettings(episodes=120, seed=5, copies=24, disturbance=HARD)
    collect_rollouts(acting_policy("cartpole"), ["hidden.0", "hidden.1"], out, settings)
    return ActivationDataset(out)


def batchtopk(d_in, d_out, width, seed=0):
    g = torch.Generator().manual_seed(seed)
    config = TranscoderConfig(
        architecture=Architecture.BATCHTOPK, d_in=d_in, d_out=d_out, n_features=width, k=4
    )
    return Transcoder(
        config,
        W_enc=torch.randn(d_in, width, generator=g),
        b_enc=torch.zeros(width),
        W_dec=torch.randn(width, d_out, generator=g),
        b_dec=torch.zeros(d_out),
        threshold=torch.full((width,), 0.5),
    )


@pytest.fixture(scope="module")
def trained(dataset):
    loaded = load_policy("cartpole")
    target = parse_target("cart_position > 0.9 within 0.6 s")
    rows = probe_rows(
        dataset, target=target, hook_point="hidden.1", side=Side.INPUT, step_seconds=0.02
    )
    untrained = layer_activations(
        random_copy(loaded.module, 0), rows.inputs, "hidden.1", Side.INPUT
    )
    x = layer_activations(loaded.module, rows.inputs, "hidden.1", Side.INPUT)
    assert np.abs(x - rows.activations).max() < 1e-5  # rounding of another batch size
    probe, report = train_probe(
        rows,
        target=target,
        hook_point="hidden.1",
        side=Side.INPUT,
        policy_hash=loaded.policy_hash,
        random_activations=untrained,
        features=dense_features(batchtopk(64, 64, 32), x),
    )
    return rows, probe, report


def test_a_probe_foresees_a_drift_to_the_edge_on_episodes_it_never_saw(trained):
    _, _, report = trained
    assert report.probe.auroc.value > 0.9
    assert report.probe.auroc.low > 0.85
    assert report.probe.brier < 0.8 * report.probe.brier_constant
    assert report.probe.calibration_error < 0.05
    assert report.probe.balanced_accuracy.value > 0.8
    assert report.probe.episodes == 12


def test_its_controls_stand_beside_it_on_the_same_rows(trained):
    _, _, report = trained
    for control in (report.on_input, report.on_random_network):
        assert control.rows == report.probe.rows
        assert control.positives == report.probe.positives
    difference = report.probe.auroc.value - report.on_input.auroc.value
    assert report.over_input.value == pytest.approx(difference, abs=1e-9)
    assert report.best_feature is not None
    assert report.over_feature.value > 0  # the linear probe beats one random feature


def test_a_probe_survives_its_file(trained, tmp_path):
    rows, probe, report = trained
    save_probe(tmp_path, probe, plain(report))
    again = load_probe(tmp_path, policy_hash=probe.policy_hash)
    assert np.array_equal(again.probability(rows.activations), probe.probability(rows.activations))
    assert (again.target, again.side, again.threshold) == (
        probe.target,
        probe.side,
        probe.threshold,
    )
    stored = json.loads((tmp_path / DESCRIPTION).read_text(encoding="utf-8"))
    assert stored["report"]["probe"]["rows"] == report.probe.rows
    with pytest.raises(MismatchError, match="trained on policy"):
        load_probe(tmp_path, policy_hash="sha256:other")
    with pytest.raises(MismatchError, match="reads 64 values"):
        again.probability(np.zeros((2, 5)))


@pytest.mark.parametrize("damage", ["truncate", "json", "shape", "nan", "target"])
def test_damaged_probes_are_refused(trained, tmp_path, damage):
    _, probe, report = trained
    save_probe(tmp_path, probe, plain(report))
    weights, description = tmp_path / WEIGHTS, tmp_path / DESCRIPTION
    if damage == "truncate":
        weights.write_bytes(weights.read_bytes()[:40])
    elif damage == "json":
        description.write_text("[", encoding="utf-8")
    elif damage == "shape":
        save_file({"weight": np.zeros((2, 2)), "bias": np.zeros(1)}, weights)
    elif damage == "nan":
        save_file({"weight": np.array([np.nan]), "bias": np.zeros(1)}, weights)
    else:
        data = json.loads(description.read_text(encoding="utf-8"))
        data["target"] = "__import__('os')"
        description.write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(CorruptFileError, match="no intact probe"):
        load_probe(tmp_path)


def test_a_probe_is_served_as_a_feature_and_changes_nothing_else(trained):
    rows, probe, _ = trained
    transcoder = batchtopk(64, 64, 32)
    served = append_probes(transcoder, [probe])
    x = torch.from_numpy(rows.activations[:2000])
    before, after = transcoder.encode(x), served.encode(x)
    assert torch.allclose(after[:, :32], before, atol=1e-5)
    assert torch.allclose(served.decode(after), transcoder.decode(before), atol=1e-4)
    says = probe.probability(rows.activations[:2000]) > probe.threshold
    assert (after[:, 32].numpy() > 0).tolist() == says.tolist()
    assert 0 < says.sum() < len(says)


def test_what_cannot_be_served_is_refused(trained):
    _, probe, _ = trained
    with pytest.raises(UserError, match="train the probe with side x"):
        append_probes(batchtopk(10, 64, 8), [probe])
    other = LinearProbe(
        probe.target, "hidden.1", Side.OUTPUT, "sha256:x", Logistic(np.zeros(64), 0.0), 0.5
    )
    with pytest.raises(UserError, match="side x"):
        append_probes(batchtopk(64, 64, 8), [other])
    config = TranscoderConfig(architecture=Architecture.TOPK, d_in=64, d_out=64, n_features=8, k=2)
    base = batchtopk(64, 64, 8)
    topk = Transcoder(config, base.W_enc, base.b_enc, base.W_dec, base.b_dec)
    with pytest.raises(UserError, match="compete"):
        append_probes(topk, [probe])


def test_too_little_to_learn_from_is_said(dataset):
    target = parse_target("cart_position > 50")
    rows = probe_rows(
        dataset, target=target, hook_point="hidden.1", side=Side.OUTPUT, step_seconds=0.02
    )
    with pytest.raises(UserError, match="collect more episodes"):
        train_probe(
            rows,
            target=target,
            hook_point="hidden.1",
            side=Side.OUTPUT,
            policy_hash="sha256:x",
            random_activations=rows.activations,
        )


def test_layers_are_read_where_hooks_read_them():
    policy = load_policy("cartpole").module
    seen: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    for name in policy.spec.hook_points():
        policy.get_submodule(name).register_forward_hook(
            lambda _m, args, out, name=name: seen.__setitem__(name, (args[0], out))
        )
    obs = np.random.default_rng(0).normal(size=(7, 4)).astype(np.float32)
    policy(torch.from_numpy(obs))
    for name, (x, y) in seen.items():
        assert np.array_equal(layer_activations(policy, obs, name, Side.INPUT), x.detach().numpy())
        assert np.array_equal(layer_activations(policy, obs, name, Side.OUTPUT), y.detach().numpy())
    with pytest.raises(UserError, match=r"no module 'hidden\.9'"):
        layer_activations(policy, obs, "hidden.9", Side.INPUT)


def test_the_command(dataset, tmp_path, capsys):
    from interlatent_live.cli.probes import train as command  # noqa: PLC0415 - one test needs it

    command(
        dataset=dataset.path,
        policy="cartpole",
        target="terminated within 0.4 s",
        out=tmp_path / "probe",
        hook_point="hidden.1",
        side="y",
        transcoder=None,
        seed=0,
    )
    said = capsys.readouterr().out
    assert "AUROC" in said
    assert "on the network's input" in said
    assert load_probe(tmp_path / "probe").hook_point == "hidden.1"
    with pytest.raises(MismatchError, match="was collected from policy"):
        command(
            dataset=dataset.path,
            policy="cartpole-sb3-ppo",
            target="terminated within 0.4 s",
            out=tmp_path / "other",
            hook_point="hidden.1",
            side="y",
            transcoder=None,
            seed=0,
        )


def test_a_script_is_probed_like_any_policy(tmp_path, capsys):
    from interlatent_live.cli.probes import train as command  # noqa: PLC0415 - one test needs it

    plain_policy = load_policy("cartpole").module
    layers = [part for layer in plain_policy.hidden for part in layer.children()]
    network = torch.nn.Sequential(*layers, plain_policy.head).eval()
    path = tmp_path / "policy.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # PyTorch's, of TorchScript
        torch.jit.save(torch.jit.trace(network, torch.zeros(1, 4)), str(path))
    policy = acting_policy(str(path), environment="CartPole-v1")
    settings = RolloutSettings(episodes=60, seed=5, copies=20, disturbance=HARD, max_steps=200)
    collect_rollouts(policy, ["0..1", "2..3"], tmp_path / "data", settings)
    fields = {
        "dataset": tmp_path / "data",
        "policy": str(path),
        "target": "cart_position > 0.9 within 0.6 s",
        "out": tmp_path / "probe",
        "side": "x",
        "transcoder": None,
        "seed": 0,
    }
    command(**fields, hook_point="2..3")
    assert "on an untrained network" in capsys.readouterr().out
    probe = load_probe(tmp_path / "probe")
    assert (probe.hook_point, probe.policy_hash) == ("2..3", policy.policy_hash)
    collect_rollouts(policy, ["2..3"], tmp_path / "lacking", settings)
    with pytest.raises(UserError, match="collect from 0 too"):
        command(**{**fields, "dataset": tmp_path / "lacking"}, hook_point="2..3")


def test_an_untrained_copy_shares_nothing_but_the_shape():
    policy = load_policy("walker2d").module
    made = random_copy(policy, 1)
    assert torch.equal(made.obs_mean, policy.obs_mean)
    assert not torch.equal(made.head.weight, policy.head.weight)
    assert torch.equal(made.head.weight, random_copy(policy, 1).head.weight)

    class Own(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(2))

    with pytest.raises(UserError, match="no untrained network"):
        random_copy(Own(), 0)
