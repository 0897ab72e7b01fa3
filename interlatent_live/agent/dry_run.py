"""What the action would have been under a dry run, from a second forward after the step.

Only while a dry run is in force, at most :data:`PER_SECOND` times a second, in the acting thread
after the environment has moved, so that no action waits for it: the outermost module around the
hook point that the agent called is run twice on a copy, as it was and with the delta added. The
copy has weights and buffers of its own, and the random state is put back, so a seeded agent acts as
if nobody had looked.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from time import monotonic_ns
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from interlatent_live.explanations.causal.shadow import copy_without_hooks

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray
    from torch import Tensor, nn
    from torch.utils.hooks import RemovableHandle

PER_SECOND: Final = 10
SHOWN: Final = 6
"""Numbers of an action that are shown."""
MOST: Final = 64
"""Dry runs that are remembered."""


@dataclass(slots=True)
class WouldHave:
    """What one dry run would have done to actions, over the steps that were looked at."""

    looked: int = 0
    """Rows."""
    otherwise: int = 0
    """Rows of these in which the action would have been another one."""
    largest: float = 0.0
    """Of continuous actions, the largest difference in any component."""
    meant: tuple[float, ...] = ()
    """The action of the newest row that was looked at."""
    would: tuple[float, ...] = ()
    """What it would have been."""
    discrete: bool = False
    unknown: str = ""
    """Why nothing could be looked at."""

    def __str__(self) -> str:
        """One line for people."""
        if self.unknown:
            return f"what the action would have been is not known: {self.unknown}"
        if not self.looked:
            return "no step was looked at yet"
        size = "" if self.discrete else f" by up to {self.largest:.3g}"
        return (
            f"would have acted otherwise in {self.otherwise} of {self.looked} rows looked at"
            f"{size}; last {_numbers(self.would)} for {_numbers(self.meant)}"
        )


@dataclass(slots=True)
class _Pending:
    """What a forward under a dry run left to look at."""

    point: str
    totals: dict[str, Tensor]
    """By command, the delta [n, d_out]."""
    called: tuple[str, tuple[Any, ...], dict[str, Any]]
    """Name and arguments of the outermost module that was called."""


@dataclass(slots=True)
class _Twin:
    """A copy of the policy, and the modules of it by name."""

    policy: nn.Module
    commands: frozenset[str] = field(default_factory=frozenset)
    """The dry runs that it was made for; newer ones may find newer weights."""


class DryRunActions:
    """Belongs to the acting thread; hooks nothing before the first dry run or after :meth:`remove`.

    Args:
        policy: the acting policy.
        points: by hook point with a transcoder, the name of its module within the policy.
        watching: whether a forward may be one under a dry run.
        discrete: whether outputs are scores of discrete actions.
    """

    def __init__(
        self,
        policy: nn.Module,
        points: Mapping[str, str],
        *,
        watching: Callable[[], bool],
        discrete: bool,
    ) -> None:
        self.by_command: dict[str, WouldHave] = {}
        """Read by the control thread."""
        self._policy, self._watching, self._discrete = policy, watching, discrete
        self._places = points
        self._called: tuple[str, tuple[Any, ...], dict[str, Any]] | None = None
        self._pending: _Pending | None = None
        self._twin: _Twin | None = None
        self._due_ns = 0
        self._handles: list[RemovableHandle] = []

    def remove(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def see(self, point: str, command_id: str, total: Tensor) -> None:
        """A forward under a dry run would have had ``total`` [n, d_out] added at a hook point."""
        if not self._handles:
            self._begin()
        if monotonic_ns() < self._due_ns or self._called is None or point not in self._places:
            return
        pending = self._pending
        if pending is None or pending.point != point or pending.called is not self._called:
            pending = self._pending = _Pending(point, {}, self._called)
        pending.totals[command_id] = total

    def finish(self) -> None:
        """The step is done: look at what its forward left."""
        pending, self._pending, self._called = self._pending, None, None
        if pending is None:
            return
        self._due_ns = monotonic_ns() + 1_000_000_000 // PER_SECOND
        for command_id in pending.totals:
            if command_id not in self.by_command:
                if len(self.by_command) >= MOST:
                    del self.by_command[next(iter(self.by_command))]
                self.by_command[command_id] = WouldHave(discrete=self._discrete)
        try:
            self._look(pending)
        except Exception as error:  # noqa: BLE001  a module of other people's: say why, do no more
            for command_id in pending.totals:
                self.by_command[command_id].unknown = f"{type(error).__name__}: {error}"[:200]

    def _begin(self) -> None:
        """From the next forward on, notice what is called around the hook points."""
        modules = dict(self._policy.named_modules())
        around = {
            ".".join(parts[:i])
            for parts in (place.split(".") for place in self._places.values())
            for i in range(len(parts) + 1)
        }
        for name in sorted(around & modules.keys(), key=_depth):
            self._handles.append(
                modules[name].register_forward_pre_hook(self._noted(name), with_kwargs=True)
            )

    def _noted(self, name: str) -> Callable[..., None]:
        depth = _depth(name)

        def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if torch.compiler.is_compiling():
                return
            if self._watching() and (self._called is None or depth <= _depth(self._called[0])):
                self._called = name, args, kwargs

        return note

    def _look(self, pending: _Pending) -> None:
        twin = self._fresh_twin(frozenset(pending.totals))
        name, args, kwargs = pending.called
        inside = twin.get_submodule(self._places[pending.point])
        device = next(iter(pending.totals.values())).device
        devices = [device] if device.type == "cuda" else []

        def actions(total: Tensor | None) -> NDArray[np.float64]:
            with torch.random.fork_rng(devices), torch.no_grad():
                handle = None if total is None else inside.register_forward_hook(_adds(total))
                try:
                    out = twin.get_submodule(name)(*args, **kwargs)
                finally:
                    if handle is not None:
                        handle.remove()
                return _actions(_after(twin, name, out), twin, discrete=self._discrete)

        meant = actions(None)
        for command_id, total in pending.totals.items():
            _count(self.by_command[command_id], meant, actions(total))

    def _fresh_twin(self, commands: frozenset[str]) -> nn.Module:
        twin = self._twin
        if twin is None or not commands <= twin.commands:
            known = frozenset() if twin is None else twin.commands & self.by_command.keys()
            twin = self._twin = _Twin(copy_without_hooks(self._policy), known | commands)
        return twin.policy


def _depth(name: str) -> int:
    """How many modules a module lies within; the policy itself in none."""
    return name.count(".") + 1 if name else 0


def _adds(total: Tensor) -> Callable[..., Tensor]:
    def hook(_: nn.Module, __: tuple[Any, ...], output: Tensor) -> Tensor:
        return output + total.to(output.dtype).reshape(output.shape)

    return hook


def _after(policy: nn.Module, name: str, out: Any) -> Tensor:
    """The outputs that decide the action, from what the called module returned.

    Stable-Baselines3's actor-critics call their parts one by one: after ``mlp_extractor`` comes
    ``action_net``. Of several outputs the first one counts.

    Raises:
        TypeError: when there is no tensor.
    """
    first = out[0] if isinstance(out, (tuple, list)) and out else out
    if not isinstance(first, torch.Tensor):
        raise TypeError(f"{name or 'the policy'} returns no tensor first")
    head = getattr(policy, "action_net", None)
    if name.startswith("mlp_extractor") and isinstance(head, torch.nn.Module):
        return head(first)  # type: ignore[no-any-return]  # a module's call is Any
    return first


def _actions(outputs: Tensor, policy: nn.Module, *, discrete: bool) -> NDArray[np.float64]:
    """Actions [n, a]: the policy's own where it says, the best score of discrete ones, or as is."""
    own = getattr(policy, "actions", None)
    values = own(outputs) if callable(own) else outputs.detach().cpu().to(torch.float64).numpy()
    flat: NDArray[np.float64] = np.asarray(values, np.float64)
    array = flat.reshape(len(flat), -1)
    if discrete and not callable(own) and array.shape[1] > 1:
        best: NDArray[np.float64] = array.argmax(1)[:, None].astype(np.float64)
        return best
    return array


def _count(would: WouldHave, meant: NDArray[np.float64], other: NDArray[np.float64]) -> None:
    apart = np.abs(other - meant).max(axis=1)
    would.looked += len(meant)
    would.otherwise += int(np.count_nonzero(apart))
    would.largest = max(would.largest, float(apart.max(initial=0.0)))
    would.meant, would.would = (tuple(map(float, one[0, :SHOWN])) for one in (meant, other))
    would.unknown = ""


def _numbers(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:.3g}" for value in values)
