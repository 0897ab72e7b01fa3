"""Frames of the steps that became exemplars, in bounded bytes.

A frame arrives with its step, but whether the step is an exemplar is known only when its episode
has ended. So frames wait in a first-in-first-out buffer, and those that were chosen move to a
store that the next choice prunes. Frames are opaque bytes (JPEG); nothing here opens them.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(slots=True)
class Thumbnails:
    """At most ``waiting_bytes`` of frames that wait and ``kept_bytes`` of frames in use."""

    waiting_bytes: int = 32 << 20
    kept_bytes: int = 32 << 20
    waiting: OrderedDict[int, bytes] = field(default_factory=OrderedDict)
    kept: dict[int, bytes] = field(default_factory=dict)
    held_waiting: int = 0
    held_kept: int = 0
    dropped: int = 0
    """Frames that left the buffer unseen, or found no room in the store."""

    def offer(self, position: int, frame: bytes) -> None:
        """A frame of the row with this global number."""
        self.held_waiting -= len(self.waiting.pop(position, b""))
        if len(frame) > self.waiting_bytes:
            self.dropped += 1
            return
        self.waiting[position] = frame
        self.held_waiting += len(frame)
        while self.held_waiting > self.waiting_bytes:
            _, old = self.waiting.popitem(last=False)
            self.held_waiting -= len(old)
            self.dropped += 1

    def choose(self, positions: Iterable[int]) -> None:
        """Keep the frames of these rows (exemplars, most wanted first) and drop other kept ones."""
        wanted = list(dict.fromkeys(positions))
        known = set(wanted)
        for position in [p for p in self.kept if p not in known]:
            self.held_kept -= len(self.kept.pop(position))
        for position in wanted:
            frame = self.waiting.pop(position, None)
            if frame is None:
                continue
            self.held_waiting -= len(frame)
            if self.held_kept + len(frame) > self.kept_bytes:
                self.dropped += 1
                continue
            self.held_kept += len(frame) - len(self.kept.get(position, b""))
            self.kept[position] = frame

    def get(self, position: int) -> bytes | None:
        """The frame of a row, if it is kept or still waits."""
        return self.kept.get(position) or self.waiting.get(position)
