"""The port of every device that encodes: weights once, then rows in and sparse rows out.

Plain arrays on both sides: a backend knows neither transcoder files nor messages, so the same suite
of tests holds all of them to the same answers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from interlatent_live.errors import MismatchError, UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class EncoderWeights:
    """What encoding needs of a transcoder; exactly one of ``threshold`` and ``k`` is given.

    With a threshold (JumpReLU, BatchTopK, Matryoshka, and ReLU as threshold 0) feature j of a row
    is on where ``x W_enc + b_enc > threshold[j]``. With ``k`` (TopK) the k largest positive
    pre-activations of a row are on, ties going to the lower index. Either way the value of a
    feature that is on is its pre-activation.

    Raises:
        UserError: when shapes disagree, a number is not finite, a threshold is negative, or both or
            neither of ``threshold`` and ``k`` are given.
    """

    W_enc: NDArray[np.float32]
    """[d_in, F]."""
    b_enc: NDArray[np.float32]
    """[F]."""
    threshold: NDArray[np.float32] | None = None
    """[F], or [1] when all features share one."""
    k: int | None = None

    def __post_init__(self) -> None:
        if self.W_enc.ndim != 2 or 0 in self.W_enc.shape:
            raise UserError(f"W_enc has shape {self.W_enc.shape}; [d_in, F] was expected")
        if self.b_enc.shape != (self.n_features,):
            raise UserError(
                f"b_enc has shape {self.b_enc.shape}; ({self.n_features},) was expected"
            )
        if (self.threshold is None) == (self.k is None):
            raise UserError("an encoder selects by threshold or by k: give exactly one of them")
        if self.k is not None and not 1 <= self.k <= self.n_features:
            raise UserError(f"k is {self.k}; it must lie between 1 and {self.n_features}")
        arrays = [self.W_enc, self.b_enc]
        if self.threshold is not None:
            if self.threshold.shape not in {(1,), (self.n_features,)}:
                raise UserError(
                    f"threshold has shape {self.threshold.shape}; [{self.n_features}] was expected"
                )
            if (self.threshold < 0).any():
                raise UserError("a threshold is negative; a feature that is on must be > 0")
            arrays.append(self.threshold)
        if not all(np.isfinite(array).all() for array in arrays):
            raise UserError("encoder weights hold values that are not finite")

    @property
    def d_in(self) -> int:
        """Width of a row of activations."""
        return len(self.W_enc)

    @property
    def n_features(self) -> int:
        """Number of features F."""
        return int(self.W_enc.shape[1])

    @property
    def n_bytes(self) -> int:
        """Bytes of the arrays as float32."""
        thresholds = 0 if self.threshold is None else self.threshold.size
        return 4 * (self.W_enc.size + self.b_enc.size + thresholds)


@dataclass(frozen=True, slots=True, eq=False)
class EncodedRows:
    """Feature activations of n rows in compressed sparse rows; every value is > 0."""

    indptr: NDArray[np.uint32]
    """[n + 1]; row i is ``index[indptr[i]:indptr[i + 1]]``."""
    index: NDArray[np.uint32]
    """[nnz], ascending within a row."""
    value: NDArray[np.float32]
    """[nnz]."""

    def __len__(self) -> int:
        return len(self.indptr) - 1

    def rows(self, start: int, stop: int) -> EncodedRows:
        """Rows ``start:stop``; index and value are views."""
        first, last = self.indptr[start], self.indptr[stop]
        return EncodedRows(
            self.indptr[start : stop + 1] - first, self.index[first:last], self.value[first:last]
        )

    @staticmethod
    def concatenate(parts: Sequence[EncodedRows]) -> EncodedRows:
        """All rows of ``parts`` in order; of no parts, no rows."""
        if len(parts) == 1:
            return parts[0]
        starts = np.cumsum([0, *(len(part.index) for part in parts)], dtype=np.uint32)
        indptr = [part.indptr[1:] + start for part, start in zip(parts, starts, strict=False)]
        return EncodedRows(
            np.concatenate([np.zeros(1, np.uint32), *indptr]),
            np.concatenate([np.zeros(0, np.uint32), *(part.index for part in parts)]),
            np.concatenate([np.zeros(0, np.float32), *(part.value for part in parts)]),
        )


class PendingRows(Protocol):
    """Rows that were handed to a device."""

    def done(self) -> bool:
        """Whether :meth:`result` would return at once."""
        ...

    def result(self) -> EncodedRows:
        """Wait, and return the rows; the arrays belong to the caller. May be called again."""
        ...


class Encoder(Protocol):
    """One transcoder's weights, ready on a device. Used from one thread."""

    @property
    def d_in(self) -> int:
        """Width of a row of activations."""
        ...

    @property
    def n_features(self) -> int:
        """Number of features F."""
        ...

    def encode(self, x: NDArray[np.floating]) -> EncodedRows:
        """Features of x [n, d_in], float32 or float16 on the host.

        A pre-activation that is NaN is off.

        Raises:
            MismatchError: when x has another width.
        """
        ...

    def submit(self, x: NDArray[np.floating]) -> PendingRows:
        """Begin :meth:`encode`; x may be changed as soon as this returns.

        A device that works beside the host returns before the rows are ready, so the caller can
        prepare the next batch and send the one before.

        Raises:
            MismatchError: when x has another width.
        """
        ...

    def close(self) -> None:
        """Give the device's memory back; submitted rows are finished first. May be repeated."""
        ...


class EncodeBackend(Protocol):
    """A device that encodes, for any number of transcoders at once."""

    @property
    def name(self) -> str:
        """Short name for logs and metrics, such as ``"cpu"``."""
        ...

    def bytes_of(self, weights: EncoderWeights) -> int:
        """Bytes that the prepared weights take on the device until they are closed."""
        ...

    def prepare(self, weights: EncoderWeights) -> Encoder:
        """Put the weights where the device wants them.

        Raises:
            UserError: when the device cannot hold them, or cannot honour their ``k``.
        """
        ...


@dataclass(frozen=True, slots=True, eq=False)
class FinishedRows:
    """Rows of a device that works at once."""

    rows: EncodedRows

    def done(self) -> bool:
        """True."""
        return True

    def result(self) -> EncodedRows:
        """The rows."""
        return self.rows


def check_rows(x: NDArray[np.floating], d_in: int) -> None:
    """Refuse rows of another width than ``d_in``.

    Raises:
        MismatchError: when x is not [n, d_in].
    """
    if x.ndim != 2 or x.shape[1] != d_in:
        raise MismatchError(
            f"this encoder takes rows of width {d_in}, but the activations have shape {x.shape}; "
            "use the transcoder of this hook point"
        )
