"""A log into a pipe that never waits for its reader.

A service under a supervisor logs into a pipe. When the supervisor is frozen, or only too slow, the
pipe fills (64 KiB), and a plain write then blocks: the encoder would stand still because nobody
reads what it says. Here an event that finds no room is dropped and counted, and the count is said
as soon as there is room again. Lines stay whole.
"""

from __future__ import annotations

import logging
import os
import select
import stat
from typing import Final, TextIO

CHUNK: Final = select.PIPE_BUF
"""A pipe that polls writable has room for so much, and takes it in one piece (pipe(7))."""


def is_pipe(stream: TextIO) -> bool:
    """Whether a stream writes into a pipe or FIFO."""
    try:
        return stat.S_ISFIFO(os.fstat(stream.fileno()).st_mode)
    except (OSError, ValueError):  # closed, or no file at all
        return False


class PipeHandler(logging.Handler):
    """Writes records into the pipe ``fd`` without ever waiting; what finds no room is counted.

    Only this handler may write much to the pipe: room that another writer takes between the look
    and the write would be waited for.

    Attributes:
        dropped: events that found no room and were not yet spoken of.
    """

    def __init__(self, fd: int) -> None:
        super().__init__()
        self.dropped = 0
        self._fd = fd
        self._rest = b""
        self._poll = select.poll()
        self._poll.register(fd, select.POLLOUT)

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record, or count it."""
        try:
            line = self._line(record)
        except Exception:  # noqa: BLE001 - as every handler of the standard library
            self.handleError(record)
            return
        self._own_up()
        if self.dropped or not self._begin(line):
            self.dropped += 1

    def flush(self) -> None:
        """Write what there is room for."""
        self.acquire()
        try:
            self._own_up()
        finally:
            self.release()

    def close(self) -> None:
        """The last words, if there is room."""
        self.flush()
        super().close()

    def _own_up(self) -> None:
        """Say how many events were dropped, once there is room to say so."""
        if not self.dropped:
            self._go_on()
            return
        said = logging.makeLogRecord(
            {
                "name": __name__,
                "levelno": logging.WARNING,
                "levelname": "WARNING",
                "msg": f"{self.dropped} events of this log were dropped: nobody read them in time",
            }
        )
        if self._begin(self._line(said)):
            self.dropped = 0

    def _line(self, record: logging.LogRecord) -> bytes:
        return (self.format(record) + "\n").encode("utf-8", "backslashreplace")

    def _begin(self, line: bytes) -> bool:
        """Write a line; whether it was begun. What is begun is finished before the next one."""
        if not self._go_on():
            return False
        self._rest = line
        self._go_on()
        begun = len(self._rest) < len(line)
        if not begun:
            self._rest = b""
        return begun

    def _go_on(self) -> bool:
        """Write what is left of a line while there is room; whether nothing is left."""
        try:
            while self._rest and self._poll.poll(0):
                written = os.write(self._fd, self._rest[:CHUNK])
                self._rest = self._rest[written:]
        except OSError:  # nobody will ever read it
            return False
        return not self._rest
