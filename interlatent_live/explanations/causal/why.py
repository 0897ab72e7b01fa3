"""Why this action? One decision of a policy taken apart on demand, and checked by ablation.

It runs on a copy of the policy and changes nothing. The account itself is :mod:`attribution`'s;
what is added here is where its numbers come from: the hook points' inputs and outputs of one
forward, the transcoders' features, the gradient of the number in question at the last hook point,
the same number with each of the top features taken out, and the way from the observation to the
first hook point.

That way may lead through layers without a transcoder, which are not linear. Their part of each
number of the observation is its path integral from a usual observation to this one (integrated
gradients: Sundararajan, Taly & Yan, 2017, eq. 1; 16 Gauss–Legendre nodes); what the usual
observation itself gives is a term of its own, which also takes up the sum's error.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from interlatent_live.errors import UserError
from interlatent_live.explanations.causal.attribution import (
    Ablation,
    ActionTarget,
    Attribution,
    LayerTrace,
    ablate_strongest,
    attribute,
    rank_agreement,
)
from interlatent_live.explanations.causal.shadow import Shadow

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray
    from torch import Tensor, nn

    from interlatent_live.transcoders.transcoder import Transcoder

ABLATED: Final = 10
"""Top features that are taken out one by one."""
NODES: Final = 16
"""Of the path integral."""
MOST_OBSERVED: Final = 1024
"""Numbers of an observation that are terms of their own; more, and no pixel says anything."""


@dataclass(frozen=True, slots=True)
class Why:
    """The account of one decision."""

    attribution: Attribution
    chosen: str
    """What the policy scores highest, or the component of a continuous action."""
    runner_up: str
    """The second best action; empty for continuous control."""
    ablations: tuple[Ablation, ...]
    """The top features' terms beside what taking each out changes."""
    note: str = ""
    """Why the account ends before the observation; empty where it does not."""

    def to_json(self) -> dict[str, Any]:
        """The graph, and what checks it."""
        return {
            **self.attribution.to_json(),
            "chosen": self.chosen,
            "runner_up": self.runner_up,
            "ablations": [
                {"name": one.name, "contribution": one.contribution, "measured": one.measured}
                for one in self.ablations
            ],
            "rank_agreement": rank_agreement(self.ablations),
            "residual": max((abs(r) for r in self.attribution.residuals()), default=0.0),
            "note": self.note,
        }


