"""Mergeable float64 moments of sparse features against dense metrics.

Why two forms. *Pane sums* are plain sums about a pivot: one sparse × dense product per flush adds a
batch to them, touching only the rows of features that fired, with no downdate ever. *Moments* are
central and per *on-rows*: a feature that did not fire in a pane has nothing to merge, so Chan's
formulas (Chan, Golub & LeVeque 1983, eq. 2.1) run over the pane's active features only, not over
the dictionary. Everything about all rows follows without cancellation from the on-rows and the
metric's own moments, since the activation of an off-row is exactly 0:

    SS_a  = SS_on(a) + q (1 − q/N) μ_on(a)²
    C_ad  = C_on(a, d) + q μ_on(a) (μ_on(d) − μ(d))

with N rows, q of them on. Both right-hand sides are sums of small terms about means, so neither an
offset of 10⁷ σ nor a rare feature costs digits.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.sparse import _sparsetools

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Ints = NDArray[np.intp]

_SORTED_ROWS = 1024
"""From this many rows on, a wide table is swept feature by feature instead of at random."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Columns of a moment table [features, width].

    Metrics that were finite in every row so far share the row counts of group 0; each *partial*
    metric (one that was ever NaN or infinite) has a group of its own, whose rows are those where it
    was finite.
    """

    n_metrics: int
    partial: tuple[int, ...] = ()

    @property
    def groups(self) -> int:
        """Number of groups of rows, ≥ 1."""
        return 1 + len(self.partial)

    @property
    def width(self) -> int:
        """Columns of a table: q, mean and SS of a per group; mean of d and C(a, d) per metric."""
        return 3 * self.groups + 2 * self.n_metrics

    @property
    def extensive(self) -> Ints:
        """Columns that scale with weight (counts and sums of squares); the others are means."""
        g, m = self.groups, self.n_metrics
        columns = np.r_[0:g, 2 * g : 3 * g, 3 * g + m : 3 * g + 2 * m]
        return np.asarray(columns, np.intp)

    def group_of(self) -> Ints:
        """[M] group of each metric."""
        out = np.zeros(self.n_metrics, np.intp)
        out[list(self.partial)] = np.arange(1, self.groups)
        return out

    def union(self, other: Layout) -> Layout:
        """Layout in which the partial metrics of both are partial."""
        return Layout(self.n_metrics, tuple(sorted({*self.partial, *other.partial})))

    def source_groups(self, wider: Layout) -> Ints:
        """[groups of ``wider``] this layout's group that each of the wider groups starts from."""
        own = {metric: i + 1 for i, metric in enumerate(self.partial)}
        return np.array([0, *(own.get(m, 0) for m in wider.partial)], np.intp)

    def widen(self, table: Floats, wider: Layout) -> Floats:
        """Rows of this layout, rewritten for a layout with more partial metrics."""
        if wider == self:
            return table
        g, m = self.groups, self.n_metrics
        take = self.source_groups(wider)
        parts = (table[:, take], table[:, g + take], table[:, 2 * g + take], table[:, 3 * g :])
        out = np.concatenate(parts, axis=1)
        if out.shape[1] != wider.width or m != wider.n_metrics:
            raise ValueError("layouts of different metrics")
        return out


@dataclass(slots=True)
class MetricMoments:
    """Row counts per group; mean (about the reference) and sum of squares per metric."""

    rows: Floats
    """[groups] weighted row counts."""
    mean: Floats
    """[M] mean minus the correlator's reference value."""
    ss: Floats
    """[M] central sum of squares."""

    @classmethod
    def empty(cls, layout: Layout) -> MetricMoments:
        """Of no rows."""
        m = layout.n_metrics
        return cls(np.zeros(layout.groups), np.zeros(m), np.zeros(m))

    def absorb(self, other: MetricMoments, group_of: Ints, weight: float = 1.0) -> None:
        """Chan's merge, in place; ``other`` counts ``weight`` times."""
        na, nb = self.rows[group_of], other.rows[group_of] * weight
        total = na + nb
        share = np.divide(nb, total, out=np.zeros_like(nb), where=total > 0)
        delta = other.mean - self.mean
        self.ss += other.ss * weight + delta * delta * (na * share)
        self.mean += delta * share
        self.rows += other.rows * weight

    def widen(self, layout: Layout, wider: Layout) -> MetricMoments:
        """The same under a layout with more partial metrics."""
        return MetricMoments(
            self.rows[layout.source_groups(wider)], self.mean.copy(), self.ss.copy()
        )


