"""The plain policy: a multilayer perceptron with hook points that say what they are.

Policies from SB3, CleanRL or a course differ in module names and carry critics and optimisers
along. This is the one shape all of them are turned into for our own demo, tests and experiments:
hidden layers ``hidden.0``, ``hidden.1``, …, each one linear map and its activation, then ``head``.
So the hook point ``hidden.1`` has x = the input of its linear map and y = its activations, and a
splice at y is followed by :meth:`MlpPolicy.tail_from`.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import nn

from interlatent_live.errors import UserError
from interlatent_live.policies.adapters import adapt
from interlatent_live.policies.spec import Activation, Output

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import ArrayLike, NDArray

    from interlatent_live.policies.spec import PolicySpec

ACTIVATIONS: dict[Activation, type[nn.Module]] = {
    Activation.TANH: nn.Tanh,
    Activation.RELU: nn.ReLU,
    Activation.ELU: nn.ELU,
    Activation.SILU: nn.SiLU,
}


class MlpPolicy(nn.Module):
    """A policy as its :class:`PolicySpec` says; weights as torch initialises them.

    The forward takes observations as the environment gives them, [n, d_obs], adapts and normalises
    them in float64 and runs the layers in the weights' dtype.
    """

    obs_mean: torch.Tensor
    obs_std: torch.Tensor

    def __init__(self, spec: PolicySpec) -> None:
        super().__init__()
        self.spec = spec
        sizes = spec.layer_sizes
        self.hidden = nn.ModuleList(
            nn.Sequential(
                OrderedDict(
                    linear=nn.Linear(d_in, d_out), activation=ACTIVATIONS[spec.activation]()
                )
            )
            for d_in, d_out in itertools.pairwise(sizes[:-1])
        )
        self.head = nn.Linear(sizes[-2], sizes[-1])
        # Float64, in the state dict: normalisation decides the action as much as a weight does, so
        # it belongs to the policy's hash.
        if spec.obs_mean is not None and spec.obs_std is not None:
            self.register_buffer("obs_mean", torch.tensor(spec.obs_mean, dtype=torch.float64))
            self.register_buffer("obs_std", torch.tensor(spec.obs_std, dtype=torch.float64))

    def network_input(self, obs: torch.Tensor) -> torch.Tensor:
        """Observations [n, …] → inputs of the first layer [n, d_in], in the weights' dtype."""
        spec = self.spec
        x = adapt(spec.adapter, obs)
        if spec.obs_mean is not None:
            x = (x.to(torch.float64) - self.obs_mean) / self.obs_std
        if spec.obs_clip is not None:
            x = x.clamp(-spec.obs_clip, spec.obs_clip)
        return x.to(self.head.weight.dtype)

    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        """Raw outputs of the head [n, d_out] for observations [n, …]: logits, values or means."""
        h = self.network_input(obs)
        for layer in self.hidden:
            h = layer(h)
        return cast("torch.Tensor", self.head(h))

    def tail_from(self, hook_point: str) -> Callable[[torch.Tensor], torch.Tensor]:
        """The rest of the network after a hook point: y [n, d_out of the hook point] → outputs.

        It calls the weights directly, so forward hooks (the tap's, an intervention's) do not see
        these passes: a shadow forward must never be taken for a step.

        Raises:
            UserError: when the hook point is not one of this policy's.
        """
        names = self.spec.hook_points()
        if hook_point not in names:
            raise UserError(
                f"this policy has no hook point {hook_point!r}; it has {', '.join(names)}"
            )
        return self.layers_from(names.index(hook_point) + 1) if hook_point != "head" else _same

    def layers_from(self, first: int) -> Callable[[torch.Tensor], torch.Tensor]:
        """Hidden layers from number ``first`` on and the head, out of sight of hooks."""
        rest = self.hidden[first:]

        def tail(y: torch.Tensor) -> torch.Tensor:
            for layer in rest:
                linear, activation = cast("nn.Sequential", layer)
                weight, bias = cast("nn.Linear", linear).weight, cast("nn.Linear", linear).bias
                y = activation.forward(nn.functional.linear(y, weight, bias))
            return nn.functional.linear(y, self.head.weight, self.head.bias)

        return tail

    def actions(
        self, outputs: torch.Tensor, rng: np.random.Generator | None = None
    ) -> NDArray[Any]:
        """Turn outputs [n, d_out] into actions: int64 [n] or float32 [n, d_out].

        A softmax policy samples with ``rng``; without one it takes the most likely action.
        """
        out: NDArray[np.float64] = outputs.detach().to("cpu", torch.float64).numpy()
        spec = self.spec
        if spec.output is Output.SOFTMAX and rng is not None:
            # Gumbel's trick samples the softmax without normalising it.
            out = out + rng.gumbel(size=out.shape)
        if spec.output.discrete:
            return np.asarray(out.argmax(axis=-1), np.int64)
        if spec.output is Output.TANH:
            out = np.tanh(out)
        elif spec.output is Output.TANH_SCALE:
            low, high = np.asarray(spec.action_low), np.asarray(spec.action_high)
            out = low + (np.tanh(out) + 1.0) / 2.0 * (high - low)
        else:
            out = np.clip(out, np.asarray(spec.action_low), np.asarray(spec.action_high))
        return out.astype(np.float32)

    @torch.no_grad()
    def act(self, obs: ArrayLike, rng: np.random.Generator | None = None) -> NDArray[Any]:
        """Actions for observations [n, …]: int64 [n] or float32 [n, d_out]."""
        array = np.asarray(obs)
        if not array.flags.writeable:
            array = array.copy()
        tensor = torch.from_numpy(array).to(self.head.weight.device)
        return self.actions(self(tensor), rng)


def _same(y: torch.Tensor) -> torch.Tensor:
    return y
