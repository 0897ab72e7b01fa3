import json
import warnings
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from interlatent_live.errors import CorruptFileError, MismatchError, UserError
from interlatent_live.policies.bank import STATES, load_bank, make_bank, save_bank
from interlatent_live.policies.diff import describe, linear_cka
from interlatent_live.policies.diff import diff_policies as diff_acting
from interlatent_live.policies.files import LoadedPolicy, load_policy
from interlatent_live.policies.hashing import policy_hash
from interlatent_live.policies.mlp import MlpPolicy
from interlatent_live.transcoders.acting import from_loaded
from interlatent_live.transcoders.config import Architecture, TranscoderConfig
from interlatent_live.transcoders.transcoder import Transcoder


@pytest.fixture(scope="module")
def bank():
    env: Any = gymnasium.make("CartPole-v1")
    return make_bank(load_policy("cartpole").module, env, "CartPole-v1", rows=600, seed=3)


def diff_policies(old, new, *rest, **options):
    return diff_acting(from_loaded(old), from_loaded(new), *rest, **options)


def altered(loaded, change):
    module = MlpPolicy(loaded.module.spec)
    module.load_state_dict(loaded.module.state_dict())
    with torch.no_grad():
        change(dict(module.named_parameters()))
    module.eval()
    return LoadedPolicy(
        "altered", module, loaded.environment, loaded.provenance, policy_hash(module)
    )


def dictionary(width=32, seed=0):
    g = torch.Generator().manual_seed(seed)
    config = TranscoderConfig(
        architecture=Architecture.BATCHTOPK, d_in=64, d_out=64, n_features=width, k=4
    )
    return Transcoder(
        config,
        W_enc=torch.randn(64, width, generator=g),
        b_enc=torch.zeros(width),
        W_dec=torch.randn(width, 64, generator=g),
        b_dec=torch.zeros(64),
        threshold=torch.full((width,), 0.1),
    )


def permuted(transcoder, order):
    return Transcoder(
        transcoder.config,
        W_enc=transcoder.W_enc[:, order],
        b_enc=transcoder.b_enc[order],
        W_dec=transcoder.W_dec[order],
        b_dec=transcoder.b_dec,
        threshold=transcoder.threshold,
    )


def test_a_bank_is_fixed_by_its_seed_and_survives_its_file(bank, tmp_path):
    env: Any = gymnasium.make("CartPole-v1")
    policy = load_policy("cartpole").module
    assert make_bank(policy, env, "CartPole-v1", rows=600, seed=3).hash == bank.hash
    assert make_bank(policy, env, "CartPole-v1", rows=600, seed=4).hash != bank.hash
    save_bank(tmp_path, bank)
    assert load_bank(tmp_path).hash == bank.hash
    (tmp_path / STATES).write_bytes((tmp_path / STATES).read_bytes()[:-8])
    with pytest.raises(CorruptFileError, match="no intact bank"):
        load_bank(tmp_path)
    save_bank(tmp_path, type(bank)(bank.environment, bank.obs + 1, bank.episode))
    description = tmp_path / "bank.json"
    data = json.loads(description.read_text(encoding="utf-8"))
    description.write_text(json.dumps({**data, "hash": bank.hash}), encoding="utf-8")
    with pytest.raises(CorruptFileError, match="not those its hash names"):
        load_bank(tmp_path)


def test_a_policy_does_not_differ_from_itself(bank):
    loaded = load_policy("cartpole")
    same = diff_policies(loaded, loaded, bank, old_transcoders={"hidden.1": dictionary()})
    assert same.behaviour.agreement == 1.0
    assert same.behaviour.kl == 0.0
    assert all(layer.cka == pytest.approx(1.0) for layer in same.layers)
    layer = same.layers[1]
    assert len(layer.kept) > 5
    assert (layer.changed, layer.gone, layer.new) == ((), (), ())
    assert layer.fvu_old == layer.fvu_new


def test_renumbered_features_are_found_again(bank):
    loaded = load_policy("cartpole")
    order = torch.randperm(32, generator=torch.Generator().manual_seed(1))
    found = diff_policies(
        loaded,
        loaded,
        bank,
        old_transcoders={"hidden.1": dictionary()},
        new_transcoders={"hidden.1": permuted(dictionary(), order)},
    ).layers[1]
    assert found.retrained
    assert (found.changed, found.gone, found.new) == ((), (), ())
    exact = [pair for pair in found.kept if pair.correlation > 0.9999]
    assert len(exact) == len(found.kept)
    assert sum(int(order[pair.new]) == pair.old for pair in exact) >= len(exact) - 2


def test_a_changed_layer_shows_where_it_changed_and_not_before(bank):
    loaded = load_policy("cartpole")

    def change(weights):
        noise = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
        weights["hidden.1.linear.weight"].add_(0.5 * noise)

    other = altered(loaded, change)
    transcoders = {"hidden.0": first_layer(), "hidden.1": dictionary()}
    found = diff_policies(loaded, other, bank, old_transcoders=transcoders)
    assert found.behaviour.agreement is not None
    assert found.behaviour.kl is not None
    assert found.behaviour.agreement < 1.0
    assert found.behaviour.kl > 0.0
    first, second, head = found.layers
    assert first.cka == pytest.approx(1.0)
    assert not first.changed
    assert second.cka < 0.999
    assert second.fvu_new != second.fvu_old
    # Its input is what it was, so its features (read from x) are what they were.
    assert len(second.kept) == len(
        diff_policies(loaded, loaded, bank, old_transcoders=transcoders).layers[1].kept
    )
    assert head.cka < 1.0
    lines = describe(found)
    assert lines[0].startswith("On 600 states the two versions choose the same action in")
    assert any("hidden.1" in line and "kept" in line for line in lines)


