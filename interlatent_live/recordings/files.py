"""The files of one recorder in its folder: how they are named, and which may go.

A recorder removes only what a recorder has closed: files of its naming that no process is writing.
Everything else in the folder is somebody else's.
"""

from __future__ import annotations

import fcntl
import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

NAME: Final = re.compile(r"interlatent-(\d{8}T\d{6}Z)-(\d+)\.mcap")


@dataclass(frozen=True, slots=True)
class RecordedFile:
    """A file of a recorder's naming: where it is, its bytes, and when it was last written, in s."""

    path: Path
    size: int
    modified_s: float

    @property
    def order(self) -> tuple[str, int]:
        """Older files first."""
        found = NAME.fullmatch(self.path.name)
        return ("", 0) if found is None else (found[1], int(found[2]))


def new_path(folder: Path, now_s: float) -> Path:
    """``interlatent-<UTC>-<n>.mcap`` with the first ``n`` from 1 that no file in ``folder`` has."""
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now_s))
    number = 1
    while (path := folder / f"interlatent-{stamp}-{number}.mcap").exists():
        number += 1
    return path


def recorded_files(folder: Path) -> list[RecordedFile]:
    """The files of a recorder's naming, oldest first; without those that vanish meanwhile."""
    found = []
    for path in folder.glob("interlatent-*.mcap"):
        if NAME.fullmatch(path.name) is None or path.is_symlink():
            continue
        try:
            status = path.stat()
        except OSError:
            continue
        found.append(RecordedFile(path, status.st_size, status.st_mtime))
    return sorted(found, key=lambda one: one.order)


def over_limits(
    files: Sequence[RecordedFile],
    *,
    now_s: float,
    keep_bytes: int | None,
    keep_s: float | None,
    current: Path | None,
) -> list[RecordedFile]:
    """Which of ``files`` (oldest first) have to go, never ``current``.

    Those last written more than ``keep_s`` ago, and then the oldest until all together, ``current``
    included, are at most ``keep_bytes``.
    """
    total = sum(one.size for one in files)
    gone = []
    for one in files:
        if one.path == current:
            continue
        old = keep_s is not None and now_s - one.modified_s > keep_s
        if old or (keep_bytes is not None and total > keep_bytes):
            gone.append(one)
            total -= one.size
    return gone


def remove_closed(files: Sequence[RecordedFile], told: Callable[[str], None]) -> int:
    """Remove files that nobody is writing; returns how many went. ``told`` hears what could not."""
    removed = 0
    for one in files:
        try:
            with one.path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                one.path.unlink()
        except BlockingIOError:
            continue  # another recorder's current file
        except OSError as error:
            told(f"{one.path} cannot be removed: {error.strerror}")
            continue
        removed += 1
    return removed
