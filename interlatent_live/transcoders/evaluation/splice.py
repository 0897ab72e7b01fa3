"""Replacing a hook point's output inside a running policy: the test that MSE cannot fake.

What replaces y sees x and y, so the same context serves a transcoder, the mean ablation and the
affine baseline. Only offline copies are spliced; a live agent is steered through its tap.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import torch

from interlatent_live.errors import UserError
from interlatent_live.policies.hook_points import span_ends
from interlatent_live.transcoders.capture import module_named

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from torch import Tensor, nn
    from torch.utils.hooks import RemovableHandle

    from interlatent_live.transcoders.transcoder import Transcoder

    Replacement = Callable[[Tensor, Tensor], Tensor]
    """(x [n, d_in], y [n, d_out]) → what the rest of the policy sees, [n, d_out]."""


def replacement(transcoder: Transcoder) -> Replacement:
    """What a transcoder of the output puts in place of y: its reconstruction from x."""

    def replace(x: Tensor, y: Tensor) -> Tensor:
        del y
        return transcoder.reconstruct(x)

    return replace


class Splice:
    """While entered, the hook point puts out what ``replacement`` says.

    Raises:
        UserError: when the hook point does not exist or does not put out a tensor.
    """

    def __init__(self, policy: nn.Module, hook_point: str, replacement: Replacement) -> None:
        first, last = span_ends(hook_point)
        self._first, self._last = module_named(policy, first), module_named(policy, last)
        self._hook_point, self._replacement = hook_point, replacement
        self._x: Tensor | None = None
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> Self:
        self._handles = [
            self._first.register_forward_pre_hook(self._remember),
            self._last.register_forward_hook(self._replace),
        ]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for handle in self._handles:
            handle.remove()

    def _remember(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        del module
        self._x = inputs[0]

    def _replace(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Tensor:
        del module, inputs
        if not (isinstance(output, torch.Tensor) and isinstance(self._x, torch.Tensor)):
            raise UserError(f"hook point {self._hook_point!r} passes no plain tensor to splice")
        flat_x, flat_y = self._x.flatten(1), output.flatten(1)
        return self._replacement(flat_x, flat_y).to(output.dtype).reshape(output.shape)
