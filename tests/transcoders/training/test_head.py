from __future__ import annotations

import pytest
import torch

from interlatent_live.environments.metric_packs import OutputKind
from interlatent_live.policies.mlp import MlpPolicy
from interlatent_live.policies.spec import Activation, Output, PolicySpec
from interlatent_live.transcoders.acting import ActingPolicy
from interlatent_live.transcoders.tails import head_metric, tail_of
from interlatent_live.transcoders.training.head import CurvedTail, LinearHead


def policy_with(output, **bounds):
    torch.manual_seed(3)
    module = MlpPolicy(
        PolicySpec((4, 8, 8, 3), activation=Activation.TANH, output=output, **bounds)
    )
    return ActingPolicy("toy", module, "Toy-v0", "sha256:0", OutputKind.LOGITS)


def check_gradient(metric, y, error):
    loss, gradient = metric.loss_and_gradient(y, error)
    step = 1e-3
    direction = torch.randn(error.shape, generator=torch.Generator().manual_seed(8))
    up, _ = metric.loss_and_gradient(y, error + step * direction)
    down, _ = metric.loss_and_gradient(y, error - step * direction)
    assert float((gradient * direction).sum()) == pytest.approx(
        float(up - down) / (2 * step), rel=1e-2, abs=1e-5
    )
    return float(loss)


def test_a_linear_head_ignores_what_moves_all_logits_alike():
    policy = policy_with(Output.ARGMAX)
    y = torch.randn(50, 8)
    metric = head_metric(policy, "hidden.1", y)
    assert isinstance(metric, LinearHead)
    head = policy.module.head
    with torch.no_grad():
        weight = head.weight
        centred = weight - weight.mean(0)
        # An error that adds the same to every logit: weight @ e = constant.
        common = torch.linalg.lstsq(weight, torch.ones(3, 1)).solution.T
        assert float(metric.loss_and_gradient(y, common.repeat(50, 1))[0]) < 1e-8
        error = torch.randn(50, 8)
        logits = y @ centred.T
        variance = (logits - logits.mean(0)).square().sum(1).mean()
        expected = (error @ centred.T).square().sum(1).mean() / variance
    assert check_gradient(metric, y, error) == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize(
    ("output", "hook", "bounds"),
    [
        (Output.ARGMAX, "hidden.0", {}),
        (Output.ARGMAX, "hidden.0..hidden.0", {}),
        (Output.TANH, "hidden.1", {}),
        (
            Output.TANH_SCALE,
            "hidden.1",
            {"action_low": (-1.0,) * 3, "action_high": (1.0,) * 3},
        ),
    ],
)
def test_curved_tails_take_the_jacobian_at_each_row(output, hook, bounds):
    policy = policy_with(output, **bounds)
    y = torch.randn(20, 8)
    metric = head_metric(policy, hook, y)
    assert isinstance(metric, CurvedTail)
    error = torch.randn(20, 8)
    loss = check_gradient(metric, y, error)
    jacobians = torch.stack(
        [torch.autograd.functional.jacobian(lambda v: metric.tail(v[None])[0], row) for row in y]
    )
    moved = torch.einsum("nad,nd->na", jacobians, error)
    assert loss == pytest.approx(float(moved.square().sum(1).mean() / metric.variance), rel=1e-4)


def test_clipped_actions_are_compared_in_their_own_spread():
    policy = policy_with(Output.LINEAR_CLIP, action_low=(-1.0,) * 3, action_high=(1.0,) * 3)
    y = torch.randn(50, 8)
    metric = head_metric(policy, "hidden.1", y)
    assert isinstance(metric, LinearHead)
    with torch.no_grad():
        spread = policy.module.head(y).std(0)
        torch.testing.assert_close(metric.matrix, policy.module.head.weight.T / spread)


def test_other_modules_have_no_known_tail():
    policy = ActingPolicy("net", torch.nn.Linear(2, 2), "", "sha256:0", OutputKind.LOGITS)
    assert tail_of(policy, "whatever") is None
    assert head_metric(policy, "whatever", torch.zeros(3, 2)) is None


def test_the_mix_makes_the_weighted_loss_a_plain_one():
    policy = policy_with(Output.ARGMAX)
    y = torch.randn(50, 8)
    metric = head_metric(policy, "hidden.1", y)
    assert isinstance(metric, LinearHead)
    error = torch.randn(50, 8)
    loss, _ = metric.loss_and_gradient(y, error * 3.0)
    expected = float(error.square().sum(1).mean() + 0.2 * loss)
    mixed = error.double() @ metric.mix(0.2, y_scale=3.0)
    assert float(mixed.square().sum(1).mean()) == pytest.approx(expected, rel=1e-5)
