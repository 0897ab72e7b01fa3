"""What a recorder does with rows and documents, without the sockets that bring them.

Rows are done with only when the operating system has them, so whoever kills the recorder loses no
row that was acknowledged. Where the disk refuses, rows that are not yet written stay here, bounded
by the credit they came under, and are written when there is room again; documents are not worth
waiting for and are counted as missed.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from interlatent_live.errors import UserError
from interlatent_live.recordings.files import new_path, over_limits, recorded_files, remove_closed
from interlatent_live.recordings.foxglove import FoxgloveChannels
from interlatent_live.recordings.redaction import Redaction
from interlatent_live.recordings.writer import Compression, RecordingWriter
from interlatent_live.wire.codec import encode
from interlatent_live.wire.limits import MAX_RANGES
from interlatent_live.wire.messages import (
    Bye,
    Document,
    Drop,
    DropReason,
    FeaturesMessage,
    Hello,
    Picture,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from interlatent_live.recordings.foxglove import JsonMessage
    from interlatent_live.stream import Manifest
    from interlatent_live.wire.messages import WireMessage

CHUNK_BYTES: Final = 1024 * 1024
RETRY_S: Final = 2.0
"""How often it is tried again after the disk refused."""
LOOK_S: Final = 30.0
"""How often files are looked at that have grown too old."""
PICTURES_SAVED_S: Final = 4.0
"""Seconds whose bytes of pictures can be saved up."""
LARGEST_PICTURE: Final = 64 * 1024 * 7 / 3
"""Bytes that the largest picture takes, with Foxglove's copy."""
ROOM: Final = 64 * 1024
"""Bytes that must be free beside what waits before a file is begun after the disk refused."""


@dataclass(frozen=True, slots=True)
class RecorderOptions:
    """How files are written, when the next one is begun, and how long they stay.

    ``keep_bytes`` and ``keep_s`` bound all files of the naming together; ``None``: they stay.
    """

    chunk_seconds: float = 1.0
    file_bytes: int = 256 * 1024 * 1024
    file_seconds: float = 3600.0
    keep_bytes: int | None = None
    keep_s: float | None = None
    redact: tuple[str, ...] = ()
    foxglove: bool = True
    compression: Compression = Compression.ZSTD
    durable: bool = False
    picture_bytes_per_s: int = 64 * 1024
    """Bytes of pictures that may be written a second, over a while; 0: none are."""


@dataclass(slots=True)
class RecorderCounts:
    """What was done since the start."""

    bytes: int = 0
    files: int = 0
    chunks: int = 0
    rows: int = 0
    documents: int = 0
    """Documents and pictures."""
    documents_missed: int = 0
    """Those that came while the disk refused."""
    pictures_skipped: int = 0
    """Pictures beyond the bytes that they may take."""
    documents_redacted: int = 0
    """Those that redaction left nothing of."""
    removed: int = 0
    """Files that retention removed."""
    failures: int = 0
    """Times the disk refused."""


@dataclass(slots=True)
class _Stream:
    manifest: Manifest
    """As it is received."""
    recorded: Manifest
    """As it is recorded: without redacted metrics."""
    transcoders: dict[str, str]
    next_seq: int


@dataclass(slots=True)
class _Unwritten:
    boot_id: str
    message: FeaturesMessage
    frames: Sequence[bytes]
    time_ns: int
    size: int


@dataclass(slots=True)
class _Current:
    """The file that is being written."""

    writer: RecordingWriter
    begun: float
    counted: int = 0
    """Of its bytes, those that the counts have."""
    lossy: int = 0
    """Documents and pictures in the chunk in the making."""
    foxglove: FoxgloveChannels | None = None


