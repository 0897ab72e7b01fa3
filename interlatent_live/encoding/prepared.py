"""Weights that are ready on a device, bounded in bytes.

A service may see many transcoders in its life: one per policy, hook point and version. What it
keeps on the device is bounded; the one used longest ago makes room and is prepared again if its
rows come back.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from interlatent_live.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable

    from interlatent_live.encoding.backend import EncodeBackend, Encoder, EncoderWeights


class PreparedEncoders:
    """Encoders by transcoder identity, at most ``limit_bytes`` of them. Used from one thread.

    Args:
        device: where they are prepared.
        limit_bytes: bound on what :meth:`~.EncodeBackend.bytes_of` says of all of them.
    """

    def __init__(self, device: EncodeBackend, *, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.n_bytes = 0
        """Bytes of the encoders that are ready."""
        self.evicted = 0
        """How often one had to make room."""
        self._device = device
        self._ready: OrderedDict[str, tuple[Encoder, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._ready)

    @property
    def device(self) -> str:
        """The device's name."""
        return self._device.name

    def get(self, identity: str, weights: Callable[[], EncoderWeights]) -> Encoder:
        """The encoder of ``identity``, prepared now from ``weights()`` if it is not ready.

        Raises:
            UserError: when it alone exceeds the limit, or the device cannot hold it.
        """
        known = self._ready.get(identity)
        if known is not None:
            self._ready.move_to_end(identity)
            return known[0]
        given = weights()
        size = self._device.bytes_of(given)
        if size > self.limit_bytes:
            raise UserError(
                f"transcoder {identity} takes {size} bytes on the device {self.device}, more than "
                f"the {self.limit_bytes} that encoder.weight_bytes allows; raise it"
            )
        while self.n_bytes + size > self.limit_bytes:
            self.release(next(iter(self._ready)))
            self.evicted += 1
        encoder = self._device.prepare(given)
        self._ready[identity] = (encoder, size)
        self.n_bytes += size
        return encoder

    def release(self, identity: str) -> None:
        """Give back the memory of one that is no longer served; nothing if it is not ready."""
        known = self._ready.pop(identity, None)
        if known is not None:
            known[0].close()
            self.n_bytes -= known[1]

    def close(self) -> None:
        """Give back everything."""
        for identity in [*self._ready]:
            self.release(identity)
