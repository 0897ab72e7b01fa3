"""Time as the state machines see it, and the offset between two hosts' clocks.

A machine is given the time with each event and never asks for it: so tests own the clock, and a
wall clock that jumps cannot make a peer time out.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from typing import NamedTuple


class Now(NamedTuple):
    """A moment: ``mono`` (seconds, monotonic) for intervals, ``wall_ns`` for stamps."""

    mono: float
    wall_ns: int


def read_clock() -> Now:
    """The moment now, by this machine's clocks."""
    return Now(time.monotonic(), time.time_ns())


@dataclass(frozen=True, slots=True)
class OffsetSample:
    """One exchange: the peer's clock minus ours, uncertain by half of the round trip, in ns."""

    offset_ns: int
    round_trip_ns: int


class OffsetEstimator:
    """The peer's clock minus ours, from the four stamps of an exchange (RFC 5905, section 8).

    The estimate is the sample with the shortest round trip among the last 16, since queueing can
    only lengthen a round trip and it is queueing that falsifies the offset.
    """

    def __init__(self) -> None:
        self._samples: deque[OffsetSample] = deque(maxlen=16)

    def add(self, sent: int, received: int, answered: int, arrived: int) -> None:
        """Stamps in ns: we sent, the peer received, the peer answered, the answer arrived."""
        round_trip = (arrived - sent) - (answered - received)
        if round_trip >= 0 and answered >= received:
            offset = ((received - sent) + (answered - arrived)) // 2
            self._samples.append(OffsetSample(offset, round_trip))

    def best(self) -> OffsetSample | None:
        """The estimate, or ``None`` before the first complete exchange."""
        return min(self._samples, key=lambda sample: sample.round_trip_ns, default=None)
