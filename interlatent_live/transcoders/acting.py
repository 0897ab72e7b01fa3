"""A policy as collecting and evaluating need it: a module that maps observations to actions.

Behind one value stand the plain policies that travel with the package, policy folders, SB3 zips
(read without unpickling), TorchScript files of plain networks, and ``module:function``, which runs
the user's own code.
"""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from interlatent_live.environments.metric_packs import OutputKind
from interlatent_live.errors import UserError
from interlatent_live.policies.files import LoadedPolicy, load_policy
from interlatent_live.policies.hashing import policy_hash
from interlatent_live.policies.mlp import MlpPolicy
from interlatent_live.policies.torchscript import SUFFIXES, rebuild_torchscript

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class ActingPolicy:
    """A policy that can be run on batches of observations."""

    name: str
    module: nn.Module
    environment: str
    """Gymnasium id, empty when unknown."""
    policy_hash: str
    output_kind: OutputKind

    def act(self, obs: NDArray[Any], rng: np.random.Generator | None = None) -> NDArray[Any]:
        """Actions for observations [n, …]: int64 [n] or float32 [n, A]."""
        return self.actions(self.outputs(obs), rng)

    def hook_points(self) -> tuple[str, ...]:
        """Its layers: those of a plain policy by name, of another each module without children."""
        if isinstance(self.module, MlpPolicy):
            return self.module.spec.hook_points()
        modules = self.module.named_modules()
        return tuple(name for name, one in modules if name and not any(one.children()))

    def outputs(self, obs: NDArray[Any]) -> torch.Tensor:
        """Raw outputs [n, d_out] of the head for observations [n, …]; hooks fire."""
        with torch.no_grad():
            tensor = torch.from_numpy(np.array(obs))
            if not isinstance(self.module, MlpPolicy):
                tensor = tensor.to(torch.float32)
            out = self.module(tensor)
        if not isinstance(out, torch.Tensor):
            raise UserError(
                f"policy {self.name} returns {type(out).__name__}; its forward must return the "
                "head's outputs, a tensor [n, d_out]"
            )
        return out

    def actions(
        self, outputs: torch.Tensor, rng: np.random.Generator | None = None
    ) -> NDArray[Any]:
        """Actions for outputs [n, d_out]: int64 [n] or float32 [n, A]."""
        if isinstance(self.module, MlpPolicy):
            return self.module.actions(outputs, rng)
        own = getattr(self.module, "actions", None)
        if callable(own):
            return np.asarray(own(outputs))
        if self.output_kind is OutputKind.CONTINUOUS:
            return outputs.detach().to("cpu", torch.float32).numpy()
        return np.asarray(outputs.detach().argmax(-1).cpu().numpy(), np.int64)


def acting_policy(name: str, *, environment: str = "") -> ActingPolicy:
    """Resolve what the user named.

    Args:
        name: a built-in policy, a folder, an SB3 zip, a TorchScript file, or ``module:function``
            returning a ``torch.nn.Module`` (outputs [n, d_out]; an ``actions(outputs)`` method if
            argmax or the outputs themselves are not the actions) or a ``LoadedPolicy``.
        environment: Gymnasium id, when the policy does not say.

    Raises:
        UserError: when there is no such policy or it is of an unusable kind.
    """
    if ":" in name and not Path(name).exists():
        return _from_entry_point(name, environment)
    if Path(name).suffix in SUFFIXES and Path(name).is_file():
        return _from_torchscript(Path(name), environment)
    return from_loaded(load_policy(name), environment=environment)


def from_loaded(loaded: LoadedPolicy, *, environment: str = "") -> ActingPolicy:
    """A plain policy; its algorithm decides whether its outputs are logits or values."""
    module = loaded.module
    kind = OutputKind.CONTINUOUS
    if module.spec.output.discrete:
        values = "DQN" in loaded.provenance.algorithm.upper()
        kind = OutputKind.VALUES if values else OutputKind.LOGITS
    return ActingPolicy(
        loaded.name, module, environment or loaded.environment, loaded.policy_hash, kind
    )


def _from_entry_point(name: str, environment: str) -> ActingPolicy:
    module_name, _, function_name = name.partition(":")
    if "" not in sys.path:
        sys.path.insert(0, "")  # the user's module lies where the command is run
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError) as error:
        raise UserError(f"policy {name!r} cannot be imported: {error}") from error
    made = function()
    if isinstance(made, LoadedPolicy):
        return from_loaded(made, environment=environment)
    if not isinstance(made, nn.Module):
        raise UserError(f"{name} returned {type(made).__name__}; it must return a torch.nn.Module")
    made.eval()
    kind = OutputKind(getattr(made, "output_kind", OutputKind.LOGITS))
    environment = environment or str(getattr(made, "environment", ""))
    return ActingPolicy(name, made, environment, policy_hash(made), kind)


def _from_torchscript(path: Path, environment: str) -> ActingPolicy:
    import gymnasium  # noqa: PLC0415 - slow to import, and only a script needs to ask

    if not environment:
        raise UserError(
            f"{path} does not say its environment, and so not what its outputs mean: give --env, "
            "or `module:function` returning rebuild_torchscript(path) with its environment and "
            "output_kind set"
        )
    try:
        env = gymnasium.make(environment)
    except gymnasium.error.Error as error:
        raise UserError(f"Gymnasium cannot make {environment!r}: {error}") from error
    discrete = isinstance(env.action_space, gymnasium.spaces.Discrete)
    env.close()
    made = rebuild_torchscript(path)
    kind = OutputKind.LOGITS if discrete else OutputKind.CONTINUOUS
    return ActingPolicy(str(path), made, environment, policy_hash(made), kind)
