"""Why this action? One decision of a policy taken apart on demand, and checked by ablation.

It runs on a copy of the policy and changes nothing. The account itself is :mod:`attribution`'s;
what is added here is where its numbers come from: the hook points' inputs and outputs of one
forward, the transcoders' features, the gradient of the number in question at the last hook point,
and the same number with each of the top features taken out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from interlatent_live.errors import UserError
from interlatent_live.explanations.causal.attribution import (
    ActionTarget,
    Attribution,
    LayerTrace,
    attribute,
    rank_agreement,
)
from interlatent_live.explanations.causal.shadow import Shadow

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor, nn

    from interlatent_live.transcoders.transcoder import Transcoder

ABLATED = 10
"""Top features that are taken out one by one."""


@dataclass(frozen=True, slots=True)
class Why:
    """The account of one decision."""

    attribution: Attribution
    chosen: str
    runner_up: str
    """The second best action; empty for continuous control."""
    rank_agreement: float | None
    """Spearman's ρ of the top features' terms with what taking each out changes."""

    def to_json(self) -> dict[str, Any]:
        """The graph, and what checks it."""
        return {
            **self.attribution.to_json(),
            "verdict": self.attribution.verdict,
            "chosen": self.chosen,
            "runner_up": self.runner_up,
            "rank_agreement": self.rank_agreement,
            "residual": max((abs(r) for r in self.attribution.residuals()), default=0.0),
        }


def why(
    policy: nn.Module,
    transcoders: Mapping[str, Transcoder],
    observation: Tensor,
    *,
    actions: Sequence[str] = (),
    component: int | None = None,
    mean: float = 0.0,
    read: Callable[[Any], Tensor] | None = None,
) -> Why:
    """Take one decision apart.

    Args:
        policy: maps observations [n, …] to outputs [n, A]; it is copied.
        transcoders: by hook point, from the observation to the action; each reads what the one
            before it gives, or the difference stands in the account as a term of its own.
        observation: one, [1, …].
        actions: names of discrete actions.
        component: explain this component of a continuous action, less ``mean``; None explains
            logit(chosen) − logit(runner-up).
        mean: the component's mean over the run.
        read: takes the outputs [n, A] out of what the policy returns.

    Raises:
        UserError: for more than one observation, no transcoder, or a hook point that does not
            exist.
    """
    if not transcoders:
        raise UserError("no transcoder was given, so there are no features to explain with")
    if len(observation) != 1:
        raise UserError(f"one decision is explained at a time, not {len(observation)}")
    try:
        shadows = {name: Shadow(policy, name, read=read) for name in transcoders}
    except ValueError as error:
        raise UserError(str(error)) from error
    layers = [
        _trace(name, shadows[name], transcoder, observation)
        for name, transcoder in transcoders.items()
    ]
    last = next(reversed(shadows.values()))
    reading, chosen, runner_up = _question(last.outputs(observation)[0], actions, component)
    value, gradient = last.value_and_gradient(observation, reading)
    label = f"{chosen} over {runner_up}" if runner_up else chosen
    # A constant is part of the tail's own term, so taking the mean off moves nothing else.
    found = attribute(
        layers, ActionTarget(label, value - mean, gradient.numpy().astype(np.float64))
    )

    def ablated(name: str) -> float:
        hook, _, index = name.removeprefix("feature:").rpartition("/")
        layer = next(one for one in layers if one.hook_point == hook)
        place = int(np.flatnonzero(layer.index == int(index))[0])
        taken = -float(layer.value[place]) * layer.W_dec[int(index)]
        shift = torch.from_numpy(np.asarray(taken, np.float32))[None]
        outputs = shadows[hook].outputs(observation, shift)[0].double()
        return float(outputs @ reading) - mean

    return Why(found, chosen, runner_up, rank_agreement(found, ablated, ABLATED))


def _question(
    outputs: Tensor, actions: Sequence[str], component: int | None
) -> tuple[Tensor, str, str]:
    """What is read from the outputs [A], and the names of what is compared."""
    reading = torch.zeros(len(outputs), dtype=torch.float64)
    if component is not None:
        reading[component] = 1.0
        return reading, _name(actions, component), ""
    if len(outputs) < 2:
        raise UserError("with a single output there is no runner-up; name its component instead")
    best, second = (int(i) for i in outputs.topk(2).indices)
    reading[best], reading[second] = 1.0, -1.0
    return reading, _name(actions, best), _name(actions, second)


def _name(actions: Sequence[str], index: int) -> str:
    return actions[index] if index < len(actions) else f"action {index}"


def _trace(name: str, shadow: Shadow, transcoder: Transcoder, observation: Tensor) -> LayerTrace:
    x, y = shadow.seen_at_hook(observation)
    codes = transcoder.encode_sparse(x.float().numpy())
    skip = transcoder.W_skip
    return LayerTrace(
        hook_point=name,
        x=x[0].double().numpy(),
        y=y[0].double().numpy(),
        index=codes.index.astype(np.int64),
        value=codes.value.astype(np.float64),
        W_enc=transcoder.W_enc.detach().double().numpy(),
        b_enc=transcoder.b_enc.detach().double().numpy(),
        W_dec=transcoder.W_dec.detach().double().numpy(),
        b_dec=transcoder.b_dec.detach().double().numpy(),
        W_skip=None if skip is None else skip.detach().double().numpy(),
    )
