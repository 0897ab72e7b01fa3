"""Distributions in fixed bins: activation quantiles and AUROC, the same whatever the order.

Activation quantiles: logarithmic bins with a relative error (DDSketch; Masson, Rim & Lee 2019, §2).
AUROC of a metric (definitions: P(metric when on > metric when off), ties ½): per feature, counts of
the metric's bins over on-rows beside the metric's counts over all rows. Only values that share a
bin but are not equal can be misordered, so the error is at most ½ Σ_b p_on(b) p_off(b) over bins
wider than a single value.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from interlatent_live.statistics.episodes import Chunk
    from interlatent_live.statistics.moments import Floats, Ints

_LOW: Final = 1e-6
_HIGH: Final = 1e6


def quantile_bins(error: float) -> int:
    """Bins between 1e-6 and 1e6 for a relative error, with one more at each end."""
    return int(np.ceil(np.log(_HIGH / _LOW) / _log_gamma(error))) + 2


def _log_gamma(error: float) -> float:
    return float(np.log((1 + error) / (1 - error)))


@dataclass(slots=True)
class ActivationSketch:
    """Counts of on-activations in logarithmic bins, per deep feature."""

    n_features: int
    error: float
    counts: NDArray[np.uint32] = field(init=False)
    """[features, bins]."""

    def __post_init__(self) -> None:
        self.counts = np.zeros((self.n_features, quantile_bins(self.error)), np.uint32)

    def bins_of(self, value: Floats) -> Ints:
        """Bin of each activation; the end bins hold what is outside [1e-6, 1e6]."""
        raw = np.ceil(np.log(value / _LOW) / _log_gamma(self.error))
        return np.clip(raw, 0, self.counts.shape[1] - 1).astype(np.intp)

    def absorb(self, chunk: Chunk) -> None:
        """Add a chunk's entries."""
        if len(chunk.index):
            width = self.counts.shape[1]
            where = chunk.index.astype(np.intp) * width + self.bins_of(chunk.value)
            np.add.at(self.counts.reshape(-1), where, np.uint32(1))

    def quantiles(self, features: Ints, q: tuple[float, ...]) -> Floats:
        """[features, len(q)] quantiles of the on-activations, NaN where never on."""
        counts = self.counts[features].astype(np.float64)
        running = np.cumsum(counts, axis=1)
        total = running[:, -1:]
        out = np.full((len(features), len(q)), np.nan)
        gamma = np.exp(_log_gamma(self.error))
        for i, fraction in enumerate(q):
            rank = fraction * (total - 1) + 1
            at = np.minimum((running < rank).sum(axis=1), counts.shape[1] - 1)
            middle = _LOW * gamma ** at.astype(np.float64) * 2 / (gamma + 1)
            out[:, i] = np.where(total[:, 0] > 0, middle, np.nan)
        return out

    def histogram(self, feature: int, bars: int) -> tuple[Floats, Floats]:
        """Of one feature's on-activations: edges [bars + 1] from 0, and counts [bars].

        The bars are of equal width and end at the largest activation's bin. A logarithmic bin that
        lies across an edge is shared by width, so counts need not be whole; the sum is exact. Both
        are empty where the feature was never on.
        """
        counts = self.counts[feature].astype(np.float64)
        held = np.flatnonzero(counts)
        if len(held) == 0:
            return np.zeros(0), np.zeros(0)
        gamma = np.exp(_log_gamma(self.error))
        high = _LOW * gamma ** held.astype(np.float64)
        edges = np.linspace(0.0, float(high[-1]), bars + 1)
        # How much of the feature's counts lies below each edge; within a bin evenly.
        ends = np.stack([high / gamma, high], axis=1).reshape(-1)
        below = np.cumsum(counts[held])
        reached = np.stack([below - counts[held], below], axis=1).reshape(-1)
        return edges, np.diff(np.interp(edges, ends, reached, left=0.0))

    def merge(self, other: ActivationSketch) -> None:
        """Add another's counts."""
        self.counts += other.counts

    @property
    def nbytes(self) -> int:
        """Bytes of the counts."""
        return self.counts.nbytes

    def arrays(self) -> dict[str, NDArray[Any]]:
        """State as named arrays."""
        return {"counts": self.counts}

    def load(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Inverse of :meth:`arrays`."""
        self.counts[:] = arrays["counts"]


@dataclass(frozen=True, slots=True)
class Grid:
    """Bin edges of each metric; bin b holds edges[b−1] ≤ value < edges[b].

    A value that occurs often gets a bin of its own (an edge at it and an edge right after it), so
    that its ties count exactly ½.
    """

    edges: tuple[Floats, ...]
    ranks: tuple[Floats, ...]
    """Per metric and bin, the middle rank (0 … 1) the bin had when the grid was made."""

    @classmethod
    def learn(cls, metrics: Floats, bins: int) -> Grid:
        """Equi-probable bins from rows [n, M]; atoms (≥ 1/bins of the rows) get their own bins."""
        out, ranks = [], []
        for column in metrics.T:
            values = column[np.isfinite(column)]
            if not len(values):
                out.append(np.zeros(0))
                ranks.append(np.array([0.5]))
                continue
            unique, counts = np.unique(values, return_counts=True)
            atoms = unique[counts >= max(2, len(values) / bins)][: (bins - 1) // 2]
            marks = np.r_[atoms, np.nextafter(atoms, np.inf)]
            room = max(bins - 1 - len(marks), 0)
            fractions = np.arange(1, room + 1) / (room + 1)
            spread = np.quantile(values, fractions, method="lower") if room else np.zeros(0)
            edges = np.unique(np.r_[marks, spread])[: bins - 1]
            where = np.searchsorted(edges, values, side="right")
            share = np.bincount(where, minlength=len(edges) + 1) / len(values)
            out.append(edges)
            ranks.append(np.cumsum(share) - share / 2)
        return cls(tuple(out), tuple(ranks))

    def ranks_of(self, bins: NDArray[np.int32]) -> Floats:
        """[n, M] middle rank of each value's bin; ½ where the value is unknown."""
        out = np.empty(bins.shape)
        for m, ranks in enumerate(self.ranks):
            out[:, m] = ranks[np.minimum(bins[:, m], len(ranks) - 1)]
        out[bins < 0] = 0.5
        return out

    def arrays(self) -> dict[str, NDArray[Any]]:
        """State as named arrays."""
        out: dict[str, NDArray[Any]] = {"metrics": np.array(len(self.edges), np.int64)}
        for m, (edges, ranks) in enumerate(zip(self.edges, self.ranks, strict=True)):
            out |= {f"{m}/edges": edges, f"{m}/ranks": ranks}
        return out

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Grid:
        """Inverse of :meth:`arrays`."""
        count = int(arrays["metrics"])
        edges = tuple(np.array(arrays[f"{m}/edges"]) for m in range(count))
        return cls(edges, tuple(np.array(arrays[f"{m}/ranks"]) for m in range(count)))

    def bins_of(self, metrics: Floats) -> NDArray[np.int32]:
        """[n, M] bins; −1 where not finite."""
        out = np.empty(metrics.shape, np.int32)
        for m, edges in enumerate(self.edges):
            out[:, m] = np.searchsorted(edges, metrics[:, m], side="right")
        out[~np.isfinite(metrics)] = -1
        return out

    def exact(self, bins: int) -> NDArray[np.bool_]:
        """[M, bins] whether a bin holds a single float64 value."""
        out = np.zeros((len(self.edges), bins), bool)
        for m, edges in enumerate(self.edges):
            if len(edges) > 1:
                out[m, 1 : len(edges)] = edges[1:] == np.nextafter(edges[:-1], np.inf)
        return out

    def same(self, other: Grid) -> bool:
        """Whether both have the same edges."""
        return len(self.edges) == len(other.edges) and all(
            np.array_equal(a, b) for a, b in zip(self.edges, other.edges, strict=True)
        )


@dataclass(slots=True)
class MetricSketch:
    """Counts of each metric's bins over all rows and, per deep feature, over on-rows."""

    n_features: int
    n_metrics: int
    bins: int
    on: NDArray[np.uint32] = field(init=False)
    """[features, M, bins]."""
    all: NDArray[np.int64] = field(init=False)
    """[M, bins]."""

    def __post_init__(self) -> None:
        self.on = np.zeros((self.n_features, self.n_metrics, self.bins), np.uint32)
        self.all = np.zeros((self.n_metrics, self.bins), np.int64)

    def absorb(self, chunk: Chunk, bins: NDArray[np.int32]) -> None:
        """Add a chunk whose metrics fall into ``bins`` [n, M] (−1: unknown)."""
        m, b = self.n_metrics, self.bins
        known = bins >= 0
        offset = np.arange(m, dtype=np.int64) * b
        flat = bins + offset
        complete = bool(known.all())
        self.all += np.bincount(flat.ravel() if complete else flat[known], minlength=m * b).reshape(
            m, b
        )
        if not len(chunk.index):
            return
        row = chunk.row_of
        where = chunk.index.astype(np.int64)[:, None] * (m * b) + flat[row]
        target = self.on.reshape(-1)
        np.add.at(target, where.ravel() if complete else where[known[row]], np.uint32(1))

    def auroc(self, features: Ints, exact: NDArray[np.bool_]) -> tuple[Floats, Floats]:
        """AUROC_m and its bin error, each [features, M]; NaN where on or off has no rows."""
        on = self.on[features].astype(np.float64)
        off = self.all[None] - on
        return auroc_from_counts(on, off, exact[None])

    def merge(self, other: MetricSketch) -> None:
        """Add another's counts (over the same grid)."""
        self.on += other.on
        self.all += other.all

    @property
    def nbytes(self) -> int:
        """Bytes of the counts."""
        return self.on.nbytes + self.all.nbytes

    def arrays(self) -> dict[str, NDArray[Any]]:
        """State as named arrays."""
        return {"on": self.on, "all": self.all}

    def load(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Inverse of :meth:`arrays`."""
        self.on[:] = arrays["on"]
        self.all[:] = arrays["all"]


def auroc_from_counts(on: Floats, off: Floats, exact: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """AUROC and its greatest error from counts [..., bins] of both groups; NaN for empty groups.

    ``exact``: bins that hold one value, whose ties are true ties.
    """
    n_on, n_off = on.sum(axis=-1), off.sum(axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        p, q = on / n_on[..., None], off / n_off[..., None]
        below = np.cumsum(q, axis=-1) - q
        value = (p * (below + 0.5 * q)).sum(axis=-1)
        error = 0.5 * (p * q * ~exact).sum(axis=-1)
    return value, error
