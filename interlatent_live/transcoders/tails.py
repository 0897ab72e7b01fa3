"""What follows a hook point: from its output y to the action, for losses, splices and effects.

Only a policy whose structure is known (the plain policy) has a tail that is a function of y alone;
for others the behaviour is measured by splicing, and what needs a tail is left out and said so.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from interlatent_live.policies.hook_points import span_ends
from interlatent_live.policies.mlp import MlpPolicy
from interlatent_live.policies.spec import Output
from interlatent_live.transcoders.training.head import CurvedTail, HeadMetric, LinearHead

if TYPE_CHECKING:
    from collections.abc import Callable

    from interlatent_live.transcoders.acting import ActingPolicy

    Tail = Callable[[Tensor], Tensor]
    """y [n, d_out of the hook point] → outputs of the head [n, A]."""


def tail_of(policy: ActingPolicy, hook_point: str) -> Tail | None:
    """The rest of the network after a hook point, where it can be had as a function of y alone."""
    if isinstance(policy.module, MlpPolicy):
        return policy.module.tail_from(span_ends(hook_point)[1])
    return None


def head_metric(
    policy: ActingPolicy, hook_point: str, y: Tensor, device: torch.device | None = None
) -> HeadMetric | None:
    """The head-weighted term at a hook point, or None where the tail is unknown.

    Discrete actions compare centred outputs, because adding a constant to all logits or values
    changes nothing. Continuous actions compare each output in units of its standard deviation over
    ``y``, after the squash where the policy has one. The tail is linear exactly when the hook point
    is the last hidden layer and nothing is squashed; then J is constant and the term nearly free.

    Args:
        policy: whose tail.
        hook_point: name or span.
        y: float [n, d_out] training outputs, for the variances.
        device: where the metric will be used; the policy itself stays where it is.
    """
    if not isinstance(policy.module, MlpPolicy):
        return None
    device = device or torch.device("cpu")
    module = copy.deepcopy(policy.module).to(device)
    tail = module.tail_from(span_ends(hook_point)[1])
    y = y.to(device)
    compared = _compared(tail, module.spec.output, y)
    with torch.no_grad():
        outputs = compared(y).double()
        variance = float((outputs - outputs.mean(0)).square().sum(1).mean())
    if variance <= 0:
        return None
    last_hidden = f"hidden.{module.spec.hidden_count - 1}"
    squashed = module.spec.output in (Output.TANH, Output.TANH_SCALE)
    if span_ends(hook_point)[1] in (last_hidden, "head") and not squashed:
        zero = torch.zeros(1, y.shape[1], device=device)
        with torch.no_grad():
            matrix = compared(torch.eye(y.shape[1], device=device)) - compared(zero)
        return LinearHead(matrix, variance)
    return CurvedTail(compared, variance)


def _compared(tail: Tail, output: Output, y: Tensor) -> Tail:
    """The tail followed by what makes two outputs comparable."""
    if output.discrete:

        def centred(value: Tensor) -> Tensor:
            out = tail(value)
            return out - out.mean(-1, keepdim=True)

        return centred
    squashed = output in (Output.TANH, Output.TANH_SCALE)

    def squash(value: Tensor) -> Tensor:
        out = tail(value)
        return torch.tanh(out) if squashed else out

    with torch.no_grad():
        spread = squash(y).std(0).clamp_min(1e-6)

    return lambda value: squash(value) / spread
