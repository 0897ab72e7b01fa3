"""The steps to look at: strongest, random, spread over the quantiles, and near misses.

Every choice is a function of the rows and a seed, so shards merge to the same exemplars: the
strongest by (activation, hash), the random ones by smallest hash of the row's number. Near misses
and contrasts come from one shared sample of rows, since off-rows belong to no feature.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import numpy as np

from interlatent_live.statistics.hashing import mix

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from interlatent_live.statistics.episodes import Chunk
    from interlatent_live.statistics.moments import Floats, Ints


class ExemplarKind(StrEnum):
    """Why a step is shown."""

    TOP = "top"
    QUANTILE = "quantile"
    RANDOM = "random"
    NEAR_MISS = "near_miss"
    OFF = "off"


@dataclass(frozen=True, slots=True, eq=False)
class Exemplar:
    """One step of one feature with its surroundings."""

    kind: ExemplarKind
    position: int
    """Global row number; frames and recordings are looked up by it."""
    env: int
    t: int
    activation: float
    """0 for near misses and off-rows."""
    metrics: Floats
    """[M] at the step; NaN where unknown."""
    context: Floats
    """[2c + 1, M] steps t − c … t + c; NaN beyond the run of consecutive steps."""
    quantile: float | None = None
    """Rank of the activation within the sample, for quantile exemplars."""
    distance: float | None = None
    """Standardised distance to the on-rows' mean, for near misses."""


@dataclass(frozen=True, slots=True, eq=False)
class ExemplarRows:
    """Which rows are exemplars, of any feature; [rows] each, the position ascending."""

    position: NDArray[np.int64]
    env: NDArray[np.int32]
    t: NDArray[np.int32]
    after: NDArray[np.int32]
    """Steps of the same episode that are known to follow, at most as many as the context has."""

    @classmethod
    def of(cls, columns: Sequence[NDArray[np.int64]]) -> ExemplarRows:
        """Of tables [rows, 4] of position, env, t and after; each row once."""
        rows = np.concatenate([np.zeros((0, 4), np.int64), *columns])
        # Of a row in several tables, the one that knows most of what follows.
        rows = rows[np.lexsort((-rows[:, 3], rows[:, 0]))]
        rows = rows[np.diff(rows[:, 0], prepend=-1) > 0]
        return cls(rows[:, 0], *(rows[:, i].astype(np.int32) for i in (1, 2, 3)))

    @classmethod
    def joined(cls, several: Sequence[ExemplarRows]) -> ExemplarRows:
        """The rows of several hook points of a run."""
        return cls.of([np.column_stack((s.position, s.env, s.t, s.after)) for s in several])


