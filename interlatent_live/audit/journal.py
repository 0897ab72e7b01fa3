"""An agent's own record of what was commanded and what came of it, beside the audit.

One line of JSON each, written by a thread of its own and never waited for: on a full disk lines are
lost and counted, and nothing else happens. Stops are journalled here also while the audit cannot be
reached; the seals of permitted commands stand in it, so that an audit whose end was cut off can be
held against it (:func:`interlatent_live.audit.log.verify`).
"""

from __future__ import annotations

import json
import os
import time
from queue import SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Any, Final

from interlatent_live.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

LARGEST: Final = 4 * 2**20
"""Bytes of a file; the one before it is kept too."""
WAITING: Final = 4096
"""Lines that wait for the disk."""


class Journal:
    """Appends lines; call :meth:`close` at the end.

    Raises:
        UserError: when the file cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lost = 0
        """Lines that found no room, in memory or on the disk."""
        self._waiting: SimpleQueue[bytes | None] = SimpleQueue()
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._fd = self._open()
        except OSError as error:
            raise UserError(
                f"the journal {path} cannot be written ({error.strerror}); give a folder that this "
                "agent may write"
            ) from error
        self._thread = Thread(target=self._run, name="interlatent-journal", daemon=True)
        self._thread.start()

    def write(self, kind: str, body: Mapping[str, Any]) -> None:
        """Take one line, from any thread; it is on the disk some time later."""
        line = json.dumps({"time_ns": time.time_ns(), "kind": kind, **body}, default=str)
        if self._waiting.qsize() >= WAITING:
            self.lost += 1
            return
        self._waiting.put(line.encode() + b"\n")

    def close(self, timeout_s: float = 1.0) -> None:
        """Write what waits, for so long at most."""
        self._waiting.put(None)
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while (line := self._waiting.get()) is not None:
            try:
                if os.fstat(self._fd).st_size + len(line) > LARGEST:
                    self._turn_over()
                if os.write(self._fd, line) != len(line):
                    self.lost += 1
            except OSError:
                self.lost += 1
        os.close(self._fd)

    def _turn_over(self) -> None:
        self.path.replace(self.path.with_suffix(".before.jsonl"))
        before, self._fd = self._fd, self._open()
        os.close(before)

    def _open(self) -> int:
        return os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
