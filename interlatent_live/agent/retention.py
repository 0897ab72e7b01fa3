"""Rows that may not be given up: kept, in order, until the receiver is done with them.

Two stores share one port: :class:`MemoryStore` here, for offline collection where the step waits,
and :class:`~interlatent_live.agent.spool.Spool` on disk. A store also remembers what was *not*
kept, since a loss must be declared when its turn comes, not before.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from interlatent_live.wire.messages import DropReason


@dataclass(slots=True)
class Entry:
    """Rows ``first … end − 1``: kept at a place the store knows, or lost for a reason."""

    first: int
    end: int
    reason: DropReason | None = None
    segment: int = 0
    offset: int = 0
    size: int = 0


_FIRST = attrgetter("first")


class Index:
    """Entries in order of their rows, without holes."""

    def __init__(self) -> None:
        self._entries: deque[Entry] = deque()

    def __len__(self) -> int:
        return len(self._entries)

    def entries(self) -> tuple[Entry, ...]:
        """All entries, oldest first."""
        return tuple(self._entries)

    def append(self, entry: Entry) -> None:
        """Add the entry for the next rows; a loss that continues a loss grows it."""
        last = self._entries[-1] if self._entries else None
        if last is not None and entry.reason is not None and last.reason is entry.reason:
            last.end = entry.end
        else:
            self._entries.append(entry)

    def at(self, seq: int) -> Entry | None:
        """The entry that holds row ``seq``."""
        entries = self._entries
        if not entries or seq < entries[0].first or seq >= entries[-1].end:
            return None
        # Rows are asked for in order from the old end, or after a rewind somewhere in between.
        entry = entries[bisect_right(entries, seq, key=_FIRST) - 1]
        return entry if entry.first <= seq < entry.end else None

    def release(self, seq: int) -> list[Entry]:
        """Take out the entries whose rows are all below ``seq``."""
        done = []
        while self._entries and self._entries[0].end <= seq:
            done.append(self._entries.popleft())
        return done


class Store(Protocol):
    """Keeps encoded messages of consecutive rows until they are released."""

    @property
    def nbytes(self) -> int:
        """Bytes kept now."""
        ...

    @property
    def error(self) -> str:
        """Why it last could not keep something, empty when all is well."""
        ...

    def has_room(self) -> bool:
        """Whether to hand it rows at all: where it has not, they stay in the ring."""
        ...

    def append(self, first: int, rows: int, frames: Sequence[bytes]) -> None:
        """Keep a message, or note its rows as lost when it does not fit."""
        ...

    def lose(self, first: int, rows: int, reason: DropReason) -> None:
        """Note rows that were lost before they got here."""
        ...

    def at(self, seq: int) -> Entry | None:
        """The entry that holds row ``seq``, None beyond the newest."""
        ...

    def read(self, entry: Entry) -> list[bytes] | None:
        """A kept message; None when it cannot be read back (its entry then has the reason)."""
        ...

    def release(self, seq: int) -> None:
        """The receiver is done with all rows below ``seq``."""
        ...

    def close(self) -> None:
        """Let go of files."""
        ...


class MemoryStore:
    """Messages in memory, at most ``limit`` bytes; asks for no more rows when it is full."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.nbytes = 0
        self.error = ""
        self._index = Index()
        self._messages: dict[int, list[bytes]] = {}

    def has_room(self) -> bool:
        """Whether fewer than ``limit`` bytes are kept."""
        return self.nbytes < self.limit

    def append(self, first: int, rows: int, frames: Sequence[bytes]) -> None:
        """Keep a message."""
        size = sum(map(len, frames))
        self._index.append(Entry(first, first + rows, size=size))
        self._messages[first] = list(frames)
        self.nbytes += size

    def lose(self, first: int, rows: int, reason: DropReason) -> None:
        """Note rows that were lost before they got here."""
        self._index.append(Entry(first, first + rows, reason))

    def at(self, seq: int) -> Entry | None:
        """The entry that holds row ``seq``, None beyond the newest."""
        return self._index.at(seq)

    def read(self, entry: Entry) -> list[bytes] | None:
        """A kept message."""
        return self._messages[entry.first]

    def release(self, seq: int) -> None:
        """The receiver is done with all rows below ``seq``."""
        for entry in self._index.release(seq):
            self.nbytes -= entry.size
            self._messages.pop(entry.first, None)

    def close(self) -> None:
        """Forget everything."""
        self.release(2**63)
