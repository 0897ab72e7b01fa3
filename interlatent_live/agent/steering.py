"""Forward hooks that add the deltas of interventions to a module's output.

They run after the tap's own hook, so frames show the activation that the policy made, and the row
is marked as steered. With nothing in force a hook returns nothing, and the policy's output is its
own to the bit. Only the forward that acts is changed: in the stepping thread, outside of gradients,
on as many rows as there are agent copies, or inside ``with tap.acting()``.

A hook cannot run inside a compiled graph: a hook point there is refused when the tap is attached,
and where the policy is compiled later the acting thread notices that the hook did not run, and the
intervention ends with that reason.
"""

from __future__ import annotations

from threading import get_ident
from typing import TYPE_CHECKING, Any

import torch

from interlatent_live.agent.acting import row_width
from interlatent_live.agent.hooks import HIDDEN
from interlatent_live.errors import UserError
from interlatent_live.interventions.deltas import bounded, delta

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor, nn
    from torch.utils.hooks import RemovableHandle

    from interlatent_live.agent.acting import Gate
    from interlatent_live.agent.control import AgentControl
    from interlatent_live.interventions.values import Plan
    from interlatent_live.transcoders.transcoder import Transcoder


class SteeringHooks:
    """One hook per hook point with a transcoder; gone after :meth:`remove`.

    Args:
        modules: hooked modules by name.
        transcoders: by hook point.
        gate: the tap's, which knows the acting thread and the number of copies.
        control: says what is in force, and is told what was done.

    Raises:
        UserError: when a hook point has no module, or is a recurrent state.
    """

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        transcoders: Mapping[str, Transcoder],
        gate: Gate,
        control: AgentControl,
    ) -> None:
        self._handles: list[RemovableHandle] = []
        for name in transcoders:
            if name not in modules:
                raise UserError(
                    f"control: {name!r} is not among the hook points {', '.join(modules)}"
                )
            if name.endswith(HIDDEN) or isinstance(modules[name], torch.nn.RNNBase):
                raise UserError(
                    f"control: {name!r} is a recurrent state, which lives on beyond the step: a "
                    "change of it would not end; choose a layer after it"
                )
        for name, transcoder in transcoders.items():
            hook = _make_hook(_Site(name, transcoder), gate, control)
            self._handles.append(modules[name].register_forward_hook(hook, with_kwargs=True))

    def remove(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()


class _Site:
    """A hook point's transcoder, on whatever device the policy turns out to run."""

    def __init__(self, name: str, transcoder: Transcoder) -> None:
        self.name = name
        self._on: dict[torch.device, Transcoder] = {}
        self._transcoder = transcoder

    def transcoder(self, device: torch.device) -> Transcoder:
        if device not in self._on:
            self._on[device] = self._transcoder.to(device)
        return self._on[device]


def _make_hook(
    site: _Site, gate: Gate, control: AgentControl
) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Any], Tensor | None]:
    is_compiling = torch.compiler.is_compiling
    name = site.name

    def hook(
        _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> Tensor | None:
        if is_compiling():
            return None
        published, turn = control.turn()
        if not (turn.plans or turn.shadows):
            return None
        try:
            plan = published.plans.get(name) if turn.plans else None
            shadows = published.shadows.get(name, ()) if turn.shadows else ()
            if (plan is None and not shadows) or not _acts(gate, output):
                return None
            x = args[0] if args else next(iter(kwargs.values()), None)
            return _steered(site, control, plan, shadows, x=x, output=output, n=gate.envs)
        except Exception as error:  # noqa: BLE001  a bug of ours must never reach the policy
            control.fault(error)
            return None

    return hook


def _acts(gate: Gate, output: Any) -> bool:
    """Whether this forward is the one that chooses the action."""
    if not isinstance(output, torch.Tensor):
        raise UserError("a module that returns no plain tensor cannot be intervened on")
    if not gate.explicit and (
        gate.explicit_only
        or output.requires_grad
        or (gate.thread is not None and gate.thread != get_ident())
    ):
        return False
    return row_width(tuple(output.shape), gate.envs) is not None


def _steered(
    site: _Site,
    control: AgentControl,
    plan: Plan | None,
    shadows: tuple[tuple[str, Plan], ...],
    *,
    x: Any,
    output: Tensor,
    n: int,
) -> Tensor | None:
    y = output.reshape(n, -1)
    transcoder = site.transcoder(y.device)
    W_dec = transcoder.W_dec
    if y.shape[1] != W_dec.shape[1]:
        raise UserError(
            f"{site.name} puts out {y.shape[1]} values, its transcoder writes {W_dec.shape[1]}"
        )
    plans = [*((one for _, one in shadows)), *(() if plan is None else (plan,))]
    features = None
    if any(one.needs_features for one in plans):
        if not isinstance(x, torch.Tensor):
            raise UserError(f"{site.name} gets no tensor first, so its features are unknown")
        features = transcoder.encode(x.detach().reshape(n, -1).to(W_dec.dtype))
    holds = {
        item.predicate: torch.from_numpy(control.conditions.holds(item.predicate)).to(y.device)
        for one in plans
        for item in one.interventions
        if item.predicate is not None
    }

    def change_of(one: Plan, dry_run: str) -> Tensor:
        total = bounded(delta(one.interventions, W_dec, features, n=n, holds=holds), one.max_norm)
        norms = torch.linalg.vector_norm(total, dim=1)
        control.note(one, norms.cpu().numpy(), dry_run=dry_run)
        if dry_run and control.dry_runs is not None:
            control.dry_runs.see(site.name, dry_run, total)
        return total

    with torch.no_grad():
        for command_id, one in shadows:
            change_of(one, command_id)
        if plan is None:
            return None
        change = change_of(plan, "").to(y.dtype)
    active = (change != 0).any(dim=1, keepdim=True)
    if not bool(active.any()):
        return None
    return torch.where(active, y + change, y).reshape(output.shape)
