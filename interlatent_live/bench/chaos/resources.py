"""What a process holds: descriptors, threads and memory of its own, read from ``/proc``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Holding:
    """One process at one moment."""

    fds: int
    threads: int
    anonymous_bytes: int
    """Resident memory that is no file's: what can leak. Pages of libraries come and go."""


def holding(pid: int) -> Holding | None:
    """What process ``pid`` holds now; ``None`` when it is gone or not ours."""
    root = Path("/proc") / str(pid)
    try:
        fds = sum(1 for _ in (root / "fd").iterdir())
        status = (root / "status").read_text(encoding="utf-8")
    except OSError:
        return None
    fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    if "RssAnon" not in fields:  # a zombie has no memory
        return None
    return Holding(
        fds=fds,
        threads=int(fields["Threads"]),
        anonymous_bytes=int(fields["RssAnon"].split()[0]) * 1024,
    )


def leaks(name: str, before: Holding, after: Holding) -> tuple[str, ...]:
    """What a process holds more of than before, in words; memory is not judged here."""
    found = []
    if after.fds > before.fds:
        found.append(f"{name}: {after.fds - before.fds} descriptors")
    if after.threads > before.threads:
        found.append(f"{name}: {after.threads - before.threads} threads")
    return tuple(found)
