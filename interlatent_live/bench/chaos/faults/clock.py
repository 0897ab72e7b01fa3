"""A wall clock that jumps, for this program's processes only.

Setting the machine's clock would hurt everybody on it, and the wall clock cannot be put into a
namespace. So ``time.time`` and ``time.time_ns`` of the processes under test add an offset that
lies in a file mapped into memory: the agent installs it before anything else is imported, the
services through a ``sitecustomize`` that the supervisor's ``PYTHONPATH`` names. What is measured is
therefore what *our* code does when its clock jumps; libzmq and the kernel, which use the monotonic
clock for their timers, are not touched.
"""

from __future__ import annotations

import mmap
import os
import struct
import time
from pathlib import Path
from typing import Final

VARIABLE: Final = "INTERLATENT_CHAOS_CLOCK"
"""Names the file with the offset: one little-endian i8, nanoseconds."""

_OFFSET: Final = struct.Struct("<q")
_SITECUSTOMIZE: Final = """\
from interlatent_live.bench.chaos.faults.clock import install
install()
"""


def install() -> bool:
    """Make this process's wall clock follow the file, where :data:`VARIABLE` names one."""
    path = os.environ.get(VARIABLE)
    if not path:
        return False
    with Path(path).open("rb") as file:
        mapped = mmap.mmap(file.fileno(), _OFFSET.size, access=mmap.ACCESS_READ)
    true_ns, true_s, read = time.time_ns, time.time, _OFFSET.unpack_from

    def time_ns() -> int:
        return true_ns() + int(read(mapped)[0])

    def time_s() -> float:
        return true_s() + int(read(mapped)[0]) / 1e9

    time.time_ns, time.time = time_ns, time_s
    return True


class Clock:
    """An offset that processes started under :meth:`environment` add to their wall clock."""

    def __init__(self, folder: Path, *, python_start: bool) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / "offset"
        self._folder = folder
        self._python_start = python_start
        self.jump(0.0)
        if python_start:
            (folder / "sitecustomize.py").write_text(_SITECUSTOMIZE, encoding="utf-8")

    def jump(self, seconds: float) -> None:
        """From now on the wall clock is this far from the true one."""
        # In place: the processes have this very file mapped.
        mode = "r+b" if self._path.exists() else "w+b"
        with self._path.open(mode) as file:
            file.write(_OFFSET.pack(int(seconds * 1e9)))

    def environment(self) -> dict[str, str]:
        """Variables for the processes whose clock this is."""
        variables = {VARIABLE: str(self._path)}
        if self._python_start:
            before = os.environ.get("PYTHONPATH", "")
            variables["PYTHONPATH"] = os.pathsep.join(filter(None, (str(self._folder), before)))
        return variables