@dataclass(slots=True)
class Moments:
    """Central moments of the features that fired in some rows, and of all rows' metrics."""

    layout: Layout
    features: Ints
    """[U] ascending."""
    table: Floats
    """[U, width]."""
    metrics: MetricMoments

    def widen(self, wider: Layout) -> Moments:
        """The same under a layout with more partial metrics."""
        if wider == self.layout:
            return self
        return Moments(
            wider,
            self.features,
            self.layout.widen(self.table, wider),
            self.metrics.widen(self.layout, wider),
        )

    def select(self, features: Ints) -> Floats:
        """[len(features), width] rows; zeros for features that did not fire."""
        out = np.zeros((len(features), self.layout.width))
        if len(self.features):
            at = np.searchsorted(self.features, features)
            at[at == len(self.features)] = 0
            found = self.features[at] == features
            out[found] = self.table[at[found]]
        return out

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        return self.features.nbytes + self.table.nbytes


def merge_rows(a: Floats, b: Floats, layout: Layout, weight: float = 1.0) -> Floats:
    """Chan's merge of two tables of the same features, row by row: [U, width].

    Rows of ``b`` count ``weight`` times. Rows with no on-steps are zeros and merge as such.
    """
    g, m = layout.groups, layout.n_metrics
    out = np.empty_like(a)
    qa, qb = a[:, :g], b[:, :g] * weight
    q = qa + qb
    share = np.divide(qb, q, out=np.zeros_like(q), where=q > 0)
    cross = qa * share
    da = b[:, g : 2 * g] - a[:, g : 2 * g]
    out[:, :g] = q
    out[:, g : 2 * g] = a[:, g : 2 * g] + da * share
    out[:, 2 * g : 3 * g] = a[:, 2 * g : 3 * g] + b[:, 2 * g : 3 * g] * weight + da * da * cross
    dd = b[:, 3 * g : 3 * g + m] - a[:, 3 * g : 3 * g + m]
    if g > 1:
        of = layout.group_of()
        share, cross, da = share[:, of], cross[:, of], da[:, of]
    out[:, 3 * g : 3 * g + m] = a[:, 3 * g : 3 * g + m] + dd * share
    out[:, 3 * g + m :] = a[:, 3 * g + m :] + b[:, 3 * g + m :] * weight + da * dd * cross
    return out


def merge_moments(a: Moments, b: Moments) -> Moments:
    """Merge two sets of rows: features of either, layouts widened to both."""
    layout = a.layout.union(b.layout)
    a, b = a.widen(layout), b.widen(layout)
    features = np.union1d(a.features, b.features)
    metrics = MetricMoments(a.metrics.rows.copy(), a.metrics.mean.copy(), a.metrics.ss.copy())
    metrics.absorb(b.metrics, layout.group_of())
    table = merge_rows(a.select(features), b.select(features), layout)
    return Moments(layout, features, table, metrics)


@dataclass(slots=True)
class Rows:
    """Prepared rows of one flush: sparse activations beside metrics about a pivot.

    ``index`` is int32 and ``indptr`` likewise; ``value`` is the activation minus the feature's own
    pivot; ``design`` [n, G + M] holds row validity per group, then d = metric − pivot (0 where
    invalid).
    """

    indptr: NDArray[np.int32]
    index: NDArray[np.int32]
    value: Floats
    design: Floats
    squares: Floats
    """[M] Σ d² over the valid rows."""

    def __len__(self) -> int:
        return len(self.indptr) - 1


