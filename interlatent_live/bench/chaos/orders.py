"""What the measuring process tells the agent process, and what it answers: one JSON value a line.

Without torch, so that the measuring side can speak to an agent before it needs any.
"""

from __future__ import annotations

from typing import Any

import msgspec


class Open(msgspec.Struct, frozen=True, tag=True):
    """Attach a tap and begin to act. Answered with :class:`Opened`."""

    endpoint: str
    agent: str
    options: dict[str, Any] = {}


class Mark(msgspec.Struct, frozen=True, tag=True):
    """From the next round on, step times are kept (or not). Answered with :class:`Progress`."""

    keep: bool


class Look(msgspec.Struct, frozen=True, tag=True):
    """Say how things stand. Answered with :class:`Progress`."""


class Shut(msgspec.Struct, frozen=True, tag=True):
    """Close the tap and stop acting. Answered with :class:`Closed`."""

    timeout_s: float = 15.0


Order = Open | Mark | Look | Shut


class Opened(msgspec.Struct, frozen=True, tag=True):
    """The tap is attached."""

    run_id: str
    boot_id: str


class Progress(msgspec.Struct, frozen=True, tag=True):
    """Steps taken with the tap so far, and its books."""

    steps: int = 0
    sent: int = 0
    acknowledged: int = 0
    state: str = ""
    last_error: str = ""
    spooled_bytes: int = 0


class Times(msgspec.Struct, frozen=True):
    """Step times of the rounds that were kept, in µs; see :mod:`.steptime`."""

    rounds: int
    nobody_us: float
    fault_us: float
    nobody_p99_us: float
    fault_p99_us: float
    added_median_upper_us: float
    added_p99_upper_us: float
    floor_median_upper_us: float
    floor_p99_upper_us: float


class Closed(msgspec.Struct, frozen=True, tag=True):
    """The final books."""

    steps: int
    waiting: int
    sent: int
    acknowledged: int
    in_flight: int
    lost: dict[str, int]
    faults: int
    last_error: str
    times: Times | None
    close_s: float


Answer = Opened | Progress | Closed

encode = msgspec.json.encode
decode_order = msgspec.json.Decoder(Order).decode
decode_answer = msgspec.json.Decoder(Answer).decode
