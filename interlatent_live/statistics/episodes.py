"""Whole episodes out of an interleaved stream: the unit that everything autocorrelated needs.

Rows of several agent copies arrive mixed. The log keeps them until their episode (or block of
``block_steps``) is over, then hands out *chunks*, sorted by copy and time, with the runs of
consecutive steps marked: lags, autocovariances, bouts and lead times are taken within such a run
only, so nothing leaks over an episode's end, a lost step or a steered step.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from interlatent_live.statistics.hashing import mix_all
from interlatent_live.stream import EPISODE_END, StepFlag

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from interlatent_live.statistics.moments import Floats, Ints

EPISODE_BITS: Final = 40
"""High bits of a chunk's key that name its episode; the low bits name its block."""

OPEN, TERMINATED, TRUNCATED = 0, 1, 2


@dataclass(slots=True)
class LogRows:
    """Rows as the log holds them; ``eligible`` rows alone count, the others mark time and ends."""

    position: NDArray[np.uint64]
    """[n] global row number: the boot's base plus the sequence number."""
    base: NDArray[np.uint64]
    env: NDArray[np.uint16]
    episode: NDArray[np.uint32]
    t: NDArray[np.uint32]
    flags: NDArray[np.uint8]
    eligible: NDArray[np.bool_]
    metrics: Floats
    indptr: NDArray[np.int64]
    index: NDArray[np.int32]
    value: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.env)

    @classmethod
    def concatenate(cls, parts: list[LogRows]) -> LogRows:
        """All rows of ``parts`` (at least one), in order."""
        if len(parts) == 1:
            return parts[0]
        counts = [np.diff(part.indptr) for part in parts]
        indptr = np.zeros(sum(len(c) for c in counts) + 1, np.int64)
        np.cumsum(np.concatenate(counts), out=indptr[1:])
        joined: dict[str, Any] = {
            name: np.concatenate([getattr(part, name) for part in parts])
            for name in LOG_COLUMNS
            if name != "indptr"
        }
        return cls(indptr=indptr, **joined)

    def take(self, rows: Ints) -> LogRows:
        """The given rows, in the given order."""
        counts = np.diff(self.indptr)[rows]
        indptr = np.zeros(len(rows) + 1, np.int64)
        np.cumsum(counts, out=indptr[1:])
        entries = np.arange(indptr[-1]) + np.repeat(self.indptr[rows] - indptr[:-1], counts)
        return LogRows(
            position=self.position[rows],
            base=self.base[rows],
            env=self.env[rows],
            episode=self.episode[rows],
            t=self.t[rows],
            flags=self.flags[rows],
            eligible=self.eligible[rows],
            metrics=self.metrics[rows],
            indptr=indptr,
            index=self.index[entries],
            value=self.value[entries],
        )

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        return sum(getattr(self, name).nbytes for name in LOG_COLUMNS)


LOG_COLUMNS: Final = (
    "position", "base", "env", "episode", "t", "flags", "eligible", "metrics", "indptr", "index",
    "value",
)  # fmt: skip


@dataclass(slots=True)
class Chunk:
    """Closed episodes or blocks of a pass: eligible rows, by copy and time, and their bounds."""

    n_features: int
    position: NDArray[np.uint64]
    env: NDArray[np.uint16]
    t: NDArray[np.uint32]
    metrics: Floats
    """[n, M] raw values, not all finite."""
    indptr: NDArray[np.int32]
    index: NDArray[np.int32]
    value: Floats
    """[nnz] > 0."""
    run: Ints
    """[n] number of the run of consecutive steps the row belongs to, ascending."""
    part: Ints
    """[n] number of the episode or block the row belongs to, ascending."""
    key: NDArray[np.uint64]
    """[parts] hash of (base, env, episode) in the high bits, of the block in the low ones."""
    outcome: NDArray[np.uint8]
    """[parts] OPEN (a block with more to come), TERMINATED or TRUNCATED."""
    block: NDArray[np.int64]
    """[parts] number of the block within its episode."""
    terminal: NDArray[np.bool_]
    """[n] the episode's last step."""
    end: NDArray[np.uint64]
    """[parts] global number of the last row of the episode or block."""

    def __len__(self) -> int:
        return len(self.t)

    @property
    def row_of(self) -> Ints:
        """[nnz] row of each entry."""
        return np.repeat(np.arange(len(self)), np.diff(self.indptr))

    def split(self, count: int) -> tuple[Chunk, Chunk]:
        """The ``count`` parts that ended first, and the others."""
        first = np.zeros(len(self.key), bool)
        first[np.argsort(self.end, kind="stable")[:count]] = True
        return self._parts(first), self._parts(~first)

    def _parts(self, chosen: NDArray[np.bool_]) -> Chunk:
        rows = chosen[self.part]
        counts = np.diff(self.indptr)
        entries = np.repeat(rows, counts)
        indptr = np.zeros(int(rows.sum()) + 1, np.int32)
        np.cumsum(counts[rows], out=indptr[1:])
        return Chunk(
            n_features=self.n_features,
            position=self.position[rows],
            env=self.env[rows],
            t=self.t[rows],
            metrics=self.metrics[rows],
            indptr=indptr,
            index=self.index[entries],
            value=self.value[entries],
            run=np.unique(self.run[rows], return_inverse=True)[1],
            part=(np.cumsum(chosen) - 1)[self.part[rows]],
            key=self.key[chosen],
            outcome=self.outcome[chosen],
            block=self.block[chosen],
            terminal=self.terminal[rows],
            end=self.end[chosen],
        )


