from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import interlatent_live
from interlatent_live.errors import UserError
from interlatent_live.explanations.causal.shadow import Shadow
from interlatent_live.explanations.causal.why import why
from interlatent_live.policies.files import load_policy
from interlatent_live.transcoders.config import Architecture, TranscoderConfig
from interlatent_live.transcoders.native import load_transcoder
from interlatent_live.transcoders.transcoder import Transcoder

HOOK = "hidden.1"
ACTIONS = ("push left", "push right")
FOLDER = Path(interlatent_live.__file__).parent / "data" / "transcoders" / "cartpole" / HOOK


@pytest.fixture(scope="module")
def policy():
    return load_policy("cartpole").module


@pytest.fixture(scope="module")
def transcoder():
    return load_transcoder(FOLDER).transcoder


def observations(count):
    widths = np.array([1.5, 1.0, 0.12, 1.0])
    drawn = np.random.default_rng(0).uniform(-1, 1, (count, 1, 4)) * widths
    return [torch.from_numpy(one.astype(np.float32)) for one in drawn]


def test_each_decision_adds_up_and_ablation_agrees(policy, transcoder):
    agreements = []
    for observation in observations(30):
        found = why(policy, {HOOK: transcoder}, observation, actions=ACTIONS)
        assert max(abs(r) for r in found.attribution.residuals()) < 1e-4
        assert {found.chosen, found.runner_up} == set(ACTIONS)
        assert found.attribution.value > 0
        assert f"error:{HOOK}" in {node.name for node in found.attribution.levels[0]}
        json.dumps(found.to_json(), allow_nan=False)
        agreements.append(found.to_json()["rank_agreement"])
    known = [one for one in agreements if one is not None]
    # Behind the last hidden layer the head is linear, so what is said is what ablation measures.
    assert len(known) > 10
    assert min(known) > 0.999


def test_the_account_goes_down_to_the_observation_and_still_adds_up(policy, transcoder):
    shown = observations(8)
    usual = torch.cat(shown).mean(0, keepdim=True)
    for observation in shown:
        found = why(policy, {HOOK: transcoder}, observation, actions=ACTIONS, usual=usual)
        assert max(abs(r) for r in found.attribution.residuals()) < 1e-4
        (terms,) = found.attribution.levels[1:]
        observed = [one.name for one in terms if one.kind == "observation"]
        assert observed == [f"observation:{i}" for i in range(4)]
        # What its numbers add to is how far the features' inputs are from the usual observation's.
        features = {n.name for n in found.attribution.levels[0] if n.kind == "feature"}
        into = dict.fromkeys(features, 0.0)
        for edge in found.attribution.edges:
            if edge.source.startswith("observation:"):
                into[edge.target] += edge.weight
        here, _ = Shadow(policy, HOOK).seen_at_hook(observation)
        there, _ = Shadow(policy, HOOK).seen_at_hook(usual)
        head = policy.head.weight.detach()
        chosen = int(policy(observation).argmax())
        gap = (head[chosen] - head[1 - chosen]).double()
        for name, total in into.items():
            index = int(name.rpartition("/")[2])
            through = float(transcoder.W_dec[index].detach().double() @ gap)
            moved = float((here - there)[0].double() @ transcoder.W_enc[:, index].detach().double())
            assert total == pytest.approx(through * moved, abs=1e-4)


def test_what_an_answer_leaves_out_is_in_a_term_of_its_own(policy, transcoder):
    (observation,) = observations(1)
    found = why(policy, {HOOK: transcoder}, observation, actions=ACTIONS)
    told = found.attribution.to_json(terms=3)
    for level in told["levels"]:
        assert len(level) == 4
        assert level[-1]["kind"] == "others"
        assert sum(one["contribution"] for one in level) == pytest.approx(told["value"], abs=1e-4)
    known = {"action", *(one["name"] for level in told["levels"] for one in level)}
    assert all({edge["source"], edge["target"]} <= known for edge in told["edges"])


def test_an_observation_of_whole_numbers_ends_the_account_at_the_first_hook_point():
    class Counted(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.body = torch.nn.Linear(4, 8)
            self.head = torch.nn.Linear(8, 2)

        def forward(self, x):
            return self.head(torch.relu(self.body(x.float())))

    config = TranscoderConfig(
        architecture=Architecture.RELU, d_in=4, d_out=8, n_features=16, l1=1.0
    )
    random = torch.Generator().manual_seed(1)
    tensors = {
        "W_enc": torch.randn(4, 16, generator=random),
        "b_enc": torch.zeros(16),
        "W_dec": torch.randn(16, 8, generator=random),
        "b_dec": torch.zeros(8),
    }
    one = Transcoder.from_tensors(config, tensors)
    seen = torch.tensor([[1, 2, 3, 4]], dtype=torch.uint8)
    found = why(Counted(), {"body": one}, seen, usual=seen)
    assert "observations are uint8" in found.note
    assert {n.kind for n in found.attribution.levels[-1]} >= {"input"}
    assert max(abs(r) for r in found.attribution.residuals()) < 1e-4


def test_two_hook_points_are_traced_to_the_observation(policy, transcoder):
    (observation,) = observations(1)
    x, y = Shadow(policy, "hidden.0").seen_at_hook(observation)
    random = torch.Generator().manual_seed(1)
    config = TranscoderConfig(
        architecture=Architecture.RELU,
        d_in=x.shape[1],
        d_out=y.shape[1],
        n_features=64,
        l1=1.0,
    )
    below = Transcoder.from_tensors(
        config,
        {
            "W_enc": torch.randn(x.shape[1], 64, generator=random),
            "b_enc": torch.zeros(64),
            "W_dec": torch.randn(64, y.shape[1], generator=random) / 8,
            "b_dec": torch.zeros(y.shape[1]),
        },
    )
    found = why(policy, {"hidden.0": below, HOOK: transcoder}, observation, actions=ACTIONS)
    assert len(found.attribution.levels) == 3
    assert max(abs(r) for r in found.attribution.residuals()) < 1e-4
    kinds = {node.name.partition(":")[0] for node in found.attribution.levels[-1]}
    assert "input" in kinds


def test_a_component_less_its_mean(policy, transcoder):
    (observation,) = observations(1)
    found = why(policy, {HOOK: transcoder}, observation, component=1, mean=0.25)
    expected = float(policy(observation)[0, 1].detach()) - 0.25
    assert found.attribution.value == pytest.approx(expected, abs=1e-5)
    assert max(abs(r) for r in found.attribution.residuals()) < 1e-4
    assert (found.chosen, found.runner_up) == ("action 1", "")


def test_what_cannot_be_explained_is_one_sentence(policy, transcoder):
    first, second = observations(2)
    with pytest.raises(UserError, match="one decision"):
        why(policy, {HOOK: transcoder}, torch.cat([first, second]))
    with pytest.raises(UserError, match="no transcoder"):
        why(policy, {}, first)
    with pytest.raises(UserError, match="no module 'body'"):
        why(policy, {"body": transcoder}, first)