class Recorder:
    """Hellos, rows and documents in; files in ``folder`` out. Not thread-safe.

    Args:
        folder: of the files; made where it is missing.
        options: see there.
        provenance: what each file says of where its data came from.
        wall_ns: wall clock in ns since the epoch.
        clock: seconds, monotonic.
        told: hears one sentence about what went wrong, or right again.

    Raises:
        UserError: when the folder cannot be made or written to.
    """

    def __init__(
        self,
        folder: Path,
        options: RecorderOptions,
        *,
        provenance: Mapping[str, str],
        wall_ns: Callable[[], int],
        clock: Callable[[], float],
        told: Callable[[str], None],
    ) -> None:
        self.counts = RecorderCounts()
        self.error = ""
        """Why nothing is written at the moment; empty when all is well."""
        self._folder = folder
        self._options = options
        self._redaction = Redaction(options.redact)
        self._provenance = dict(provenance)
        if options.redact:
            self._provenance["redacted_metrics"] = json.dumps(list(self._redaction.names))
        self._wall_ns = wall_ns
        self._clock = clock
        self._told = told
        self._streams: dict[str, _Stream] = {}
        self._unwritten: deque[_Unwritten] = deque()
        self._unwritten_bytes = 0
        self._dirty_since: float | None = None
        self._current: _Current | None = None
        self._retry_at = 0.0
        self._look_at = 0.0
        self._picture_at = clock()
        self._picture_bytes = LARGEST_PICTURE
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot record to {folder}: {error.strerror}") from None
        if not os.access(folder, os.W_OK | os.X_OK):
            raise UserError(f"cannot record to {folder}: this user may not write there")

    @property
    def path(self) -> Path | None:
        """The file that is being written, if there is one."""
        return None if self._current is None else self._current.writer.path

    @property
    def unwritten_bytes(self) -> int:
        """Bytes of rows that the operating system does not have yet."""
        return self._unwritten_bytes

    # -- what comes in -----------------------------------------------------------------------------

    def hello(self, manifest: Manifest, transcoders: Mapping[str, str], first_seq: int) -> None:
        """A stream begins or goes on, with rows from ``first_seq``."""
        known = self._streams.get(manifest.boot_id)
        stream = _Stream(
            manifest,
            self._redaction.manifest(manifest),
            dict(transcoders),
            first_seq if known is None else known.next_seq,
        )
        self._streams[manifest.boot_id] = stream
        if self._current is not None:
            self._say(self._hello_of(stream))
        else:
            self._begin()

    def rows(self, message: FeaturesMessage) -> None:
        """Rows of a stream that said hello, each once; done with when :meth:`turn` says so."""
        boot_id = message.batch.boot_id
        stream = self._streams[boot_id]
        steps = message.batch.steps
        drops = (*message.drops, *_holes(stream.next_seq, steps.first_seq, message.drops))
        stream.next_seq = max(stream.next_seq, steps.first_seq + len(steps))
        batch = self._redaction.batch(message.batch, stream.manifest)
        recorded = replace(message, batch=batch, drops=drops[:MAX_RANGES])
        frames = encode(recorded)
        size = sum(len(frame) for frame in frames)
        unwritten = _Unwritten(boot_id, recorded, frames, self._wall_ns(), size)
        self._unwritten.append(unwritten)
        self._unwritten_bytes += size
        if self._current is not None:
            self._guarded(lambda: self._write_rows(unwritten))

    def document(self, message: Document) -> None:
        """A document of a feed; what comes before any stream is nobody's and is not kept."""
        if not self._streams and self._current is None:
            return
        payload = self._redaction.document(message.payload)
        if payload is None:
            self.counts.documents_redacted += 1
        elif self._current is None:
            self.counts.documents_missed += 1
        else:
            self._say(replace(message, payload=payload), lossy=True)

    def picture(self, message: Picture) -> None:
        """A picture of a stream that is recorded, as far as its bytes go."""
        if message.boot_id not in self._streams or self._options.picture_bytes_per_s == 0:
            return
        if self._current is None:
            self.counts.documents_missed += 1
        elif self._affords(message):
            self._say(message, lossy=True)
        else:
            self.counts.pictures_skipped += 1

    def _affords(self, picture: Picture) -> bool:
        """Whether the bytes of a picture may be written now; takes them, if so."""
        rate, now = self._options.picture_bytes_per_s, self._clock()
        since, self._picture_at = now - self._picture_at, now
        # Saved up for a while, so that one is written now and then however small the rate is.
        most = max(PICTURES_SAVED_S * rate, LARGEST_PICTURE)
        self._picture_bytes = min(most, self._picture_bytes + rate * since)
        # Foxglove's copy is in base64: four bytes for three.
        size = len(picture.jpeg) * (7 if self._options.foxglove else 3) / 3
        if size > self._picture_bytes:
            return False
        self._picture_bytes -= size
        return True

    def ended(self, bye: Bye) -> None:
        """A stream said goodbye."""
        if self._streams.pop(bye.boot_id, None) is not None:
            self._say(bye)

    def forget_others(self, boot_ids: Sequence[str]) -> None:
        """Streams that are not among these will not come back."""
        for boot_id in self._streams.keys() - set(boot_ids):
            del self._streams[boot_id]

    # -- time --------------------------------------------------------------------------------------

    def turn(self) -> list[str]:
        """Write, begin and remove files as is due; returns boots whose oldest rows are written.

        A boot is named once for each message of it.
        """
        now = self._clock()
        done: list[str] = []
        wanted = bool(self._streams or self._unwritten)
        if self._current is None and wanted and now >= self._retry_at:
            self._begin()
        if self._current is not None and self._dirty_since is not None:
            due = now - self._dirty_since >= self._options.chunk_seconds
            if due or self._unwritten_bytes >= CHUNK_BYTES:
                done = self._flush()
        self._rotate(now)
        if now >= self._look_at:
            self._look_at = now + LOOK_S
            self._retain()
        return done

    def close(self) -> list[str]:
        """Write what is left and close the file; returns boots as :meth:`turn`."""
        done = self._flush() if self._current is not None else []
        self._close()
        return done

    # -- files -------------------------------------------------------------------------------------

    def _begin(self) -> None:
        """Begin a file with the hellos of all open streams, and what waits to be written."""
        self._retry_at = self._clock() + RETRY_S
        if self.error and shutil.disk_usage(self._folder).free < ROOM + 2 * self._unwritten_bytes:
            return
        path = new_path(self._folder, self._wall_ns() / 1e9)
        try:
            writer = RecordingWriter(
                path,
                provenance=self._provenance,
                compression=self._options.compression,
                # Chunks are closed here, so that it is known which rows are in one.
                chunk_bytes=64 * CHUNK_BYTES,
                chunk_seconds=float("inf"),
                durable=self._options.durable,
            )
        except UserError as error:
            self._failed(error)
            path.unlink(missing_ok=True)
            return
        self._current = _Current(
            writer, self._clock(), foxglove=FoxgloveChannels() if self._options.foxglove else None
        )
        self.counts.files += 1
        again = [*self._unwritten]

        def write() -> None:
            for stream in self._streams.values():
                self._write(self._hello_of(stream))
            for one in again:
                self._write_rows(one)
            writer.flush()

        if self._guarded(write) and self.error:
            self.error = ""
            self._told(f"recording again, to {path}")

    def _rotate(self, now: float) -> None:
        current, options = self._current, self._options
        if current is None:
            return
        grown = current.writer.size >= options.file_bytes
        if (grown or now - current.begun >= options.file_seconds) and not self._unwritten:
            self._close()
            if self._streams and not self.error:
                self._begin()
            self._retain()

    def _close(self) -> None:
        current, self._current = self._current, None
        self._dirty_since = None
        if current is None:
            return
        try:
            current.writer.close()
        except UserError as error:
            self._failed(error)
        self._count_bytes(current)

    def _retain(self) -> None:
        options = self._options
        gone = over_limits(
            recorded_files(self._folder),
            now_s=self._wall_ns() / 1e9,
            keep_bytes=options.keep_bytes,
            keep_s=options.keep_s,
            current=self.path,
        )
        self.counts.removed += remove_closed(gone, self._told)

    # -- writing -----------------------------------------------------------------------------------

    def _hello_of(self, stream: _Stream) -> Hello:
        return Hello(
            stream.recorded,
            first_seq=stream.next_seq,
            sent_ns=self._wall_ns(),
            transcoders=stream.transcoders,
        )

    def _say(self, message: WireMessage, *, lossy: bool = False) -> None:
        current = self._current
        if current is not None and self._guarded(lambda: self._write(message)) and lossy:
            current.lossy += 1

    def _write(self, message: WireMessage) -> None:
        assert self._current is not None  # noqa: S101 - its callers have looked
        now_ns = self._wall_ns()
        self._current.writer.write(encode(message), time_ns=now_ns, message=message)
        if self._dirty_since is None:
            self._dirty_since = self._clock()
        if self._current.foxglove is not None:
            self._write_json(self._current.foxglove.of(message), now_ns)

    def _write_rows(self, one: _Unwritten) -> None:
        assert self._current is not None  # noqa: S101 - its callers have looked
        self._current.writer.write(one.frames, time_ns=one.time_ns, message=one.message)
        if self._dirty_since is None:
            self._dirty_since = self._clock()
        stream = self._streams.get(one.boot_id)
        if self._current.foxglove is not None and stream is not None:
            found = self._current.foxglove.rows(stream.recorded, one.message.batch)
            self._write_json(found, one.time_ns)

    def _write_json(self, messages: Sequence[JsonMessage], time_ns: int) -> None:
        assert self._current is not None  # noqa: S101 - its callers have looked
        for one in messages:
            self._current.writer.write_json(one.topic, one.schema, one.value, time_ns=time_ns)

    def _flush(self) -> list[str]:
        current = self._current
        if current is None or not self._guarded(current.writer.flush):
            return []
        self._dirty_since = None
        self.counts.chunks += 1
        done = [one.boot_id for one in self._unwritten]
        self.counts.rows += sum(len(one.message.batch.steps) for one in self._unwritten)
        self.counts.documents += current.lossy
        current.lossy = 0
        self._unwritten.clear()
        self._unwritten_bytes = 0
        self._count_bytes(current)
        return done

    def _count_bytes(self, current: _Current) -> None:
        self.counts.bytes += current.writer.size - current.counted
        current.counted = current.writer.size

    def _guarded(self, write: Callable[[], None]) -> bool:
        try:
            write()
        except UserError as error:
            self._failed(error)
            return False
        return True

    def _failed(self, error: UserError) -> None:
        """The file ends here; rows in the chunk in the making wait for the next one."""
        current, self._current = self._current, None
        self._dirty_since = None
        self.counts.failures += 1
        self._retry_at = self._clock() + RETRY_S
        if current is not None:
            self.counts.documents_missed += current.lossy
        if not self.error:
            self._told(str(error))
        self.error = str(error)


def _holes(next_seq: int, first_seq: int, drops: Sequence[Drop]) -> list[Drop]:
    """Rows from ``next_seq`` to before ``first_seq`` that ``drops`` do not speak of.

    They were declared apart from rows, or by nobody; without this, a file would have a hole that
    says nothing of itself.
    """
    found = []
    at = next_seq
    for drop in sorted(drops, key=lambda one: one.first_seq):
        if drop.first_seq > at:
            end = min(drop.first_seq, first_seq)
            if end > at:
                found.append(Drop(at, end - at, DropReason.UPSTREAM))
        at = max(at, drop.first_seq + drop.count)
    if at < first_seq:
        found.append(Drop(at, first_seq - at, DropReason.UPSTREAM))
    return found