class Explaining:
    """Takes decisions of one policy apart.

    Args:
        points: by hook point, what runs a copy of the policy and its transcoder; from the
            observation to the action, each reading what the one before it gives, or the difference
            stands in the account as a term of its own.
        actions: names of discrete actions, or of the components of a continuous one.

    Raises:
        UserError: without a transcoder.
    """

    def __init__(
        self, points: Mapping[str, tuple[Shadow, Transcoder]], actions: Sequence[str] = ()
    ) -> None:
        if not points:
            raise UserError("no transcoder was given, so there are no features to explain with")
        self._points, self._actions = dict(points), actions

    def why(
        self,
        observation: Tensor,
        *,
        component: int | None = None,
        mean: float = 0.0,
        usual: Tensor | None = None,
    ) -> Why:
        """Take one decision apart.

        Args:
            observation: one, [1, …].
            component: explain this component of a continuous action, less ``mean``; None explains
                logit(chosen) − logit(runner-up).
            mean: the component's mean over the run.
            usual: [1, …] the observation that the terms of this one's numbers are beside; None ends
                the account at what the first hook point reads.

        Raises:
            UserError: for more than one observation, or an output without a runner-up.
        """
        if len(observation) != 1:
            raise UserError(f"one decision is explained at a time, not {len(observation)}")
        layers = [
            _trace(name, shadow, transcoder, observation)
            for name, (shadow, transcoder) in self._points.items()
        ]
        last = next(reversed(self._points.values()))[0]
        reading, chosen, runner_up = _question(
            last.outputs(observation)[0], self._actions, component
        )
        value, gradient = last.value_and_gradient(observation, reading)
        label = f"{chosen} over {runner_up}" if runner_up else chosen
        # A constant is part of the tail's own term, so taking the mean off moves nothing else.
        target = ActionTarget(label, value - mean, gradient.numpy().astype(np.float64))
        found, note = self._attributed(layers, target, observation, usual)

        def ablated(name: str) -> float:
            hook, _, index = name.removeprefix("feature:").rpartition("/")
            layer = next(one for one in layers if one.hook_point == hook)
            place = int(np.flatnonzero(layer.index == int(index))[0])
            taken = -float(layer.value[place]) * layer.W_dec[int(index)]
            shift = torch.from_numpy(np.asarray(taken, np.float32))[None]
            outputs = self._points[hook][0].outputs(observation, shift)[0].double()
            return float(outputs @ reading) - mean

        return Why(found, chosen, runner_up, ablate_strongest(found, ablated, ABLATED), note)

    def _attributed(
        self,
        layers: Sequence[LayerTrace],
        target: ActionTarget,
        observation: Tensor,
        usual: Tensor | None,
    ) -> tuple[Attribution, str]:
        """The account, down to the observation where a gradient leads there."""
        if usual is None:
            return attribute(layers, target), ""
        first = layers[0].hook_point
        if not observation.is_floating_point():
            note = f"observations are {observation.dtype}".replace("torch.", "")
        elif observation.numel() > MOST_OBSERVED:
            note = f"an observation has {observation.numel()} numbers"
        else:
            path = _Path(self._points[first][0], observation, usual)
            try:
                return attribute(layers, target, observed=path), ""
            except RuntimeError as error:
                note = f"no gradient leads there: {error}"[:200]
        ends = f"the account ends at what {first} reads, not at the observation: {note}"
        return attribute(layers, target), ends


class _Path:
    """The straight way from a usual observation to this one."""

    def __init__(self, shadow: Shadow, observation: Tensor, usual: Tensor) -> None:
        self._shadow = shadow
        nodes, weights = np.polynomial.legendre.leggauss(NODES)
        self._weights = torch.from_numpy(weights / 2)
        self._way = (observation - usual).double()
        share = torch.from_numpy((nodes + 1) / 2).reshape(-1, *[1] * (observation.dim() - 1))
        self._at = (usual.double() + share * self._way).to(observation.dtype)

    def __call__(self, readings: NDArray[np.float64]) -> NDArray[np.float64]:
        """[r, d_in] → [r, n]."""
        gradients = self._shadow.input_gradients(self._at, torch.from_numpy(readings)).double()
        mean = torch.einsum("n,rn...->r...", self._weights, gradients)
        parts: NDArray[np.float64] = (mean * self._way).reshape(len(readings), -1).numpy()
        return parts


def why(
    policy: nn.Module,
    transcoders: Mapping[str, Transcoder],
    observation: Tensor,
    *,
    actions: Sequence[str] = (),
    component: int | None = None,
    mean: float = 0.0,
    usual: Tensor | None = None,
    read: Callable[[Any], Tensor] | None = None,
) -> Why:
    """Take one decision of a policy apart; see :class:`Explaining`.

    Args:
        policy: maps observations [n, …] to outputs [n, A]; it is copied.
        transcoders: by hook point, from the observation to the action.
        observation: one, [1, …].
        actions: names of discrete actions, or of the components of a continuous one.
        component: as in :meth:`Explaining.why`.
        mean: as in :meth:`Explaining.why`.
        usual: as in :meth:`Explaining.why`.
        read: takes the outputs [n, A] out of what the policy returns.

    Raises:
        UserError: for more than one observation, no transcoder, or a hook point that does not
            exist.
    """
    try:
        points = {name: (Shadow(policy, name, read=read), one) for name, one in transcoders.items()}
    except ValueError as error:
        raise UserError(str(error)) from error
    explaining = Explaining(points, actions)
    return explaining.why(observation, component=component, mean=mean, usual=usual)


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
