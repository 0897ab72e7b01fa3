"""The bounded disk buffer of a lossless tap: append, replay in order, delete after acknowledgement.

A spool is one folder per stream with the stream's hello and a row of *segments*, files of records
that are only ever appended to and only ever deleted whole. Each record carries a checksum over
everything after it, so a torn or altered one is found and its rows are declared lost, while its
neighbours stay good. When the bound is reached, or the disk refuses, the spool stops and says why;
the agent does not notice. What a process leaves behind is adopted by the next one on the same
folder.

Record: magic ``ILS1``, crc32 (IEEE 802.3) of the rest, first row u64, rows u32, frame lengths 2 ×
u32, then the two frames of the message; all little-endian.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import shutil
import struct
import time
import zlib
from operator import attrgetter
from typing import TYPE_CHECKING, BinaryIO, Final

from interlatent_live.agent.retention import Entry, Index
from interlatent_live.errors import UserError
from interlatent_live.wire.messages import DropReason

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

logger = logging.getLogger(__name__)

MAGIC: Final = b"ILS1"
_HEAD: Final = struct.Struct("<4sIQIII")
_CRC_FROM: Final = 8
_RETRY_S: Final = 1.0
HELLO: Final = "hello.bin"
LOCK: Final = "lock"
LOSSES: Final = "losses.json"
SEGMENT: Final = ".seg"


class Spool:
    """One stream's rows on disk.

    Args:
        folder: of this stream alone; made when it does not exist.
        limit: bytes that may lie in the folder.
        hello: the encoded hello of the stream, kept so that another process can replay it; None to
            adopt what is there.

    Raises:
        UserError: when the folder cannot be written or belongs to a living process.
    """

    def __init__(self, folder: Path, limit: int, hello: bytes | None = None) -> None:
        self.folder = folder
        self.limit = limit
        self.nbytes = 0
        self.error = ""
        self._segment_limit = max(64 * 1024, min(8 * 2**20, limit // 8))
        self._index = Index()
        self._sizes: dict[int, int] = {}
        self._file: BinaryIO | None = None
        self._current = -1
        self._readers: dict[int, BinaryIO] = {}
        self._retry_at = 0.0
        self._full = False
        self._newest: tuple[int, list[bytes]] | None = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = (folder / LOCK).open("ab")
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if hello is None:
                self.hello = (folder / HELLO).read_bytes()
            else:
                self.hello = hello
                (folder / HELLO).write_bytes(hello)
        except BlockingIOError:
            self._lock.close()
            raise UserError(f"the spool {folder} is in use by another process") from None
        except OSError as error:
            raise UserError(f"the spool {folder} cannot be used: {error.strerror}") from None
        if hello is None:
            self._adopt()

    # -- the store's port -----------------------------------------------------------------------

    def has_room(self) -> bool:
        """Always: what does not fit is noted as lost, so the ring never fills because of it."""
        return True

    def append(self, first: int, rows: int, frames: Sequence[bytes]) -> None:
        """Write a record, or note its rows as lost when the spool is full or the disk refuses."""
        head, body = frames
        rest = struct.pack("<QIII", first, rows, len(head), len(body))
        crc = zlib.crc32(body, zlib.crc32(head, zlib.crc32(rest)))
        size = _HEAD.size + len(head) + len(body)
        # Once full it stays so until a tenth is free again, or every record would be a coin toss.
        limit = self.limit * 9 // 10 if self._full else self.limit
        self._full = self.nbytes + size > limit
        if self._full:
            self._stop(f"the spool {self.folder} is full ({self.limit} bytes)")
            self.lose(first, rows, DropReason.SPOOL_FULL)
            return
        if time.monotonic() < self._retry_at:
            self.lose(first, rows, DropReason.SPOOL_FULL)
            return
        try:
            offset = self._write(size, MAGIC + struct.pack("<I", crc) + rest, head, body)
        except OSError as error:
            self._retry_at = time.monotonic() + _RETRY_S
            self._stop(f"the spool {self.folder} cannot be written: {error.strerror}")
            self.lose(first, rows, DropReason.SPOOL_FULL)
            return
        self.error = ""
        self._index.append(
            Entry(first, first + rows, segment=self._current, offset=offset, size=size)
        )
        self._newest = (first, list(frames))

    def lose(self, first: int, rows: int, reason: DropReason) -> None:
        """Note rows that were lost before they got here."""
        self._index.append(Entry(first, first + rows, reason))

    def at(self, seq: int) -> Entry | None:
        """The entry that holds row ``seq``, None beyond the newest."""
        return self._index.at(seq)

    def read(self, entry: Entry) -> list[bytes] | None:
        """A message back from disk (or from memory, when it is the newest)."""
        if self._newest is not None and self._newest[0] == entry.first:
            return self._newest[1]
        record = self._record(entry.segment, entry.offset)
        if record is None or record[:2] != (entry.first, entry.end - entry.first):
            entry.reason = DropReason.SPOOL_BROKEN
            self._stop(f"a record of the spool {self.folder} is broken; its rows are declared lost")
            return None
        return record[2]

    def release(self, seq: int) -> None:
        """Delete the segments whose rows are all below ``seq``."""
        if not self._index.release(seq):
            return
        kept = {entry.segment for entry in self._index.entries() if entry.reason is None}
        oldest = min(kept, default=self._current)
        for segment in [number for number in self._sizes if number < oldest]:
            self._delete(segment)
        if not len(self._index) and self._sizes.get(self._current, 0) > self._segment_limit // 2:
            self._close_current()
            self._delete(self._current)

    def close(self) -> None:
        """Close the files; delete the folder when nothing is left to replay."""
        self._close_current()
        for reader in self._readers.values():
            reader.close()
        self._readers.clear()
        entries = self._index.entries()
        if all(entry.reason is not None for entry in entries):
            shutil.rmtree(self.folder, ignore_errors=True)
        else:
            self._note_losses(entries)
        self._lock.close()

    def entries(self) -> tuple[Entry, ...]:
        """What is kept and what is noted as lost, oldest first."""
        return self._index.entries()

    # -- files ----------------------------------------------------------------------------------

    def _path(self, segment: int) -> Path:
        return self.folder / f"{segment:010d}{SEGMENT}"

    def _write(self, size: int, *parts: bytes) -> int:
        if self._file is None or self._sizes[self._current] + size > self._segment_limit:
            self._close_current()
            self._current += 1
            self._sizes[self._current] = 0
            # Unbuffered: a record is with the kernel, and survives this process, when we say so.
            self._file = self._path(self._current).open("wb", buffering=0)
        offset = self._sizes[self._current]
        written = os.writev(self._file.fileno(), parts)
        if written != size:
            self._file.truncate(offset)
            self._file.seek(offset)
            raise OSError(28, "No space left on device")
        self._sizes[self._current] = offset + size
        self.nbytes += size
        return offset

    def _close_current(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _delete(self, segment: int) -> None:
        self.nbytes -= self._sizes.pop(segment, 0)
        reader = self._readers.pop(segment, None)
        if reader is not None:
            reader.close()
        self._path(segment).unlink(missing_ok=True)

    def _record(self, segment: int, offset: int) -> tuple[int, int, list[bytes]] | None:
        """First row, rows and frames of a record; None when it is torn or altered."""
        try:
            reader = self._readers.get(segment)
            if reader is None:
                for old in self._readers.values():
                    old.close()
                self._readers = {segment: self._path(segment).open("rb")}
                reader = self._readers[segment]
            reader.seek(offset)
            head = reader.read(_HEAD.size)
            if len(head) < _HEAD.size:
                return None
            magic, crc, first, rows, head_size, body_size = _HEAD.unpack(head)
            if magic != MAGIC or head_size + body_size > self._segment_limit + self.limit:
                return None
            frames = [reader.read(head_size), reader.read(body_size)]
        except OSError:
            return None
        if (len(frames[0]), len(frames[1])) != (head_size, body_size):
            return None
        if zlib.crc32(frames[1], zlib.crc32(frames[0], zlib.crc32(head[_CRC_FROM:]))) != crc:
            return None
        return first, rows, frames

    def _stop(self, sentence: str) -> None:
        if sentence != self.error:
            self.error = sentence
            logger.error(sentence)

    def _note_losses(self, entries: Sequence[Entry]) -> None:
        """Leave word for the next process of what was lost and could not be declared yet."""
        lost = [[entry.first, entry.end, str(entry.reason)] for entry in entries if entry.reason]
        try:
            (self.folder / LOSSES).write_text(json.dumps(lost), encoding="utf-8")
        except OSError as error:
            # The next process then declares the holes it finds, under another reason.
            logger.warning("the losses of the spool %s could not be noted: %s", self.folder, error)

    def _noted_losses(self) -> list[Entry]:
        try:
            noted = json.loads((self.folder / LOSSES).read_text(encoding="utf-8"))
            return [Entry(int(a), int(b), DropReason(reason)) for a, b, reason in noted]
        except (OSError, ValueError, TypeError):
            return []

    def _adopt(self) -> None:
        """Index what an earlier process left; a broken record ends its segment."""
        found = self._noted_losses()
        for path in sorted(self.folder.glob(f"*{SEGMENT}")):
            segment = int(path.stem)
            self._sizes[segment] = path.stat().st_size
            self.nbytes += self._sizes[segment]
            self._current = max(self._current, segment)
            for offset, first, rows, size in self._scan(segment):
                found.append(Entry(first, first + rows, segment=segment, offset=offset, size=size))
        expected: int | None = None
        for entry in sorted(found, key=attrgetter("first")):
            if expected is not None and entry.first > expected:
                self.lose(expected, entry.first - expected, DropReason.SPOOL_BROKEN)
            if expected is None or entry.first >= expected:
                self._index.append(entry)
                expected = entry.end

    def _scan(self, segment: int) -> Iterator[tuple[int, int, int, int]]:
        offset = 0
        while (record := self._record(segment, offset)) is not None:
            first, rows, frames = record
            size = _HEAD.size + len(frames[0]) + len(frames[1])
            yield offset, first, rows, size
            offset += size


def abandoned(folder: Path) -> Iterator[Path]:
    """Folders of streams that an ended process left with records in them, oldest first."""
    candidates = [path for path in folder.glob("*") if (path / HELLO).is_file()]
    for path in sorted(candidates, key=lambda p: (p / HELLO).stat().st_mtime):
        try:
            with (path / LOCK).open("ab") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            continue
        yield path
