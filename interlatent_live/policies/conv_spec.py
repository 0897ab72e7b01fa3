"""What a convolutional policy is, apart from its weights: frames, convolutions, then a plain MLP.

The Nature network (Mnih et al. 2015, "Human-level control through deep reinforcement learning",
Methods) is three convolutions in front of a plain policy. So its description is a plain policy's,
with the convolutions that make the first layer's input. Free of torch, as the plain one is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from interlatent_live.errors import CorruptFileError
from interlatent_live.policies.spec import PolicySpec, plain_network, spec_from_json


@dataclass(frozen=True, slots=True)
class Convolution:
    """One convolution without padding, and the activation after it."""

    channels: int
    """Of its output."""
    kernel: int
    """Side in pixels."""
    stride: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvSpec(PolicySpec):
    """A policy that looks at frames.

    After the adapter an observation is ``input_shape`` (channels, height, width) numbers, which are
    divided by ``scale``. ``layer_sizes`` begins with the flattened output of the last convolution,
    channels first, (3136, 512, 9).
    """

    input_shape: tuple[int, int, int]
    convolutions: tuple[Convolution, ...]
    scale: float = 255.0

    def __post_init__(self) -> None:
        PolicySpec.__post_init__(self)  # super() does not find a class that slots made anew
        if self.obs_mean is not None or self.obs_clip is not None:
            raise ValueError("frames are divided by the scale; they have no mean, std or clip")
        if not self.convolutions or self.scale <= 0:
            raise ValueError("a convolutional policy has convolutions and a scale above 0")
        channels, height, width = self.maps()[-1]
        if min(height, width) < 1 or channels * height * width != self.layer_sizes[0]:
            raise ValueError(
                f"the last convolution gives {channels} × {height} × {width} numbers, the first "
                f"layer takes {self.layer_sizes[0]}"
            )

    def maps(self) -> tuple[tuple[int, int, int], ...]:
        """(channels, height, width) of each convolution's output."""
        _, height, width = self.input_shape
        found = []
        for one in self.convolutions:
            height, width = ((side - one.kernel) // one.stride + 1 for side in (height, width))
            found.append((one.channels, height, width))
        return tuple(found)

    @property
    def network(self) -> str:
        """The layers in words."""
        frames = "×".join(map(str, self.input_shape))
        convolutions = " ".join(
            f"conv({one.channels}, {one.kernel}, {one.stride})" for one in self.convolutions
        )
        return f"{frames} {convolutions} {plain_network(self)}"

    def hook_points(self) -> tuple[str, ...]:
        """Every convolution, every hidden layer and its activation alone, then ``head``.

        At ``hidden.0`` x is all of the last map; at ``hidden.0.activation`` it is the layer's
        pre-activations, as narrow as its y.
        """
        convolutions = (f"conv.{index}" for index in range(len(self.convolutions)))
        hidden = (
            f"hidden.{index}{part}"
            for index in range(self.hidden_count)
            for part in ("", ".activation")
        )
        return (*convolutions, *hidden, "head")

    def to_json(self) -> dict[str, Any]:
        """Plain values for a JSON file."""
        return {
            **PolicySpec.to_json(self),
            "input_shape": list(self.input_shape),
            "convolutions": [[one.channels, one.kernel, one.stride] for one in self.convolutions],
            "scale": self.scale,
        }


def is_conv(data: object) -> bool:
    """Whether a description is one of :meth:`ConvSpec.to_json`."""
    return isinstance(data, dict) and "convolutions" in data


def conv_spec_from_json(data: dict[str, Any]) -> ConvSpec:
    """Read what :meth:`ConvSpec.to_json` wrote.

    Raises:
        CorruptFileError: when a field is missing, unknown or contradicts another.
    """
    try:
        channels, height, width = (int(size) for size in data["input_shape"])
        convolutions = tuple(Convolution(*map(int, one)) for one in data["convolutions"])
        plain = spec_from_json(data)
        return ConvSpec(
            plain.layer_sizes,
            plain.activation,
            plain.output,
            plain.adapter,
            input_shape=(channels, height, width),
            convolutions=convolutions,
            scale=float(data["scale"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptFileError(f"the policy's description is damaged: {error}") from error
