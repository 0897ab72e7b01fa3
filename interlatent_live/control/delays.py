"""How long a message was held up on its way, where the clocks at its two ends need not agree.

A renewal that lay in a frozen process is no sign that its author still lives: what it promises
counts from when it was made. Receiver's time minus sender's is the difference of the clocks plus
the way; the smallest of late is the difference plus the shortest way, and whatever a message took
beyond that is what held it up. (The minimum filter of clock synchronisation, RFC 5905, section 10,
with nothing asked of the sender but its stamp.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

WINDOW_NS: Final = 30_000_000_000
"""The smallest is of one to two of these: clocks drift, and are set."""
NEVER: Final = 2**63 - 1


@dataclass(slots=True)
class Delays:
    """Of the messages of one sender."""

    _now: int = NEVER
    """The smallest difference of this window."""
    _before: int = NEVER
    """Of the last window that had any."""
    _began: int = 0

    def late_ns(self, sent_ns: int, now_ns: int) -> int:
        """By how much longer than others this message was on its way; 0 for the first."""
        took = now_ns - sent_ns
        # Nobody speaks while everything is frozen: the window before it is the one that knows.
        if now_ns - self._began > WINDOW_NS:
            self._before, self._now, self._began = self._now, NEVER, now_ns
        self._now = min(self._now, took)
        return took - min(self._now, self._before)