def first_layer():
    g = torch.Generator().manual_seed(5)
    config = TranscoderConfig(
        architecture=Architecture.RELU, d_in=4, d_out=64, n_features=8, l1=0.0
    )
    return Transcoder(
        config,
        W_enc=torch.randn(4, 8, generator=g),
        b_enc=torch.zeros(8),
        W_dec=torch.randn(8, 64, generator=g),
        b_dec=torch.zeros(64),
    )


def test_features_of_a_changed_input_are_reported_as_changed(bank):
    loaded = load_policy("cartpole")

    def change(weights):
        noise = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
        weights["hidden.0.linear.weight"].copy_(noise)

    found = diff_policies(
        loaded, altered(loaded, change), bank, old_transcoders={"hidden.1": dictionary()}
    ).layers[1]
    assert found.changed
    assert [p.correlation for p in found.changed] == sorted(p.correlation for p in found.changed)


def test_continuous_versions_differ_by_their_actions():
    pytest.importorskip("mujoco")
    loaded = load_policy("walker2d")
    rng = np.random.default_rng(0)
    from interlatent_live.policies.bank import StateBank  # noqa: PLC0415 - one test needs it

    obs = rng.normal(size=(50, 17)).astype(np.float32)
    bank = StateBank("Walker2d-v5", obs, np.zeros(50, np.uint32))
    other = altered(loaded, lambda weights: weights["head.bias"].add_(0.1))
    found = diff_policies(loaded, other, bank)
    assert found.behaviour.agreement is None
    assert found.behaviour.action_rmse is not None
    assert 0 < found.behaviour.action_rmse <= 0.1 + 1e-6
    assert "root mean square" in describe(found)[0]


def test_what_cannot_be_compared_is_refused(bank):
    cartpole, lander = load_policy("cartpole"), load_policy("lunarlander-ppo")
    with pytest.raises(MismatchError, match="only versions of one architecture"):
        diff_policies(cartpole, lander, bank)
    with pytest.raises(MismatchError, match="the bank is of CartPole-v1"):
        diff_policies(lander, lander, bank)
    with pytest.raises(UserError, match="no partner"):
        diff_policies(cartpole, cartpole, bank, new_transcoders={"hidden.1": dictionary()})


def test_the_command_makes_the_bank_once(tmp_path, capsys):
    from interlatent_live.cli.diff import diff  # noqa: PLC0415 - one test needs it

    fields: dict[str, Any] = {
        "old": "cartpole",
        "new": "cartpole-sb3-ppo",
        "bank": tmp_path / "bank",
        "old_transcoder": None,
        "new_transcoder": None,
        "env": "",
        "states": 300,
        "seed": 1,
        "json_file": tmp_path / "diff.json",
    }
    diff(**fields)
    first = load_bank(tmp_path / "bank").hash
    diff(**{**fields, "seed": 2})
    assert load_bank(tmp_path / "bank").hash == first
    assert "choose the same action in" in capsys.readouterr().out
    data = json.loads((tmp_path / "diff.json").read_text(encoding="utf-8"))
    assert data["bank_hash"] == first
    assert [layer["hook_point"] for layer in data["layers"]] == ["hidden.0", "hidden.1", "head"]


def scripted(path, seed):
    torch.manual_seed(seed)
    layers = (torch.nn.Linear(4, 16), torch.nn.Tanh(), torch.nn.Linear(16, 2))
    network = torch.nn.Sequential(*layers).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # PyTorch's, of TorchScript
        torch.jit.save(torch.jit.trace(network, torch.zeros(1, 4)), str(path))
    return str(path)


def test_scripts_are_rebuilt_and_compared(tmp_path, capsys):
    from interlatent_live.cli.diff import diff  # noqa: PLC0415 - one test needs it

    fields: dict[str, Any] = {
        "old": scripted(tmp_path / "a.pt", 0),
        "new": scripted(tmp_path / "b.pt", 1),
        "bank": tmp_path / "bank",
        "old_transcoder": None,
        "new_transcoder": None,
        "env": "CartPole-v1",
        "states": 100,
        "seed": 1,
        "json_file": tmp_path / "diff.json",
    }
    diff(**fields)
    assert "choose the same action in" in capsys.readouterr().out
    data = json.loads((tmp_path / "diff.json").read_text(encoding="utf-8"))
    assert [layer["hook_point"] for layer in data["layers"]] == ["0", "1", "2"]
    assert data["old_hash"] != data["new_hash"]
    assert data["behaviour"]["agreement"] < 1.0
    diff(**{**fields, "new": fields["old"]})
    data = json.loads((tmp_path / "diff.json").read_text(encoding="utf-8"))
    assert [layer["cka"] for layer in data["layers"]] == pytest.approx([1.0] * 3)
    assert data["behaviour"] == {"agreement": 1.0, "kl": 0.0, "action_rmse": None}


def test_cka_knows_rotations_and_nothing():
    rng = np.random.default_rng(0)
    a = rng.normal(size=(400, 6)).astype(np.float32)
    q, _ = np.linalg.qr(rng.normal(size=(6, 6)))
    assert linear_cka(a, (2.5 * a @ q).astype(np.float32)) == pytest.approx(1.0, abs=1e-5)
    assert linear_cka(a, rng.normal(size=(400, 6)).astype(np.float32)) < 0.1
    constant = np.ones((400, 3), np.float32)
    assert linear_cka(constant, constant) == 1.0
    assert linear_cka(a, constant) == 0.0
