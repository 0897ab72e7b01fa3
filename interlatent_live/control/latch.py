"""A stop that outlives its process: one small file, written in place.

The file exists and has its full length from the moment an agent starts, so that latching needs
neither a free block nor a free file name: on a full disk, or with no descriptor left, a stop is
still kept. Whatever cannot be read as a plain "running" is a stop; the doubt costs a resume.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from interlatent_live.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path

_LENGTH: Final = 16
_RUNNING: Final = b"running".ljust(_LENGTH - 1) + b"\n"
_STOPPED: Final = b"stopped".ljust(_LENGTH - 1) + b"\n"


class StopLatch:
    """The latch of one agent, open until :meth:`close`.

    Raises:
        UserError: when the file cannot be made or opened: an agent that could not keep a stop must
            not offer one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._fd, new = _open(path)
        except OSError as error:
            raise UserError(
                f"the stop latch {path} cannot be opened ({error.strerror}); give a folder that "
                "this agent may write"
            ) from error
        try:
            if new:
                # Only now does it cost a block, while nothing depends on it yet.
                self._write(_RUNNING)
        except OSError as error:
            os.close(self._fd)
            raise UserError(
                f"the stop latch {path} cannot be written ({error.strerror}); free some space"
            ) from error

    @property
    def stopped(self) -> bool:
        """Whether a stop is latched, or nobody can tell."""
        try:
            return os.pread(self._fd, _LENGTH + 1, 0) != _RUNNING
        except OSError:
            return True

    def stop(self) -> bool:
        """Latch; returns whether it is on the disk. The caller stops either way."""
        return self._put(_STOPPED)

    def resume(self) -> bool:
        """Unlatch; returns whether it is on the disk. When not, the caller must not resume."""
        return self._put(_RUNNING)

    def close(self) -> None:
        """Give the file free; what it says stays."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _put(self, word: bytes) -> bool:
        try:
            self._write(word)
        except OSError:
            return False
        return True

    def _write(self, word: bytes) -> None:
        # 16 bytes at the front of one block: the device writes all of them or none.
        os.pwrite(self._fd, word, 0)
        os.ftruncate(self._fd, _LENGTH)
        os.fsync(self._fd)


def _open(path: Path) -> tuple[int, bool]:
    """The file's descriptor, and whether it was made just now: an old empty file is damage."""
    flags = os.O_RDWR | os.O_CLOEXEC
    try:
        return os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o600), True
    except FileExistsError:
        return os.open(path, flags), False
