"""A policy told in JSON and tensors is the same policy, or it is refused with what stands where."""

from __future__ import annotations

import enum
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from interlatent_live.agent.shadow_recipe import RecipeError, describe, name_of, read_recipe
from interlatent_live.policies.hashing import policy_hash
from interlatent_live.transcoders.acting import acting_policy
from tests.support.shadow_policies import Normalised, Recurrent, Stochastic


class Colour(enum.Enum):
    RED = "red"


@dataclass(frozen=True, slots=True)
class Facts:
    size: int
    colour: Colour


class Odd(nn.Module):
    """Holds a bit of everything."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.second = nn.Linear(3, 3)
        self.second.weight = self.first.weight
        self.facts = Facts(3, Colour.RED)
        self.act = torch.tanh
        self.kind = nn.ReLU
        self.scale = np.float64(0.5)
        self.bounds = np.array([[-1.0, 2.0]])
        self.state: dict[str, Any] = {"h": torch.ones(2), "again": None, "names": ("a", ["b"])}
        self.dtype = torch.float32
        self.me = [self]

    def forward(self, x):
        x = self.act(self.second(self.first(x.to(self.dtype)))) * float(self.scale)
        return x + float(self.bounds.sum()) + self.facts.size


def rebuilt(policy):
    return read_recipe(describe(policy=policy).to_bytes())["policy"]


@pytest.mark.parametrize(
    "make",
    [
        Stochastic,
        Recurrent,
        Normalised,
        Odd,
        lambda: nn.LSTM(4, 3, 2),
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.BatchNorm1d(3)),
        lambda: nn.TransformerEncoderLayer(4, 2, 8, batch_first=True),
        lambda: acting_policy("cartpole").module,
    ],
)
def test_what_is_rebuilt_hashes_and_computes_the_same(make):
    torch.manual_seed(1)
    policy = make().eval()
    policy.register_forward_hook(lambda *_: None)
    got = rebuilt(policy).eval()
    assert policy_hash(got) == policy_hash(policy)
    assert not got._forward_hooks
    assert not any(parameter.requires_grad for parameter in got.parameters())
    x = torch.randn(2, 5, 4) if "Transformer" in type(policy).__name__ else torch.randn(2, 4)
    x = x[..., :3] if isinstance(policy, Odd) else x
    for seen in (policy, got):
        torch.manual_seed(2)
        with torch.no_grad():
            seen.answer = seen(x)
    first, second = policy.answer, got.answer
    if isinstance(first, tuple):
        first, second = first[0], second[0]
    assert torch.equal(first, second)


def test_shared_things_stay_shared_and_copies_are_nobody_elses():
    policy = Odd()
    got = rebuilt(policy)
    assert got.second.weight is got.first.weight
    assert got.me[0] is got
    assert (got.facts, got.kind, got.act) == (policy.facts, nn.ReLU, torch.tanh)
    got.state["h"][0] = 7.0
    assert policy.state["h"][0] == 1.0


def test_what_travels_is_json_and_safetensors():
    recipe = describe(policy=Odd())
    assert json.loads(json.dumps(recipe.document)) == recipe.document
    data = recipe.to_bytes()
    size = int.from_bytes(data[:8], "little")
    json.loads(data[8 : 8 + size])
    json.loads(data[16 + size : 16 + size + int.from_bytes(data[8 + size : 16 + size], "little")])


def test_what_cannot_be_told_is_named():
    policy = nn.Sequential(nn.Linear(2, 2))
    policy[0].squash = lambda x: x  # type: ignore[assignment]  # as users do
    with pytest.raises(RecipeError, match=r"the policy\.0\.squash is .*lambda.*cannot be imported"):
        describe(policy=policy)

    class Local(nn.Module):
        pass

    with pytest.raises(RecipeError, match=r"Local, which cannot be imported"):
        describe(policy=Local())
    odd = Stochastic()
    odd.random = np.random.default_rng(0)  # type: ignore[assignment]  # likewise
    with pytest.raises(RecipeError, match=r"the policy\.random is a Generator"):
        describe(policy=odd)
    main = type("Mine", (nn.Module,), {"__module__": "__main__"})
    with pytest.raises(RecipeError, match="lives in the started script"):
        name_of(main, "the policy")
