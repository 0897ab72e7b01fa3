"""What a shadow does on the policy's thread: look at every so many forwards, and pass them on."""

from __future__ import annotations

import logging
from os import getpid
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from torch import nn
    from torch.utils.hooks import RemovableHandle

    from interlatent_live.agent.shadow_state import PolicyState

    Arguments = tuple[tuple[Any, ...], dict[str, Any]]

    Place = tuple[int, int] | tuple[NDArray[np.uint32], NDArray[np.int64]]

logger = logging.getLogger(__name__)

EPISODE_BITS: Final = 32


class Sampler:
    """A hook on the policy that hands on what it was called with; nothing it does may raise.

    Args:
        policy: the acting policy.
        every: how many forwards from one sample to the next.
        state: tells whether the policy still is the one that was copied.
        place: episode and step within it of the next row, per copy.
        take: given (args, kwargs) as they are, and episode and step [n] of each copy; no two copies
            have the same episode, and its lower 32 bits are the copy's own count.
        changed: given all tensors of the policy where one of them changed.
    """

    def __init__(
        self,
        policy: nn.Module,
        every: int,
        state: PolicyState,
        *,
        place: Callable[[], Place],
        take: Callable[[Arguments, NDArray[np.int64], NDArray[np.int64]], None],
        changed: Callable[[dict[str, torch.Tensor]], None],
    ) -> None:
        self._every, self._state = every, state
        self._place, self._take, self._changed = place, take, changed
        self._calls = 0
        self._pid = getpid()
        self._episode = np.zeros(0, np.int64)
        self._one_episode = -1
        self.faults = 0
        self._handle: RemovableHandle | None = policy.register_forward_pre_hook(
            self._sampled, with_kwargs=True
        )

    def stop(self) -> None:
        """Take the hook off."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def fault(self, error: Exception) -> None:
        """Count an error of ours, and log the first."""
        self.faults += 1
        if self.faults == 1:
            logger.error("the shadow failed and goes on", exc_info=error)

    def _sampled(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._calls += 1
        if self._calls % self._every or torch.is_grad_enabled() or getpid() != self._pid:
            return
        try:
            sample, tensors = self._state.look()
            if tensors is not None:
                self._changed(tensors)
            if sample:
                self._take((args, kwargs), *self._where())
        except Exception as error:  # noqa: BLE001 - a bug of ours must never reach the policy
            self.fault(error)

    def _where(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Episode and step of each copy; the same array as before while all episodes are."""
        episode, t = self._place()
        if isinstance(episode, int):
            if episode != self._one_episode:
                self._one_episode, self._episode = episode, np.array([episode], np.int64)
        else:
            now = (np.arange(len(episode)) << EPISODE_BITS) + episode
            if len(now) != len(self._episode) or (now != self._episode).any():
                self._episode = now
        return self._episode, np.atleast_1d(np.asarray(t, np.int64))


def copied(value: Any) -> Any:
    """Tensors cloned to the host, also within tuples, lists and maps; anything else as it is."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(copied(one) for one in value))
    if isinstance(value, (tuple, list)):
        return type(value)(copied(one) for one in value)
    if isinstance(value, dict):
        return {key: copied(one) for key, one in value.items()}
    return value
