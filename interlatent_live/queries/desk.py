"""Where questions are answered: the correlators, saved states, and tables shared for a second.

Tables over all features cost milliseconds, so one is kept for a second and shared by every
question that needs it: pages of one question agree with each other, and a flood of questions costs
one table a second.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from interlatent_live.errors import UserError
from interlatent_live.queries import messages as m

if TYPE_CHECKING:
    from collections.abc import Callable

    from interlatent_live.pipeline.correlator import CorrelatorCore, Stream
    from interlatent_live.statistics.correlator import CorrelatorState
    from interlatent_live.statistics.profile import ProfileTable

MOST_TABLES: Final = 8


@dataclass(frozen=True, slots=True)
class _Kept:
    table: ProfileTable
    rows: int
    made: float


class SnapshotSource(Protocol):
    """Who keeps saved states."""

    def items(self) -> list[m.SnapshotItem]:
        """Every valid one, newest first."""
        ...

    def find(self, name: str, transcoder: str, hook_point: str) -> m.SnapshotItem:
        """One by its id, or ``yesterday``; raises UserError when there is none that fits."""
        ...

    def load(self, snapshot_id: str) -> CorrelatorState:
        """Its state; raises CorruptFileError."""
        ...


class Desk:
    """What answers are made from.

    Args:
        core: who holds the statistics.
        clock: seconds, for the age of tables.
        snapshots: saved states; none: comparisons are of windows only.
        fresh_s: how long a table over all features is used again.
    """

    def __init__(
        self,
        core: CorrelatorCore,
        clock: Callable[[], float],
        snapshots: SnapshotSource | None,
        fresh_s: float,
    ) -> None:
        self.core = core
        self.snapshots = snapshots
        self._clock = clock
        self._fresh_s = fresh_s
        self._tables: dict[tuple[str, str], _Kept] = {}

    def table(self, stream: Stream, window: str) -> ProfileTable:
        """Profiles of all features, at most ``fresh_s`` old."""
        key = (f"{id(stream.correlator)}", window)
        kept, now = self._tables.get(key), self._clock()
        rows = stream.correlator.last_row
        if kept is not None and kept.rows <= rows and now - kept.made < self._fresh_s:
            return kept.table
        table = stream.correlator.table(None, window)
        self._keep(key, _Kept(table, rows, now))
        return table

    def _keep(self, key: tuple[str, str], kept: _Kept) -> None:
        self._tables.pop(key, None)
        while len(self._tables) >= MOST_TABLES:
            del self._tables[next(iter(self._tables))]
        self._tables[key] = kept

    def state(self, stream: Stream, name: str, window: str) -> ProfileTable:
        """The table of a stream now, or of a snapshot of the same features.

        Raises:
            UserError: when there is no such snapshot.
        """
        if name == m.NOW:
            return self.table(stream, window)
        if self.snapshots is None:
            raise UserError("no snapshots are kept here; set correlator.snapshots to a folder")
        item = self.snapshots.find(name, stream.transcoder, stream.hook_point)
        kept = self._tables.get((item.id, window))
        if kept is None:
            table = self.core.table_of(self.snapshots.load(item.id), stream, window)
            kept = _Kept(table, item.rows, self._clock())
            self._keep((item.id, window), kept)
        return kept.table
