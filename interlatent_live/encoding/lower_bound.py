"""A lower bound on the k-th largest pre-activation, learned from the rows that went before.

With such a bound the product need write only what is above it, and TopK costs little more than the
product. The bound is never trusted: a row that has fewer than k entries above it is encoded again
without it. So a wrong bound costs time and nothing else, and this module only decides when trying
is worth it. A stream whose rows differ too much in scale for one bound is left alone for a while.
"""

from __future__ import annotations

from collections import deque
from typing import Final

SLACK: Final = 0.97
"""The bound lies this far below the least k-th largest entry seen lately."""
REMEMBERED: Final = 32
"""Launches that count as lately."""
ROWS_BEFORE: Final = 256
"""Rows to see before the first bound."""
TRIED: Final = 64
"""Launches over which misses are judged."""
MISSES_ALLOWED: Final = 4
"""Misses among them; a miss costs one launch more, a bound saves about half of one."""
REST: Final = 1024
"""Launches without a bound after too many misses."""


class LowerBound:
    """Sees the results of launches, and says what bound the next one may try.

    ``misses`` counts launches that had to be repeated, since the start.
    """

    def __init__(self) -> None:
        self._least: deque[float] = deque(maxlen=REMEMBERED)
        self._outcomes: deque[bool] = deque(maxlen=TRIED)
        self._rows = 0
        self._resting = 0
        self.misses = 0

    @property
    def value(self) -> float:
        """The bound to try, > 0, or 0.0 for none."""
        if self._resting or self._rows < ROWS_BEFORE:
            return 0.0
        return SLACK * max(min(self._least), 0.0)

    def saw(self, least: float, rows: int) -> None:
        """Note a launch of ``rows`` rows whose k-th largest entries were at least ``least``.

        ``least`` is 0 when a row had fewer than k positive entries: no bound helps such a row.
        """
        self._least.append(least)
        self._rows += rows
        if self._resting:
            self._resting -= 1

    def hit(self) -> None:
        """The bound held for every row of a launch."""
        self._outcomes.append(False)

    def miss(self) -> None:
        """A row had too few entries above the bound, or too many; it was encoded again."""
        self.misses += 1
        self._outcomes.append(True)
        if sum(self._outcomes) > MISSES_ALLOWED:
            self._outcomes.clear()
            self._least.clear()
            self._rows = 0
            self._resting = REST
