"""From raw activations to sparse codes, behind one port that CPU and GPU adapters share.

The encoder service calls :func:`encode_activations` and never asks which device does the work.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np

from interlatent_live.errors import MismatchError
from interlatent_live.stream import Activations, SparseCodes
from interlatent_live.transcoders.config import Target

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from interlatent_live.transcoders.transcoder import Transcoder


class EncodeBackend(Protocol):
    """A device that encodes. Adapters may keep prepared weights per transcoder identity."""

    @property
    def name(self) -> str:
        """Short name for logs and metrics, such as ``"cpu"``."""
        ...

    def encode(self, transcoder: Transcoder, activations: Activations) -> SparseCodes:
        """Codes of n rows; shapes were checked by :func:`encode_activations`."""
        ...


class CpuBackend:
    """NumPy on the host: product, compare, nonzero."""

    @property
    def name(self) -> str:
        """``"cpu"``."""
        return "cpu"

    def encode(self, transcoder: Transcoder, activations: Activations) -> SparseCodes:
        """Codes of n rows, with the errors of the rows whose y was sampled."""
        x = activations.x
        codes = transcoder.encode_sparse(x)
        error = np.full(len(x), np.nan, np.float32)
        error_affine = np.full(len(x), np.nan, np.float32)
        baselines = transcoder.baselines
        if baselines is not None:
            y, rows = reconstruction_target(transcoder, activations)
            if len(rows):
                scale = np.float32(1.0 / baselines.y_variance)
                residual = y - transcoder.decode_sparse(codes, x, rows)
                error[rows] = np.einsum("ij,ij->i", residual, residual) * scale
                weight = baselines.affine_weight.detach().numpy()
                residual = np.asarray(x[rows], np.float32) @ weight
                residual += baselines.affine_bias.detach().numpy()
                residual -= y
                error_affine[rows] = np.einsum("ij,ij->i", residual, residual) * scale
        return SparseCodes(
            n_features=transcoder.config.n_features,
            indptr=codes.indptr,
            index=codes.index,
            value=codes.value,
            error=error,
            error_affine=error_affine,
        )


_CPU = CpuBackend()


def encode_activations(
    transcoder: Transcoder, activations: Activations, backend: EncodeBackend | None = None
) -> SparseCodes:
    """Sparse features of what one hook point saw.

    Args:
        transcoder: encodes x [n, d_in].
        activations: x, and y of the sampled rows.
        backend: the device; the CPU unless said.

    Returns:
        Codes of the n rows. ``error`` is NaN where y was not sampled or the transcoder carries no
        baselines (its training variance is unknown).

    Raises:
        MismatchError: when the widths differ from the transcoder's.
    """
    config = transcoder.config
    if activations.x.ndim != 2 or activations.x.shape[1] != config.d_in:
        raise MismatchError(
            f"transcoder {transcoder.identity} takes inputs of width {config.d_in}, but the "
            f"activations have shape {activations.x.shape}; use the transcoder of this hook point"
        )
    if config.target is Target.OUTPUT and (
        activations.y.ndim != 2 or activations.y.shape != (len(activations.y_rows), config.d_out)
    ):
        raise MismatchError(
            f"transcoder {transcoder.identity} reconstructs outputs of width {config.d_out}, but "
            f"the sampled outputs have shape {activations.y.shape} for "
            f"{len(activations.y_rows)} rows; use the transcoder of this hook point"
        )
    return (backend or _CPU).encode(transcoder, activations)


def reconstruction_target(
    transcoder: Transcoder, activations: Activations
) -> tuple[NDArray[np.float32], NDArray[np.intp]]:
    """What the transcoder should reconstruct, float32 [m, d_out], and its row numbers [m].

    For a sparse autoencoder (``target = input``) that is x itself, known for every row.
    """
    if transcoder.config.target is Target.INPUT:
        return np.asarray(activations.x, np.float32), np.arange(len(activations.x))
    return np.asarray(activations.y, np.float32), activations.y_rows.astype(np.intp)
