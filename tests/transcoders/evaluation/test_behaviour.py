from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from interlatent_live.environments.metric_packs import OutputKind
from interlatent_live.errors import UserError
from interlatent_live.policies.spec import Output
from interlatent_live.transcoders.acting import ActingPolicy
from interlatent_live.transcoders.evaluation.behaviour import (
    SpliceResult,
    behaviour_fidelity,
    equivalence,
    step_agreement,
)
from interlatent_live.transcoders.evaluation.splice import Splice

HOOK = "hidden.0..hidden.1"


def result(returns):
    return SpliceResult("x", tuple(returns), None, 0.0, None)


def test_the_exact_output_spliced_in_changes_nothing(cartpole):
    found = behaviour_fidelity(
        cartpole,
        HOOK,
        {"same": lambda _, y: y, "broken": lambda _, y: -y},
        torch.zeros(64),
        seeds=range(4),
        max_steps=60,
    )
    same, broken = found.spliced
    assert same.returns == found.original.returns == (60.0,) * 4
    assert same.diverged == 0
    assert same.first_divergence is None
    assert same.agreement is not None
    assert same.agreement.agreement == 1
    assert same.agreement.kl == pytest.approx(0, abs=1e-9)
    assert same.agreement.output_fvu == pytest.approx(0, abs=1e-9)
    assert found.kept(same) == 1
    assert np.mean(broken.returns) < 30
    assert broken.diverged == 1
    assert broken.agreement is not None
    assert (broken.agreement.agreement or 0) < 0.6
    assert equivalence(found.original, found.ablated, [same]).equivalent
    assert not equivalence(found.original, found.ablated, [broken]).equivalent


def test_a_policy_that_samples_draws_the_same_in_every_arm(cartpole):
    module = copy.deepcopy(cartpole.module)
    module.spec = replace(module.spec, output=Output.SOFTMAX)
    module.head.weight.data /= 50  # of almost equal logits, so that the draw decides
    sampling = replace(cartpole, module=module)
    found = behaviour_fidelity(
        sampling, HOOK, {"same": lambda _, y: y}, torch.zeros(64), seeds=range(6), max_steps=60
    )
    assert found.spliced[0].returns == found.original.returns
    assert found.spliced[0].diverged == 0
    assert len(set(found.original.returns)) > 1
    assert max(found.original.returns) < 60  # the greedy policy stands to the end


def test_a_splice_leaves_the_policy_as_it_was(cartpole):
    obs = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)
    before = cartpole.outputs(obs)
    seen = []

    def replacement(x, y):
        seen.append((x.shape, y.shape))
        return torch.zeros_like(y)

    with Splice(cartpole.module, HOOK, replacement):
        inside = cartpole.outputs(obs)
    assert torch.equal(cartpole.outputs(obs), before)
    assert seen == [((5, 4), (5, 64))]
    assert torch.equal(inside, cartpole.module.head.bias.expand(5, 2))


def test_equivalence_is_two_sided_and_needs_evidence():
    random = np.random.default_rng(3)
    own, ablated = random.normal(250, 60, 100), np.full(100, -130.0)
    margin = 0.05 * (own.mean() + 130)

    def judged(shift, spread, n=100):
        arms = [result(own[:n] + shift + random.normal(0, spread, n)) for _ in range(3)]
        return equivalence(result(own[:n]), result(ablated[:n]), arms)

    assert judged(0, 10).equivalent
    assert judged(0, 10).margin == pytest.approx(margin)
    assert not judged(2 * margin, 10).equivalent  # better than the original is unfaithful too
    assert not judged(-2 * margin, 10).equivalent
    assert not judged(0, 200, n=8).equivalent  # too little evidence is not equivalence


def fake(kind):
    return ActingPolicy("toy", torch.nn.Identity(), "", "", kind)


def test_regret_counts_what_a_choice_costs():
    own = np.array([[1.0, 3.0, 2.0], [5.0, 4.9, 0.0]])
    other = np.array([[0.0, 0.0, 9.0], [4.0, 5.0, 0.0]])
    found = step_agreement(fake(OutputKind.VALUES), own, other)
    assert found.agreement == 0
    assert found.regret == pytest.approx(((3 - 2) + (5 - 4.9)) / 2 / ((1.0 + 0.1) / 2))
    assert found.kl is None
    assert found.rmse is None


def test_kl_and_rmse():
    logits = np.log(np.array([[0.5, 0.5], [0.5, 0.5]]))
    other = np.log(np.array([[0.9, 0.1], [0.5, 0.5]]))
    found = step_agreement(fake(OutputKind.LOGITS), logits + 7, other)
    expected = 0.5 * (np.log(0.5 / 0.9) + np.log(0.5 / 0.1)) / 2
    assert found.kl == pytest.approx(expected)
    own = np.array([[0.0], [2.0]])
    found = step_agreement(fake(OutputKind.CONTINUOUS), own, own + 0.5)
    assert found.rmse == pytest.approx(0.5)
    assert found.agreement is None


def test_what_cannot_be_measured_is_refused(cartpole):
    with pytest.raises(UserError, match="2 seeds"):
        behaviour_fidelity(cartpole, HOOK, {"a": lambda _, y: y}, torch.zeros(64), seeds=[1])
