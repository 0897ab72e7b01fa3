"""From what a hook point saw to sparse codes: a transcoder's side of :mod:`encoding`.

The device knows weights and rows. What only the transcoder knows is added here: which tensors those
weights are, which widths belong to it, and how well it reconstructs the rows whose output was
sampled, which costs O(active features) on the host.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from interlatent_live.encoding.backend import EncoderWeights
from interlatent_live.encoding.cpu import CpuBackend
from interlatent_live.errors import MismatchError
from interlatent_live.stream import Activations, SparseCodes
from interlatent_live.transcoders.config import Architecture, Target
from interlatent_live.transcoders.transcoder import SparseRows

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from interlatent_live.encoding.backend import EncodedRows, Encoder
    from interlatent_live.transcoders.transcoder import Transcoder


def weights_of(transcoder: Transcoder) -> EncoderWeights:
    """What encoding needs of a transcoder, on the host as float32; views where that is possible."""

    def host(name: str) -> NDArray[np.float32]:
        tensor = transcoder.tensors()[name]
        return np.asarray(tensor.detach().cpu().float().numpy(), np.float32)

    config = transcoder.config
    if config.architecture is Architecture.TOPK:
        return EncoderWeights(host("W_enc"), host("b_enc"), k=config.k)
    threshold = host("threshold") if config.thresholded else np.zeros(1, np.float32)
    return EncoderWeights(host("W_enc"), host("b_enc"), threshold=threshold)


def encode_activations(
    transcoder: Transcoder, activations: Activations, encoder: Encoder | None = None
) -> SparseCodes:
    """Sparse features of what one hook point saw.

    Args:
        transcoder: encodes x [n, d_in].
        activations: x, and y of the sampled rows.
        encoder: the transcoder's weights on a device. Without it they are prepared on the CPU for
            this one call, which reads all of them: whoever encodes more than once prepares first.

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
    if encoder is None:
        encoder = CpuBackend().prepare(weights_of(transcoder))
    rows = encoder.encode(activations.x)
    error, error_affine = _errors(transcoder, rows, activations)
    return SparseCodes(
        n_features=config.n_features,
        indptr=rows.indptr,
        index=rows.index,
        value=rows.value,
        error=error,
        error_affine=error_affine,
    )


def _errors(
    transcoder: Transcoder, rows: EncodedRows, activations: Activations
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Live errors as :class:`interlatent_live.stream.SparseCodes` defines them."""
    x = activations.x
    error = np.full(len(x), np.nan, np.float32)
    error_affine = np.full(len(x), np.nan, np.float32)
    baselines = transcoder.baselines
    if baselines is None:
        return error, error_affine
    y, sampled = reconstruction_target(transcoder, activations)
    if not len(sampled):
        return error, error_affine
    scale = np.float32(1.0 / baselines.y_variance)
    sparse = SparseRows(rows.indptr, rows.index, rows.value)
    residual = y - transcoder.decode_sparse(sparse, x, sampled)
    error[sampled] = np.einsum("ij,ij->i", residual, residual) * scale
    affine = np.asarray(x[sampled], np.float32) @ baselines.affine_weight.detach().cpu().numpy()
    affine += baselines.affine_bias.detach().cpu().numpy()
    affine -= y
    error_affine[sampled] = np.einsum("ij,ij->i", affine, affine) * scale
    return error, error_affine


def reconstruction_target(
    transcoder: Transcoder, activations: Activations
) -> tuple[NDArray[np.float32], NDArray[np.intp]]:
    """What the transcoder should reconstruct, float32 [m, d_out], and its row numbers [m].

    For a sparse autoencoder (``target = input``) that is x itself, known for every row.
    """
    if transcoder.config.target is Target.INPUT:
        return np.asarray(activations.x, np.float32), np.arange(len(activations.x))
    return np.asarray(activations.y, np.float32), activations.y_rows.astype(np.intp)