@dataclass(slots=True)
class PaneSums:
    """Sums about a pivot of the pane that is being filled, dense over the dictionary."""

    n_features: int
    layout: Layout
    pivot: Floats
    """[M]."""
    ones: Floats = field(init=False)
    """[F, G + M] Σ_on v, Σ_on d."""
    linear: Floats = field(init=False)
    """[F, G + M] Σ_on a′ v, Σ_on a′ d."""
    square: Floats = field(init=False)
    """[F, G] Σ_on a′² v."""
    sums: Floats = field(init=False)
    """[G + M] Σ v, Σ d over all rows."""
    squares: Floats = field(init=False)
    """[M] Σ d² over all valid rows."""

    def __post_init__(self) -> None:
        g, m = self.layout.groups, self.layout.n_metrics
        self.ones = np.zeros((self.n_features, g + m))
        self.linear = np.zeros((self.n_features, g + m))
        self.square = np.zeros((self.n_features, g))
        self.sums = np.zeros(g + m)
        self.squares = np.zeros(m)

    def add(self, rows: Rows) -> None:
        """Add prepared rows: O(nnz × (G + M))."""
        n, g = len(rows), self.layout.groups
        ones = _ones(len(rows.index))
        indptr, index, value = rows.indptr, rows.index, rows.value
        validity = rows.design[:, :1] if g == 1 else np.ascontiguousarray(rows.design[:, :g])
        if n >= _SORTED_ROWS and self.n_features > 4 * n:
            product: Any = _sparsetools.csr_matvecs
            pointers = np.empty(self.n_features + 1, np.int32)
            by_row = np.empty_like(index)
            by_value = np.empty_like(value)
            _sparsetools.csr_tocsc(
                n, self.n_features, indptr, index, value, pointers, by_row, by_value
            )
            indptr, index, value = pointers, by_row, by_value
        else:
            product = _sparsetools.csc_matvecs
        design = rows.design.ravel()
        width = rows.design.shape[1]
        f = self.n_features
        product(f, n, width, indptr, index, ones, design, self.ones.ravel())
        product(f, n, width, indptr, index, value, design, self.linear.ravel())
        flat = _ones(n) if g == 1 and self.layout.partial == () else validity.ravel()
        product(f, n, g, indptr, index, value * value, flat, self.square.ravel())
        self.sums += rows.design.sum(axis=0)
        self.squares += rows.squares

    def widen(self, wider: Layout) -> None:
        """Give newly partial metrics row counts of their own, equal to group 0 so far."""
        if wider == self.layout:
            return
        g = self.layout.groups
        take = self.layout.source_groups(wider)
        self.ones = np.concatenate((self.ones[:, take], self.ones[:, g:]), axis=1)
        self.linear = np.concatenate((self.linear[:, take], self.linear[:, g:]), axis=1)
        self.square = np.ascontiguousarray(self.square[:, take])
        self.sums = np.concatenate((self.sums[take], self.sums[g:]))
        self.layout = wider

    def active(self) -> Ints:
        """Features that fired, ascending."""
        return np.flatnonzero(self.ones[:, 0])

    def moments(
        self, features: Ints | None, reference: Floats, activation_pivot: Floats
    ) -> Moments:
        """Central moments of ``features`` (``None``: those that fired) and of the metrics."""
        chosen = self.active() if features is None else features
        layout = self.layout
        g, m = layout.groups, layout.n_metrics
        of = layout.group_of()
        ones, linear = self.ones[chosen], self.linear[chosen]
        q = ones[:, :g]
        safe = np.where(q > 0, q, 1.0)
        mean_a = linear[:, :g] / safe
        table = np.empty((len(chosen), layout.width))
        table[:, :g] = q
        table[:, g : 2 * g] = np.where(q > 0, activation_pivot[chosen][:, None] + mean_a, 0.0)
        table[:, 2 * g : 3 * g] = np.maximum(self.square[chosen] - mean_a * linear[:, :g], 0.0)
        sums_d = ones[:, g:]
        mean_d = sums_d / safe[:, of]
        shift = self.pivot - reference
        table[:, 3 * g : 3 * g + m] = np.where(q[:, of] > 0, mean_d + shift, 0.0)
        table[:, 3 * g + m :] = linear[:, g:] - mean_a[:, of] * sums_d
        rows = self.sums[:g].copy()
        n = rows[of]
        mean = np.divide(self.sums[g:], n, out=np.zeros(m), where=n > 0)
        ss = np.maximum(self.squares - mean * self.sums[g:], 0.0)
        metrics = MetricMoments(rows, np.where(n > 0, mean + shift, 0.0), ss)
        return Moments(layout, chosen, table, metrics)

    def clear(self, features: Ints, pivot: Floats) -> None:
        """Empty the pane (only the given features are non-zero) and move its pivot."""
        self.ones[features] = 0
        self.linear[features] = 0
        self.square[features] = 0
        self.sums[:] = 0
        self.squares[:] = 0
        self.pivot = pivot

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        return self.ones.nbytes + self.linear.nbytes + self.square.nbytes

    def arrays(self) -> dict[str, NDArray[Any]]:
        """State as named arrays, the tables as the active rows only."""
        active = self.active()
        return {
            "partial": np.array(self.layout.partial, np.int64),
            "pivot": self.pivot,
            "active": active.astype(np.int64),
            "ones": self.ones[active],
            "linear": self.linear[active],
            "square": self.square[active],
            "sums": self.sums,
            "squares": self.squares,
        }

    @classmethod
    def from_arrays(
        cls, n_features: int, n_metrics: int, arrays: Mapping[str, NDArray[Any]]
    ) -> PaneSums:
        """Inverse of :meth:`arrays`."""
        layout = Layout(n_metrics, tuple(int(i) for i in arrays["partial"]))
        pane = cls(n_features, layout, np.array(arrays["pivot"]))
        active = arrays["active"].astype(np.intp)
        pane.ones[active] = arrays["ones"]
        pane.linear[active] = arrays["linear"]
        pane.square[active] = arrays["square"]
        pane.sums[:] = arrays["sums"]
        pane.squares[:] = arrays["squares"]
        return pane


_ONES = np.ones(1 << 16)
_ONES.flags.writeable = False


def _ones(count: int) -> Floats:
    return _ONES[:count] if count <= len(_ONES) else np.ones(count)
