"""Reading a module's input and output while a policy runs offline.

The tap does this for a live agent, sampled and without ever raising; here every row counts, and a
hook point that does not fire is an error.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import torch

from interlatent_live.errors import UserError
from interlatent_live.policies.hook_points import span_ends

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

    from torch import Tensor, nn
    from torch.utils.hooks import RemovableHandle


def module_named(policy: nn.Module, name: str) -> nn.Module:
    """The submodule of this dotted name.

    Raises:
        UserError: when there is none, listing those there are.
    """
    found: dict[str, nn.Module] = dict(policy.named_modules())
    if name and name in found:
        return found[name]
    names = ", ".join(known for known in found if known)
    raise UserError(f"the policy has no module {name!r} to hook; it has {names}")


class Capture:
    """Records x and y of hook points during the forwards inside a ``with`` block.

    Args:
        policy: the module that runs.
        hook_points: names or spans.

    Raises:
        UserError: when a module does not exist.
    """

    def __init__(self, policy: nn.Module, hook_points: Sequence[str]) -> None:
        self.hook_points = tuple(hook_points)
        self._modules = {
            hook: tuple(module_named(policy, end) for end in span_ends(hook))
            for hook in self.hook_points
        }
        self._handles: list[RemovableHandle] = []
        self._seen: dict[tuple[str, str], Tensor] = {}

    def __enter__(self) -> Self:
        for hook, (first, last) in self._modules.items():
            self._handles.append(first.register_forward_pre_hook(self._recorder(hook, "x")))
            self._handles.append(last.register_forward_hook(self._recorder(hook, "y")))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def take(self) -> dict[str, tuple[Tensor, Tensor]]:
        """(x [n, d_in], y [n, d_out]) per hook point of the last forward, and forget them.

        Raises:
            UserError: when a hook point did not fire.
        """
        out = {}
        for hook in self.hook_points:
            try:
                out[hook] = (self._seen.pop((hook, "x")), self._seen.pop((hook, "y")))
            except KeyError as error:
                raise UserError(
                    f"hook point {hook!r} did not fire: the policy never calls that module while "
                    "it acts; name one that it does"
                ) from error
        return out

    def _recorder(self, hook: str, side: str) -> Callable[..., None]:
        def record(module: nn.Module, *values: Any) -> None:
            del module
            value = values[-1]
            while isinstance(value, tuple | list):  # recurrent layers hand over (y, state)
                value = value[0]
            if not isinstance(value, torch.Tensor):
                raise UserError(f"hook point {hook!r} sees {type(value).__name__}, not a tensor")
            self._seen[hook, side] = value.detach().reshape(value.shape[0], -1)

        return record
