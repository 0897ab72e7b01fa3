"""The audit's entries and the seals that bind them into a chain. Pure.

Each entry is one line of canonical JSON with the seal of the entry before it. Its own seal is an
HMAC under a key that is used once and then replaced by its own hash: who takes the machine over at
entry n finds the key for n + 1, but none with which an earlier entry could be written again
(forward-secure sealing: Bellare and Yee, "Forward Integrity for Secure Audit Logs", 1997). The
first key is kept elsewhere and verifies everything.

What the chain alone cannot show is that its *end* was cut off together with the state that says how
long it is. So the state stands in a file of its own, agents keep the seals they were shown in their
journals, and ``verify`` takes such a seal as an anchor.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from interlatent_live.errors import CorruptFileError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

KEY_BYTES: Final = 32
GENESIS: Final = "0" * 64
"""Stands for the seal before the first entry."""
MAX_LINE: Final = 64 * 1024
"""Bytes of one entry; a longer line is damage, not an entry."""
_FIELDS: Final = frozenset({"n", "time_ns", "kind", "body", "before", "seal"})


@dataclass(frozen=True, slots=True)
class Entry:
    """One sealed line."""

    n: int
    """From 0, without holes."""
    time_ns: int
    kind: str
    """What sort of thing happened, such as ``permitted`` or ``applied``."""
    body: Mapping[str, Any]
    before: str
    """Seal of the entry before, hexadecimal."""
    seal: str

    def line(self) -> bytes:
        """The entry as it stands in the file, newline included."""
        return _canonical(_content(self) | {"seal": self.seal}) + b"\n"


@dataclass(frozen=True, slots=True)
class ChainState:
    """Where a chain ends, and the key for its next entry (secret)."""

    n: int
    """Number of entries."""
    seal: str
    """Seal of the last entry."""
    key: bytes

    @classmethod
    def start(cls, key: bytes) -> ChainState:
        """An empty chain under a first key of 32 bytes."""
        return cls(0, GENESIS, key)


def next_key(key: bytes) -> bytes:
    """The key after ``key``; there is no way back."""
    return hashlib.sha256(b"interlatent-live audit key\0" + key).digest()


def append(
    state: ChainState, kind: str, body: Mapping[str, Any], time_ns: int
) -> tuple[Entry, ChainState]:
    """Seal one more entry.

    Raises:
        ValueError: when the body is no JSON, or too long for a line.
    """
    unsealed = Entry(state.n, time_ns, kind, dict(body), state.seal, "")
    seal = _seal(state.key, unsealed)
    entry = Entry(unsealed.n, time_ns, kind, unsealed.body, state.seal, seal)
    if len(entry.line()) > MAX_LINE:
        raise ValueError(f"an audit entry of {len(entry.line())} bytes exceeds {MAX_LINE}")
    return entry, ChainState(state.n + 1, seal, next_key(state.key))


def parse(line: bytes, n: int) -> Entry:
    """Read entry ``n`` back.

    Raises:
        CorruptFileError: when the line is not an entry in its one canonical form.
    """
    entry = _read(line)
    if entry is None:
        raise CorruptFileError(f"entry {n} of the audit cannot be read: it was altered")
    return entry


def verified(lines: Iterable[bytes], key: bytes) -> Iterator[tuple[Entry, ChainState]]:
    """Entries with the chain's state after each, as long as all is in order.

    Args:
        lines: the file's lines, newlines included.
        key: the first key.

    Raises:
        CorruptFileError: at the first entry that is not the one that was written there.
    """
    state = ChainState.start(key)
    for n, line in enumerate(lines):
        entry = parse(line, n)
        if entry.n != n:
            raise CorruptFileError(f"entry {n} of the audit says that it is {entry.n}: one is gone")
        if entry.before != state.seal:
            raise CorruptFileError(f"entry {n} of the audit does not follow the one before it")
        if not hmac.compare_digest(_seal(state.key, entry), entry.seal):
            raise CorruptFileError(
                f"entry {n} of the audit was altered, or sealed with another key"
            )
        state = ChainState(n + 1, entry.seal, next_key(state.key))
        yield entry, state


def _read(line: bytes) -> Entry | None:
    if len(line) > MAX_LINE:
        return None
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(fields, dict) or set(fields) != _FIELDS:
        return None
    entry = Entry(**fields)
    if not isinstance(entry.body, dict) or {type(entry.n), type(entry.time_ns)} != {int}:
        return None
    try:
        # One meaning has one form: else two files that differ could both verify.
        return entry if entry.line() == line else None
    except ValueError:
        return None


def _content(entry: Entry) -> dict[str, Any]:
    return {
        "n": entry.n,
        "time_ns": entry.time_ns,
        "kind": entry.kind,
        "body": entry.body,
        "before": entry.before,
    }


def _seal(key: bytes, entry: Entry) -> str:
    return hmac.new(key, _canonical(_content(entry)), hashlib.sha256).hexdigest()


def _canonical(value: Mapping[str, Any]) -> bytes:
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
    ).encode()
