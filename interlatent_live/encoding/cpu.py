"""Encoding on one CPU thread, with NumPy alone.

The product is the machine's; what can be saved is the selection. Peers call ``torch.topk`` on every
pre-activation, which costs as much as the product at small widths. Here a bound comes first: cut a
row into disjoint groups and take the maximum of each; the k-th largest maximum is a lower bound on
the k-th largest entry, because k groups each hold an entry at least that large. One vectorised pass
for the maxima and one compare leave little more than k candidates per row, and the exact choice is
made among those. Rows are taken in blocks whose pre-activations stay in cache.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from interlatent_live.encoding.backend import (
    EncodedRows,
    EncoderWeights,
    FinishedRows,
    check_rows,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

BLOCK_BYTES: Final = 16 << 20
"""Pre-activations of one block of rows; larger blocks only raise the memory needed."""
SMALL: Final = 1 << 17
"""Pre-activations up to which the bound is found by partitioning all of them."""
TINY: Final = np.nextafter(np.float32(0), np.float32(1))
"""The smallest positive float32: ``p >= TINY`` is ``p > 0``."""


class CpuBackend:
    """Encodes on the calling thread."""

    @property
    def name(self) -> str:
        """``"cpu"``."""
        return "cpu"

    def bytes_of(self, weights: EncoderWeights) -> int:
        """Bytes of the weights, whether or not they are shared with whoever gave them."""
        return weights.n_bytes

    def prepare(self, weights: EncoderWeights) -> CpuEncoder:
        """Lay the weights out for row-major products."""
        return CpuEncoder(weights)


class CpuEncoder:
    """One transcoder's weights on the host."""

    def __init__(self, weights: EncoderWeights) -> None:
        self._W_enc = np.ascontiguousarray(weights.W_enc, np.float32)
        self._b_enc = np.ascontiguousarray(weights.b_enc, np.float32)
        self._k = weights.k
        threshold = weights.threshold
        if threshold is not None and len(threshold) > 1 and (threshold == threshold[0]).all():
            threshold = threshold[:1]  # comparing with a scalar reads half as much
        self._threshold = threshold
        self._block_rows = max(1, BLOCK_BYTES // (4 * weights.n_features))

    @property
    def d_in(self) -> int:
        """Width of a row of activations."""
        return len(self._W_enc)

    @property
    def n_features(self) -> int:
        """Number of features F."""
        return len(self._b_enc)

    def encode(self, x: NDArray[np.floating]) -> EncodedRows:
        """Features of x [n, d_in].

        Raises:
            MismatchError: when x has another width.
        """
        check_rows(x, self.d_in)
        rows = self._block_rows
        if len(x) <= rows:
            return self._encode_block(x)
        return EncodedRows.concatenate(
            [self._encode_block(x[start : start + rows]) for start in range(0, len(x), rows)]
        )

    def submit(self, x: NDArray[np.floating]) -> FinishedRows:
        """Encode now; there is no device to wait for.

        Raises:
            MismatchError: when x has another width.
        """
        return FinishedRows(self.encode(x))

    def close(self) -> None:
        """Nothing is held outside this object."""

    def _encode_block(self, x: NDArray[np.floating]) -> EncodedRows:
        pre = np.matmul(x.astype(np.float32, copy=False), self._W_enc)
        pre += self._b_enc
        if self._k is None:
            return _compress(pre, pre > self._threshold)
        bound = top_k_bound(pre, self._k)
        np.fmax(bound, TINY, out=bound)  # fmax: a NaN bound, from a row of NaN, finds no more
        rows = _compress(pre, pre >= bound[:, None])
        return _trim(rows, self._k)


def top_k_bound(pre: NDArray[np.float32], k: int) -> NDArray[np.float32]:
    """Lower bound [n] on the k-th largest entry of each row of pre [n, F], 1 ≤ k ≤ F.

    For few pre-activations it is the k-th largest entry itself: choosing among candidates would
    cost more than partitioning all of them.
    """
    n_features = pre.shape[1]
    if pre.size <= SMALL or n_features < 4 * 4 * k:
        return np.partition(pre, n_features - k, axis=1)[:, n_features - k].copy()
    return grouped_bound(pre, k, groups=4 * k)


def grouped_bound(pre: NDArray[np.float32], k: int, groups: int) -> NDArray[np.float32]:
    """The k-th largest of the maxima of ``groups`` ≥ k disjoint groups of each row: a lower bound.

    Group g holds the columns g, g + groups, …, so that the maxima are taken over whole vectors.
    """
    n, n_features = pre.shape
    size = n_features // groups
    maxima: NDArray[np.float32] = pre[:, : groups * size].reshape(n, size, groups).max(axis=1)
    maxima.partition(groups - k, axis=1)
    bound: NDArray[np.float32] = maxima[:, groups - k].copy()
    return bound


def _compress(pre: NDArray[np.float32], on: NDArray[np.bool_]) -> EncodedRows:
    n, n_features = pre.shape
    flat = np.flatnonzero(on)
    value = pre.ravel()[flat]
    if n == 1:
        return EncodedRows(np.array([0, len(flat)], np.uint32), flat.astype(np.uint32), value)
    indptr = np.searchsorted(flat, np.arange(0, (n + 1) * n_features, n_features))
    flat -= np.repeat(np.arange(0, n * n_features, n_features), np.diff(indptr))
    return EncodedRows(indptr.astype(np.uint32), flat.astype(np.uint32), value)


def _trim(rows: EncodedRows, k: int) -> EncodedRows:
    """Keep the k largest of each row, ties going to the lower index."""
    counts = np.diff(rows.indptr)
    if not len(counts) or counts.max() <= k:
        return rows
    long = np.flatnonzero(counts > k)
    start = rows.indptr[long].astype(np.intp)
    count = counts[long].astype(np.intp)
    column = np.arange(count.max())
    inside = column < count[:, None]
    entry = start[:, None] + column
    padded = np.where(inside, rows.value[np.where(inside, entry, 0)], np.float32(0))
    kth = np.partition(padded, len(column) - k, axis=1)[:, len(column) - k, None]
    above = padded > kth
    tied = padded == kth
    room = k - above.sum(axis=1)
    keep = np.ones(len(rows.value), np.bool_)
    chosen = above | (tied & (tied.cumsum(axis=1) <= room[:, None]))
    keep[entry[inside & ~chosen]] = False
    counts[long] = k
    indptr = np.zeros(len(rows.indptr), np.uint32)
    np.cumsum(counts, out=indptr[1:])
    return EncodedRows(indptr, rows.index[keep], rows.value[keep])
