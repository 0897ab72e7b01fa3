"""Which features fire together: counts of pairs on a fixed eighth of the rows.

Pairs cost k² per row, so rows are chosen by hash: the same rows on every shard and in every replay,
and an unbiased share of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from interlatent_live.statistics.hashing import mix

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from interlatent_live.statistics.episodes import Chunk

_SHARE: Final = 8


@dataclass(frozen=True, slots=True)
class Partner:
    """A feature that fires with another, on the rows that were looked at."""

    feature: int
    together: int
    jaccard: float
    """Rows with both / rows with either."""
    lift: float
    """P(both) / (P(one) P(other)); 1 when independent."""


@dataclass(slots=True)
class CoFiring:
    """Symmetric counts of pairs over the chosen rows; off when ``n_features`` is 0."""

    n_features: int
    seed: int
    counts: NDArray[np.uint32] = field(init=False)
    """[features, features] rows with both; the diagonal holds rows with the feature."""
    rows: int = 0

    def __post_init__(self) -> None:
        self.counts = np.zeros((self.n_features, self.n_features), np.uint32)

    def absorb(self, chunk: Chunk) -> None:
        """Count the chosen rows of a chunk."""
        if not self.n_features or not len(chunk):
            return
        chosen = mix(chunk.position, self.seed + 11) % np.uint64(_SHARE) == 0
        self.rows += int(chosen.sum())
        counts = np.diff(chunk.indptr).astype(np.intp)
        index = chunk.index[np.repeat(chosen, counts)].astype(np.int64)
        counts = counts[chosen]
        if not len(index):
            return
        # Every entry of a row against every entry of the same row.
        repeats = np.repeat(counts, counts)
        left = np.repeat(index, repeats)
        start = np.repeat(np.cumsum(counts) - counts, counts)
        offset = np.arange(int(repeats.sum())) - np.repeat(np.cumsum(repeats) - repeats, repeats)
        right = index[np.repeat(start, repeats) + offset]
        np.add.at(self.counts.reshape(-1), left * self.n_features + right, np.uint32(1))

    def partners(self, slot: int, count: int = 10) -> tuple[Partner, ...]:
        """Strongest partners of a slot by Jaccard index, ties by slot; empty when off."""
        if not self.n_features or not self.counts[slot, slot]:
            return ()
        both = self.counts[slot].astype(np.float64)
        alone = np.diag(self.counts).astype(np.float64)
        either = alone + alone[slot] - both
        jaccard = np.where(either > 0, both / np.maximum(either, 1), 0.0)
        jaccard[slot] = -1.0
        order = np.argsort(-jaccard, kind="stable")[:count]
        return tuple(
            Partner(
                feature=int(i),
                together=int(both[i]),
                jaccard=float(jaccard[i]),
                lift=float(both[i] * self.rows / (alone[i] * alone[slot])),
            )
            for i in order
            if both[i] > 0
        )

    def merge(self, other: CoFiring) -> None:
        """Add another's counts."""
        self.counts += other.counts
        self.rows += other.rows

    @property
    def nbytes(self) -> int:
        """Bytes of the counts."""
        return self.counts.nbytes

    def arrays(self) -> dict[str, NDArray[Any]]:
        """State as named arrays."""
        return {"counts": self.counts, "rows": np.array(self.rows, np.int64)}

    def load(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Inverse of :meth:`arrays`."""
        self.counts[:] = arrays["counts"]
        self.rows = int(arrays["rows"])
