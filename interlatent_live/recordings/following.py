"""Reading a recording that is still being written, from where the last reading ended.

A recorder hands over whole chunks, so what is complete now is read, and the rest at the next call.
Messages recorded before a moment can be passed over without decoding them, which is what makes
going on behind a snapshot cheap in a long recording.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, BinaryIO

from mcap.opcode import Opcode

from interlatent_live.recordings.reader import LARGEST_RECORD, MAGIC, RecordedMessage, _Scan
from interlatent_live.wire.limits import DEFAULT_LIMITS, Limits

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class RecordingFollower(_Scan):
    """One recording, read piece by piece.

    Args:
        path: the file.
        since_ns: messages recorded before this moment are passed over, except for hellos.
        limits: of the decoder.

    Raises:
        UserError: when there is no such file.
    """

    def __init__(self, path: Path, *, since_ns: int = 0, limits: Limits = DEFAULT_LIMITS) -> None:
        super().__init__(path, limits)
        self._since_ns = since_ns
        self._at = 0

    def messages(self) -> Iterator[RecordedMessage]:
        """What is complete and was not read before; exhaust it, and a later call goes on behind.

        Raises:
            CorruptFileError: as :func:`~interlatent_live.recordings.read_recording`.
        """
        if self.complete:
            return
        self.size = self.path.stat().st_size
        with self.path.open("rb") as file:
            if not self._at:
                if self.size < len(MAGIC):
                    return
                if file.read(len(MAGIC)) != MAGIC:
                    raise self._corrupt("it does not begin as an MCAP file")
                self._at = len(MAGIC)
            file.seek(self._at)
            for opcode, payload in self._records(file):
                if opcode == Opcode.CHUNK:
                    self.chunks += 1
                    yield from self._chunk(payload)
                elif opcode == Opcode.CHANNEL:
                    self._register(payload)
                elif opcode == Opcode.MESSAGE:
                    yield from self._message(payload)
                elif opcode == Opcode.DATA_END:
                    self.complete = True
                    return

    def _records(self, file: BinaryIO) -> Iterator[tuple[int, bytes]]:
        while self._at + 9 <= self.size:
            head = file.read(9)
            length = int.from_bytes(head[1:], "little")
            end = self._at + 9 + length
            if length > LARGEST_RECORD:
                raise self._corrupt(f"a record of {length} bytes")
            if end > self.size:
                return
            payload = file.read(length)
            if len(payload) != length:
                return
            self._at = end
            yield head[0], payload

    def _message(self, payload: bytes | memoryview) -> Iterator[RecordedMessage]:
        if int.from_bytes(payload[6:14], "little") < self._since_ns:
            channel = self._channels.get(int.from_bytes(payload[:2], "little"))
            if channel is None or not channel.topic.startswith("hello"):
                return
        yield from super()._message(payload)
