"""Writing snapshots off the loop: one thread, one state at a time."""

from __future__ import annotations

import ctypes
import queue
import threading
from typing import TYPE_CHECKING

from interlatent_live.logs import get_logger

if TYPE_CHECKING:
    from interlatent_live.statistics.correlator import CorrelatorState
    from interlatent_live.statistics.snapshot_folder import SnapshotFolder


class SnapshotThread:
    """Takes a state when it is idle and writes it; a full disk is said, and costs no row."""

    def __init__(self, folder: SnapshotFolder) -> None:
        self._folder = folder
        self._log = get_logger("services.saving")
        self._queue: queue.Queue[CorrelatorState | None] = queue.Queue(maxsize=1)
        self._busy = threading.Event()
        self.saved = 0
        self.failed = 0
        self._thread = threading.Thread(target=self._run, name="snapshots", daemon=True)
        self._thread.start()

    @property
    def idle(self) -> bool:
        """Whether a state can be taken now."""
        return not self._busy.is_set()

    def save(self, state: CorrelatorState, *, wait: bool = False) -> None:
        """Have a state written; ``wait`` until it can be taken, else be :attr:`idle`."""
        self._busy.set()
        self._queue.put(state, block=wait)

    def close(self) -> None:
        """Write what was taken, then end."""
        self._queue.put(None)
        self._thread.join(timeout=30.0)

    def _run(self) -> None:
        while (state := self._queue.get()) is not None:
            try:
                size = self._folder.save(state)
                self.saved += 1
                self._log.debug("snapshot", rows=state.meta["rows"], bytes=size)
            except OSError as error:
                self.failed += 1
                self._log.warning("snapshot not written", why=str(error))
            finally:
                del state
                _give_back()
                if self._queue.empty():
                    self._busy.clear()


def _give_back() -> None:
    """Return to the system what a copy of all tables took, where the C library keeps it.

    A copy every minute would otherwise leave the heap as large as its largest moment, in pieces.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
