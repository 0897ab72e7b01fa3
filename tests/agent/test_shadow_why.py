"""Why did the agent act so? From samples of a policy, without processes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import interlatent_live
from interlatent_live.agent.shadow_measuring import Sample
from interlatent_live.agent.shadow_values import ShadowNames, WhyQuestion
from interlatent_live.agent.shadow_why import Accounts, CannotExplainError
from interlatent_live.environments.metric_packs import FAMILIES
from interlatent_live.environments.observation_names import observed_numbers
from interlatent_live.errors import UserError
from interlatent_live.explanations.causal.shadow import Call, Shadow
from interlatent_live.policies.files import load_policy
from interlatent_live.transcoders.config import Architecture, TranscoderConfig
from interlatent_live.transcoders.native import load_transcoder
from interlatent_live.transcoders.transcoder import Transcoder
from tests.support.shadow_policies import WIDTH, Normalised, Recurrent

HOOK = "hidden.1"
ACTIONS = ("push left", "push right")
FOLDER = Path(interlatent_live.__file__).parent / "data" / "transcoders" / "cartpole" / HOOK
FIRST_STEP = 100


def accounts(policy, transcoders, names=None, *, discrete=True):
    points = {name: (Shadow(policy, name), one) for name, one in transcoders.items()}
    return Accounts(
        policy, points, names=names or ShadowNames(), discrete=discrete, sample_every=16
    )


def drawn(count, width, copies=1):
    random = np.random.default_rng(3)
    scale = np.linspace(0.2, 1.5, width)
    return [
        Sample(
            Call(
                (torch.from_numpy((random.normal(size=(copies, width)) * scale).astype("f4")),), {}
            ),
            (np.arange(copies) << 32) + 7,
            np.full(copies, FIRST_STEP + 16 * number),
            1_000 + number,
        )
        for number in range(count)
    ]


def random_transcoder(d_in, d_out, seed=0, features=24):
    random = torch.Generator().manual_seed(seed)
    config = TranscoderConfig(
        architecture=Architecture.RELU, d_in=d_in, d_out=d_out, n_features=features, l1=1.0
    )
    tensors = {
        "W_enc": torch.randn(d_in, features, generator=random),
        "b_enc": torch.zeros(features),
        "W_dec": torch.randn(features, d_out, generator=random) / features,
        "b_dec": torch.zeros(d_out),
    }
    return Transcoder.from_tensors(config, tensors)


@pytest.fixture(scope="module")
def cart():
    names = ShadowNames(ACTIONS, observed_numbers(FAMILIES["CartPole-v1"]))
    policy = load_policy("cartpole").module
    return accounts(policy, {HOOK: load_transcoder(FOLDER).transcoder}, names)


def terms(told, kind):
    return [one for level in told["levels"] for one in level if one["kind"] == kind]


def test_the_newest_step_is_taken_apart_down_to_named_numbers(cart):
    samples = drawn(40, 4, copies=3)
    told = cart.account(samples, WhyQuestion("q", env=2))
    assert (told["env"], told["episode"], told["t"]) == (2, 7, FIRST_STEP + 16 * 39)
    assert told["time_ns"] == samples[-1].time_ns
    assert told["hook_points"] == [HOOK]
    for level in told["levels"]:
        assert sum(one["contribution"] for one in level) == pytest.approx(told["value"], abs=1e-4)
    numbers = {one["label"]: one for one in terms(told, "observation")}
    assert sorted(numbers) == sorted(
        ["cart_position", "cart_velocity", "pole_angle", "pole_angular_velocity"]
    )
    seen = samples[-1].call.args[0][2]
    assert numbers["pole_angle"]["unit"] == "rad"
    assert numbers["pole_angle"]["value"] == pytest.approx(float(seen[2]))
    rows = torch.cat([one.call.args[0] for one in samples])
    assert numbers["pole_angle"]["usual"] == pytest.approx(float(rows[:, 2].mean()), abs=1e-5)
    assert all(one["label"] for level in told["levels"] for one in level)
    features = terms(told, "feature")
    assert {one["hook_point"] for one in features} == {HOOK}
    # Behind the last hidden layer the head is linear: taking out measures what the term says.
    for one in told["ablations"]:
        assert one["measured"] == pytest.approx(one["contribution"], abs=1e-4)
    json.dumps(told, allow_nan=False)


def test_a_step_that_is_held_is_found_and_another_is_told_its_nearest(cart):
    samples = drawn(5, 4)
    told = cart.account(samples, WhyQuestion("q", episode=7, t=FIRST_STEP + 32))
    assert told["time_ns"] == samples[2].time_ns
    assert cart.account(samples, WhyQuestion("q", t=FIRST_STEP))["t"] == FIRST_STEP
    with pytest.raises(UserError, match=r"step 130 of episode 7 is not held.*16th.*is step 132 of"):
        cart.account(samples, WhyQuestion("q", t=130))
    with pytest.raises(UserError, match="no copy 1: the agent has 1"):
        cart.account(samples, WhyQuestion("q", env=1))
    with pytest.raises(UserError, match="no forward of the policy"):
        cart.account([], WhyQuestion("q"))


def test_a_call_that_was_a_reset_is_no_step(cart):
    samples = drawn(3, 4)
    samples[-1].t[:] = -1
    assert cart.account(samples, WhyQuestion("q"))["t"] == FIRST_STEP + 16
    for one in samples:
        one.t[:] = -1
    with pytest.raises(UserError, match="no step of copy 0"):
        cart.account(samples, WhyQuestion("q"))


class TwoJoints(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(4)
        self.first = nn.Sequential(nn.Linear(5, WIDTH), nn.Tanh())
        self.second = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh())
        self.head = nn.Linear(WIDTH, 2)

    def forward(self, x):
        return torch.tanh(self.head(self.second(self.first(x))))


def test_of_a_continuous_action_the_part_that_is_furthest_from_usual_is_explained():
    policy = TwoJoints()
    one = accounts(
        policy,
        # In the wrong order: the policy's own is found out.
        {"second": random_transcoder(WIDTH, WIDTH), "first": random_transcoder(5, WIDTH, 1)},
        ShadowNames(("hip", "knee")),
        discrete=False,
    )
    samples = drawn(30, 5)
    told = one.account(samples, WhyQuestion("q"))
    outputs = policy(torch.cat([s.call.args[0] for s in samples])).double().detach()
    off = ((outputs[-1] - outputs.mean(0)).abs() / outputs.std(0, correction=0)).numpy()
    assert told["chosen"] == ("hip", "knee")[int(off.argmax())]
    assert told["value"] == pytest.approx(
        float((outputs[-1] - outputs.mean(0))[int(off.argmax())]), abs=1e-5
    )
    assert told["hook_points"] == ["first", "second"]
    assert len(told["levels"]) == 3
    assert told["residual"] < 1e-4
    other = one.account(samples, WhyQuestion("q", component="knee"))
    assert (other["chosen"], other["runner_up"]) == ("knee", "")
    assert one.account(samples, WhyQuestion("q", component="0"))["chosen"] == "hip"
    with pytest.raises(UserError, match="no output 'elbow'; it has hip, knee"):
        one.account(samples, WhyQuestion("q", component="elbow"))
    # Nobody has named the observation's numbers, and the largest terms have words all the same.
    assert {t["label"] for t in terms(told, "observation")} == {
        f"observation {i}" for i in range(5)
    }


class Forgetful(nn.Module):
    """Keeps a state that no module type tells of."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(4, WIDTH)
        self.head = nn.Linear(WIDTH, 2)
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return self.head(self.body(x)) + self.calls


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        (Recurrent, "is recurrent .memory is a GRUCell."),
        (Normalised, "normalises by the batch .*policy.eval"),
        (Forgetful, "another one each time"),
    ],
)
def test_a_decision_that_one_observation_does_not_determine_is_refused(kind, sentence):
    one = accounts(kind(), {"body": random_transcoder(4, WIDTH)})
    with pytest.raises(CannotExplainError, match=sentence):
        one.account(drawn(3, 4), WhyQuestion("q"))


def test_a_policy_that_is_handed_more_than_observations_is_refused(cart):
    samples = drawn(3, 4)
    state = torch.zeros(1, 2)
    handed = [Sample(Call((*s.call.args, state), {}), s.episode, s.t, s.time_ns) for s in samples]
    with pytest.raises(CannotExplainError, match="more than one tensor of observations"):
        cart.account(handed, WhyQuestion("q"))
