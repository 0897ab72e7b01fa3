"""Shadow interventions: a second forward of the policy, on a copy, with features taken out.

The copy has its own parameters, buffers and random state, runs under ``no_grad`` and in evaluation
mode, and only reads what it is handed; the acting policy is never touched. What the feature adds to
y is taken out (or clamped), the rest of the policy runs from there, and the change of the action's
value is what :mod:`effects` judges. Torch is imported here only.

A policy that draws in its forward draws from a generator of the copy's own: saving and restoring
the global one would rewind it under an agent that acts in another thread meanwhile.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from interlatent_live.explanations.causal.effects import (
    CONSTANT_BIAS,
    LEAST_CONTROLS,
    EffectSamples,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from numpy.typing import NDArray
    from torch import Tensor, nn

_EPSILON: Final = 1e-12
_NORMAL: Final = frozenset({"aten::randn", "aten::randn_like"})
_UNIFORM: Final = frozenset({"aten::rand", "aten::rand_like"})


class SharedRandomError(RuntimeError):
    """The policy draws by an operation that can only use the generator that all share."""


class OwnRandom(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's
    """Inside, torch's draws of this thread come from a generator of its own.

    Raises (inside):
        SharedRandomError: when an operation can draw from the global generator only.
    """

    def __init__(self, seed: int = 0) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's
        self._generator = torch.Generator().manual_seed(seed)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Hand the generator to every operation that draws."""
        del types
        named = dict(kwargs or {})
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **named)
        name = func.name().partition(".")[0]
        if any(argument.name == "generator" for argument in func._schema.arguments):  # noqa: SLF001 - no public way to ask
            named["generator"] = self._generator
            return func(*args, **named)
        if name in _NORMAL | _UNIFORM:
            empty = torch.empty_like if name.endswith("_like") else torch.empty
            made = empty(*args, **named)
            draw = made.normal_ if name in _NORMAL else made.uniform_
            return draw(generator=self._generator)
        raise SharedRandomError(
            f"the policy draws by {name}, which has no generator of its own to draw from"
        )


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """What a policy was called with, where that is more than one tensor of observations."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@dataclass(frozen=True, slots=True, eq=False)
class ShadowSteps:
    """Sampled steps for shadow runs of one hook point, n of them."""

    observations: Tensor | Call
    """[n, …] what the policy saw, or all that it was called with."""
    features: NDArray[np.float32]
    """[n, F] activations of the transcoder."""
    episode: NDArray[np.integer]
    """[n]."""


class Shadow:
    """Runs a copy of a policy with a hook point's output shifted.

    ``policy`` maps what it is called with to outputs [n, A]; ``hook_point`` is a dotted module
    name. ``read`` takes the action's values out of what the policy returns. Without ``own_random``
    its draws come from the generators of the process, for one that nobody else draws in.

    Raises:
        ValueError: when the policy has no such module.
    """

    def __init__(
        self,
        policy: nn.Module,
        hook_point: str,
        *,
        read: Callable[[Any], Tensor] | None = None,
        seed: int = 0,
        own_random: bool = True,
    ) -> None:
        self.policy = copy_without_hooks(policy).eval().requires_grad_(requires_grad=False)
        modules = dict(self.policy.named_modules())
        if hook_point not in modules:
            raise ValueError(f"the policy has no module {hook_point!r}")
        self._module = modules[hook_point]
        self._read = read or (lambda out: out)
        self._random: AbstractContextManager[Any] = OwnRandom(seed) if own_random else nullcontext()

    def outputs(self, observations: Tensor | Call, shift: Tensor | None = None) -> Tensor:
        """[n, A] outputs with ``shift`` [n, d_out] or [d_out] added at the hook point."""

        def add(_module: nn.Module, _inputs: object, y: Any) -> Any:
            if shift is None:
                return y
            if isinstance(y, torch.Tensor):
                return y + shift.to(y.dtype)
            first, *rest = y
            return (first + shift.to(first.dtype).reshape(first.shape), *rest)

        handle = self._module.register_forward_hook(add)
        try:
            return self._run(observations)
        finally:
            handle.remove()

    def seen_at_hook(self, observations: Tensor | Call) -> tuple[Tensor, Tensor]:
        """Input x [n, d_in] and output y [n, d_out] of the hook point, unshifted."""
        seen: list[tuple[Tensor, Tensor]] = []

        def note(_module: nn.Module, inputs: tuple[Any, ...], y: Any) -> None:
            first = y if isinstance(y, torch.Tensor) else y[0]
            x = inputs[0].detach()
            seen.append((x.reshape(-1, x.shape[-1]), first.detach().reshape(-1, first.shape[-1])))

        handle = self._module.register_forward_hook(note)
        try:
            self._run(observations)
        finally:
            handle.remove()
        return seen[0]

    def value_and_gradient(
        self, observations: Tensor | Call, reading: Tensor
    ) -> tuple[float, Tensor]:
        """outputs[0] · ``reading`` [A], and its gradient [d_out] at the hook point's output."""
        _, y = self.seen_at_hook(observations)
        shift = torch.zeros_like(y, requires_grad=True)
        handle = self._module.register_forward_hook(
            lambda _m, _i, out: (
                out + shift if isinstance(out, torch.Tensor) else (out[0] + shift, *out[1:])
            )
        )
        try:
            with torch.enable_grad(), self._random:
                outputs = self._call(observations)
                value = outputs[0].double() @ reading
                (gradient,) = torch.autograd.grad(value, shift)
        finally:
            handle.remove()
        return float(value.detach()), gradient[0].detach()

    def input_gradients(self, observations: Tensor, readings: Tensor) -> Tensor:
        """[r, n, …] gradients of ``readings`` [r, d_in] of the hook point's input, per observation.

        Raises:
            RuntimeError: when no gradient leads from the hook point to the observations [n, …].
        """
        seen: list[Tensor] = []
        handle = self._module.register_forward_pre_hook(
            lambda _module, inputs: seen.append(inputs[0])
        )
        try:
            with torch.enable_grad(), self._random:
                at = observations.detach().clone().requires_grad_()
                self._call(at)
                x = seen[0].reshape(len(at), -1).double()
                found = [
                    torch.autograd.grad((x @ one).sum(), at, retain_graph=True)[0]
                    for one in readings
                ]
        finally:
            handle.remove()
        return torch.stack(found)

    def output_at_hook(self, observations: Tensor | Call) -> Tensor:
        """[n, d_out] what the hook point gives, unshifted."""
        return self.seen_at_hook(observations)[1]

    def _run(self, observations: Tensor | Call) -> Tensor:
        with torch.no_grad(), self._random:
            return self._call(observations)

    def _call(self, observations: Tensor | Call) -> Tensor:
        if isinstance(observations, Call):
            return self._read(self.policy(*observations.args, **observations.kwargs))
        return self._read(self.policy(observations))


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
    """Direct effect of taking a feature out on one action; see :func:`shadow_effects`."""
    return shadow_effects(
        shadow, steps, decoders, feature, controls=controls, seed=seed, centred=centred
    )[action]


