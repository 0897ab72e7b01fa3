"""The convolutional policy: frames through convolutions, then the plain policy.

Everything that knows the plain policy (splices, tails, probes, the demo's agent) so knows this one:
the convolutions are how it comes by the first layer's input. Hook points of theirs, ``conv.0``,
``conv.1``, …, are one convolution and its activation each; what they see and give is flattened,
channels first, as every hook point is.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Final, cast

import torch
from torch import nn

from interlatent_live.errors import CorruptFileError
from interlatent_live.policies.adapters import adapt
from interlatent_live.policies.conv_spec import Convolution, ConvSpec
from interlatent_live.policies.mlp import ACTIVATIONS, MlpPolicy
from interlatent_live.policies.spec import Activation, Adapter, Output

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

NATURE: Final = (Convolution(32, 8, 4), Convolution(64, 4, 2), Convolution(64, 3, 1))
"""Of Mnih et al. 2015."""


class ConvPolicy(MlpPolicy):
    """A policy as its :class:`ConvSpec` says; weights as torch initialises them."""

    spec: ConvSpec

    def __init__(self, spec: ConvSpec) -> None:
        super().__init__(spec)
        channels = spec.input_shape[0]
        layers = []
        for one in spec.convolutions:
            made = nn.Conv2d(channels, one.channels, one.kernel, one.stride)
            activation = ACTIVATIONS[spec.activation]()
            layers.append(nn.Sequential(OrderedDict(conv=made, activation=activation)))
            channels = one.channels
        self.conv = nn.ModuleList(layers)

    def network_input(self, obs: torch.Tensor) -> torch.Tensor:
        """Observations [n, …] → the flattened last map [n, d_in of ``hidden.0``]."""
        frames = adapt(self.spec.adapter, obs).reshape(len(obs), *self.spec.input_shape)
        h = frames.to(self.head.weight.dtype) / self.spec.scale
        for layer in self.conv:
            h = layer(h)
        return h.flatten(1)

    def tail_from(self, hook_point: str) -> Callable[[torch.Tensor], torch.Tensor]:
        """The rest of the network after a hook point, as the plain policy's.

        y of a convolution is [n, channels · height · width], flattened channels first.
        """
        if hook_point not in self.spec.hook_points() or hook_point == "head":
            return super().tail_from(hook_point)
        layer, number, *_ = hook_point.split(".")
        after = int(number) + 1
        if layer == "hidden":
            return self.layers_from(after)
        shape, later, rest = self.spec.maps()[after - 1], self.conv[after:], self.layers_from(0)

        def tail(y: torch.Tensor) -> torch.Tensor:
            h = y.reshape(len(y), *shape)
            for one in later:
                module, activation = cast("nn.Sequential", one)
                conv = cast("nn.Conv2d", module)
                h = nn.functional.conv2d(h, conv.weight, conv.bias, conv.stride)
                h = activation.forward(h)
            return rest(h.flatten(1))

        return tail


def nature_from_sb3(
    tensors: Mapping[str, torch.Tensor], input_shape: tuple[int, int, int], adapter: Adapter
) -> ConvPolicy:
    """The actor of a Stable-Baselines3 ``CnnPolicy`` (PPO, A2C), whose actions are sampled.

    Args:
        tensors: by Stable-Baselines3's names, one feature extractor (``features_extractor.cnn.0``
            …, ``features_extractor.linear.0``, ``action_net``); the critic is left out.
        input_shape: of the stacked frames.
        adapter: how the environment's observation becomes those frames.

    Raises:
        CorruptFileError: when the tensors are not those of such a policy.
    """
    extractor = "features_extractor"
    names = {f"conv.{index}.conv": f"{extractor}.cnn.{2 * index}" for index in range(len(NATURE))}
    names |= {"hidden.0.linear": f"{extractor}.linear.0", "head": "action_net"}
    try:
        wide, narrow = tensors[f"{extractor}.linear.0.weight"].shape, tensors["action_net.bias"]
        spec = ConvSpec(
            (wide[1], wide[0], len(narrow)),
            Activation.RELU,
            Output.SOFTMAX,
            adapter,
            input_shape=input_shape,
            convolutions=NATURE,
        )
        policy = ConvPolicy(spec)
        policy.load_state_dict(
            {
                f"{own}.{part}": tensors[f"{theirs}.{part}"]
                for own, theirs in names.items()
                for part in ("weight", "bias")
            }
        )
    except (KeyError, IndexError, ValueError, RuntimeError) as error:
        raise CorruptFileError(f"the tensors are no Nature network of sb3: {error}") from error
    return policy.eval()
