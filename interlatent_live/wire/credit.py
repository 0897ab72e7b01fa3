"""Credit in steps and bytes: how much a sender may have on its way, and who pays for the memory.

Grants are absolute totals since the welcome of a connection, as in QUIC (RFC 9000, section 4.1):
saying one twice, or late, changes nothing. A high-water mark cannot do this: it counts messages,
and kernel buffers take thousands more.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Window:
    """How much may be on its way or waiting at a receiver, per connection."""

    steps: int
    bytes: int


class SenderCredit:
    """What a sender may still send on this connection."""

    __slots__ = ("bytes_limit", "bytes_used", "steps_limit", "steps_used")

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """A new connection starts from nothing."""
        self.steps_limit = self.bytes_limit = 0
        self.steps_used = self.bytes_used = 0

    def grant(self, steps: int, size: int) -> None:
        """The receiver names new totals; a lower one than before is an old message."""
        self.steps_limit = max(self.steps_limit, steps)
        self.bytes_limit = max(self.bytes_limit, size)

    def room(self) -> Window:
        """What may be sent now."""
        return Window(self.steps_limit - self.steps_used, self.bytes_limit - self.bytes_used)

    def allows(self, steps: int, size: int) -> bool:
        """Whether a message of so many steps and bytes may go."""
        return (
            self.steps_used + steps <= self.steps_limit
            and self.bytes_used + size <= self.bytes_limit
        )

    def spend(self, steps: int, size: int) -> None:
        """A message went."""
        self.steps_used += steps
        self.bytes_used += size


class ReceiverCredit:
    """What a receiver has granted on one connection, and what waits in it.

    The bound: bytes received and not processed, plus bytes granted and not received, never exceed
    the window.
    """

    __slots__ = (
        "_bytes",
        "_bytes_limit",
        "_steps",
        "_steps_limit",
        "_waiting_bytes",
        "_waiting_steps",
        "window",
    )

    def __init__(self, window: Window, waiting: Window | None = None) -> None:
        self.window = window
        self._steps = self._bytes = 0
        # What an earlier connection of the same stream left in the queue takes room here.
        self._waiting_steps = waiting.steps if waiting else 0
        self._waiting_bytes = waiting.bytes if waiting else 0
        self._steps_limit = max(0, window.steps - self._waiting_steps)
        self._bytes_limit = max(0, window.bytes - self._waiting_bytes)

    def receive(self, steps: int, size: int) -> bool:
        """A message came; returns whether it kept to what was granted."""
        self._steps += steps
        self._bytes += size
        self._waiting_steps += steps
        self._waiting_bytes += size
        return self._steps <= self._steps_limit and self._bytes <= self._bytes_limit

    def process(self, steps: int, size: int) -> None:
        """A message that came on this connection is done with."""
        self._waiting_steps -= steps
        self._waiting_bytes -= size

    def adopt(self, waiting: Window) -> None:
        """A stream moves here with what its earlier connection left in the queue."""
        self._waiting_steps += waiting.steps
        self._waiting_bytes += waiting.bytes

    def correct(self, steps_used: int, bytes_used: int) -> None:
        """The sender says how much it used: what vanished on the way is not held against it."""
        self._steps = max(self._steps, min(steps_used, self._steps_limit))
        self._bytes = max(self._bytes, min(bytes_used, self._bytes_limit))

    def limits(self) -> Window:
        """The totals to grant now: received so far plus the free part of the window."""
        steps = self._steps + self.window.steps - self._waiting_steps
        size = self._bytes + self.window.bytes - self._waiting_bytes
        self._steps_limit = max(self._steps_limit, steps)
        self._bytes_limit = max(self._bytes_limit, size)
        return Window(self._steps_limit, self._bytes_limit)

    @property
    def waiting(self) -> Window:
        """Received and not processed."""
        return Window(self._waiting_steps, self._waiting_bytes)


class Budget:
    """A bound in bytes on the windows of all connections together.

    A connection gets ``wanted`` bytes while there are that many, then ``least`` bytes, then
    nothing: so a thousand idle agents can connect and none can starve the machine.
    """

    def __init__(self, total: int, *, wanted: int, least: int) -> None:
        if not 0 < least <= wanted <= total:
            raise ValueError("a credit budget needs 0 < least ≤ wanted ≤ total")
        self.total = total
        self.wanted = wanted
        self.least = least
        self.reserved = 0

    def reserve(self) -> int:
        """Bytes for one more connection; 0 when there is no room for it."""
        # A quarter is kept for small windows, or the first few connections would take it all.
        roomy = self.reserved + self.wanted <= self.total * 3 // 4 or self.reserved == 0
        size = self.wanted if roomy else self.least
        if self.reserved + size > self.total:
            return 0
        self.reserved += size
        return size

    def release(self, size: int) -> None:
        """A connection ended and gives its bytes back."""
        self.reserved -= size
