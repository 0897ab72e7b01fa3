import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from interlatent_live.errors import UserError
from interlatent_live.policies.mlp import MlpPolicy
from interlatent_live.policies.spec import Activation, Adapter, Output, PolicySpec


def make(sizes=(4, 8, 6, 3), **fields):
    torch.manual_seed(0)
    return MlpPolicy(PolicySpec(layer_sizes=sizes, **fields))


@pytest.mark.parametrize("activation", list(Activation))
def test_hook_points_see_the_linear_input_and_the_activated_output(activation):
    policy = make(activation=activation)
    seen: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    for name in policy.spec.hook_points():
        policy.get_submodule(name).register_forward_hook(
            lambda _m, args, out, name=name: seen.__setitem__(name, (args[0], out))
        )
    obs = torch.randn(5, 4)
    out = policy(obs)
    assert torch.equal(seen["hidden.0"][0], obs)
    assert torch.equal(seen["hidden.1"][0], seen["hidden.0"][1])
    layer = policy.hidden[1]
    assert torch.equal(seen["hidden.1"][1], layer.activation(layer.linear(seen["hidden.1"][0])))
    assert torch.equal(seen["head"][1], out)
    for name, (_, y) in seen.items():
        assert torch.equal(policy.tail_from(name)(y), out)


def test_tail_passes_fire_no_hooks():
    policy = make()
    fired = []
    for module in policy.modules():
        module.register_forward_hook(lambda *_: fired.append(1))
    policy.tail_from("hidden.0")(torch.randn(2, 8))
    assert fired == []


def test_unknown_hook_point_is_one_sentence():
    with pytest.raises(UserError, match=r"no hook point 'hidden.7'.*hidden.0, hidden.1, head"):
        make().tail_from("hidden.7")


@given(st.integers(1, 5), st.integers(0, 2**31 - 1))
def test_act_is_batched_and_row_by_row_the_same(n, seed):
    policy = make(sizes=(4, 5, 2))
    obs = np.random.default_rng(seed).normal(size=(n, 4)).astype(np.float32)
    actions = policy.act(obs)
    assert actions.dtype == np.int64
    assert actions.shape == (n,)
    assert [policy.act(row[None])[0] for row in obs] == actions.tolist()


def test_softmax_samples_with_the_right_frequencies_and_is_greedy_without_rng():
    policy = make(sizes=(4, 3), output=Output.SOFTMAX)
    logits = torch.tensor([[0.0, 1.0, 2.0]]).repeat(20_000, 1)
    drawn = policy.actions(logits, np.random.default_rng(0))
    share = np.bincount(drawn, minlength=3) / len(drawn)
    expected = torch.softmax(logits[0], 0).numpy()
    assert np.abs(share - expected).max() < 0.012  # about 3.5 standard errors of the largest
    assert set(policy.actions(logits).tolist()) == {2}


def test_continuous_outputs_respect_their_bounds():
    low, high = (-2.0, 0.0, -1.0), (2.0, 1.0, 1.0)
    outputs = torch.tensor([[-9.0, 0.5, 9.0], [0.0, 0.0, 0.0]])
    clip = make(output=Output.LINEAR_CLIP, action_low=low, action_high=high).actions(outputs)
    assert clip.tolist() == [[-2.0, 0.5, 1.0], [0.0, 0.0, 0.0]]
    scaled = make(output=Output.TANH_SCALE, action_low=low, action_high=high).actions(outputs)
    assert scaled[1].tolist() == [0.0, 0.5, 0.0]
    assert scaled[0, 0] == pytest.approx(-2.0, abs=1e-6)
    tanh = make(output=Output.TANH).actions(outputs)
    assert tanh[0].tolist() == pytest.approx(np.tanh([-9.0, 0.5, 9.0]).tolist())
    assert clip.dtype == scaled.dtype == tanh.dtype == np.float32


def test_normalisation_is_float64_and_part_of_the_state():
    mean, std = (1e6, 0.0, 0.0, 0.0), (1.0, 2.0, 1.0, 1.0)
    policy = make(obs_mean=mean, obs_std=std, obs_clip=3.0)
    assert {"obs_mean", "obs_std"} <= policy.state_dict().keys()
    obs = torch.tensor([[1e6 + 0.25, 4.0, -50.0, 0.5]], dtype=torch.float64)
    assert policy.network_input(obs).tolist() == [[0.25, 2.0, -3.0, 0.5]]


def test_humanoid_adapter_puts_every_block_in_its_place():
    policy = make(sizes=(376, 2), adapter=Adapter.HUMANOID_V5_TO_376)
    obs = torch.arange(1.0, 349.0)[None]
    x = policy.network_input(obs)[0]
    assert x[x != 0].tolist() == obs[0].tolist()
    zeros = torch.nonzero(x == 0).flatten().tolist()
    assert zeros == [*range(45, 55), *range(185, 191), *range(269, 275), *range(292, 298)]
    silent = make(sizes=(376, 2), adapter=Adapter.HUMANOID_V5_TO_376_CFRC_ZERO)
    assert not silent.network_input(obs)[0, 292:].any()
    with pytest.raises(ValueError, match="348 observations"):
        policy.network_input(torch.zeros(1, 376))


@pytest.mark.parametrize(
    "fields",
    [
        {"layer_sizes": (4,)},
        {"layer_sizes": (4, 2), "obs_mean": (0.0,) * 4},
        {"layer_sizes": (4, 2), "obs_mean": (0.0,) * 3, "obs_std": (1.0,) * 3},
        {"layer_sizes": (4, 2), "output": Output.TANH_SCALE},
        {"layer_sizes": (4, 2), "action_low": (0.0, 0.0), "action_high": (1.0, 1.0)},
    ],
)
def test_a_spec_that_contradicts_itself_is_refused(fields):
    with pytest.raises(ValueError, match=r"layer sizes|obs_mean|action_low"):
        PolicySpec(**fields)
