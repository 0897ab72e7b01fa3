"""Which device encodes, and how transcoders reach it.

:class:`DeviceBackend` is what :func:`interlatent_live.transcoders.encoding.encode_activations`
takes: it keeps each transcoder's weights prepared on a device, and adds the live errors, which cost
O(active features) on the host.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Final

import numpy as np

from interlatent_live.encoding.backend import EncoderWeights
from interlatent_live.encoding.cpu import CpuBackend
from interlatent_live.errors import UserError
from interlatent_live.stream import SparseCodes
from interlatent_live.transcoders.config import Architecture
from interlatent_live.transcoders.encoding import reconstruction_target
from interlatent_live.transcoders.transcoder import SparseRows

if TYPE_CHECKING:
    from interlatent_live.encoding.backend import EncodeBackend, EncodedRows, Encoder
    from interlatent_live.stream import Activations
    from interlatent_live.transcoders.transcoder import Transcoder

DEVICES: Final = ("auto", "cpu", "cuda")


def open_device(device: str = "auto", *, limit_bytes: int | None = None) -> EncodeBackend:
    """The backend of a device; ``auto`` is CUDA where it can compile kernels, else the CPU.

    Args:
        device: one of :data:`DEVICES`, or a CUDA device such as ``"cuda:1"``.
        limit_bytes: bound on the device memory taken; CUDA only.

    Raises:
        UserError: when the device is unknown or not there.
    """
    if device == "cpu":
        return CpuBackend()
    if device not in DEVICES and not device.startswith("cuda:"):
        raise UserError(f"unknown device {device!r}; choose one of {', '.join(DEVICES)}")
    try:
        from interlatent_live.encoding.cuda import CudaBackend  # noqa: PLC0415 - needs Triton
    except ImportError as error:
        if device == "auto":
            return CpuBackend()
        raise UserError(
            f"device {device} needs Triton, which CUDA builds of torch bring along: {error}"
        ) from error
    try:
        return CudaBackend("cuda" if device == "auto" else device, limit_bytes=limit_bytes)
    except UserError:
        if device == "auto":
            return CpuBackend()
        raise


def weights_of(transcoder: Transcoder) -> EncoderWeights:
    """What encoding needs of a transcoder, on the host as float32."""

    def host(name: str) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        tensor = transcoder.tensors()[name]
        return np.asarray(tensor.detach().cpu().float().numpy(), np.float32)

    config = transcoder.config
    if config.architecture is Architecture.TOPK:
        return EncoderWeights(host("W_enc"), host("b_enc"), k=config.k)
    threshold = host("threshold") if config.thresholded else np.zeros(1, np.float32)
    return EncoderWeights(host("W_enc"), host("b_enc"), threshold=threshold)


class DeviceBackend:
    """Encodes transcoders on a device; keeps the ``most`` used last prepared, closes the rest."""

    def __init__(self, device: EncodeBackend, *, most: int = 64) -> None:
        self._device = device
        self._most = most
        self._prepared: OrderedDict[str, Encoder] = OrderedDict()

    @property
    def name(self) -> str:
        """The device's name."""
        return self._device.name

    def encode(self, transcoder: Transcoder, activations: Activations) -> SparseCodes:
        """Codes of n rows, with the errors of the rows whose y was sampled.

        Raises:
            UserError: when the device cannot hold the transcoder.
        """
        rows = self.prepare(transcoder).encode(activations.x)
        error, error_affine = _errors(transcoder, rows, activations)
        return SparseCodes(
            n_features=transcoder.config.n_features,
            indptr=rows.indptr,
            index=rows.index,
            value=rows.value,
            error=error,
            error_affine=error_affine,
        )

    def prepare(self, transcoder: Transcoder) -> Encoder:
        """The transcoder's encoder; prepared now if it was not, as before a hot reload.

        Raises:
            UserError: when the device cannot hold the transcoder.
        """
        identity = transcoder.identity
        encoder = self._prepared.get(identity)
        if encoder is None:
            if len(self._prepared) >= self._most:
                self._prepared.popitem(last=False)[1].close()
            encoder = self._prepared[identity] = self._device.prepare(weights_of(transcoder))
        else:
            self._prepared.move_to_end(identity)
        return encoder

    def release(self, identity: str) -> None:
        """Give back the memory of a transcoder that is no longer served."""
        encoder = self._prepared.pop(identity, None)
        if encoder is not None:
            encoder.close()


def _errors(
    transcoder: Transcoder, rows: EncodedRows, activations: Activations
) -> tuple[
    np.ndarray[tuple[int, ...], np.dtype[np.float32]],
    np.ndarray[tuple[int, ...], np.dtype[np.float32]],
]:
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
