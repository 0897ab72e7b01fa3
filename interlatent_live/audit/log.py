"""The audit on disk: append with fsync, go on after a crash, verify.

Three files in a folder only its owner can read: ``audit.jsonl`` (the chain), ``state.json`` (how
long it is, and the next key), and, unless it was taken elsewhere as it should be, ``first.key``.

An entry is on the disk before :meth:`AuditLog.append` returns; what it permits must come after. The
line is written first and the state replaced atomically after it, so a crash in between leaves one
whole or torn line too many, which is recognised with the state's own key and completed or cut. More
than that is never repaired: it is evidence.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import time
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, Any, Final

from interlatent_live.audit.chain import (
    GENESIS,
    KEY_BYTES,
    ChainState,
    Entry,
    append,
    parse,
    verified,
)
from interlatent_live.closing import Closing
from interlatent_live.errors import CorruptFileError, UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

LOG: Final = "audit.jsonl"
STATE: Final = "state.json"
FIRST_KEY: Final = "first.key"
_LIVE_TRIES: Final = 5
"""How often an audit that is being written is read until log and state agree."""
_LIVE_PAUSE_S: Final = 0.02


class AuditLog(Closing):
    """An open audit; one process at a time, any number of threads.

    Raises:
        UserError: when another process has it open, or the folder cannot be written.
        CorruptFileError: when log and state do not belong together.
    """

    def __init__(self, folder: Path, *, clock: Callable[[], int] = time.time_ns) -> None:
        self._folder = folder
        self._clock = clock
        self._lock = Lock()
        self._failed = False
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._fd = os.open(folder / LOG, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        except OSError as error:
            raise UserError(f"the audit in {folder} cannot be written: {error.strerror}") from error
        try:
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise UserError(
                    f"the audit in {folder} is open in another process; stop that one first"
                ) from error
            self._state = self._resume()
        except BaseException:
            os.close(self._fd)
            raise

    @property
    def state(self) -> ChainState:
        """Where the chain ends."""
        return self._state

    def append(self, kind: str, body: Mapping[str, Any]) -> Entry:
        """Write one entry and wait until it is on the disk.

        Raises:
            UserError: when the disk does not take it; what it should have permitted must not
                happen. From then on every append is refused, until the audit is opened again.
        """
        with self._lock:
            if self._failed:
                raise UserError(f"the audit in {self._folder} failed before and must be reopened")
            entry, state = append(self._state, kind, body, self._clock())
            try:
                _write_all(self._fd, entry.line())
                os.fsync(self._fd)
                self._save(state)
            except OSError as error:
                self._failed = True
                raise UserError(
                    f"the audit in {self._folder} cannot be written: {error.strerror}"
                ) from error
            self._state = state
            return entry

    def entries(self) -> Iterator[Entry]:
        """All entries, read back without checking the seals (see :func:`verify`).

        Raises:
            CorruptFileError: at a line that is no entry.
        """
        with (self._folder / LOG).open("rb") as lines:
            for n, line in enumerate(lines):
                if line.endswith(b"\n"):  # else it is just being written
                    yield parse(line, n)

    def close(self) -> None:
        """Give the file free."""
        with self._lock:
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1
                self._failed = True

    # -- opening --------------------------------------------------------------------------------

    def _resume(self) -> ChainState:
        path = self._folder / STATE
        if not path.exists():
            if os.fstat(self._fd).st_size:
                raise CorruptFileError(
                    f"the audit in {self._folder} has entries but no state: keep it as it is and "
                    "begin another one elsewhere"
                )
            return self._begin()
        state = _read_state(path)
        return self._complete(state)

    def _begin(self) -> ChainState:
        key_path = self._folder / FIRST_KEY
        if key_path.exists():
            key = read_key(key_path)  # a crash before the first state was written
        else:
            key = secrets.token_bytes(KEY_BYTES)
            _replace(key_path, key.hex().encode() + b"\n")
        state = ChainState.start(key)
        self._save(state)
        return state

    def _complete(self, state: ChainState) -> ChainState:
        """Deal with the one line that a crash may have left beyond the state."""
        lines = _lines_from(self._folder / LOG, state.n)
        whole = _offset_of(self._folder / LOG, state.n)
        if whole is None:
            raise CorruptFileError(
                f"the audit in {self._folder} is shorter than its state says: entries were cut off"
            )
        if not lines:
            return state
        if len(lines) == 1:
            extra = _extra_entry(lines[0], state)
            if extra is not None:
                self._save(extra)
                return extra
            if not lines[0].endswith(b"\n"):
                # The line that was being written; nothing was permitted by it.
                os.ftruncate(self._fd, whole)
                os.fsync(self._fd)
                return state
        raise CorruptFileError(
            f"the audit in {self._folder} has lines after entry {state.n - 1} that it did not write"
        )

    def _save(self, state: ChainState) -> None:
        text = json.dumps({"n": state.n, "seal": state.seal, "key": state.key.hex()})
        _replace(self._folder / STATE, text.encode() + b"\n")


@dataclass(frozen=True, slots=True)
class AuditReport:
    """What a verification found in order."""

    entries: int
    seal: str
    first_ns: int | None
    last_ns: int | None
    anchored: bool | None
    """Whether the anchor was found; None when none was given."""


def in_use(folder: Path) -> bool:
    """Whether a process is writing the audit in a folder now."""
    try:
        fd = os.open(folder / LOG, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(fd)
    return False


def verify(
    log: Path, key: bytes, *, state: Path | None = None, anchor: str | None = None
) -> AuditReport:
    """Check every entry, the end against the state, and the anchor.

    Args:
        log: the chain's file.
        key: the first key.
        state: the state file, whose key and length must be those of the end.
        anchor: a seal that was seen elsewhere (in an agent's journal, say) and must occur.

    Raises:
        CorruptFileError: naming the first entry that is not as it was written, or what is missing.
        UserError: when a file cannot be read.
    """
    for _ in range(_LIVE_TRIES):
        end, report = _walk(log, key, anchor)
        said = None if state is None else _read_state(state)
        if said is None or said.n == end.n or not _moving(log, end, said):
            break
        time.sleep(_LIVE_PAUSE_S)
    if said is not None:
        if said.n != end.n:
            raise CorruptFileError(
                f"the audit {log} has {end.n} entries, but its state says {said.n}: "
                + ("its end was cut off" if said.n > end.n else "the state is an old one")
            )
        if said.key != end.key or said.seal != end.seal:
            raise CorruptFileError(f"the audit {log} and its state do not belong together")
    if report.anchored is False:
        raise CorruptFileError(f"the audit {log} lacks the entry with seal {anchor}: it was cut")
    return report


def _walk(log: Path, key: bytes, anchor: str | None) -> tuple[ChainState, AuditReport]:
    first_ns = last_ns = None
    end = ChainState.start(key)
    found = None if anchor is None else anchor == GENESIS
    try:
        with log.open("rb") as lines:
            for entry, after in verified(lines, key):
                first_ns = entry.time_ns if first_ns is None else first_ns
                last_ns = entry.time_ns
                found = found or (None if anchor is None else entry.seal == anchor)
                end = after
    except OSError as error:
        raise UserError(f"the audit {log} cannot be read: {error.strerror}") from error
    return end, AuditReport(end.n, end.seal, first_ns, last_ns, found)


def _moving(log: Path, end: ChainState, said: ChainState) -> bool:
    """Whether a writer explains that log and state differ: one entry ahead, or grown since."""
    if not in_use(log.parent):
        return False
    return said.n == end.n - 1 or _offset_of(log, said.n) is not None


def read_key(path: Path) -> bytes:
    """A first key from its file of 64 hexadecimal digits.

    Raises:
        UserError: when there is none.
    """
    try:
        key = bytes.fromhex(path.read_text("ascii").strip())
    except (OSError, ValueError) as error:
        raise UserError(f"there is no audit key in {path}") from error
    if len(key) != KEY_BYTES:
        raise UserError(f"the audit key in {path} has {len(key)} bytes, not {KEY_BYTES}")
    return key


def _extra_entry(line: bytes, state: ChainState) -> ChainState | None:
    """The state after a line that the state's own key sealed; None when it did not."""
    try:
        fields = json.loads(line)
        entry, after = append(state, fields["kind"], fields["body"], fields["time_ns"])
    except (ValueError, KeyError, TypeError):
        return None
    return after if entry.line() == line else None


def _read_state(path: Path) -> ChainState:
    try:
        fields = json.loads(path.read_bytes())
        state = ChainState(int(fields["n"]), str(fields["seal"]), bytes.fromhex(fields["key"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CorruptFileError(f"the audit's state {path} cannot be read") from error
    return state


def _offset_of(path: Path, n: int) -> int | None:
    """Where line ``n`` begins; None when there are fewer whole lines."""
    offset = count = 0
    with path.open("rb") as lines:
        while count < n:
            line = lines.readline()
            if not line.endswith(b"\n"):
                return None
            offset += len(line)
            count += 1
    return offset


def _lines_from(path: Path, n: int) -> list[bytes]:
    with path.open("rb") as lines:
        return [line for count, line in enumerate(lines) if count >= n]


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _replace(path: Path, data: bytes) -> None:
    """Put a file in place whole, on the disk, readable by its owner only."""
    beside = path.with_name(f".{path.name}.new")
    with contextlib.suppress(FileNotFoundError):
        beside.unlink()
    fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        _write_all(fd, data)
        os.fsync(fd)
    finally:
        os.close(fd)
    beside.replace(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
