"""Association taken apart: within episodes, between episodes, between agent copies.

A pooled correlation mixes "when it fires, the metric is high" with "in episodes where it fires
more, the metric is higher" (Simpson's paradox). The sums of products of episode totals over
episode lengths, Σ_e A_e D_e / n_e, are all it takes to tell them apart, since total = within +
between exactly (analysis of covariance).
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
    from interlatent_live.statistics.moments import Floats, Ints

_TABLES: Final = (
    "cross", "power", "square", "env_activation", "env_metric", "env_rows", "total_cross",
    "total_power", "total_square",
)  # fmt: skip


@dataclass(slots=True)
class PartSums:
    """Totals of each episode or block of a chunk that has rows."""

    first: Ints
    """[P] first row."""
    length: Floats
    """[P] rows."""
    metrics: Floats
    """[P, M] Σ d."""
    activation: Floats
    """[P, features] Σ a."""

    @classmethod
    def of(cls, chunk: Chunk, d: Floats, n_features: int) -> PartSums:
        """Totals of a chunk in slot coordinates."""
        n = len(chunk)
        fresh = np.r_[True, chunk.part[1:] != chunk.part[:-1]] if n else np.zeros(0, bool)
        first = np.flatnonzero(fresh)
        length = np.diff(np.r_[first, n]).astype(np.float64)
        sums = np.zeros(len(first) * n_features)
        if n:
            number = np.cumsum(fresh) - 1
            where = np.repeat(number * n_features, np.diff(chunk.indptr)) + chunk.index
            _sparsetools.csc_matvec(
                len(sums), n, chunk.indptr, where.astype(np.int32), chunk.value, np.ones(n), sums
            )
        totals = np.add.reduceat(d, first) if n else np.zeros((0, d.shape[1]))
        return cls(first, length, totals, sums.reshape(len(first), n_features))


@dataclass(slots=True)
class WithinBetween:
    """Sums over closed episodes (or blocks); d about the reference, 0 where unknown."""

    n_features: int
    n_metrics: int
    envs: int
    cross: Floats = field(init=False)
    """[features, M] Σ_e A_e D_e / n_e."""
    power: Floats = field(init=False)
    """[features] Σ_e A_e² / n_e."""
    square: Floats = field(init=False)
    """[M] Σ_e D_e² / n_e."""
    env_activation: Floats = field(init=False)
    """[envs, features] Σ a per agent copy (copies beyond ``envs`` share, by number modulo)."""
    env_metric: Floats = field(init=False)
    """[envs, M] Σ d."""
    env_rows: Floats = field(init=False)
    total_cross: Floats = field(init=False)
    """[features, M] Σ a d."""
    total_power: Floats = field(init=False)
    total_square: Floats = field(init=False)

    def __post_init__(self) -> None:
        shapes = within_shapes(self.n_features, self.n_metrics, self.envs)
        for name in _TABLES:
            setattr(self, name, np.zeros(shapes[name]))

    def absorb(self, chunk: Chunk, d: Floats, parts: PartSums) -> None:
        """Add a chunk."""
        n, f, m = len(chunk), self.n_features, self.n_metrics
        if not n:
            return
        length, totals, by_part = parts.length, parts.metrics, parts.activation
        self.cross += by_part.T @ (totals / length[:, None])
        self.power += np.einsum("ef,ef,e->f", by_part, by_part, 1 / length)
        self.square += np.einsum("em,em,e->m", totals, totals, 1 / length)
        env = chunk.env[parts.first].astype(np.intp) % self.envs
        np.add.at(self.env_activation, env, by_part)
        np.add.at(self.env_metric, env, totals)
        np.add.at(self.env_rows, env, length)
        columns = np.ascontiguousarray(d).ravel()
        _sparsetools.csc_matvecs(
            f, n, m, chunk.indptr, chunk.index, chunk.value, columns, self.total_cross.ravel()
        )
        _sparsetools.csc_matvec(
            f, n, chunk.indptr, chunk.index, chunk.value**2, np.ones(n), self.total_power
        )
        self.total_square += np.einsum("ij,ij->j", d, d)

    def correlations(self, features: Ints) -> dict[str, Floats]:
        """Correlation ``within`` episodes, ``between`` episodes of a copy, ``between_envs``.

        Each is [features, M], NaN where a part has no variance.
        """
        n = float(self.env_rows.sum())
        used = self.env_rows > 0
        rows = np.where(used, self.env_rows, 1.0)
        a_env, d_env = self.env_activation[:, features], self.env_metric
        env_cross = a_env.T @ (d_env / rows[:, None])
        env_power = np.einsum("ef,ef,e->f", a_env, a_env, 1 / rows)
        env_square = np.einsum("em,em,e->m", d_env, d_env, 1 / rows)
        a_all, d_all = a_env.sum(0), d_env.sum(0)
        n = max(n, 1.0)
        cross, power = self.cross[features], self.power[features]
        scale_a, scale_d = self.total_power[features], self.total_square
        return {
            "within": _ratio(
                self.total_cross[features] - cross,
                self.total_power[features] - power,
                self.total_square - self.square,
                scale_a, scale_d,
            ),
            "between": _ratio(
                cross - env_cross, power - env_power, self.square - env_square, scale_a, scale_d
            ),
            "between_envs": _ratio(
                env_cross - np.outer(a_all, d_all) / n,
                env_power - a_all**2 / n,
                env_square - d_all**2 / n,
                scale_a, scale_d,
            ),
        }  # fmt: skip

    def rebase(self, shift: Floats) -> None:
        """Follow a move of the reference: d becomes d + shift."""
        a_all = self.env_activation.sum(0)
        self.total_square += 2 * shift * self.env_metric.sum(0) + self.env_rows.sum() * shift**2
        self.square += 2 * shift * self.env_metric.sum(0) + self.env_rows.sum() * shift**2
        self.total_cross += np.outer(a_all, shift)
        self.cross += np.outer(a_all, shift)
        self.env_metric += np.outer(self.env_rows, shift)

    def merge(self, other: WithinBetween) -> None:
        """Add another's sums."""
        for name in _TABLES:
            getattr(self, name)[...] += getattr(other, name)

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        return sum(int(getattr(self, name).nbytes) for name in _TABLES)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """State as named arrays."""
        return {name: getattr(self, name) for name in _TABLES}

    def load(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Inverse of :meth:`arrays`."""
        for name in _TABLES:
            getattr(self, name)[...] = arrays[name]


def within_shapes(f: int, m: int, envs: int) -> dict[str, tuple[int, ...]]:
    """Shapes of the float64 tables, for the allocation and for the memory formula."""
    return {
        "cross": (f, m), "power": (f,), "square": (m,), "env_activation": (envs, f),
        "env_metric": (envs, m), "env_rows": (envs,), "total_cross": (f, m),
        "total_power": (f,), "total_square": (m,),
    }  # fmt: skip


def _ratio(
    cross: Floats, power: Floats, square: Floats, scale_a: Floats, scale_d: Floats
) -> Floats:
    bad = (power <= 1e-12 * scale_a)[:, None] | (square <= 1e-12 * scale_d)[None]
    with np.errstate(divide="ignore", invalid="ignore"):
        r = cross / np.sqrt(power[:, None] * square[None])
    return np.where(bad, np.nan, np.clip(r, -1.0, 1.0))
