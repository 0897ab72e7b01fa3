"""New versions of transcoders while the encoder runs: a thread that looks, reads and checks.

The service's loop only adopts what is ready. Looking is a few system calls a folder; SIGHUP looks
at once.
"""

from __future__ import annotations

import os
import queue
import select
import signal
import sys
import threading
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final, Self

from interlatent_live.logs import get_logger
from interlatent_live.pipeline.library import FolderWatch

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path
    from types import FrameType

    from interlatent_live.pipeline.library import Key, Scan

SETTLING_S: Final = 0.25
"""A change counts when it is the same so much later."""


class Reloader:
    """Looks at folders every ``every_s`` seconds until it is closed; a context manager.

    Takes SIGHUP when it is entered on the main thread of a process without a terminal: at a
    terminal the signal goes on to mean that the terminal is gone.
    """

    def __init__(self, folders: Sequence[Path], every_s: float) -> None:
        self.looks = 0
        """How often it looked."""
        self._every_s = every_s
        self._watch = FolderWatch(folders)
        self._serving: Mapping[Key, str | None] = {}
        self._scans: queue.SimpleQueue[Scan] = queue.SimpleQueue()
        self._wake_fd = self._end_fd = -1
        self._resources = ExitStack()
        self._log = get_logger("services.reloading")

    def __enter__(self) -> Self:
        """Begin to look."""
        with ExitStack() as undo:
            self._wake_fd = _eventfd(undo)
            self._end_fd = _eventfd(undo)
            thread = threading.Thread(target=self._run, name="reloading", daemon=True)
            thread.start()
            undo.callback(thread.join)
            undo.callback(os.eventfd_write, self._end_fd, 1)
            on_main = threading.current_thread() is threading.main_thread()
            if on_main and not (sys.stdin is not None and sys.stdin.isatty()):
                old = signal.signal(signal.SIGHUP, self._on_hangup)
                undo.callback(signal.signal, signal.SIGHUP, old)
            self._resources = undo.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        """Stop looking, after what is being read."""
        self._resources.close()

    def serving(self, serving: Mapping[Key, str | None]) -> None:
        """Say what encodes now; read by the thread at its next look."""
        self._serving = serving

    def scans(self) -> Iterator[Scan]:
        """What looks since the last call found, oldest first."""
        while True:
            try:
                yield self._scans.get_nowait()
            except queue.Empty:
                return

    def look_now(self) -> None:
        """Look now; from any thread."""
        os.eventfd_write(self._wake_fd, 1)

    def _on_hangup(self, _number: int, _frame: FrameType | None) -> None:
        # Only a write: the handler may have interrupted code that holds any lock of this process.
        os.eventfd_write(self._wake_fd, 1)

    def _run(self) -> None:
        poll = select.poll()
        poll.register(self._end_fd, select.POLLIN)
        poll.register(self._wake_fd, select.POLLIN)
        while True:
            wait_s = SETTLING_S if self._watch.settling else self._every_s
            ready = {fd for fd, _ in poll.poll(wait_s * 1000)}
            if self._end_fd in ready:
                return
            if self._wake_fd in ready:
                os.eventfd_read(self._wake_fd)
            try:
                self.looks += 1
                scan = self._watch.look(self._serving)
            except Exception as error:  # noqa: BLE001 - nothing may end this thread
                self._log.error("could not look for new transcoders", error=repr(error))
                continue
            if scan is not None:
                self._scans.put(scan)


def _eventfd(undo: ExitStack) -> int:
    fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    undo.callback(os.close, fd)
    return fd