@dataclass(slots=True)
class BestRows:
    """The K best on-rows of each deep feature by (score, hash), with context."""

    n_features: int
    n_metrics: int
    keep: int
    context: int
    score: Floats = field(init=False)
    """[features, K] in no order; −inf where empty."""
    floor: Floats = field(init=False)
    """[features] the worst score kept."""
    priority: NDArray[np.uint64] = field(init=False)
    position: NDArray[np.uint64] = field(init=False)
    env: NDArray[np.uint16] = field(init=False)
    t: NDArray[np.uint32] = field(init=False)
    activation: NDArray[np.float32] = field(init=False)
    around: Floats = field(init=False)
    """[features, K, 2c + 1, M]."""

    def __post_init__(self) -> None:
        f, k = self.n_features, self.keep
        self.score = np.full((f, k), -np.inf)
        self.floor = np.full(f, -np.inf)
        self.priority = np.full((f, k), np.iinfo(np.uint64).max, np.uint64)
        self.position = np.zeros((f, k), np.uint64)
        self.env = np.zeros((f, k), np.uint16)
        self.t = np.zeros((f, k), np.uint32)
        self.activation = np.zeros((f, k), np.float32)
        self.around = np.full((f, k, 2 * self.context + 1, self.n_metrics), np.nan)

    def absorb(self, chunk: Chunk, score: Floats, priority: NDArray[np.uint64]) -> None:
        """Offer every entry of a chunk; ``score`` and ``priority`` per entry."""
        if not self.keep or not len(chunk.index):
            return
        entries = np.flatnonzero(score >= self.floor[chunk.index])
        if not len(entries):
            return
        feature = chunk.index[entries].astype(np.intp)
        order = np.lexsort((priority[entries], -score[entries], feature))
        entries, feature = entries[order], feature[order]
        entries, feature = _first_of_each(entries, feature, self.keep)
        row = chunk.row_of[entries]
        offsets = np.arange(-self.context, self.context + 1)
        near = row[:, None] + offsets
        inside = np.clip(near, 0, len(chunk) - 1)
        around = chunk.metrics[inside]
        around[(near != inside) | (chunk.run[inside] != chunk.run[row][:, None])] = np.nan
        fields = {
            "score": score[entries],
            "priority": priority[entries],
            "position": chunk.position[row],
            "env": chunk.env[row],
            "t": chunk.t[row],
            "activation": chunk.value[entries].astype(np.float32),
            "around": around,
        }
        self._insert(feature, fields)

    def _insert(self, feature: Ints, fields: Mapping[str, NDArray[Any]]) -> None:
        """Let candidates (any number per feature) replace what they beat; the rest stays put."""
        affected, inverse = np.unique(feature, return_inverse=True)
        k, u = self.keep, len(affected)
        owner = np.concatenate((np.repeat(np.arange(u), k), inverse))
        score = np.concatenate((self.score[affected].ravel(), fields["score"]))
        priority = np.concatenate((self.priority[affected].ravel(), fields["priority"]))
        order = np.lexsort((priority, -score, owner))
        best, _ = _first_of_each(order, owner[order], k)
        won = np.zeros(len(owner), bool)
        won[best] = True
        # As many old slots lose as candidates win, feature by feature; both are listed by feature.
        slots = np.flatnonzero(~won[: u * k])
        winners = np.flatnonzero(won[u * k :])
        winners = winners[np.argsort(inverse[winners], kind="stable")]
        target = affected[slots // k] * k + slots % k
        for name, values in fields.items():
            table = getattr(self, name)
            table.reshape(-1, *table.shape[2:])[target] = values[winners]
        self.floor[affected] = self.score[affected].min(axis=1)

    def merge(self, other: BestRows) -> None:
        """Keep the best of both."""
        if not self.keep:
            return
        feature = np.repeat(np.arange(self.n_features), self.keep)
        filled = np.isfinite(other.score).ravel()
        fields = {
            name: getattr(other, name).reshape(-1, *getattr(other, name).shape[2:])[filled]
            for name in _FIELDS
        }
        if filled.any():
            self._insert(feature[filled], fields)

    def rows(self, feature: int) -> Ints:
        """Filled slots of a feature, best first."""
        order = np.lexsort((self.priority[feature], -self.score[feature]))
        return np.asarray(order[np.isfinite(self.score[feature][order])], np.intp)

    def exemplar(self, feature: int, slot: int, kind: ExemplarKind) -> Exemplar:
        """One kept row as a value."""
        return Exemplar(
            kind=kind,
            position=int(self.position[feature, slot]),
            env=int(self.env[feature, slot]),
            t=int(self.t[feature, slot]),
            activation=float(self.activation[feature, slot]),
            metrics=self.around[feature, slot, self.context].copy(),
            context=self.around[feature, slot].copy(),
        )

    def chosen(self) -> NDArray[np.int64]:
        """[kept, 4] position, env, t and known steps after it, of every row kept."""
        kept = np.isfinite(self.score)
        follows = np.any(np.isfinite(self.around[:, :, self.context + 1 :]), axis=-1)
        after = np.cumprod(np.asarray(follows)[kept], axis=1).sum(axis=1)
        columns = (self.position[kept], self.env[kept], self.t[kept], after)
        return np.column_stack([one.astype(np.int64) for one in columns])

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        return sum(int(getattr(self, name).nbytes) for name in _FIELDS)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """State as named arrays."""
        return {name: getattr(self, name) for name in _FIELDS}

    def load(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Inverse of :meth:`arrays`."""
        for name in _FIELDS:
            getattr(self, name)[...] = arrays[name]
        self.floor = self.score.min(axis=1) if self.keep else self.floor


_FIELDS = ("score", "priority", "position", "env", "t", "activation", "around")


def _first_of_each(order: Ints, owner: Ints, keep: int) -> tuple[Ints, Ints]:
    """The first ``keep`` items of each owner, where owners are sorted."""
    start = np.flatnonzero(np.r_[True, owner[1:] != owner[:-1]])
    rank = np.arange(len(owner)) - np.repeat(start, np.diff(np.r_[start, len(owner)]))
    chosen = rank < keep
    return order[chosen], owner[chosen]


def unit_interval(priority: NDArray[np.uint64]) -> Floats:
    """Hashes as float64 in [0, 1), higher for smaller hashes."""
    return np.asarray(1.0 - (priority >> np.uint64(11)).astype(np.float64) * 2.0**-53, np.float64)


def row_priority(position: NDArray[np.uint64], seed: int) -> NDArray[np.uint64]:
    """The hash that decides random samples, per row."""
    return mix(position, seed)


@dataclass(slots=True)
class RowSample:
    """A uniform sample of eligible rows, all features: the K smallest hashes."""

    n_metrics: int
    keep: int
    seed: int
    priority: NDArray[np.uint64] = field(init=False)
    position: NDArray[np.uint64] = field(init=False)
    env: NDArray[np.uint16] = field(init=False)
    t: NDArray[np.uint32] = field(init=False)
    metrics: Floats = field(init=False)
    indptr: NDArray[np.int64] = field(init=False)
    index: NDArray[np.int32] = field(init=False)
    value: NDArray[np.float32] = field(init=False)

    def __post_init__(self) -> None:
        self.priority = np.zeros(0, np.uint64)
        self.position = np.zeros(0, np.uint64)
        self.env = np.zeros(0, np.uint16)
        self.t = np.zeros(0, np.uint32)
        self.metrics = np.zeros((0, self.n_metrics))
        self.indptr = np.zeros(1, np.int64)
        self.index = np.zeros(0, np.int32)
        self.value = np.zeros(0, np.float32)

    def __len__(self) -> int:
        return len(self.priority)

    def absorb(self, chunk: Chunk) -> None:
        """Offer every row of a chunk in dictionary coordinates."""
        priority = row_priority(chunk.position, self.seed + 7)
        limit = self.priority[-1] if len(self) == self.keep else np.iinfo(np.uint64).max
        rows = np.flatnonzero(priority <= limit)
        if not len(rows):
            return
        other = RowSample(self.n_metrics, self.keep, self.seed)
        other.priority = priority[rows]
        other.position, other.env = chunk.position[rows], chunk.env[rows]
        other.t, other.metrics = chunk.t[rows], chunk.metrics[rows]
        other.indptr, entries = _take_rows(chunk.indptr.astype(np.int64), rows)
        other.index = chunk.index[entries]
        other.value = chunk.value[entries].astype(np.float32)
        self.merge(other)

    def merge(self, other: RowSample) -> None:
        """Keep the smallest hashes of both."""
        priority = np.concatenate((self.priority, other.priority))
        order = np.argsort(priority, kind="stable")[: self.keep]
        joined_ptr = np.concatenate((self.indptr, other.indptr[1:] + self.indptr[-1]))
        self.indptr, entries = _take_rows(joined_ptr, order)
        self.index = np.concatenate((self.index, other.index))[entries]
        self.value = np.concatenate((self.value, other.value))[entries]
        self.priority = priority[order]
        for name in ("position", "env", "t", "metrics"):
            setattr(self, name, np.concatenate((getattr(self, name), getattr(other, name)))[order])

    def chosen(self) -> NDArray[np.int64]:
        """[rows, 4] as :meth:`BestRows.chosen`; nothing is known of what follows."""
        columns = (self.position, self.env, self.t, np.zeros(len(self)))
        return np.column_stack([one.astype(np.int64) for one in columns])

    def activation(self, feature: int) -> Floats:
        """[rows] activation of one feature, 0 where off."""
        out = np.zeros(len(self))
        hits = np.flatnonzero(self.index == feature)
        out[np.searchsorted(self.indptr, hits, side="right") - 1] = self.value[hits]
        return out

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        return self.metrics.nbytes + self.index.nbytes + self.value.nbytes + 30 * len(self)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """State as named arrays."""
        return {name: getattr(self, name) for name in _SAMPLE_FIELDS}

    def load(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Inverse of :meth:`arrays`."""
        for name in _SAMPLE_FIELDS:
            setattr(self, name, np.array(arrays[name]))


_SAMPLE_FIELDS = ("priority", "position", "env", "t", "metrics", "indptr", "index", "value")


def _take_rows(indptr: NDArray[np.int64], rows: Ints) -> tuple[NDArray[np.int64], Ints]:
    counts = np.diff(indptr)[rows]
    out = np.zeros(len(rows) + 1, np.int64)
    np.cumsum(counts, out=out[1:])
    entries = np.arange(out[-1]) + np.repeat(indptr[rows] - out[:-1], counts)
    return out, entries
