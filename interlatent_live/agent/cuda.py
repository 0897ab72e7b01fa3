"""Copies from a CUDA policy to the ring without the policy's thread ever waiting for the device.

A hook copies x and y into a staging slot on the policy's own stream, so that later in-place work
cannot touch them; at the step, a side stream waits for that (on the device) and moves the slot into
the ring's pinned memory, which the sender reads once an event says that the copy has landed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from interlatent_live.agent.acting import Gate, Point

STAGES: Final = 8
"""Steps whose copies may be under way at once before the device (not the thread) waits for one."""


class CudaLane:
    """One tap's way from a device to the host; only :meth:`ready` is for the sender thread.

    ``nbytes`` counts the device memory of the staging slots.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call] # torch's
        self._staged = [torch.cuda.Event() for _ in range(STAGES)]  # type: ignore[no-untyped-call] # torch's
        self._landed = [torch.cuda.Event() for _ in range(STAGES)]  # type: ignore[no-untyped-call] # torch's
        self._used = [False] * STAGES
        self._slots: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        self._columns: dict[int, torch.Tensor] = {}
        self._waiting: dict[str, tuple[Point, bool]] = {}
        self._index: torch.Tensor | None = None
        self._stream: torch.cuda.Stream | None = None
        self.nbytes = 0

    def allocate(self, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """A ring column in pinned memory, float32."""
        column = torch.zeros(shape, dtype=torch.float32, pin_memory=True)
        array: NDArray[np.float32] = column.numpy()
        self._columns[array.ctypes.data] = column
        return array

    def stage(self, point: Point, gate: Gate, x: torch.Tensor, y: torch.Tensor | None) -> None:
        """Keep x [envs, d_in] and y [envs, d_out] of the forward, in stream order, as float32."""
        if point.d_in is None or point.d_out is None:
            return
        k = gate.block % STAGES
        stream = torch.cuda.current_stream(self._device)
        self._stream = stream
        if self._used[k]:
            stream.wait_event(self._landed[k])
        slots = self._slots.get(point.name)
        if slots is None:
            rows = gate.envs if gate.index is None else len(gate.index)
            slots = (
                torch.empty((STAGES, rows, point.d_in), device=self._device),
                torch.empty((STAGES, rows, point.d_out), device=self._device),
            )
            self._slots[point.name] = slots
            self.nbytes += 4 * STAGES * rows * (point.d_in + point.d_out)
        self._copy(slots[0][k], x, gate)
        if y is not None:
            self._copy(slots[1][k], y, gate)
        self._waiting[point.name] = (point, y is not None)
        point.fired = gate.block

    def _copy(self, to: torch.Tensor, source: torch.Tensor, gate: Gate) -> None:
        rows = source.detach().reshape(gate.envs, -1)
        if gate.index is not None:
            if self._index is None:
                self._index = torch.from_numpy(gate.index).to(self._device)
            rows = rows.index_select(0, self._index)
        to.copy_(rows)

    def flush(self, gate: Gate) -> None:
        """Send what was staged for the block under construction on its way to the ring."""
        if not self._waiting or gate.ring is None or self._stream is None:
            return
        k = gate.block % STAGES
        self._staged[k].record(self._stream)
        with torch.cuda.stream(self._side):
            self._side.wait_event(self._staged[k])
            for point, has_y in self._waiting.values():
                if point.x is None:
                    continue
                xs, ys = self._slots[point.name]
                to = self._columns[point.x.ctypes.data][gate.slot]
                to.copy_(xs[k], non_blocking=True)
                if has_y and point.y is not None:
                    to = self._columns[point.y.ctypes.data][gate.ring.y_slot(gate.block)]
                    to.copy_(ys[k], non_blocking=True)
            self._landed[k].record(self._side)
        self._used[k] = True
        self._waiting.clear()

    def ready(self, block: int) -> bool:
        """Whether the block's copies have landed; asked by the sender thread, never waits.

        The event may already stand for a block a few laps later; copies land in order, so that only
        makes the answer later, never wrong.
        """
        k = block % STAGES
        return not self._used[k] or bool(
            self._landed[k].query()  # type: ignore[no-untyped-call] # torch's
        )
