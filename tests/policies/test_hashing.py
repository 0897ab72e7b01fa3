import re
from collections import OrderedDict

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from interlatent_live.policies.hashing import policy_hash, state_hash, structure


def test_hash_is_a_pinned_function_of_the_content():
    layer = nn.Linear(3, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.arange(6.0).reshape(2, 3))
        layer.bias.copy_(torch.tensor([1.0, -1.0]))
    assert re.fullmatch(r"sha256:[0-9a-f]{64}", policy_hash(layer))
    # Recordings and transcoders in the field carry these hashes: the function must never change.
    assert state_hash(layer.state_dict()) == (
        "sha256:603c8f40a696a7fd4a6b798b8c8b7b89ed60d7cac8abe255ddba7ed3ca586303"
    )
    assert policy_hash(layer) == (
        "sha256:e36536360c6e1121819da1c366594b40f65fa099bc84d91c5cda9023df3ea8f3"
    )


def test_order_of_registration_and_memory_layout_do_not_matter():
    a, b = torch.arange(6.0).reshape(2, 3), torch.ones(2)
    transposed = a.t().contiguous().t()
    assert not transposed.is_contiguous()
    assert state_hash({"a": a, "b": b}) == state_hash({"b": b, "a": transposed})


@given(st.integers(0, 5), st.sampled_from(["value", "name", "dtype", "shape"]))
def test_any_change_changes_the_hash(index, kind):
    before = torch.arange(6.0)
    after = before.clone()
    name = "w"
    if kind == "value":
        after[index] += 1e-6
        if torch.equal(after, before):
            after[index] += 1.0
    elif kind == "name":
        name = "v"
    elif kind == "dtype":
        after = after.double()
    else:
        after = after.reshape(2, 3)
    assert state_hash({"w": before}) != state_hash({name: after})


def test_minus_zero_and_bfloat16_are_told_apart():
    assert state_hash({"w": torch.tensor([0.0])}) != state_hash({"w": torch.tensor([-0.0])})
    assert state_hash({"w": torch.ones(3, dtype=torch.bfloat16)}) != state_hash(
        {"w": torch.ones(3, dtype=torch.float16)}
    )


def test_empty_and_scalar_tensors_are_hashed():
    assert state_hash({"w": torch.zeros(0)}) != state_hash({"w": torch.tensor(0.0)})


def test_an_extra_state_is_refused():
    class Odd(nn.Module):
        def get_extra_state(self):
            return {"anything": 1}

    with pytest.raises(TypeError, match="no tensor"):
        policy_hash(Odd())


def net(activation):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), activation, nn.Linear(4, 2))


class Scaled(nn.Module):
    def __init__(self, by, steps=0):
        super().__init__()
        self.by, self.sizes, self._steps, self.notes = by, (1, 2), steps, ["a list"]

    def forward(self, x):
        return x * self.by


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (nn.ReLU(), nn.Tanh()),
        (nn.LeakyReLU(0.1), nn.LeakyReLU(0.2)),
        (nn.GELU(), nn.GELU("tanh")),
        (nn.ELU(), nn.ELU(alpha=0.5)),
        (Scaled(1.0), Scaled(2.0)),
    ],
)
def test_equal_weights_with_another_activation_are_another_policy(one, other):
    assert state_hash(net(one).state_dict()) == state_hash(net(other).state_dict())
    assert policy_hash(net(one)) != policy_hash(net(other))


@pytest.mark.parametrize(
    ("one", "same"),
    [
        (nn.ReLU(), nn.ReLU(inplace=True)),
        (nn.Hardtanh(-2, 2), nn.Hardtanh(-2.0, 2.0)),
        (Scaled(1.0), Scaled(1.0, steps=7)),
        (nn.Tanh(), nn.Tanh().eval()),
    ],
)
def test_what_does_not_change_an_output_does_not_change_the_hash(one, same):
    assert policy_hash(net(one)) == policy_hash(net(same))


def test_the_order_of_modules_and_their_strides_count():
    linear, tanh, relu = nn.Linear(2, 2), nn.Tanh(), nn.ReLU()

    def ordered(**modules):
        return nn.Sequential(OrderedDict(modules))

    assert policy_hash(ordered(a=linear, b=tanh, c=relu)) != policy_hash(
        ordered(b=tanh, a=linear, c=relu)
    )
    strides = [structure(nn.Conv2d(1, 1, 3, stride=stride))[0][2] for stride in (1, 2)]
    assert strides[0] != strides[1]


def test_an_activation_that_is_used_twice_counts_twice():
    shared = nn.Tanh()
    torch.manual_seed(0)
    layers = [nn.Linear(2, 2) for _ in range(2)]
    once = nn.Sequential(layers[0], shared, layers[1], shared)
    apart = nn.Sequential(layers[0], nn.Tanh(), layers[1], nn.Tanh())
    assert policy_hash(once) == policy_hash(apart)
