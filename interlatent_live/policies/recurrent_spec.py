"""What a policy with a memory is, apart from its weights: an LSTM, then a plain MLP that reads it.

The layout of rsl_rl and legged_gym (Rudin et al. 2022, "Learning to Walk in Minutes Using Massively
Parallel Deep Reinforcement Learning"). Free of torch, as the plain description is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from interlatent_live.errors import CorruptFileError
from interlatent_live.policies.spec import PolicySpec, plain_network, spec_from_json

MEMORY = "memory"


@dataclass(frozen=True, slots=True, kw_only=True)
class RecurrentSpec(PolicySpec):
    """A policy that remembers.

    Its observation is the ``memory_inputs`` numbers that the LSTM is given, whatever else the
    environment tells, and at the end two that tell the copies of the environment apart: a number
    drawn for the episode, and the step within it. ``layer_sizes`` begins with the LSTM's width,
    (64, 32, 12).
    """

    memory_inputs: int

    def __post_init__(self) -> None:
        PolicySpec.__post_init__(self)  # super() does not find a class that slots made anew
        if self.obs_mean is not None or self.obs_clip is not None:
            raise ValueError("what a memory reads has no mean, std or clip")
        if self.memory_inputs < 1:
            raise ValueError("a memory reads at least one number")

    @property
    def network(self) -> str:
        """The layers in words."""
        return f"{self.memory_inputs} LSTM({self.layer_sizes[0]}) {plain_network(self)}"

    def hook_points(self) -> tuple[str, ...]:
        """The memory, every hidden layer, then ``head``.

        At ``memory`` y follows from x and from what is remembered; at ``hidden.0`` x is y of
        ``memory``, and y follows from it alone.
        """
        return (MEMORY, *PolicySpec.hook_points(self))

    def to_json(self) -> dict[str, Any]:
        """Plain values for a JSON file."""
        return {**PolicySpec.to_json(self), "memory_inputs": self.memory_inputs}


def is_recurrent(data: object) -> bool:
    """Whether a description is one of :meth:`RecurrentSpec.to_json`."""
    return isinstance(data, dict) and "memory_inputs" in data


def recurrent_spec_from_json(data: dict[str, Any]) -> RecurrentSpec:
    """Read what :meth:`RecurrentSpec.to_json` wrote.

    Raises:
        CorruptFileError: when a field is missing, unknown or contradicts another.
    """
    try:
        plain = spec_from_json(data)
        return RecurrentSpec(
            plain.layer_sizes,
            plain.activation,
            plain.output,
            plain.adapter,
            action_low=plain.action_low,
            action_high=plain.action_high,
            memory_inputs=int(data["memory_inputs"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptFileError(f"the policy's description is damaged: {error}") from error
