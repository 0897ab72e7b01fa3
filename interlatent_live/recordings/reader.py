"""Reading recordings: complete chunks of a file that may be cut, altered or hostile.

The MCAP package parses records; what is handed to it was bounded before, because its own reader
takes lengths from the file at their word. A file that ends in the middle of a record is a recording
whose writer was killed: everything complete is read, and :class:`RecordingInfo` says so.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from dataclasses import dataclass, field
from io import BytesIO
from typing import TYPE_CHECKING, BinaryIO, Final

import lz4.frame  # type: ignore[import-untyped] # the package ships no types
import msgspec
import zstandard
from mcap.data_stream import ReadDataStream
from mcap.exceptions import McapError
from mcap.opcode import Opcode
from mcap.records import Channel, Chunk, Metadata

from interlatent_live.errors import CorruptFileError, UserError, WireError
from interlatent_live.recordings.framing import split_frames
from interlatent_live.recordings.writer import MESSAGE_ENCODING, PROVENANCE, STREAM
from interlatent_live.wire.codec import decode
from interlatent_live.wire.limits import DEFAULT_LIMITS, Limits
from interlatent_live.wire.messages import FeaturesMessage, Hello, ManifestHeader, StepsMessage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from interlatent_live.stream import Manifest
    from interlatent_live.wire.messages import WireMessage

MAGIC: Final = b"\x89MCAP0\r\n"
LARGEST_RECORD: Final = 256 * 1024 * 1024
"""Bytes of the largest record, and of the largest chunk unpacked, that is read into memory."""

_MESSAGE_HEAD: Final = 2 + 4 + 8 + 8
"""Channel, sequence, log time, publish time."""
_MALFORMED: Final = (McapError, ValueError, OverflowError, struct.error)
"""What the parsers of the MCAP package raise at bytes that are no record."""


@dataclass(frozen=True, slots=True, eq=False)
class RecordedMessage:
    """One message, when it was recorded, and its own frames for whoever passes it on."""

    topic: str
    time_ns: int
    message: WireMessage
    frames: tuple[memoryview, ...]


@dataclass(frozen=True, slots=True)
class StreamInfo:
    """What a recording has of one stream."""

    manifest: Manifest | None
    transcoders: Mapping[str, str]
    rows: int = 0
    declared: int = 0
    """Rows declared lost within the recording."""


@dataclass(frozen=True, slots=True)
class RecordingInfo:
    """What is in a recording."""

    complete: bool
    """Whether its writer closed it; otherwise it ends with the last complete chunk."""
    size: int
    unread_bytes: int
    """Bytes of an incomplete record at the end."""
    chunks: int
    messages: int
    topics: Mapping[str, int]
    """Messages by topic."""
    first_ns: int | None
    last_ns: int | None
    provenance: Mapping[str, str]
    streams: Mapping[str, StreamInfo] = field(default_factory=dict)
    """By boot_id."""


def read_recording(
    path: Path, *, limits: Limits = DEFAULT_LIMITS, wanted: Callable[[str], bool] | None = None
) -> Iterator[RecordedMessage]:
    """Every message of every complete chunk, in the order of recording.

    Messages whose topic is not ``wanted`` are passed over without decoding them.

    Raises:
        UserError: when there is no such file.
        CorruptFileError: when it is no recording, or a complete chunk does not hold what its
            checksum says. What came before has been yielded by then.
    """
    yield from _Scan(path, limits, wanted).messages()


def recording_info(path: Path, *, limits: Limits = DEFAULT_LIMITS) -> RecordingInfo:
    """Read a recording through and say what is in it.

    Raises:
        UserError: when there is no such file.
        CorruptFileError: as :func:`read_recording`.
    """
    scan = _Scan(path, limits)
    topics: dict[str, int] = {}
    rows: dict[str, int] = {}
    declared: dict[str, int] = {}
    times: list[int] = []
    for recorded in scan.messages():
        topics[recorded.topic] = topics.get(recorded.topic, 0) + 1
        low, high = (times[0], times[1]) if times else (recorded.time_ns,) * 2
        times = [min(low, recorded.time_ns), max(high, recorded.time_ns)]
        message = recorded.message
        if isinstance(message, StepsMessage | FeaturesMessage):
            boot_id = _boot_id(message)
            rows[boot_id] = rows.get(boot_id, 0) + len(message.batch.steps)
            lost = sum(drop.count for drop in message.drops)
            declared[boot_id] = declared.get(boot_id, 0) + lost
        elif isinstance(message, Hello):
            scan.streams.setdefault(
                message.manifest.boot_id,
                StreamInfo(message.manifest, dict(message.transcoders or {})),
            )
    streams = {}
    for boot_id in [*scan.streams, *(boot for boot in rows if boot not in scan.streams)]:
        known = scan.streams.get(boot_id, StreamInfo(None, {}))
        streams[boot_id] = StreamInfo(
            known.manifest, known.transcoders, rows.get(boot_id, 0), declared.get(boot_id, 0)
        )
    return RecordingInfo(
        complete=scan.complete,
        size=scan.size,
        unread_bytes=scan.unread,
        chunks=scan.chunks,
        messages=sum(topics.values()),
        topics=topics,
        first_ns=times[0] if times else None,
        last_ns=times[1] if times else None,
        provenance=scan.provenance,
        streams=streams,
    )


def recording_provenance(path: Path) -> Mapping[str, str]:
    """What a recording says of where it came from, without reading all of it.

    Raises:
        UserError: when there is no such file.
        CorruptFileError: when it is no recording.
    """
    scan = _Scan(path, DEFAULT_LIMITS)
    next(scan.messages(), None)
    return scan.provenance


def _boot_id(message: StepsMessage | FeaturesMessage) -> str:
    return message.boot_id if isinstance(message, StepsMessage) else message.batch.boot_id


class _Scan:
    """One pass through a file."""

    def __init__(
        self, path: Path, limits: Limits, wanted: Callable[[str], bool] | None = None
    ) -> None:
        self.path = path
        self.complete = False
        self.chunks = 0
        self.unread = 0
        self.provenance: dict[str, str] = {}
        self.streams: dict[str, StreamInfo] = {}
        self._limits = limits
        self._wanted = wanted
        self._channels: dict[int, Channel] = {}
        try:
            self.size = path.stat().st_size
        except OSError:
            raise UserError(f"there is no recording {path}") from None

    def messages(self) -> Iterator[RecordedMessage]:
        """Everything complete, in order."""
        with self.path.open("rb") as file:
            if file.read(len(MAGIC)) != MAGIC:
                raise CorruptFileError(f"{self.path} is not an MCAP recording")
            for opcode, payload in self._records(file):
                if opcode == Opcode.CHUNK:
                    self.chunks += 1
                    yield from self._chunk(payload)
                elif opcode == Opcode.CHANNEL:
                    self._register(payload)
                elif opcode == Opcode.MESSAGE:
                    yield from self._message(payload)
                elif opcode == Opcode.METADATA:
                    self._metadata(payload)
                elif opcode == Opcode.DATA_END:
                    file.seek(-len(MAGIC), os.SEEK_END)
                    self.complete = file.read() == MAGIC
                    return

    def _records(self, file: BinaryIO) -> Iterator[tuple[int, bytes]]:
        at = len(MAGIC)
        while at + 9 <= self.size:
            head = file.read(9)
            length = int.from_bytes(head[1:], "little")
            if at + 9 + length > self.size:
                break
            if length > LARGEST_RECORD:
                raise self._corrupt(f"a record of {length} bytes")
            payload = file.read(length)
            if len(payload) != length:
                break
            at += 9 + length
            yield head[0], payload
        self.unread = self.size - at

    def _chunk(self, payload: bytes) -> Iterator[RecordedMessage]:
        try:
            chunk = Chunk.read(ReadDataStream(BytesIO(payload)))
            data = _unpacked(chunk)
        except (*_MALFORMED, EOFError, RuntimeError, zstandard.ZstdError) as error:
            raise self._corrupt(f"chunk {self.chunks} ({error})") from None
        at = 0
        while at < len(data):
            length = int.from_bytes(data[at + 1 : at + 9], "little")
            end = at + 9 + length
            if end > len(data):
                raise self._corrupt(f"chunk {self.chunks}: a record reaches beyond it")
            if data[at] == Opcode.CHANNEL:
                self._register(data[at + 9 : end])
            elif data[at] == Opcode.MESSAGE:
                yield from self._message(memoryview(data)[at + 9 : end])
            at = end

    def _register(self, payload: bytes) -> None:
        try:
            channel = Channel.read(ReadDataStream(BytesIO(payload)))
        except _MALFORMED:
            raise self._corrupt("a channel") from None
        self._channels[channel.id] = channel

    def _message(self, payload: bytes | memoryview) -> Iterator[RecordedMessage]:
        if len(payload) < _MESSAGE_HEAD:
            raise self._corrupt("a message")
        channel = self._channels.get(int.from_bytes(payload[:2], "little"))
        if channel is None or channel.message_encoding != MESSAGE_ENCODING:
            # Another program's channel in the same file is none of ours.
            return
        if self._wanted is not None and not self._wanted(channel.topic):
            return
        time_ns = int.from_bytes(payload[6:14], "little")
        try:
            frames = split_frames(payload[_MESSAGE_HEAD:])
            message = decode(frames, self._limits)
        except WireError as error:
            raise self._corrupt(f"a message on {channel.topic!r}: {error}") from None
        yield RecordedMessage(channel.topic, time_ns, message, tuple(frames))

    def _metadata(self, payload: bytes) -> None:
        try:
            record = Metadata.read(ReadDataStream(BytesIO(payload)))
            if record.name == PROVENANCE:
                self.provenance = dict(record.metadata)
            elif record.name == STREAM:
                header = msgspec.json.decode(record.metadata["manifest"], type=ManifestHeader)
                transcoders = json.loads(record.metadata["transcoders"])
                if not isinstance(transcoders, dict):
                    raise ValueError("transcoders")
                self.streams[header.boot] = StreamInfo(
                    header.manifest(), {str(k): str(v) for k, v in transcoders.items()}
                )
        except (*_MALFORMED, KeyError, msgspec.MsgspecError):
            raise self._corrupt("its metadata") from None

    def _corrupt(self, what: str) -> CorruptFileError:
        return CorruptFileError(
            f"the recording {self.path} is damaged: {what}; restore it from a backup, or read what "
            "comes before"
        )


def _unpacked(chunk: Chunk) -> bytes:
    """The chunk's records.

    Raises:
        ValueError: when it is too large, of an unknown compression, or fails its checksum.
    """
    size = chunk.uncompressed_size
    if size > LARGEST_RECORD:
        raise ValueError("too large")
    if chunk.compression == "zstd":
        claimed = zstandard.frame_content_size(chunk.data)
        if claimed > size:
            raise ValueError("larger than it says")
        data = zstandard.ZstdDecompressor().decompress(chunk.data, max_output_size=size)
    elif chunk.compression == "lz4":
        data = lz4.frame.LZ4FrameDecompressor().decompress(chunk.data, max_length=size + 1)
    elif chunk.compression:
        raise ValueError("unknown compression")
    else:
        data = chunk.data
    if len(data) != size:
        raise ValueError("another size than it says")
    if chunk.uncompressed_crc and zlib.crc32(data) != chunk.uncompressed_crc:
        raise ValueError("checksum")
    return bytes(data)
