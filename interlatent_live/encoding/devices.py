"""Which device encodes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from interlatent_live.encoding.cpu import CpuBackend
from interlatent_live.errors import UserError

if TYPE_CHECKING:
    from interlatent_live.encoding.backend import EncodeBackend

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
        return _cuda(device, limit_bytes)
    except UserError:
        if device == "auto":
            return CpuBackend()
        raise


def _cuda(device: str, limit_bytes: int | None) -> EncodeBackend:
    """CUDA, or one sentence why not.

    Raises:
        UserError: when torch finds no such device, or cannot compile for it.
    """
    import torch  # noqa: PLC0415 - the CPU needs none

    if not torch.cuda.is_available():
        raise UserError(
            f"device {device} was asked for, but torch {torch.__version__} finds no CUDA device "
            "here; install a CUDA build of torch, or choose auto or cpu"
        )
    try:
        from interlatent_live.encoding.cuda import CudaBackend  # noqa: PLC0415 - needs Triton
    except ImportError as error:
        raise UserError(
            f"device {device} needs Triton, which CUDA builds of torch bring along: {error}"
        ) from error
    return CudaBackend("cuda" if device == "auto" else device, limit_bytes=limit_bytes)