def shadow_effects(
    shadow: Shadow,
    steps: ShadowSteps,
    decoders: NDArray[np.floating],
    feature: int,
    *,
    controls: int = LEAST_CONTROLS,
    seed: int = 0,
    centred: bool = True,
    pause: Callable[[], None] = lambda: None,
) -> tuple[EffectSamples, ...]:
    """Direct effects of taking a feature out, per action, with matched controls of each kind.

    ``decoders`` [F, d_out]. Only steps at which the feature is on are used; each control shifts
    those same steps by vectors of the same norms. ``centred`` reads a logit minus the mean of all
    logits, which is what a softmax or an argmax sees; give False for continuous actions. ``pause``
    is called between runs, for a caller that must leave the processor to others.

    Raises:
        ValueError: when the feature is off in all the steps.
    """
    on = np.flatnonzero(steps.features[:, feature] > 0)
    if len(on) == 0:
        raise ValueError(f"feature {feature} is off in all the sampled steps")
    random = np.random.default_rng([seed, feature])
    strength = steps.features[on, feature].astype(np.float64)
    direction = np.asarray(decoders[feature], np.float64)
    norms = strength * np.linalg.norm(direction)
    here = _Rows(shadow, steps, on, centred=centred, pause=pause)
    width = len(direction)
    y = shadow.output_at_hook(steps.observations).numpy().astype(np.float64)[on]
    spread = y - y.mean(0)
    kinds: dict[str, list[NDArray[np.float64]]] = {
        "isotropic": [_unit(random.normal(size=width)) for _ in range(controls)],
        "activation covariance": [
            _unit(random.normal(size=len(spread)) @ spread) for _ in range(controls)
        ],
    }
    live = np.flatnonzero((steps.features > 0).any(0))
    others = live[live != feature]
    if len(others):
        chosen = random.choice(others, controls, replace=len(others) < controls)
        kinds["other features"] = [_unit(np.asarray(decoders[f], np.float64)) for f in chosen]
    results = {
        kind: np.stack([here.without(norms[:, None] * unit) for unit in units])
        for kind, units in kinds.items()
    }
    off = np.flatnonzero(steps.features[:, feature] <= 0)
    if len(off):
        there = _Rows(shadow, steps, off, centred=centred, pause=pause)
        push = np.broadcast_to(strength.mean() * direction, (len(off), width))
        rows = random.integers(0, len(off), (controls, len(on)))
        results["same feature when off"] = there.without(push)[rows]
    change = here.without(strength[:, None] * direction)
    results[CONSTANT_BIAS] = _constant_bias(change, controls, random, centred=centred)
    return tuple(
        EffectSamples(
            change[:, action],
            steps.episode[on],
            {kind: found[..., action] for kind, found in results.items()},
        )
        for action in range(change.shape[1])
    )


