"""Evidence one may look at as often as one likes: betting on signs, episode by episode.

For each feature × metric and each closed episode (or block) let x be the correlation within that
episode. If the two are unrelated and the episode's metric might as well have had the other sign, x
and −x are equally likely given |x|, so exp(λx) / cosh(λx) has mean 1 for every λ: a bet that does
not pay on average. Products over episodes form a non-negative martingale, and by Ville's
inequality the chance that it ever exceeds 1/α is at most α, however often it is looked at (Ramdas,
Ruf, Larsson & Koolen 2020; de la Peña 1999 for the self-normalised form). Wealth is averaged over
fixed λ and both signs, so that it is a sum over episodes in any order: shards merge exactly.

The assumption is symmetry. Episodes are the unit, so autocorrelation within them needs none.
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
    from interlatent_live.statistics.within import PartSums

BETS: Final = (0.5, 1.0, 2.0, 4.0, 8.0)
"""λ: the best bet for episodes whose correlations have mean μ and spread σ is about μ / (σ² +
μ²)."""
_PARTS: Final = 32
_LEAST_ROWS: Final = 4


def log_evidence(tilt: Floats, cost: Floats) -> Floats:
    """Log of the mean over bets λ and signs of exp(±λ Σx − Σ log cosh λx).

    ``tilt``: Σx, any shape; ``cost``: [bets, *that shape] Σ log cosh λx.
    """
    scaled = np.multiply.outer(np.asarray(BETS), tilt)
    wealth = np.concatenate((scaled - cost, -scaled - cost))
    top = wealth.max(axis=0)
    return np.asarray(top + np.log(np.exp(wealth - top).mean(axis=0)), np.float64)


def log_cosh_sums(x: Floats) -> Floats:
    """[bets, …] Σ over the first axis (at most 32 long) of log cosh λx, |x| ≤ 1.

    cosh 8 to the 32nd is 1e102, so one logarithm of the product will do; each bet is twice the last
    one, and cosh 2y = 2 cosh² y − 1.
    """
    c = np.cosh(BETS[0] * x)
    out = np.empty((len(BETS), *x.shape[1:]))
    for i in range(len(BETS)):
        if i:
            c = 2.0 * c * c - 1.0
        np.log(c.prod(axis=0), out=out[i])
    return out


@dataclass(slots=True)
class Betting:
    """What every bet on every deep feature × metric has made."""

    n_features: int
    n_metrics: int
    tilt: Floats = field(init=False)
    """[features, M] Σx over episodes."""
    square: Floats = field(init=False)
    """[features, M] Σx²."""
    cost: Floats = field(init=False)
    """[bets, features, M] Σ log cosh λx."""
    played: NDArray[np.int32] = field(init=False)
    """[features, M] episodes in which both varied."""

    def __post_init__(self) -> None:
        shape = (self.n_features, self.n_metrics)
        self.tilt = np.zeros(shape)
        self.square = np.zeros(shape)
        self.cost = np.zeros((len(BETS), *shape))
        self.played = np.zeros(shape, np.int32)

    def absorb(self, chunk: Chunk, d: Floats, valid: NDArray[np.bool_], parts: PartSums) -> None:
        """Bet on every episode of a chunk."""
        for low in range(0, len(parts.first), _PARTS):
            x = self._within(chunk, d, valid, parts, low)
            self.absorb_correlations(x)

    def absorb_correlations(self, x: Floats) -> None:
        """Bet on within-episode correlations [episodes ≤ 32, features, M]; NaN where undefined."""
        known = np.isfinite(x)
        self.played += known.sum(axis=0, dtype=np.int32)
        active = np.flatnonzero(known.any(axis=(0, 2)))
        if len(active):
            filled = np.where(known[:, active], x[:, active], 0.0)
            self.tilt[active] += filled.sum(axis=0)
            self.square[active] += (filled * filled).sum(axis=0)
            self.cost[:, active] += log_cosh_sums(filled)

    def _within(
        self, chunk: Chunk, d: Floats, valid: NDArray[np.bool_], parts: PartSums, low: int
    ) -> Floats:
        """[P, features, M] correlations within parts low … low + P − 1."""
        f, m = self.n_features, self.n_metrics
        high = min(low + _PARTS, len(parts.first))
        a = int(parts.first[low])
        b = int(parts.first[high]) if high < len(parts.first) else len(chunk)
        first = parts.first[low:high] - a
        length = parts.length[low:high, None]
        rows = d[a:b]
        centred = rows - np.repeat(
            parts.metrics[low:high] / length, length[:, 0].astype(np.intp), axis=0
        )
        known = np.logical_and.reduceat(valid[a:b], first, axis=0)
        ss_d = np.add.reduceat(centred**2, first, axis=0)
        scale = np.add.reduceat(rows**2, first, axis=0)
        indptr = chunk.indptr[a : b + 1] - chunk.indptr[a]
        entries = slice(int(chunk.indptr[a]), int(chunk.indptr[b]))
        number = np.repeat(np.arange(high - low), length[:, 0].astype(np.intp))
        where = (np.repeat(number * f, np.diff(indptr)) + chunk.index[entries]).astype(np.int32)
        value = chunk.value[entries]
        size = (high - low) * f
        cross, power = np.zeros((size, m)), np.zeros(size)
        # Σ a (d − d̄) needs no centring of a, since the centred metric sums to 0.
        _sparsetools.csc_matvecs(
            size, b - a, m, indptr, where, value, centred.ravel(), cross.ravel()
        )
        _sparsetools.csc_matvec(size, b - a, indptr, where, value**2, np.ones(b - a), power)
        squares = power.reshape(high - low, f)
        ss_a = squares - parts.activation[low:high] ** 2 / length
        flat = (ss_a <= 1e-12 * squares) | (length < _LEAST_ROWS)
        still = (ss_d <= 1e-12 * scale) | ~known
        with np.errstate(divide="ignore", invalid="ignore"):
            r = cross.reshape(high - low, f, m) / np.sqrt(ss_a[:, :, None] * ss_d[:, None])
        return np.where(flat[:, :, None] | still[:, None], np.nan, np.clip(r, -1.0, 1.0))

    def log_e(self, features: Ints | None = None) -> Floats:
        """[features, M] log e-value of "unrelated"."""
        if features is None:
            return log_evidence(self.tilt, self.cost)
        return log_evidence(self.tilt[features], self.cost[:, features])

    def merge(self, other: Betting) -> None:
        """Multiply the wealths: bets on other episodes."""
        self.tilt += other.tilt
        self.square += other.square
        self.cost += other.cost
        self.played += other.played

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        return 2 * self.tilt.nbytes + self.cost.nbytes + self.played.nbytes

    def arrays(self) -> dict[str, NDArray[Any]]:
        """State as named arrays."""
        return {"tilt": self.tilt, "square": self.square, "cost": self.cost, "played": self.played}

    def load(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Inverse of :meth:`arrays`."""
        self.tilt[:] = arrays["tilt"]
        self.square[:] = arrays["square"]
        self.cost[:] = arrays["cost"]
        self.played[:] = arrays["played"]
