"""The convolutional policy is the Nature network, sees only frames, and else is a plain policy."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from interlatent_live.errors import CorruptFileError, UserError
from interlatent_live.policies.conv import NATURE, ConvPolicy, nature_from_sb3
from interlatent_live.policies.conv_spec import Convolution, ConvSpec, conv_spec_from_json
from interlatent_live.policies.files import (
    DESCRIPTION,
    Provenance,
    load_folder,
    load_policy,
    save_policy,
)
from interlatent_live.policies.mlp import MlpPolicy
from interlatent_live.policies.spec import Activation, Adapter, Output
from interlatent_live.transcoders.evaluation.splice import Splice

SMALL = ConvSpec(
    (24, 7, 3),
    Activation.RELU,
    Output.SOFTMAX,
    input_shape=(2, 9, 9),
    convolutions=(Convolution(4, 3, 2), Convolution(6, 3, 1)),
)


@pytest.fixture
def small():
    torch.manual_seed(0)
    return ConvPolicy(SMALL).eval()


@pytest.fixture(scope="module")
def pacman():
    return load_policy("mspacman-pixels")


def frames(n=5, seed=0):
    return torch.from_numpy(
        np.random.default_rng(seed).integers(0, 256, (n, 2, 9, 9)).astype(np.uint8)
    )


def test_it_computes_what_the_same_layers_of_torch_compute():
    torch.manual_seed(1)
    reference = nn.ModuleDict(
        {
            "cnn": nn.Sequential(
                nn.Conv2d(4, 32, 8, 4), nn.ReLU(), nn.Conv2d(32, 64, 4, 2), nn.ReLU(),
                nn.Conv2d(64, 64, 3, 1), nn.ReLU(), nn.Flatten(),
            ),
            "linear": nn.Sequential(nn.Linear(3136, 512), nn.ReLU()),
            "action_net": nn.Linear(512, 9),
        }
    )  # fmt: skip
    tensors = {
        name if name.startswith("action_net") else f"features_extractor.{name}": value
        for name, value in reference.state_dict().items()
    }
    policy = nature_from_sb3(tensors, (4, 84, 84), Adapter.NONE)
    seen = torch.randint(0, 256, (3, 4, 84, 84), dtype=torch.uint8)
    h = seen.float() / 255
    for name in ("cnn", "linear", "action_net"):
        h = reference[name](h)
    assert torch.allclose(policy(seen), h, atol=1e-5)
    assert torch.equal(policy(seen.reshape(3, -1)), policy(seen))
    with pytest.raises(CorruptFileError, match="no Nature network"):
        nature_from_sb3({"action_net.bias": tensors["action_net.bias"]}, (4, 84, 84), Adapter.NONE)


def test_every_hook_point_fires_and_its_tail_gives_the_policys_outputs(small):
    seen: dict[str, torch.Tensor] = {}
    for name in small.spec.hook_points():
        small.get_submodule(name).register_forward_hook(
            lambda _m, _args, out, name=name: seen.__setitem__(name, out.flatten(1))
        )
    out = small(frames())
    assert tuple(seen) == (
        "conv.0", "conv.1", "hidden.0.activation", "hidden.0", "head",
    )  # fmt: skip
    assert seen["conv.0"].shape == (5, 4 * 4 * 4)
    assert seen["conv.1"].shape == (5, 24)
    fired = dict.fromkeys(seen, False)
    for name in fired:
        small.get_submodule(name).register_forward_hook(
            lambda _m, _args, _out, name=name: fired.__setitem__(name, True)
        )
    for name, y in seen.items():
        assert torch.allclose(small.tail_from(name)(y), out, atol=1e-6)
    assert not any(fired.values())
    with pytest.raises(UserError, match=r"no hook point 'conv.2'"):
        small.tail_from("conv.2")


def test_a_splice_at_a_convolution_acts_as_its_tail_says(small):
    def halved(x, y):
        assert x.shape == (5, 2 * 9 * 9)
        return y / 2

    y = small.conv[0](frames().float() / 255).flatten(1)
    with Splice(small, "conv.0", halved):
        spliced = small(frames())
    assert torch.allclose(spliced, small.tail_from("conv.0")(y / 2), atol=1e-6)


def test_a_folder_gives_the_same_policy_back(small, tmp_path):
    provenance = Provenance(source="a test", licence="MIT")
    saved = save_policy(
        tmp_path / "p", small, name="p", environment="E-v0", provenance=provenance,
        licence_text="MIT",
    )  # fmt: skip
    loaded = load_folder(tmp_path / "p")
    assert isinstance(loaded.module, ConvPolicy)
    assert loaded.module.spec == SMALL
    assert loaded.policy_hash == saved.policy_hash
    assert torch.equal(loaded.module(frames()), small(frames()))
    description = tmp_path / "p" / DESCRIPTION
    data = json.loads(description.read_text(encoding="utf-8"))
    data["spec"]["convolutions"][0][2] = 1  # another stride: another network
    description.write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(CorruptFileError, match="the last convolution gives 6 × 5 × 5"):
        load_folder(tmp_path / "p")
    data["spec"]["convolutions"] = SMALL.to_json()["convolutions"]
    description.write_text(json.dumps(data), encoding="utf-8")
    save_file({"head.bias": torch.zeros(3)}, tmp_path / "p" / "policy.safetensors")
    with pytest.raises(CorruptFileError, match="disagree about"):
        load_folder(tmp_path / "p")


def test_a_description_that_contradicts_itself_is_refused():
    data = SMALL.to_json()
    for change in ({"scale": 0}, {"input_shape": [2, 9]}, {"convolutions": []}):
        with pytest.raises(CorruptFileError, match="damaged"):
            conv_spec_from_json({**data, **change})


def test_the_policy_that_travels_along_is_the_nature_network_and_says_where_it_is_from(pacman):
    spec = pacman.module.spec
    assert isinstance(spec, ConvSpec)
    assert spec.convolutions == NATURE
    assert spec.network == (
        "4×84×84 conv(32, 8, 4) conv(64, 4, 2) conv(64, 3, 1) 3136-512-9 relu → softmax"
    )
    assert pacman.provenance.licence == "Apache-2.0"
    assert pacman.provenance.facts["sha256"].startswith("3f356d86")


def test_it_never_sees_the_ram_behind_the_frames(pacman):
    rng = np.random.default_rng(0)
    seen = rng.integers(0, 256, (2, 4 * 84 * 84 + 128), np.uint8)
    other = seen.copy()
    other[:, -128:] = rng.integers(0, 256, (2, 128))
    with torch.no_grad():
        outputs = [pacman.module(torch.from_numpy(one)) for one in (seen, other)]
        assert torch.equal(*outputs)
        other[:, 0] ^= 255
        assert not torch.equal(pacman.module(torch.from_numpy(other)), outputs[0])


def test_its_actions_are_sampled(pacman):
    assert isinstance(pacman.module, MlpPolicy)
    seen = np.zeros((400, 4 * 84 * 84 + 128), np.uint8)
    outputs = torch.zeros(len(seen), 9)
    drawn = pacman.module.actions(outputs, np.random.default_rng(0))
    assert set(drawn.tolist()) == set(range(9))
