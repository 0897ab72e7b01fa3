"""Reading a recording where one looks: which chunk holds which time and which topics.

One pass over the heads of the records, without unpacking a chunk, says when each chunk was written
and which channels it has; only a chunk with a channel that was not met before is unpacked, to learn
its topic. After that any moment is as near as the chunk that holds it. A file that is still being
written is gone through further by the next :meth:`SeekableRecording.index`.
"""

from __future__ import annotations

import struct
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, Final

from mcap.opcode import Opcode

from interlatent_live.recordings.reader import LARGEST_RECORD, MAGIC, RecordedMessage, _Scan
from interlatent_live.wire.limits import DEFAULT_LIMITS, Limits

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

MOST_CHUNKS: Final = 1_000_000
_HEAD: Final = struct.Struct("<BQ")
_TIMES: Final = struct.Struct("<QQ")


@dataclass(frozen=True, slots=True)
class ChunkPlace:
    """Where a chunk lies, and what is known of it without unpacking it."""

    at: int
    """Offset of its payload."""
    length: int
    first_ns: int
    """When its first message was recorded, ns since the epoch."""
    last_ns: int
    channels: frozenset[int]
    """Ids of the channels with messages in it."""


class SeekableRecording(_Scan):
    """One recording, and a way to any time in it. Not thread-safe.

    Args:
        path: the file.
        limits: of the decoder.

    Raises:
        UserError: when there is no such file.
    """

    def __init__(self, path: Path, *, limits: Limits = DEFAULT_LIMITS) -> None:
        super().__init__(path, limits)
        self.places: list[ChunkPlace] = []
        """In the order of the file, which is the order of recording."""
        self.indexed = False
        """Whether everything that is complete was gone through."""
        self._at = 0
        self._pending: tuple[int, int, int, int] | None = None
        """A chunk whose message indexes are still being read: offset, length, times."""
        self._met: set[int] = set()
        """Channels of that chunk."""

    @property
    def first_ns(self) -> int | None:
        """When the first message was recorded."""
        return self.places[0].first_ns if self.places else None

    @property
    def last_ns(self) -> int | None:
        """When the last message that is complete was recorded."""
        return max(one.last_ns for one in self.places[-8:]) if self.places else None

    @property
    def topics(self) -> set[str]:
        """Topics of all channels that were met."""
        return {one.topic for one in self._channels.values()}

    def index(self, within_s: float = float("inf")) -> bool:
        """Go through what was not gone through before, for at most so long; returns ``indexed``.

        Raises:
            CorruptFileError: when it is no recording, or damaged. What came before can be read.
        """
        until = time.monotonic() + within_s
        self.size = self.path.stat().st_size
        with self.path.open("rb") as file:
            if not self._at:
                if file.read(len(MAGIC)) != MAGIC:
                    raise self._corrupt("it does not begin as an MCAP file")
                self._at = len(MAGIC)
            self.indexed = False
            while not self.complete and self._at + _HEAD.size <= self.size:
                if time.monotonic() > until:
                    return False
                if not self._next(file):
                    break
            if self._pending is not None:
                # Of the indexes behind the last chunk of a growing file some may be on their way.
                self._met.clear()
                self._keep(file)
        self.unread = self.size - self._at
        self.indexed = True
        return True

    def between(
        self, first_ns: int, last_ns: int, wanted: Callable[[str], bool]
    ) -> Iterator[RecordedMessage]:
        """Messages on wanted topics recorded from ``first_ns`` to ``last_ns``, in order.

        Raises:
            CorruptFileError: when a chunk is damaged.
        """
        for place in self._with(wanted):
            if place.last_ns >= first_ns and place.first_ns <= last_ns:
                for one in self.unpacked(place, wanted):
                    if first_ns <= one.time_ns <= last_ns:
                        yield one

    def before(self, last_ns: int, wanted: Callable[[str], bool]) -> Iterator[RecordedMessage]:
        """Messages on wanted topics recorded until ``last_ns``, newest first.

        Raises:
            CorruptFileError: when a chunk is damaged.
        """
        for place in reversed(self._with(wanted)):
            if place.first_ns <= last_ns:
                found = [one for one in self.unpacked(place, wanted) if one.time_ns <= last_ns]
                yield from reversed(found)

    def unpacked(
        self, place: ChunkPlace, wanted: Callable[[str], bool]
    ) -> Iterator[RecordedMessage]:
        """The messages of one chunk on wanted topics.

        Raises:
            CorruptFileError: when it is damaged.
        """
        with self.path.open("rb") as file:
            file.seek(place.at)
            payload = file.read(place.length)
        self._wanted = wanted
        yield from self._chunk(payload)

    def _with(self, wanted: Callable[[str], bool]) -> list[ChunkPlace]:
        channels = {one.id for one in self._channels.values() if wanted(one.topic)}
        return [one for one in self.places if one.channels & channels]

    def _next(self, file: BinaryIO) -> bool:
        """Take one record in; false where it is not complete."""
        file.seek(self._at)
        opcode, length = _HEAD.unpack(file.read(_HEAD.size))
        payload = self._at + _HEAD.size
        if length > LARGEST_RECORD:
            raise self._corrupt(f"a record of {length} bytes")
        if payload + length > self.size:
            return False
        if opcode == Opcode.MESSAGE_INDEX:
            if length >= 2 and self._pending is not None:
                self._met.add(int.from_bytes(file.read(2), "little"))
        else:
            self._keep(file)
            file.seek(payload)
            if opcode == Opcode.CHUNK:
                if length < _TIMES.size or len(self.places) >= MOST_CHUNKS:
                    raise self._corrupt("a chunk")
                self._pending = (payload, length, *_TIMES.unpack(file.read(_TIMES.size)))
            elif opcode == Opcode.CHANNEL:
                self._register(file.read(length))
            elif opcode == Opcode.METADATA:
                self._metadata(file.read(length))
            elif opcode == Opcode.DATA_END:
                self.complete = True
        self._at = payload + length
        return True

    def _keep(self, file: BinaryIO) -> None:
        """The chunk whose indexes were read is known now."""
        if self._pending is None:
            return
        at, length, first_ns, last_ns = self._pending
        if not self._met or not self._met <= self._channels.keys():
            self._met.clear()
            file.seek(at)
            self._wanted = lambda _: False
            for _ in self._chunk(file.read(length)):
                pass  # nothing is wanted: channels register, and say that they are met, in passing
        self.places.append(ChunkPlace(at, length, first_ns, last_ns, frozenset(self._met)))
        self.chunks += 1
        self._pending, self._met = None, set()

    def _message(self, payload: bytes | memoryview) -> Iterator[RecordedMessage]:
        if self._pending is not None:
            self._met.add(int.from_bytes(payload[:2], "little"))
        yield from super()._message(payload)
