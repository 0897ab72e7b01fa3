"""Writing recordings: MCAP files of wire messages that survive the death of their writer.

Messages collect in a chunk, which is compressed and handed to the operating system whole, after a
number of bytes or a time. Whoever kills the writer loses the chunk in the making and no other.
MCAP: https://mcap.dev/spec, version 0.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from enum import StrEnum
from typing import IO, TYPE_CHECKING, Any, Final, cast

import msgspec
from mcap.writer import CompressionType, Writer

from interlatent_live import __version__
from interlatent_live.closing import Closing
from interlatent_live.errors import UserError
from interlatent_live.recordings.framing import join_frames
from interlatent_live.wire.codec import decode
from interlatent_live.wire.messages import (
    PLAIN_KINDS,
    Document,
    DocumentHeader,
    FeaturesHeader,
    FeaturesMessage,
    Hello,
    HelloHeader,
    ManifestHeader,
    Picture,
    PictureHeader,
    StepsHeader,
    StepsMessage,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from io import FileIO
    from pathlib import Path

    from interlatent_live.wire.messages import WireMessage

MESSAGE_ENCODING: Final = "interlatent-wire-1"
PROVENANCE: Final = "interlatent_live.provenance"
STREAM: Final = "interlatent_live.stream"
LIBRARY: Final = f"interlatent-live {__version__}"


class Compression(StrEnum):
    """How chunks are compressed."""

    ZSTD = "zstd"
    """Smaller."""
    LZ4 = "lz4"
    """Faster."""
    NONE = "none"


_COMPRESSION: Final = {
    Compression.ZSTD: CompressionType.ZSTD,
    Compression.LZ4: CompressionType.LZ4,
    Compression.NONE: CompressionType.NONE,
}

_HEADERS: Final[Mapping[str, type[msgspec.Struct]]] = {
    "hello": HelloHeader,
    "steps": StepsHeader,
    "features": FeaturesHeader,
    "document": DocumentHeader,
    "frame": PictureHeader,
    **PLAIN_KINDS,
}


class RecordingWriter(Closing):
    """Writes one recording.

    Args:
        path: the file; it must not exist yet.
        provenance: what is worth knowing about where the data came from, as text.
        compression: of the chunks.
        chunk_bytes: a chunk is closed when it has grown to this.
        chunk_seconds: a chunk is closed, at the next message, when it is this old.
        durable: wait until each chunk is on the disk, so that a power cut costs no more than a
            killed process does.

    Raises:
        UserError: when the file exists or cannot be made.
    """

    def __init__(
        self,
        path: Path,
        *,
        provenance: Mapping[str, str] | None = None,
        compression: Compression = Compression.ZSTD,
        chunk_bytes: int = 1024 * 1024,
        chunk_seconds: float = 1.0,
        durable: bool = False,
    ) -> None:
        self.path = path
        self.messages = 0
        self._handed_over = 0
        self._durable = durable
        self._chunk_seconds = chunk_seconds
        self._chunk_begun: float | None = None
        self._schemas: dict[str, int] = {}
        self._channels: dict[str, int] = {}
        self._json_channels: dict[str, int] = {}
        self._sequences: dict[int, int] = {}
        if path.exists():
            raise UserError(f"the recording {path} exists; remove it or choose another name")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("xb", buffering=0)
        except OSError as error:
            raise UserError(f"cannot write the recording {path}: {error.strerror}") from None
        with contextlib.suppress(OSError):
            # Whoever clears up can tell that this file is being written; not every disk has locks.
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # The package types its sink as a whole file object and uses these three methods of it.
        sink = cast("IO[bytes]", _Unbuffered(self._file))
        self._writer = Writer(sink, chunk_size=chunk_bytes, compression=_COMPRESSION[compression])
        self._guard_start(provenance or {})

    def write(
        self,
        frames: Sequence[bytes | memoryview],
        *,
        time_ns: int,
        message: WireMessage | None = None,
    ) -> None:
        """Append one message by its frames, as recorded at ``time_ns``.

        ``message`` is what the frames say, where the caller has decoded them; otherwise they are
        decoded here, since nothing is recorded that could not be read back.

        Raises:
            WireError: when the frames are no message.
            UserError: when the file cannot be written, for example because the disk is full.
        """
        message = decode(frames) if message is None else message
        kind, label, sent_ns = _describe(message)
        channel = self._channel(kind, label)
        if isinstance(message, Hello):
            self._write_manifest(message)
        sequence = self._sequences.get(channel, 0)
        self._sequences[channel] = sequence + 1
        data = join_frames(frames)
        now = time.monotonic()
        if self._chunk_begun is None:
            self._chunk_begun = now
        try:
            self._writer.add_message(
                channel,
                log_time=time_ns,
                data=data,
                publish_time=sent_ns or time_ns,
                sequence=sequence & 0xFFFFFFFF,
            )
        except OSError as error:
            raise self._failure(error) from error
        self.messages += 1
        if now - self._chunk_begun >= self._chunk_seconds:
            self.flush()

    def write_json(
        self, topic: str, schema: Mapping[str, Any], value: Mapping[str, Any], *, time_ns: int
    ) -> None:
        """Append a message in JSON for other programs, on a channel that our readers pass over.

        ``schema`` is a JSON Schema whose ``title`` names it.

        Raises:
            UserError: when the file cannot be written.
        """
        channel = self._json_channels.get(topic)
        if channel is None:
            name = str(schema["title"])
            text = json.dumps(schema, sort_keys=True)
            if text not in self._schemas:
                self._schemas[text] = self._writer.register_schema(
                    name, "jsonschema", text.encode()
                )
            channel = self._writer.register_channel(topic, "json", self._schemas[text])
            self._json_channels[topic] = channel
        data = json.dumps(value, allow_nan=False, separators=(",", ":")).encode()
        try:
            self._writer.add_message(channel, log_time=time_ns, data=data, publish_time=time_ns)
        except OSError as error:
            raise self._failure(error) from error

    @property
    def size(self) -> int:
        """Bytes that are with the operating system."""
        return self._handed_over

    def flush(self) -> None:
        """Close the chunk in the making and give it to the operating system.

        Call it when nothing was written for a while: a chunk looks at the time only when it grows.

        Raises:
            UserError: when the file cannot be written.
        """
        try:
            self._writer.flush()  # type: ignore[no-untyped-call] # the package is half typed
            if self._durable:
                os.fdatasync(self._file.fileno())
            self._handed_over = self._file.tell()
        except OSError as error:
            raise self._failure(error) from error
        self._chunk_begun = None

    def close(self) -> None:
        """Write the index and close the file.

        Raises:
            UserError: when the file cannot be written; it can still be read up to there.
        """
        if self._file.closed:
            return
        try:
            self._writer.finish()  # type: ignore[no-untyped-call] # the package is half typed
            os.fsync(self._file.fileno())
            self._handed_over = self._file.tell()
        except OSError as error:
            raise self._failure(error) from error
        finally:
            self._abandon()

    def _guard_start(self, provenance: Mapping[str, str]) -> None:
        try:
            self._writer.start(profile="", library=LIBRARY)
            facts = {"library": LIBRARY, **{str(k): str(v) for k, v in provenance.items()}}
            self._writer.add_metadata(PROVENANCE, facts)
        except OSError as error:
            raise self._failure(error) from error

    def _channel(self, kind: str, label: str) -> int:
        topic = f"{kind}/{label}" if label else kind
        known = self._channels.get(topic)
        if known is not None:
            return known
        if kind not in self._schemas:
            header = json.dumps(msgspec.json.schema(_HEADERS[kind])).encode()
            self._schemas[kind] = self._writer.register_schema(
                f"interlatent_live.{kind}.v1", "jsonschema", header
            )
        channel = self._writer.register_channel(topic, MESSAGE_ENCODING, self._schemas[kind])
        self._channels[topic] = channel
        return channel

    def _write_manifest(self, hello: Hello) -> None:
        manifest = hello.manifest
        facts = {
            "boot_id": manifest.boot_id,
            "run_id": manifest.run_id,
            "agent": manifest.agent,
            "policy_hash": manifest.policy_hash,
            "manifest": msgspec.json.encode(ManifestHeader.of(manifest)).decode(),
            "transcoders": json.dumps(dict(hello.transcoders or {})),
        }
        try:
            self._writer.add_metadata(STREAM, facts)
        except OSError as error:
            raise self._failure(error) from error

    def _failure(self, error: OSError) -> UserError:
        self._abandon()
        reason = error.strerror or str(error)
        return UserError(
            f"the recording {self.path} ends here: {reason}; what was written before can be read"
        )

    def _abandon(self) -> None:
        with contextlib.suppress(OSError):
            self._file.close()


class _Unbuffered:
    """A file whose every write is with the operating system when it returns.

    The MCAP package wraps a raw file into a buffer of its own, in which a finished chunk would die
    with the process.
    """

    def __init__(self, file: FileIO) -> None:
        self._file = file

    def write(self, data: bytes) -> int:
        """Write all of ``data``; the system call may take less at a time."""
        rest = memoryview(data)
        while rest:
            rest = rest[self._file.write(rest) or 0 :]
        return len(data)

    def tell(self) -> int:
        """The position, in bytes."""
        return self._file.tell()

    def flush(self) -> None:
        """Nothing waits here."""


def _describe(message: WireMessage) -> tuple[str, str, int]:
    """Kind, what else names the topic, and when it was sent (0 where a message does not say)."""
    match message:
        case Hello():
            return "hello", message.manifest.boot_id, message.sent_ns
        case StepsMessage():
            return "steps", message.boot_id, message.sent_ns
        case FeaturesMessage():
            return "features", message.batch.boot_id, message.sent_ns
        case Document():
            return "document", message.topic, message.sent_ns
        case Picture():
            return "frame", message.boot_id, message.sent_ns
    for kind, struct in PLAIN_KINDS.items():
        if type(message) is struct:
            return kind, getattr(message, "boot_id", ""), message.sent_ns
    raise TypeError(f"{type(message).__name__} is no message")
