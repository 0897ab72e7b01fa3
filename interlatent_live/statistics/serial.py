"""What depends on time within an episode: autocovariances, lead and lag, bouts.

All of it is taken between rows of the same run of consecutive steps, so no product spans an
episode's end, a lost step or a step somebody else controlled.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from scipy.sparse import _sparsetools

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from interlatent_live.statistics.episodes import Chunk
    from interlatent_live.statistics.moments import Floats

DWELL_BINS: Final = 24


@dataclass(slots=True)
class Autocovariances:
    """Σ a(t) a(t+ℓ) per deep feature and Σ d(t) d(t+ℓ) per metric, with the pairs counted."""

    lags: tuple[int, ...]
    n_features: int
    n_metrics: int
    features: Floats = field(init=False)
    """[lags, features] Σ a(t) a(t + ℓ)."""
    metrics: Floats = field(init=False)
    """[lags, M] Σ d(t) d(t + ℓ), d about the reference and 0 where unknown."""
    pairs: Floats = field(init=False)
    """[lags] pairs of rows."""
    pairs_known: Floats = field(init=False)
    """[lags, M] pairs of rows where the metric was finite in both."""
    margins: Floats = field(init=False)
    """[lags, M] Σ d(t) + Σ d(t + ℓ) over these pairs."""
    rows: int = 0

    def __post_init__(self) -> None:
        k = len(self.lags)
        self.features = np.zeros((k, self.n_features))
        self.metrics = np.zeros((k, self.n_metrics))
        self.pairs = np.zeros(k)
        self.pairs_known = np.zeros((k, self.n_metrics))
        self.margins = np.zeros((k, self.n_metrics))

    def absorb(self, chunk: Chunk, d: Floats, valid: NDArray[np.bool_]) -> None:
        """Add a chunk: one sparse elementwise product per lag."""
        n, f = len(chunk), self.n_features
        self.rows += n
        if not n:
            return
        complete = bool(valid.all())
        longest = int(np.bincount(chunk.run).max())
        indptr, index, value = chunk.indptr, chunk.index, chunk.value
        out_ptr = np.empty(n + 1, np.int32)
        out_index = np.empty(len(index), np.int32)
        out_value = np.empty(len(index))
        known = valid.astype(np.float64)
        for i, lag in enumerate(self.lags):
            if lag >= longest:
                break
            m = n - lag
            same = (chunk.run[:m] == chunk.run[lag:]).astype(np.float64)
            _sparsetools.csr_elmul_csr(
                m, f, indptr[: m + 1], index, value, indptr[lag:], index, value,
                out_ptr, out_index, out_value,
            )  # fmt: skip
            _sparsetools.csc_matvec(
                f, m, out_ptr[: m + 1], out_index, out_value, same, self.features[i]
            )
            count = float(same.sum())
            self.pairs[i] += count
            if complete:
                self.pairs_known[i] += count
                self.margins[i] += same @ d[:m] + same @ d[lag:]
                self.metrics[i] += np.einsum("i,ij,ij->j", same, d[:m], d[lag:])
            else:
                both = known[:m] * known[lag:] * same[:, None]
                self.pairs_known[i] += both.sum(axis=0)
                self.margins[i] += np.einsum("ij,ij->j", both, d[:m] + d[lag:])
                self.metrics[i] += np.einsum("ij,ij->j", d[:m] * both, d[lag:])

    def merge(self, other: Autocovariances) -> None:
        """Add another's sums."""
        self.features += other.features
        self.metrics += other.metrics
        self.pairs += other.pairs
        self.pairs_known += other.pairs_known
        self.margins += other.margins
        self.rows += other.rows

    def rebase(self, shift: Floats) -> None:
        """Follow a move of the reference: d becomes d + shift."""
        self.metrics += shift * self.margins + self.pairs_known * shift * shift
        self.margins += 2 * shift * self.pairs_known

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        return self.features.nbytes + self.metrics.nbytes

    def arrays(self) -> dict[str, NDArray[Any]]:
        """State as named arrays."""
        return {
            "features": self.features,
            "metrics": self.metrics,
            "pairs": self.pairs,
            "pairs_known": self.pairs_known,
            "margins": self.margins,
            "rows": np.array(self.rows, np.int64),
        }

    def load(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Inverse of :meth:`arrays`."""
        for name in ("features", "metrics", "pairs", "pairs_known", "margins"):
            getattr(self, name)[:] = arrays[name]
        self.rows = int(arrays["rows"])


@dataclass(slots=True)
class LagSums:
    """Σ a(t) d(t + ℓ) for ℓ in −L…L with the marginal sums over the same pairs.

    ℓ > 0: the metric ℓ steps after the feature, so the feature leads. One table per lag keeps each
    product within the cache.
    """

    lags: int
    n_features: int
    n_metrics: int
    linear: Floats = field(init=False)
    """[2L+1, features, 1 + M] Σ a over the pairs, Σ a d."""
    square: Floats = field(init=False)
    """[2L+1, features] Σ a² over the pairs."""
    missing: Floats = field(init=False)
    """[2L+1, M] pairs whose metric was unknown."""
    metrics: Floats = field(init=False)
    """[2L+1, 2, M] Σ d, Σ d² over the pairs."""
    pairs: Floats = field(init=False)
    """[2L+1]."""

    def __post_init__(self) -> None:
        k, m = 2 * self.lags + 1, self.n_metrics
        self.linear = np.zeros((k, self.n_features, 1 + m))
        self.square = np.zeros((k, self.n_features))
        self.missing = np.zeros((k, m))
        self.metrics = np.zeros((k, 2, m))
        self.pairs = np.zeros(k)

    def absorb(self, chunk: Chunk, d: Floats, valid: NDArray[np.bool_]) -> None:
        """Add a chunk: two sparse products per lag."""
        n, f, m = len(chunk), self.n_features, self.n_metrics
        if not n:
            return
        complete = bool(valid.all())
        squares = chunk.value * chunk.value
        design = np.zeros((n, 1 + m))
        for i, lag in enumerate(range(-self.lags, self.lags + 1)):
            span = n - abs(lag)
            if span <= 0:
                continue
            a, b = (0, lag) if lag >= 0 else (-lag, 0)
            same = (chunk.run[a : a + span] == chunk.run[b : b + span]).astype(np.float64)
            shifted = d[b : b + span] * same[:, None]
            design[:] = 0
            design[a : a + span, 0] = same
            design[a : a + span, 1:] = shifted
            weight = np.ascontiguousarray(design[:, 0])
            _sparsetools.csc_matvecs(
                f, n, 1 + m, chunk.indptr, chunk.index, chunk.value, design.ravel(),
                self.linear[i].ravel(),
            )  # fmt: skip
            _sparsetools.csc_matvec(
                f, n, chunk.indptr, chunk.index, squares, weight, self.square[i]
            )
            self.pairs[i] += same.sum()
            self.metrics[i, 0] += shifted.sum(axis=0)
            self.metrics[i, 1] += np.einsum("ij,ij->j", shifted, shifted)
            if not complete:
                self.missing[i] += ((~valid[b : b + span]) * same[:, None]).sum(axis=0)

    def correlations(self, features: NDArray[np.intp]) -> Floats:
        """[features, 2L+1, M] Pearson r of a(t) with the metric at t + ℓ; NaN where undefined.

        A metric with unknown values among a lag's pairs is undefined there.
        """
        sums = self.linear[:, features]
        n = self.pairs[:, None, None]
        safe = np.where(n > 0, n, 1.0)
        a = sums[:, :, :1]
        cov = sums[:, :, 1:] - a * self.metrics[:, None, 0] / safe
        ss_a = self.square[:, features][:, :, None] - a * a / safe
        ss_d = (self.metrics[:, 1] - self.metrics[:, 0] ** 2 / safe[:, 0])[:, None]
        scale = self.metrics[:, 1][:, None]
        bad = (ss_d <= 1e-14 * scale) | (ss_a <= 1e-14 * self.square[:, features][:, :, None])
        bad |= self.missing[:, None] > 0
        with np.errstate(divide="ignore", invalid="ignore"):
            r = cov / np.sqrt(ss_a * ss_d)
        return np.moveaxis(np.where(bad, np.nan, np.clip(r, -1.0, 1.0)), 0, 1)

    def rebase(self, shift: Floats) -> None:
        """Follow a move of the reference: d becomes d + shift (metrics known in every pair)."""
        known = self.pairs[:, None] - self.missing
        self.linear[:, :, 1:] += self.linear[:, :, :1] * shift
        self.metrics[:, 1] += 2 * shift * self.metrics[:, 0] + known * shift**2
        self.metrics[:, 0] += known * shift

    def merge(self, other: LagSums) -> None:
        """Add another's sums."""
        for name in ("linear", "square", "missing", "metrics", "pairs"):
            getattr(self, name)[:] += getattr(other, name)

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        return self.linear.nbytes + self.square.nbytes

    def arrays(self) -> dict[str, NDArray[Any]]:
        """State as named arrays."""
        return {
            name: getattr(self, name)
            for name in ("linear", "square", "missing", "metrics", "pairs")
        }

    def load(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Inverse of :meth:`arrays`."""
        for name in ("linear", "square", "missing", "metrics", "pairs"):
            getattr(self, name)[:] = arrays[name]


@dataclass(slots=True)
class Bouts:
    """Runs of on-steps: how many, how long, and in how many episodes or blocks a feature fires."""

    n_features: int
    bouts: NDArray[np.int64] = field(init=False)
    steps: NDArray[np.int64] = field(init=False)
    longest: NDArray[np.int64] = field(init=False)
    parts: NDArray[np.int64] = field(init=False)
    """[features] episodes (blocks of long ones) in which the feature fired."""
    histogram: NDArray[np.int64] = field(init=False)
    """[features, 24] bouts by length: bin i holds lengths in [2^(i/2), 2^((i+1)/2))."""
    total_parts: int = 0

    def __post_init__(self) -> None:
        f = self.n_features
        for name in ("bouts", "steps", "longest", "parts"):
            setattr(self, name, np.zeros(f, np.int64))
        self.histogram = np.zeros((f, DWELL_BINS), np.int64)

    def absorb(self, chunk: Chunk) -> None:
        """Add a chunk; a run of consecutive steps bounds its bouts."""
        self.total_parts += len(chunk.key)
        if not len(chunk.index):
            return
        feature, row = self._by_feature(chunk)
        fresh = np.ones(len(row), bool)
        fresh[1:] = (
            (feature[1:] != feature[:-1])
            | (row[1:] != row[:-1] + 1)
            | (chunk.run[row[1:]] != chunk.run[row[:-1]])
        )
        start = np.flatnonzero(fresh)
        length = np.diff(np.r_[start, len(row)])
        who = feature[start]
        f = self.n_features
        self.bouts += np.bincount(who, minlength=f)
        self.steps += np.bincount(feature, minlength=f)
        np.maximum.at(self.longest, who, length)
        bins = np.minimum((2 * np.log2(length) + 1e-9).astype(np.intp), DWELL_BINS - 1)
        np.add.at(self.histogram, (who, bins), 1)
        part = chunk.part[row]
        new_part = np.ones(len(row), bool)
        new_part[1:] = (feature[1:] != feature[:-1]) | (part[1:] != part[:-1])
        self.parts += np.bincount(feature[new_part], minlength=f)

    def _by_feature(self, chunk: Chunk) -> tuple[NDArray[np.intp], NDArray[np.int32]]:
        """Feature and row of every entry, by feature and then by row: one counting sort."""
        f, nnz = self.n_features, len(chunk.index)
        pointers = np.empty(f + 1, np.int32)
        rows, unused = np.empty(nnz, np.int32), np.empty(nnz)
        _sparsetools.csr_tocsc(
            len(chunk), f, chunk.indptr, chunk.index, chunk.value, pointers, rows, unused
        )
        return np.repeat(np.arange(f), np.diff(pointers)), rows

    def merge(self, other: Bouts) -> None:
        """Add another's counts."""
        for name in ("bouts", "steps", "parts", "histogram"):
            getattr(self, name)[...] += getattr(other, name)
        np.maximum(self.longest, other.longest, out=self.longest)
        self.total_parts += other.total_parts

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        return self.histogram.nbytes + 4 * self.bouts.nbytes

    def arrays(self) -> dict[str, NDArray[Any]]:
        """State as named arrays."""
        names = ("bouts", "steps", "longest", "parts", "histogram")
        out: dict[str, NDArray[Any]] = {name: getattr(self, name) for name in names}
        out["total_parts"] = np.array(self.total_parts, np.int64)
        return out

    def load(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Inverse of :meth:`arrays`."""
        for name in ("bouts", "steps", "longest", "parts", "histogram"):
            getattr(self, name)[...] = arrays[name]
        self.total_parts = int(arrays["total_parts"])