@dataclass(slots=True)
class EpisodeLog:
    """Rows waiting for their episode or block to end."""

    n_metrics: int
    block_steps: int
    seed: int
    max_rows: int
    parts: list[LogRows] = field(default_factory=list)
    rows: int = 0
    carried: int = 0
    closed_early: int = 0
    """Blocks closed before their time because the log was full."""

    def append(self, rows: LogRows) -> None:
        """Add rows; each copy's rows come in the order of time."""
        self.parts.append(rows)
        self.rows += len(rows)

    def due(self, pass_rows: int) -> bool:
        """Whether enough rows came since the last pass to make one worth while."""
        return self.rows >= 2 * self.carried + pass_rows

    def take_closed(self, n_features: int) -> Chunk | None:
        """Remove the closed parts and return them; ``None`` when there are none."""
        if not self.rows:
            return None
        rows = LogRows.concatenate(self.parts)
        rows = rows.take(np.argsort(rows.env, kind="stable"))
        block = rows.t // np.uint32(self.block_steps)
        change = np.ones(len(rows), bool)
        change[1:] = (
            (rows.env[1:] != rows.env[:-1])
            | (rows.base[1:] != rows.base[:-1])
            | (rows.episode[1:] != rows.episode[:-1])
            | (block[1:] != block[:-1])
            | (rows.t[1:] <= rows.t[:-1])
        )
        first = np.flatnonzero(change)
        last = np.r_[first[1:], len(rows)] - 1
        newest = np.ones(len(first), bool)
        newest[:-1] = rows.env[first[1:]] != rows.env[first[:-1]]
        ended = (rows.flags[last] & EPISODE_END) != 0
        full = rows.t[last] % self.block_steps == self.block_steps - 1
        closed = ended | full | ~newest
        if len(rows) > self.max_rows:
            self.closed_early += int(np.count_nonzero(~closed))
            closed[:] = True
        part = np.cumsum(change) - 1
        keep = ~closed[part]
        waiting = rows.take(np.flatnonzero(keep))
        self.parts = [waiting] if len(waiting) else []
        self.rows = self.carried = len(waiting)
        if not closed.any():
            return None
        outcome = np.where(
            rows.flags[last] & StepFlag.TERMINATED,
            TERMINATED,
            np.where(rows.flags[last] & StepFlag.TRUNCATED, TRUNCATED, OPEN),
        )
        episode = mix_all(
            (
                rows.base[first],
                rows.env[first].astype(np.uint64),
                rows.episode[first].astype(np.uint64),
            ),
            self.seed,
        )
        low = np.uint64(64 - EPISODE_BITS)
        detail = mix_all((episode, block[first].astype(np.uint64)), self.seed)
        key = (episode >> low << low) | (detail >> np.uint64(EPISODE_BITS))
        taken = rows.take(np.flatnonzero(closed[part] & rows.eligible))
        taken_part = part[closed[part] & rows.eligible]
        renumber = np.cumsum(closed) - 1
        run = np.zeros(len(taken), np.intp)
        if len(taken):
            broken = np.ones(len(taken), bool)
            broken[1:] = (taken_part[1:] != taken_part[:-1]) | (
                taken.t[1:] != taken.t[:-1] + np.uint32(1)
            )
            run = np.cumsum(broken) - 1
        return Chunk(
            n_features=n_features,
            position=taken.position,
            env=taken.env,
            t=taken.t,
            metrics=taken.metrics,
            indptr=taken.indptr.astype(np.int32),
            index=taken.index,
            value=taken.value.astype(np.float64),
            run=run,
            part=renumber[taken_part],
            key=key[closed],
            outcome=outcome[closed].astype(np.uint8),
            block=block[first][closed].astype(np.int64),
            terminal=(taken.flags & EPISODE_END) != 0,
            end=rows.position[last][closed],
        )

    def merge(self, other: EpisodeLog) -> None:
        """Take over another log's waiting rows (of other copies)."""
        self.parts += other.parts
        self.rows += other.rows
        self.carried += other.carried
        self.closed_early += other.closed_early

    @property
    def nbytes(self) -> int:
        """Bytes of the rows held."""
        return sum(part.nbytes for part in self.parts)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """State as named arrays."""
        out: dict[str, NDArray[Any]] = {
            "counts": np.array([self.rows, self.carried, self.closed_early], np.int64)
        }
        if self.rows:
            rows = LogRows.concatenate(self.parts)
            out |= {name: getattr(rows, name) for name in LOG_COLUMNS}
        return out

    def load(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Inverse of :meth:`arrays`."""
        self.rows, self.carried, self.closed_early = (int(i) for i in arrays["counts"])
        self.parts = []
        if self.rows:
            self.parts = [LogRows(**{name: np.array(arrays[name]) for name in LOG_COLUMNS})]
