"""Sums per unit of evidence, for the delete-one-episode jackknife, in bounded memory.

A unit is a whole episode (in endless runs a block). When there are more than ``capacity`` of them,
units whose key starts with the same bits share one, and the number of bits falls until they fit
(extendible hashing; Fagin et al. 1979). The result depends on the set of episodes alone: not on
their order, not on the sharding. Units are then of unequal size, which the jackknife allows for
(Busing, Meijer & van der Leeden 1999).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from scipy.sparse import _sparsetools

from interlatent_live.statistics.episodes import EPISODE_BITS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from interlatent_live.statistics.episodes import Chunk
    from interlatent_live.statistics.moments import Floats, Ints


_TABLES: Final = (
    "rows", "valid", "total", "square", "rank", "product", "linear", "ranks", "power", "cross",
)  # fmt: skip


@dataclass(slots=True)
class UnitSums:
    """Sums of each unit; d is a metric about the reference, u its rank under the grid.

    Rows with a non-finite metric enter that metric's sums as d = 0 and are left out of ``valid``;
    the jackknife then speaks of the imputed series, which the estimator checks against the
    window's own moments before it uses it.
    """

    capacity: int
    n_features: int
    n_metrics: int
    bits: int = 64
    episodes: int = 0
    """Episodes begun (blocks with number 0), however many units they share."""
    blocks: int = 0
    keys: NDArray[np.uint64] = field(init=False)
    rows: Floats = field(init=False)
    """[capacity] rows."""
    valid: Floats = field(init=False)
    """[capacity, M] rows where the metric was finite."""
    total: Floats = field(init=False)
    """[capacity, M] Σ d."""
    square: Floats = field(init=False)
    """[capacity, M] Σ d²."""
    rank: Floats = field(init=False)
    """[capacity, M] Σ u."""
    product: Floats = field(init=False)
    """[capacity, M, M] Σ d dᵀ."""
    linear: Floats = field(init=False)
    """[capacity, features, 1 + M] Σ a, Σ a d."""
    ranks: Floats = field(init=False)
    """[capacity, features, 1 + M] on-count, Σ_on u."""
    power: Floats = field(init=False)
    """[capacity, features] Σ a²."""
    cross: Floats = field(init=False)
    """[capacity, features, M] Σ_e A_e D_e / n_e over the unit's episodes, A_e = Σ a, D_e = Σ d."""

    def __post_init__(self) -> None:
        c, f, m = self.capacity, self.n_features, self.n_metrics
        self.keys = np.zeros(0, np.uint64)
        shapes = unit_shapes(c, f, m)
        for name in _TABLES:
            setattr(self, name, np.zeros(shapes[name]))

    def absorb(
        self,
        chunk: Chunk,
        d: Floats,
        valid: NDArray[np.bool_],
        u: Floats,
        activation: Floats,
    ) -> None:
        """Add a chunk whose metrics are ``d`` [n, M] about the reference, ranks ``u`` [n, M].

        ``activation``: [parts with rows, features] Σ a of each part.
        """
        self.blocks += len(chunk.key)
        self.episodes += int(np.count_nonzero(chunk.block == 0))
        slot_of_part = self._slots(chunk.key)
        n, m = len(chunk), self.n_metrics
        if not n:
            return
        slot = slot_of_part[chunk.part]
        first = np.flatnonzero(np.r_[True, chunk.part[1:] != chunk.part[:-1]])
        slots = slot[first]
        np.add.at(self.rows, slots, np.diff(np.r_[first, n]).astype(np.float64))
        np.add.at(self.valid, slots, np.add.reduceat(valid.astype(np.float64), first))
        totals = np.add.reduceat(d, first)
        length = np.diff(np.r_[first, n]).astype(np.float64)
        means = totals / length[:, None]
        for i, where_unit in enumerate(slots.tolist()):
            self.cross[where_unit] += activation[i][:, None] * means[i]
        np.add.at(self.total, slots, totals)
        np.add.at(self.square, slots, np.add.reduceat(d * d, first))
        np.add.at(self.rank, slots, np.add.reduceat(u, first))
        outer = (d[:, :, None] * d[:, None, :]).reshape(n, m * m)
        products = np.add.reduceat(outer, first).reshape(-1, m, m)
        np.add.at(self.product, slots, products)
        where = np.repeat(slot * self.n_features, np.diff(chunk.indptr)) + chunk.index
        index = where.astype(np.int32)
        size = self.capacity * self.n_features
        ones = np.ones((n, 1))
        product = _sparsetools.csc_matvecs
        for design, value, table in (
            (d, chunk.value, self.linear),
            (u, np.ones(len(index)), self.ranks),
        ):
            columns = np.concatenate((ones, design), axis=1).ravel()
            product(size, n, 1 + m, chunk.indptr, index, value, columns, table.ravel())
        _sparsetools.csc_matvec(
            size, n, chunk.indptr, index, chunk.value**2, ones.ravel(), self.power.ravel()
        )

    def merge(self, other: UnitSums) -> None:
        """Add another's units."""
        slots = self._slots(other.keys)
        k = len(other.keys)
        for name in _TABLES:
            np.add.at(getattr(self, name), slots, getattr(other, name)[:k])
        self.fold(other.bits)
        self.episodes += other.episodes
        self.blocks += other.blocks

    def rebase(self, shift: Floats) -> None:
        """Follow a move of the reference: d becomes d + shift (metrics known in every row)."""
        outer = shift[:, None] * self.total[:, None, :]
        self.product += outer + np.swapaxes(outer, 1, 2)
        self.product += self.rows[:, None, None] * (shift[:, None] * shift)
        self.square += 2 * shift * self.total + self.valid * shift**2
        self.total += self.valid * shift
        self.cross += self.linear[:, :, :1] * shift
        self.linear[:, :, 1:] += self.linear[:, :, :1] * shift

    def fold(self, bits: int) -> None:
        """Let units whose keys agree in the first ``bits`` bits share one."""
        if bits >= self.bits:
            return
        self.bits = bits
        k = len(self.keys)
        self.keys, inverse = np.unique(_prefix(self.keys, bits), return_inverse=True)
        for name in _TABLES:
            old = getattr(self, name)
            new = np.zeros_like(old)
            np.add.at(new, inverse, old[:k])
            setattr(self, name, new)

    def correlations(self, slots: Ints) -> Floats:
        """[len(slots), M] Pearson's r over all units; NaN where a metric was partly absent."""
        n = self.rows.sum()
        linear, total = self.linear[:, slots].sum(axis=0), self.total.sum(axis=0)
        a, ad = linear[:, :1], linear[:, 1:]
        with np.errstate(divide="ignore", invalid="ignore"):
            variance_a = self.power[:, slots].sum(axis=0)[:, None] - a * a / n
            variance_d = self.square.sum(axis=0) - total * total / n
            r = (ad - a * total / n) / np.sqrt(variance_a * variance_d)
        known = np.isfinite(r) & (self.valid.sum(axis=0) == n)
        return np.where(known, np.clip(r, -1.0, 1.0), np.nan)

    def by_episode(self) -> Ints:
        """[units] number of the episode group of each unit: blocks of an episode share one."""
        groups = np.unique(_prefix(self.keys, min(EPISODE_BITS, self.bits)), return_inverse=True)[1]
        return np.asarray(groups, np.intp)

    def _slots(self, keys: NDArray[np.uint64]) -> Ints:
        """Unit of each key; makes room for new ones by using fewer bits where it must."""
        bits = self.bits
        everything = np.unique(np.concatenate((self.keys, _prefix(keys, bits))))
        while len(everything) > self.capacity:
            bits -= 1
            everything = np.unique(_prefix(everything, bits))
        self.fold(bits)
        self.keys = np.concatenate((self.keys, np.setdiff1d(everything, self.keys)))
        order = np.argsort(self.keys)
        at = np.searchsorted(self.keys, _prefix(keys, self.bits), sorter=order)
        return np.asarray(order[at], np.intp)

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        return sum(int(getattr(self, name).nbytes) for name in _TABLES)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """State as named arrays."""
        k = len(self.keys)
        out: dict[str, NDArray[Any]] = {name: getattr(self, name)[:k] for name in _TABLES}
        out["keys"] = self.keys
        out["counts"] = np.array([self.bits, self.episodes, self.blocks], np.int64)
        return out

    def load(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Inverse of :meth:`arrays`."""
        self.keys = np.array(arrays["keys"], np.uint64)
        self.bits, self.episodes, self.blocks = (int(i) for i in arrays["counts"])
        for name in _TABLES:
            target = getattr(self, name)
            target[:] = 0
            target[: len(self.keys)] = arrays[name]


def unit_shapes(capacity: int, n_features: int, n_metrics: int) -> dict[str, tuple[int, ...]]:
    """Shapes of the float64 tables, for the allocation and for the memory formula."""
    c, f, m = capacity, n_features, n_metrics
    return {
        "rows": (c,), "valid": (c, m), "total": (c, m), "square": (c, m), "rank": (c, m),
        "product": (c, m, m), "linear": (c, f, 1 + m), "ranks": (c, f, 1 + m), "power": (c, f),
        "cross": (c, f, m),
    }  # fmt: skip


def _prefix(keys: NDArray[np.uint64], bits: int) -> NDArray[np.uint64]:
    shift = np.uint64(64 - bits)
    return keys >> shift << shift if bits < 64 else keys
