"""The policy with a memory: an LSTM whose state is kept per episode, then the plain policy.

Everything that knows the plain policy (splices, tails, probes, the demo's agent) calls it with the
observations of those copies whose episode still runs, on the same step more than once (as it is,
through a transcoder), and on any number of episodes side by side. A memory that simply went on with
every call would be somebody else's. So observations say which episode they belong to and which step
of it they are (:class:`~interlatent_live.policies.recurrent_spec.RecurrentSpec`), and the memory is
kept with that: asked about a step again, the policy starts from the same memory again, so that
looking does not change what it remembers; at step 0 it remembers nothing, and likewise in the midst
of an episode whose steps before it has not seen.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, cast

import torch
from torch import nn

from interlatent_live.errors import CorruptFileError, UserError
from interlatent_live.policies.mlp import MlpPolicy
from interlatent_live.policies.recurrent_spec import MEMORY, RecurrentSpec
from interlatent_live.policies.spec import Activation, Output
from interlatent_live.policies.torchscript import load_script

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

_CHECKED_STEPS: Final = 32
EPISODES_KEPT: Final = 4096
"""Those heard of longest ago are forgotten: 4 MB at a width of 64."""


@dataclass(slots=True)
class _Remembered:
    """An episode's memory before and after its latest step; each the LSTM's h and c, [2, width]."""

    step: int
    before: torch.Tensor
    after: torch.Tensor


class RecurrentPolicy(MlpPolicy):
    """A policy as its :class:`RecurrentSpec` says; weights as torch initialises them."""

    spec: RecurrentSpec

    def __init__(self, spec: RecurrentSpec) -> None:
        super().__init__(spec)
        self.memory = nn.LSTM(spec.memory_inputs, spec.layer_sizes[0], batch_first=True)
        self._kept: OrderedDict[float, _Remembered] = OrderedDict()

    def network_input(self, obs: torch.Tensor) -> torch.Tensor:
        """Observations [n, d] → what the memory gives for them [n, width], in the weights' dtype.

        Two rows of one call are of different episodes, or of one that both see the same step of.
        """
        episodes, steps = obs[:, -2].tolist(), obs[:, -1].tolist()
        before = torch.stack([self._before(*one) for one in zip(episodes, steps, strict=True)], 1)
        x = obs[:, None, : self.spec.memory_inputs].to(self.head.weight.dtype)
        state = (before[:1].contiguous(), before[1:].contiguous())
        y, after = self.memory(x, state)
        both = torch.cat(after).detach()
        for row, (episode, step) in enumerate(zip(episodes, steps, strict=True)):
            self._kept[episode] = _Remembered(int(step), before[:, row], both[:, row])
            self._kept.move_to_end(episode)
        while len(self._kept) > EPISODES_KEPT:
            self._kept.popitem(last=False)
        return cast("torch.Tensor", y[:, 0])

    def tail_from(self, hook_point: str) -> Callable[[torch.Tensor], torch.Tensor]:
        """The rest of the network after a hook point, as the plain policy's.

        What the memory keeps for later steps lies within it and is not part of a tail.
        """
        if hook_point == MEMORY:
            return self.layers_from(0)
        if hook_point in self.spec.hook_points() and hook_point != "head":
            return self.layers_from(self.spec.hook_points().index(hook_point))
        return super().tail_from(hook_point)

    def forget(self) -> None:
        """Remember no episode."""
        self._kept.clear()

    def _before(self, episode: float, step: float) -> torch.Tensor:
        """The memory [2, width] that a step starts from."""
        kept = self._kept.get(episode)
        if kept is not None and step > 0:
            if step == kept.step:
                return kept.before
            if step == kept.step + 1:
                return kept.after
        weight = self.head.weight
        return torch.zeros(2, self.memory.hidden_size, dtype=weight.dtype, device=weight.device)


def recurrent_from_script(path: Path, *, bound: float) -> RecurrentPolicy:
    """The actor in a TorchScript file of legged_gym's ``PolicyExporterLSTM``, as one to be hooked.

    Such a script keeps one memory for one robot, and PyTorch refuses hooks on it. What is returned
    gives the script's own outputs, bit for bit, over a sequence of random observations.

    Args:
        path: the file, such as unitree_rl_gym's ``motion.pt``.
        bound: actions are clipped to ± it.

    Raises:
        UserError: when there is no such file, or the script does something else besides.
        CorruptFileError: when the file is no intact script, or holds no such actor.
    """
    script = load_script(path)
    tensors = {
        name: tensor
        for name, tensor in script.state_dict().items()
        if name.startswith((f"{MEMORY}.", "actor."))
    }
    kinds = {name: module.original_name for name, module in script.named_modules()}
    try:
        activation = Activation(kinds.get("actor.1", "ELU").lower())
    except ValueError as error:
        raise UserError(f"{path} cannot be rebuilt: its actor has {kinds['actor.1']}") from error
    policy = recurrent_from_rsl_rl(tensors, activation=activation, bound=bound)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for step in range(_CHECKED_STEPS):
            x = torch.randn(1, policy.spec.memory_inputs, generator=generator)
            if not torch.equal(policy(torch.cat([x, torch.tensor([[0.5, step]])], 1)), script(x)):
                raise UserError(
                    f"{path} cannot be rebuilt: an LSTM and the actor behind it do not give the "
                    f"script's own outputs (step {step}); write the network as a torch.nn.Module"
                )
    policy.forget()
    return policy


def recurrent_from_rsl_rl(
    tensors: Mapping[str, torch.Tensor], *, activation: Activation, bound: float
) -> RecurrentPolicy:
    """The actor of an rsl_rl ``ActorCriticRecurrent`` with a memory of one layer.

    Args:
        tensors: by rsl_rl's names without the outer ``memory_a.rnn``: ``memory.weight_ih_l0`` …,
            ``actor.0.weight``, ``actor.2.weight`` …; the critic is left out.
        activation: between the actor's layers.
        bound: actions are clipped to ± it.

    Raises:
        CorruptFileError: when the tensors are not those of such an actor.
    """
    try:
        numbers = sorted({int(name.split(".")[1]) for name in tensors if name[:6] == "actor."})
        layers = [f"actor.{number}" for number in numbers]
        gates, inputs = tensors[f"{MEMORY}.weight_ih_l0"].shape
        outputs = [len(tensors[f"{layer}.bias"]) for layer in layers]
        spec = RecurrentSpec(
            (gates // 4, *outputs),
            activation,
            Output.LINEAR_CLIP,
            action_low=(-bound,) * outputs[-1],
            action_high=(bound,) * outputs[-1],
            memory_inputs=inputs,
        )
        policy = RecurrentPolicy(spec)
        names = [*(f"hidden.{index}.linear" for index in range(spec.hidden_count)), "head"]
        state = {name: tensor for name, tensor in tensors.items() if name[:7] == f"{MEMORY}."}
        for own, theirs in zip(names, layers, strict=True):
            state |= {f"{own}.{part}": tensors[f"{theirs}.{part}"] for part in ("weight", "bias")}
        policy.load_state_dict(state)
    except (KeyError, IndexError, ValueError, RuntimeError) as error:
        raise CorruptFileError(f"the tensors are no recurrent actor of rsl_rl: {error}") from error
    return policy.eval()
