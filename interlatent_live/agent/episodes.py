"""Where each agent copy stands: which episode, which step, and whether a call is a step at all.

Gymnasium's vector environments begin episodes in three ways. In next-step autoreset the call after
an episode's end is spent on the reset: its action is ignored, its reward is 0, and it is not a
step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from interlatent_live.agent.options import Autoreset
from interlatent_live.stream import StepFlag

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

TERMINATED: Final = int(StepFlag.TERMINATED)
TRUNCATED: Final = int(StepFlag.TRUNCATED)


@dataclass(frozen=True, slots=True, eq=False)
class Advance:
    """Where n copies stood at a step, each [n].

    ``valid`` says which of them were steps, ``done`` which of these ended an episode; ``flags``
    holds :class:`StepFlag`, ``episode`` and ``t`` the position of the step.
    """

    valid: NDArray[np.bool_]
    done: NDArray[np.bool_]
    flags: NDArray[np.uint8]
    episode: NDArray[np.uint32]
    t: NDArray[np.uint32]


class EpisodeClock:
    """Counts episodes and steps of n copies; ``not_steps`` counts the reset calls left out."""

    def __init__(self, n: int, autoreset: Autoreset | None) -> None:
        self.n = n
        self.autoreset = autoreset
        self.not_steps = 0
        # A single copy counts in plain integers: arrays would cost microseconds per step.
        self.one_episode = 0
        self.one_t = 0
        self._episode = np.zeros(n, np.uint32)
        self._t = np.zeros(n, np.uint32)
        self._between = np.zeros(n, bool)
        self._resetting = False
        """Whether any copy is between two episodes."""
        # Nearly every step ends no episode, and all of them are steps: these say so at no cost.
        self._nobody, self._everybody = np.zeros(n, bool), np.ones(n, bool)
        self._no_flags = np.zeros(n, np.uint8)
        for constant in (self._nobody, self._everybody, self._no_flags):
            constant.flags.writeable = False

    @property
    def t(self) -> int | NDArray[np.uint32]:
        """Step within the episode of the next row: an int, or [n] for n copies."""
        return self.one_t if self.n == 1 else self._t

    @property
    def place(self) -> tuple[int, int] | tuple[NDArray[np.uint32], NDArray[np.int64]]:
        """Episode and step within it of the next row: two ints, or [n] of n copies.

        The step is −1 where the next call is a reset and no step.
        """
        if self.n == 1:
            return self.one_episode, self.one_t
        t = self._t.astype(np.int64)
        return self._episode.copy(), np.where(self._between, -1, t) if self._resetting else t

    def advance(self, terminated: ArrayLike, truncated: ArrayLike) -> Advance:
        """Count one step of all copies."""
        if self.n == 1:
            return self._advance_one(bool(np.any(terminated)), bool(np.any(truncated)))
        term, trunc = self._mask(terminated), self._mask(truncated)
        valid = ~self._between if self._resetting else self._everybody
        episode, t = self._episode.copy(), self._t.copy()
        if self._resetting:
            self._t[valid] += 1
            self.not_steps += self.n - int(np.count_nonzero(valid))
        else:
            self._t += 1
        if term is self._nobody and trunc is self._nobody:
            if self._resetting:
                self._rest(self._nobody)
            return Advance(valid, self._nobody, self._no_flags, episode, t)
        done = (term | trunc) & valid
        flags = term.view(np.uint8) * np.uint8(TERMINATED)
        flags |= trunc.view(np.uint8) * np.uint8(TRUNCATED)
        self._t[done] = 0
        self._episode[done] += 1
        self._rest(done)
        return Advance(valid, done, flags, episode, t)

    def _mask(self, ended: ArrayLike) -> NDArray[np.bool_]:
        """[n] which copies; the very constant where it is none."""
        mask = np.asarray(ended, bool)
        if not np.count_nonzero(mask):
            return self._nobody
        if mask.shape == (self.n,):
            return np.ascontiguousarray(mask)
        return np.ascontiguousarray(np.broadcast_to(mask, (self.n,)))

    def _rest(self, done: NDArray[np.bool_]) -> None:
        """Copies that ended an episode spend their next call on the reset, in one of the modes."""
        if self.autoreset is Autoreset.NEXT_STEP:
            self._between = done.copy()
            self._resetting = bool(np.count_nonzero(done))

    def _advance_one(self, terminated: bool, truncated: bool) -> Advance:  # noqa: FBT001  as in step
        flags = (TERMINATED if terminated else 0) | (TRUNCATED if truncated else 0)
        before = Advance(
            np.ones(1, bool),
            np.array([flags != 0]),
            np.array([flags], np.uint8),
            np.array([self.one_episode], np.uint32),
            np.array([self.one_t], np.uint32),
        )
        self.count_one(ended=flags != 0)
        return before

    def count_one(self, *, ended: bool) -> None:
        """Count one step of a single copy."""
        if ended:
            self.one_t = 0
            self.one_episode += 1
        else:
            self.one_t += 1

    def reset(self, mask: ArrayLike | None = None) -> None:
        """Copies (all, or those in ``mask`` [n]) were reset from outside.

        Whoever had taken a step since the last beginning is now in a new episode.
        """
        if self.n == 1:
            if self.one_t:
                self.count_one(ended=True)
            return
        which = np.ones(self.n, bool) if mask is None else np.asarray(mask, bool)
        begun = which & (self._t > 0)
        self._episode[begun] += 1
        self._t[begun] = 0
        self._between &= ~which
        self._resetting = bool(np.count_nonzero(self._between))
