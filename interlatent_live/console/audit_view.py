"""The audit as people read it: newest entries first, with what a verification says of all of them.

The file belongs to the control service; here it is only read. Where entries begin is remembered, so
that a page of them costs no more than those entries; the whole chain is verified anew when the file
has changed, and every minute in any case, never more than once in ten seconds.
"""

from __future__ import annotations

import threading
import time
from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
from fastapi import APIRouter, HTTPException, Query, Response

from interlatent_live.audit.chain import parse
from interlatent_live.audit.log import FIRST_KEY, LOG, STATE, read_key, verify
from interlatent_live.errors import CorruptFileError, UserError

if TYPE_CHECKING:
    from pathlib import Path

    from interlatent_live.audit.chain import Entry

AGAIN_AFTER_S: Final = 10.0
ANYWAY_AFTER_S: Final = 60.0
LONGEST_LINE: Final = 2**20


@dataclass(frozen=True, slots=True)
class Checked:
    """What a verification said."""

    ok: bool | None
    """None where it could not be checked here."""
    entries: int
    sentence: str
    at_ns: int
    """Wall clock of the check."""


class AuditView:
    """Reads one audit; safe to use from several threads.

    Args:
        folder: where the control service writes it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._log = folder / LOG
        self._lock = threading.Lock()
        self._starts = array("Q")
        """Where each whole line begins."""
        self._end = 0
        self._inode = -1
        self._checked: Checked | None = None
        self._checked_at = 0.0
        self._state: tuple[int, int, int] | None = None

    def entries(self, before: int | None, limit: int) -> list[Entry]:
        """Entries with numbers below ``before`` (all without it), newest first.

        Raises:
            CorruptFileError: when one of them is no entry.
            OSError: when the file cannot be read.
        """
        with self._lock:
            if not self._log.exists():
                return []
            with self._log.open("rb") as lines:
                self._index(lines)
                last = len(self._starts) if before is None else min(before, len(self._starts))
                found = []
                for n in range(last - 1, max(-1, last - 1 - limit), -1):
                    lines.seek(self._starts[n])
                    found.append(parse(lines.readline(LONGEST_LINE), n))
        return found

    def checked(self) -> Checked:
        """Whether all is as it was written, as of the newest check."""
        with self._lock:
            now = time.monotonic()
            state = self._signature()
            since = now - self._checked_at
            if self._checked is not None and (
                since < AGAIN_AFTER_S or (state == self._state and since < ANYWAY_AFTER_S)
            ):
                return self._checked
            self._checked = self._verify()
            self._checked_at, self._state = time.monotonic(), state
            return self._checked

    def _signature(self) -> tuple[int, int, int] | None:
        try:
            found = self._log.stat()
        except OSError:
            return None
        return found.st_ino, found.st_size, found.st_mtime_ns

    def _verify(self) -> Checked:
        now = time.time_ns()
        if not self._log.exists():
            gone = (self._folder / STATE).exists()
            words = "the audit is gone, and its state is still there" if gone else "no audit yet"
            return Checked(False if gone else None, 0, words, now)
        if not (self._folder / FIRST_KEY).exists():
            words = f"{FIRST_KEY} is kept elsewhere: check with `interlatent-live audit verify`"
            return Checked(None, len(self._starts), words, now)
        try:
            key = read_key(self._folder / FIRST_KEY)
            report = verify(self._log, key, state=self._folder / STATE)
        except (CorruptFileError, UserError) as error:
            return Checked(False, len(self._starts), str(error), now)
        return Checked(True, report.entries, f"{report.entries} entries, as they were written", now)

    def _index(self, lines: Any) -> None:
        """Find the lines that have come; begin anew when the file is another or a shorter one."""
        found = self._signature()
        if found is None or found[0] != self._inode or found[1] < self._end:
            self._starts, self._end = array("Q"), 0
            self._inode = -1 if found is None else found[0]
        lines.seek(self._end)
        for line in lines:
            if not line.endswith(b"\n"):
                break  # just being written
            self._starts.append(self._end)
            self._end += len(line)


def router(view: AuditView) -> APIRouter:
    """``GET /control/audit``."""
    out = APIRouter(tags=["control"], default_response_class=Response)

    @out.get("/control/audit", summary="Who did what, newest first, and whether it is as written")
    def audit(
        before: Annotated[int | None, Query(ge=0, lt=2**62)] = None,
        limit: Annotated[int, Query(ge=1, le=500)] = 100,
    ) -> Response:
        checked = view.checked()
        try:
            rows = [_row(one) for one in view.entries(before, limit)]
        except CorruptFileError:
            rows = []  # which entry is none is what the check says
        except OSError as error:
            raise HTTPException(503, f"the audit cannot be read: {error.strerror}") from error
        body = {"entries": rows, "checked": msgspec.to_builtins(checked)}
        return Response(msgspec.json.encode(body), media_type="application/json")

    return out


def _row(entry: Entry) -> dict[str, Any]:
    own = {"number": entry.n, "time_ns": entry.time_ns, "kind": entry.kind, "seal": entry.seal}
    return {**entry.body, **own}
