"""Whether the acting policy still is the one that its shadow has a copy of.

Version counters, which autograd keeps per tensor, tell in a microsecond what was changed in place;
assignments through ``.data`` and replaced parameters leave them alone, so a checksum over the
weights' bytes is taken now and then beside the acting thread. What changed is copied by the acting
thread itself, between two of its forwards, because only there are the weights surely whole.
"""

from __future__ import annotations

import time
import zlib
from typing import TYPE_CHECKING, Final

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import nn

SENT_EVERY_S: Final = 1.0
"""Changed tensors are copied no more often; until then nothing is sampled."""


class PolicyState:
    """Watches the parameters and buffers of a policy."""

    def __init__(self, policy: nn.Module) -> None:
        self._policy = policy
        self._list()
        self._sent_at = -SENT_EVERY_S
        self._digest = self._checksum()
        self._suspect = False

    def _list(self) -> None:
        # Tensors made in inference mode carry no counter.
        self._parameters = [one for one in self._policy.parameters() if not one.is_inference()]
        self._buffers = [one for one in self._policy.buffers() if not one.is_inference()]
        self._known = _versions(self._parameters), _versions(self._buffers)

    def look(self) -> tuple[bool, dict[str, torch.Tensor] | None]:
        """On the acting thread: whether to sample now, and all tensors where any has changed.

        Buffers may be as old as ``SENT_EVERY_S``; with other parameters nothing is sampled.
        """
        known_parameters, known_buffers = self._known
        same = not self._suspect and _versions(self._parameters) == known_parameters
        if same and _versions(self._buffers) == known_buffers:
            return True, None
        now = time.monotonic()
        if now - self._sent_at < SENT_EVERY_S:
            return same, None
        self._sent_at, self._suspect = now, False
        self._list()
        tensors = named_tensors(self._policy)
        return True, {name: one.detach().to("cpu", copy=True) for name, one in tensors.items()}

    def compare(self) -> None:
        """Beside the acting thread: compare the weights' bytes with those of the last time."""
        digest = self._checksum()
        if digest != self._digest:
            self._digest, self._suspect = digest, True

    def _checksum(self) -> int:
        """Over parameters in host memory; those on a device have their version counters only."""
        digest = 0
        for one in self._policy.parameters():
            if one.is_cpu and one.is_contiguous() and one.numel():
                # No copy, and the interpreter's lock is given away for all but small ones.
                data = one.detach().reshape(-1).view(torch.uint8).numpy().data
                digest = zlib.crc32(data, digest)
        return digest


def _versions(tensors: Iterable[torch.Tensor]) -> int:
    total = 0
    for one in tensors:
        total += one._version  # noqa: SLF001 - torch's own counter
    return total


def named_tensors(policy: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers by name."""
    return {**dict(policy.named_parameters()), **dict(policy.named_buffers())}


def load_changed(policy: nn.Module, tensors: dict[str, torch.Tensor]) -> str:
    """Put tensors into a copy of the policy; why they make it another policy, empty if they don't.

    Buffers, such as the running statistics of a batch norm that learns while acting, may change;
    with other parameters no transcoder belongs to the policy any more.
    """
    parameters, mine = dict(policy.named_parameters()), named_tensors(policy)
    other = set(tensors) != set(mine) or any(
        not torch.equal(one, tensors[name]) for name, one in parameters.items()
    )
    if other:
        return (
            "the policy's weights changed after it was attached; its transcoders belong to the "
            "earlier ones"
        )
    with torch.no_grad():
        for name, one in policy.named_buffers():
            one.copy_(tensors[name])
    return ""