class _Rows:
    """Some of the steps, run with vectors taken out of the hook point's output."""

    def __init__(
        self,
        shadow: Shadow,
        steps: ShadowSteps,
        rows: NDArray[np.intp],
        *,
        centred: bool,
        pause: Callable[[], None],
    ) -> None:
        self._shadow, self._rows = shadow, rows
        self._centred, self._pause = centred, pause
        # What a policy was called with as a whole is run as a whole.
        self._total = len(steps.features) if isinstance(steps.observations, Call) else None
        self._observations = (
            steps.observations
            if isinstance(steps.observations, Call)
            else steps.observations[torch.from_numpy(rows)]
        )
        self._base = self._values(None)

    def without(self, vectors: NDArray[np.floating]) -> NDArray[np.float64]:
        """[n, A] values minus values with ``vectors`` [n, d_out] taken out."""
        self._pause()
        shift = np.asarray(-vectors, np.float32)
        if self._total is not None:
            whole = np.zeros((self._total, shift.shape[1]), np.float32)
            whole[self._rows] = shift
            shift = whole
        return self._base - self._values(torch.from_numpy(shift))

    def _values(self, shift: Tensor | None) -> NDArray[np.float64]:
        outputs = self._shadow.outputs(self._observations, shift)
        values: NDArray[np.float64] = outputs.detach().to(torch.float64).numpy()
        if self._total is not None:
            values = values[self._rows]
        return values - values.mean(1, keepdims=True) if self._centred else values


def _constant_bias(
    change: NDArray[np.float64], controls: int, random: np.random.Generator, *, centred: bool
) -> NDArray[np.float64]:
    """[controls, n, A] the change by a constant bias whose norm is the mean of ``change``'s."""
    drawn = random.normal(size=(controls, change.shape[1]))
    if centred:
        drawn -= drawn.mean(1, keepdims=True)
    drawn /= np.maximum(np.linalg.norm(drawn, axis=1, keepdims=True), _EPSILON)
    size = float(np.linalg.norm(change, axis=1).mean())
    return np.repeat(size * drawn[:, None, :], len(change), axis=1)


def copy_without_hooks(policy: nn.Module) -> nn.Module:
    """A deep copy that leaves the tap's hooks, and whatever they hold on to, behind."""
    memo: dict[int, object] = {}
    for module in policy.modules():
        for name, value in vars(module).items():
            if "_hooks" in name and isinstance(value, dict):
                memo[id(value)] = OrderedDict()
    return copy.deepcopy(policy, memo)


def _unit(vector: NDArray[np.float64]) -> NDArray[np.float64]:
    return vector / max(float(np.linalg.norm(vector)), _EPSILON)
