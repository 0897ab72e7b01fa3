"""A full disk under everything that writes: the tap's spool, the snapshots, the console's store.

The disk is a small file system in memory that is mounted for the occasion and filled to the last
byte. Where mounting is not permitted, the writing processes themselves may not let any file grow
(RLIMIT_FSIZE 0, which the kernel reports as a file too large): less like a full disk, and still no
write gets through.
"""

from __future__ import annotations

import ctypes
import os
import resource
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, Self

from interlatent_live.bench.chaos.faults.fault import Fault

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextlib import ExitStack
    from pathlib import Path

    from interlatent_live.bench.chaos.agent_process import AgentProcess
    from interlatent_live.bench.chaos.measure import Outcome
    from interlatent_live.bench.chaos.orders import Opened
    from interlatent_live.bench.chaos.rig import Rig

SIZE: Final = 256 * 2**20
_BALLAST: Final = "ballast"
_BLOCK: Final = bytes(4096)
_MNT_DETACH: Final = 2
_FILL_EVERY_S: Final = 0.02
WRITERS: Final = ("correlator", "console")


class SmallDisk:
    """A folder that can be filled; a context manager.

    Attributes:
        folder: what lies on it.
        mounted: whether it is a file system of its own.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.mounted = False

    def __enter__(self) -> Self:
        """Mount it where that is permitted."""
        self.folder.mkdir(parents=True, exist_ok=True)
        mount = ctypes.CDLL(None, use_errno=True).mount
        options = f"size={SIZE},mode=0700".encode()
        self.mounted = mount(b"tmpfs", bytes(self.folder), b"tmpfs", 0, options) == 0
        return self

    def __exit__(self, *_: object) -> None:
        """Unmount it, at the latest once nobody has a file open there."""
        if self.mounted:
            ctypes.CDLL(None, use_errno=True).umount2(bytes(self.folder), _MNT_DETACH)

    def fill(self) -> None:
        """Take what is free."""
        with suppress(OSError), (self.folder / _BALLAST).open("ab", buffering=0) as file:
            free = os.statvfs(self.folder)
            os.posix_fallocate(file.fileno(), file.tell(), max(1, free.f_bavail * free.f_frsize))
            while True:
                file.write(_BLOCK)

    def empty(self) -> None:
        """Give it back."""
        (self.folder / _BALLAST).unlink(missing_ok=True)


class DiskFull(Fault):
    """Nobody can write anything any more."""

    name = "disk full"
    about = (
        "no byte is free for the tap's spool, the correlator's snapshots and the console's store; "
        "what the spool refuses is declared lost"
    )

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._limited: list[tuple[int, tuple[int, int]]] = []
        self._written: tuple[int, ...] = ()

    def options(self, rig: Rig) -> Mapping[str, Any]:
        """With a spool there."""
        return {"on_full": "spool", "spool": str(rig.disk.folder / "spool")}

    def prepare(self, rig: Rig, stack: ExitStack) -> str:
        """Whatever goes wrong, there is room in the end."""
        stack.callback(self._release, rig)
        return rig.endpoint

    def strike(self, rig: Rig, agent: AgentProcess) -> None:
        """Take all room, and whatever is given back meanwhile."""
        if rig.disk.mounted:
            self._thread = threading.Thread(target=self._fill, args=(rig.disk,), daemon=True)
            self._thread.start()
            return
        for pid in (agent.pid, *(rig.pid(name) for name in WRITERS)):
            before = resource.prlimit(pid, resource.RLIMIT_FSIZE)
            self._limited.append((pid, before))
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, before[1]))

    def lift(self, rig: Rig, agent: AgentProcess) -> None:
        """Make room."""
        del agent
        self._release(rig)
        self._written = newest_writes(rig)

    def healed(self, rig: Rig, opened: Opened, seq: int) -> bool:
        """Snapshots and store are written to again."""
        del opened, seq
        again = zip(newest_writes(rig), self._written, strict=True)
        return all(now > before for now, before in again) and rig.health("console") is not None

    def complaints(self, rig: Rig, outcome: Outcome) -> tuple[str, ...]:
        """The spool has to have refused rows, and nobody may have died of it."""
        del rig
        return () if outcome.declared.get("spool_full") else ("the spool was never full",)

    def _fill(self, disk: SmallDisk) -> None:
        disk.fill()
        while not self._stop.wait(_FILL_EVERY_S):
            disk.fill()

    def _release(self, rig: Rig) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        for pid, before in self._limited:
            with suppress(ProcessLookupError):
                resource.prlimit(pid, resource.RLIMIT_FSIZE, before)
        self._limited.clear()
        rig.disk.empty()


def newest_writes(rig: Rig) -> tuple[int, ...]:
    """When snapshots and store were last written to, ns since the epoch."""
    newest = []
    for folder in (rig.disk.folder / "snapshots", rig.disk.folder / "state"):
        times = [0]
        for path in folder.rglob("*"):
            with suppress(FileNotFoundError):
                times.append(path.stat().st_mtime_ns)
        newest.append(max(times))
    return tuple(newest)
