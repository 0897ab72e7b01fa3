"""What a plain policy is, apart from its weights: sizes, activation, and what its output means.

Kept free of torch, so that a command or a service can read what a policy file says about itself
without paying for the import.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from interlatent_live.errors import CorruptFileError


class Activation(StrEnum):
    """The nonlinearity after each hidden linear map."""

    TANH = "tanh"
    RELU = "relu"
    ELU = "elu"
    SILU = "silu"


class Output(StrEnum):
    """How the head's output becomes an action."""

    ARGMAX = "argmax"
    """Index of the largest output (a greedy policy or a value network)."""
    SOFTMAX = "softmax"
    """Sampled from the softmax of the outputs."""
    LINEAR_CLIP = "linear-clip"
    """The outputs, clipped to the action space."""
    TANH_SCALE = "tanh-scale"
    """low + (tanh(y) + 1) / 2 · (high − low)."""
    TANH = "tanh"
    """tanh(y)."""

    @property
    def discrete(self) -> bool:
        """Whether the action is an index."""
        return self in (Output.ARGMAX, Output.SOFTMAX)


class Adapter(StrEnum):
    """How an environment's observation becomes the network's input."""

    NONE = "none"
    FLATTEN = "flatten"
    HUMANOID_V5_TO_376 = "humanoid_v5_to_376"
    """Gymnasium's 348 observations of Humanoid-v5 at the places they had among the 376 of v2."""
    HUMANOID_V5_TO_376_CFRC_ZERO = "humanoid_v5_to_376_cfrc_zero"
    """The same with the contact forces [292:] set to 0, as Humanoid-v3 reported them."""
    MSPACMAN_BYTES_BITS = "mspacman_bytes_bits"
    """The 128 bytes of Ms. Pac-Man's RAM over 255, then their 1,024 bits, highest first."""
    FRAMES_WITHOUT_RAM = "frames_without_ram"
    """All but the console's 128 bytes at the end, which are there for metrics only."""
    UNITREE_G1 = "unitree_g1"
    """The first 103 numbers; what the simulator knows besides is there for metrics only."""
    APPEND_ONE = "append_one"
    """The observation and a constant 1, which a time feature has become."""


@dataclass(frozen=True, slots=True)
class PolicySpec:
    """A multilayer perceptron acting on one observation vector.

    ``layer_sizes`` runs from the network's input to its output, ``(4, 64, 64, 2)``; two sizes make
    a linear policy without a hidden layer. ``obs_mean`` and ``obs_std`` have ``layer_sizes[0]``
    entries; ``obs_clip`` bounds the (normalised) input. ``action_low`` and ``action_high`` bound a
    continuous action and have ``layer_sizes[-1]`` entries.
    """

    layer_sizes: tuple[int, ...]
    activation: Activation = Activation.TANH
    output: Output = Output.ARGMAX
    adapter: Adapter = Adapter.NONE
    obs_mean: tuple[float, ...] | None = None
    obs_std: tuple[float, ...] | None = None
    obs_clip: float | None = None
    action_low: tuple[float, ...] | None = None
    action_high: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if len(self.layer_sizes) < 2 or min(self.layer_sizes) < 1:
            raise ValueError(f"layer sizes {self.layer_sizes} need an input and an output, all ≥ 1")
        if (self.obs_mean is None) != (self.obs_std is None):
            raise ValueError("obs_mean and obs_std come together or not at all")
        for name in ("obs_mean", "obs_std"):
            values = getattr(self, name)
            if values is not None and len(values) != self.layer_sizes[0]:
                raise ValueError(
                    f"{name} has {len(values)} entries for {self.layer_sizes[0]} inputs"
                )
        bounded = self.output in (Output.LINEAR_CLIP, Output.TANH_SCALE)
        for name in ("action_low", "action_high"):
            values = getattr(self, name)
            if (values is not None) != bounded:
                raise ValueError(f"{name} belongs to linear-clip and tanh-scale, and to them only")
            if values is not None and len(values) != self.layer_sizes[-1]:
                raise ValueError(
                    f"{name} has {len(values)} entries for {self.layer_sizes[-1]} outputs"
                )

    @property
    def hidden_count(self) -> int:
        """Number of hidden layers, each a hook point ``hidden.i``."""
        return len(self.layer_sizes) - 2

    @property
    def network(self) -> str:
        """The layers in words."""
        return plain_network(self)

    def hook_points(self) -> tuple[str, ...]:
        """Names a transcoder may be trained at: every hidden layer, then ``head``."""
        return (*(f"hidden.{index}" for index in range(self.hidden_count)), "head")

    def to_json(self) -> dict[str, Any]:
        """Plain values for a JSON file; the normalisation lies beside the weights."""
        return {
            "layer_sizes": list(self.layer_sizes),
            "activation": self.activation.value,
            "output": self.output.value,
            "adapter": self.adapter.value,
            "normalised": self.obs_mean is not None,
            "obs_clip": self.obs_clip,
            "action_low": None if self.action_low is None else list(self.action_low),
            "action_high": None if self.action_high is None else list(self.action_high),
        }


def plain_network(spec: PolicySpec) -> str:
    """Layer sizes, activation and output in words."""
    return f"{'-'.join(map(str, spec.layer_sizes))} {spec.activation} → {spec.output}"


def spec_from_json(
    data: object,
    *,
    obs_mean: tuple[float, ...] | None = None,
    obs_std: tuple[float, ...] | None = None,
) -> PolicySpec:
    """Read what :meth:`PolicySpec.to_json` wrote, with the normalisation found beside the weights.

    Raises:
        CorruptFileError: when a field is missing, unknown or contradicts another.
    """
    try:
        if not isinstance(data, dict):
            raise TypeError("it is no object")  # noqa: TRY301 - one place words every refusal
        if data["normalised"] != (obs_mean is not None):
            raise ValueError("the weights and the field 'normalised' disagree")  # noqa: TRY301 - likewise
        return PolicySpec(
            layer_sizes=tuple(int(size) for size in data["layer_sizes"]),
            activation=Activation(data["activation"]),
            output=Output(data["output"]),
            adapter=Adapter(data["adapter"]),
            obs_mean=obs_mean,
            obs_std=obs_std,
            obs_clip=None if data["obs_clip"] is None else float(data["obs_clip"]),
            action_low=_floats(data["action_low"]),
            action_high=_floats(data["action_high"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptFileError(f"the policy's description is damaged: {error}") from error


def _floats(values: object) -> tuple[float, ...] | None:
    if values is None:
        return None
    if not isinstance(values, list):
        raise TypeError("action bounds are a list of numbers")
    return tuple(float(value) for value in values)
