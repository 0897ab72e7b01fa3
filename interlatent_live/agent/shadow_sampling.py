"""What a shadow does on the policy's thread: look at every so many forwards, and pass them on."""

from __future__ import annotations

import logging
from os import getpid
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from torch import nn
    from torch.utils.hooks import RemovableHandle

    from interlatent_live.agent.shadow_state import PolicyState

    Arguments = tuple[tuple[Any, ...], dict[str, Any]]

logger = logging.getLogger(__name__)


class Sampler:
    """A hook on the policy that hands on what it was called with; nothing it does may raise.

    Args:
        policy: the acting policy.
        every: how many forwards from one sample to the next.
        state: tells whether the policy still is the one that was copied.
        steps_in_episode: step within the episode of the next row, per copy.
        take: given (args, kwargs) as they are, and the episode [n] of each copy.
        changed: given all tensors of the policy where one of them changed.
    """

    def __init__(
        self,
        policy: nn.Module,
        every: int,
        state: PolicyState,
        *,
        steps_in_episode: Callable[[], int | NDArray[np.uint32]],
        take: Callable[[Arguments, NDArray[np.int64]], None],
        changed: Callable[[dict[str, torch.Tensor]], None],
    ) -> None:
        self._every, self._state = every, state
        self._steps_in_episode, self._take, self._changed = steps_in_episode, take, changed
        self._calls = 0
        self._pid = getpid()
        self._episode = np.zeros(0, np.int64)
        self._last_t = np.zeros(0, np.int64)
        self._one_t = -1
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
                self._take((args, kwargs), self._episodes())
        except Exception as error:  # noqa: BLE001 - a bug of ours must never reach the policy
            self.fault(error)

    def _episodes(self) -> NDArray[np.int64]:
        """An episode number for each copy; a step number that fell is another episode.

        The same array as before while all episodes are the same.
        """
        t = self._steps_in_episode()
        if isinstance(t, int):
            if self._one_t <= t and len(self._episode) == 1:
                self._one_t = t
                return self._episode
            self._one_t = t
        now = np.atleast_1d(np.asarray(t, np.int64)).copy()
        if len(now) != len(self._last_t):
            self._last_t, self._episode = now, np.arange(len(now)) << 32
        ended = now < self._last_t
        if isinstance(t, int) or ended.any():
            self._episode = self._episode + (ended | isinstance(t, int))
        self._last_t = now
        return self._episode


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
