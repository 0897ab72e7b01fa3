import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from interlatent_live.policies.hashing import policy_hash, state_hash


def test_hash_is_a_pinned_function_of_the_content():
    layer = nn.Linear(3, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.arange(6.0).reshape(2, 3))
        layer.bias.copy_(torch.tensor([1.0, -1.0]))
    assert re.fullmatch(r"sha256:[0-9a-f]{64}", policy_hash(layer))
    # Recordings and transcoders in the field carry these hashes: the function must never change.
    assert policy_hash(layer) == (
        "sha256:603c8f40a696a7fd4a6b798b8c8b7b89ed60d7cac8abe255ddba7ed3ca586303"
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
