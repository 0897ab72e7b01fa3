"""Shadow interventions: a second forward of the policy, on a copy, with features taken out.

The copy has its own parameters, buffers and random state, runs under ``no_grad`` and in evaluation
mode, and only reads the activations that it is handed; the acting policy is never touched. What the
feature adds to y is taken out (or clamped), the rest of the policy runs from there, and the change
of the action's value is what :mod:`effects` judges. Torch is imported here only.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from interlatent_live.explanations.causal.effects import LEAST_CONTROLS, EffectSamples

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor, nn

_EPSILON: Final = 1e-12


@dataclass(frozen=True, slots=True, eq=False)
class ShadowSteps:
    """Sampled steps for shadow runs of one hook point, n of them."""

    observations: Tensor
    """[n, …] what the policy saw."""
    features: NDArray[np.float32]
    """[n, F] activations of the transcoder."""
    episode: NDArray[np.integer]
    """[n]."""


class Shadow:
    """Runs a copy of a policy with a hook point's output shifted.

    ``policy`` maps observations [n, …] to outputs [n, A]; ``hook_point`` is a dotted module name.

    Raises:
        ValueError: when the policy has no such module.
    """

    def __init__(self, policy: nn.Module, hook_point: str) -> None:
        self._policy = _copy_without_hooks(policy).eval().requires_grad_(requires_grad=False)
        modules = dict(self._policy.named_modules())
        if hook_point not in modules:
            raise ValueError(f"the policy has no module {hook_point!r}")
        self._module = modules[hook_point]

    def outputs(self, observations: Tensor, shift: Tensor | None = None) -> Tensor:
        """[n, A] outputs with ``shift`` [n, d_out] or [d_out] added at the hook point."""

        def add(_module: nn.Module, _inputs: object, y: Tensor) -> Tensor:
            return y if shift is None else y + shift.to(y.dtype)

        handle = self._module.register_forward_hook(add)
        try:
            # The caller's generator must not notice a policy that draws in its forward.
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                out: Tensor = self._policy(observations)
        finally:
            handle.remove()
        return out

    def output_at_hook(self, observations: Tensor) -> Tensor:
        """[n, d_out] what the hook point gives, unshifted."""
        seen: list[Tensor] = []
        handle = self._module.register_forward_hook(lambda _m, _i, y: seen.append(y.detach()))
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                self._policy(observations)
        finally:
            handle.remove()
        return seen[0]


def shadow_effect(
    shadow: Shadow,
    steps: ShadowSteps,
    decoders: NDArray[np.floating],
    feature: int,
    *,
    action: int,
    controls: int = LEAST_CONTROLS,
    seed: int = 0,
    centred: bool = True,
) -> EffectSamples:
    """Direct effect of taking a feature out, with ``controls`` matched controls of each kind.

    ``decoders`` [F, d_out]. Only steps at which the feature is on are used; each control shifts
    those same steps by vectors of the same norms. ``centred`` reads a logit minus the mean of all
    logits, which is what a softmax or an argmax sees; give False for continuous actions.

    Raises:
        ValueError: when the feature is off in all the steps.
    """
    on = np.flatnonzero(steps.features[:, feature] > 0)
    if len(on) == 0:
        raise ValueError(f"feature {feature} is off in all the sampled steps")
    random = np.random.default_rng([seed, feature])
    observations = steps.observations[torch.from_numpy(on)]
    strength = steps.features[on, feature].astype(np.float64)
    direction = np.asarray(decoders[feature], np.float64)
    norms = strength * np.linalg.norm(direction)
    base = _read(shadow.outputs(observations), action, centred=centred)

    def change(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
        """[n] value minus value with ``vectors`` [n, d_out] taken out."""
        shift = torch.from_numpy(np.asarray(-vectors, np.float32))
        return base - _read(shadow.outputs(observations, shift), action, centred=centred)

    def of_unit(unit: NDArray[np.float64]) -> NDArray[np.float64]:
        return change(norms[:, None] * unit)

    width = len(direction)
    y = shadow.output_at_hook(observations).numpy().astype(np.float64)
    spread = y - y.mean(0)
    isotropic = [_unit(random.normal(size=width)) for _ in range(controls)]
    covariance = [_unit(random.normal(size=len(spread)) @ spread) for _ in range(controls)]
    live = np.flatnonzero((steps.features > 0).any(0))
    others = live[live != feature]
    kinds: dict[str, list[NDArray[np.float64]]] = {
        "isotropic": isotropic,
        "activation covariance": covariance,
    }
    if len(others):
        chosen = random.choice(others, controls, replace=len(others) < controls)
        kinds["other features"] = [_unit(np.asarray(decoders[f], np.float64)) for f in chosen]
    results = {kind: np.stack([of_unit(unit) for unit in units]) for kind, units in kinds.items()}
    push = strength.mean() * direction
    off_moments = _off_moments(shadow, steps, push, feature, action=action, centred=centred)
    if off_moments is not None:
        rows = random.integers(0, len(off_moments), (controls, len(on)))
        results["same feature when off"] = off_moments[rows]
    return EffectSamples(change(strength[:, None] * direction), steps.episode[on], results)


def _off_moments(
    shadow: Shadow,
    steps: ShadowSteps,
    push: NDArray[np.float64],
    feature: int,
    *,
    action: int,
    centred: bool,
) -> NDArray[np.float64] | None:
    """Changes when the feature's mean push is taken out where it is not there."""
    off = np.flatnonzero(steps.features[:, feature] <= 0)
    if len(off) == 0:
        return None
    observations = steps.observations[torch.from_numpy(off)]
    shift = torch.from_numpy(np.asarray(-push, np.float32))
    base = _read(shadow.outputs(observations), action, centred=centred)
    return base - _read(shadow.outputs(observations, shift), action, centred=centred)


def _copy_without_hooks(policy: nn.Module) -> nn.Module:
    """A deep copy that leaves the tap's hooks, and whatever they hold on to, behind."""
    memo: dict[int, object] = {}
    for module in policy.modules():
        for name, value in vars(module).items():
            if "_hooks" in name and isinstance(value, dict):
                memo[id(value)] = OrderedDict()
    return copy.deepcopy(policy, memo)


def _read(outputs: Tensor, action: int, *, centred: bool) -> NDArray[np.float64]:
    values = outputs.detach().to(torch.float64).numpy()
    read = values[:, action] - values.mean(1) if centred else values[:, action]
    return np.asarray(read, np.float64)


def _unit(vector: NDArray[np.float64]) -> NDArray[np.float64]:
    return vector / max(float(np.linalg.norm(vector)), _EPSILON)
