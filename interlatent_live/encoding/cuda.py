"""Encoding on a CUDA device: pinned staging, replayed graphs, several launches in flight.

A launch is one CUDA graph: copy the rows in, product, selection, write the sparse result straight
into pinned host memory. Graphs are captured once per bucket of row counts, so a call costs the host
one copy and one launch. A *slot* is what a launch needs for itself: a stream, a device arena and a
pinned arena. With two slots, one batch is copied and encoded while the result of the other is read;
launches of all encoders share the slots, so device memory is bounded by the configuration
(``slots × workspace_bytes`` + weights) however many transcoders are loaded.

One thread uses a backend and its encoders.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from interlatent_live.encoding.backend import EncodedRows, EncoderWeights, check_rows
from interlatent_live.encoding.launch_plan import (
    LaunchPlan,
    Precision,
    Selection,
    Shape,
    buckets,
    choose_selection,
    largest_bucket,
    plan_launch,
    power_of_two,
)
from interlatent_live.encoding.launches import (
    DeviceWeights,
    Scratch,
    Staging,
    encode_rows,
    pack_rows,
)
from interlatent_live.errors import UserError

if TYPE_CHECKING:
    from numpy.typing import NDArray

ZERO_COPY_BYTES: Final = 16 << 10
"""Rows up to this size are read by the kernel across the bus; a copy of its own costs more."""


class CudaBackend:
    """Encodes on one CUDA device.

    Args:
        device: which, such as ``"cuda"`` or ``"cuda:1"``.
        precision: type of the product's operands. ``float32`` by default: the features of a live
            policy should not depend on the device that encodes them; ``bfloat16`` for throughput.
        max_rows: most rows of one launch; larger batches are cut.
        workspace_bytes: device memory of one slot, for pre-activations and results.
        slots: launches in flight.
        limit_bytes: bound on all device memory taken, weights included; ``None`` for what the
            device has.

    Raises:
        UserError: when there is no such device, or the slots alone exceed the limit.
    """

    def __init__(
        self,
        device: str = "cuda",
        *,
        precision: Precision = Precision.FLOAT32,
        max_rows: int = 1024,
        workspace_bytes: int = 256 << 20,
        slots: int = 2,
        limit_bytes: int | None = None,
    ) -> None:
        if not torch.cuda.is_available():
            raise UserError(f"device {device} was asked for, but torch finds no CUDA device here")
        self.device: Final = torch.device(device)
        self.precision: Final = precision
        self.max_rows: Final = max_rows
        self.limit_bytes: Final = limit_bytes
        self._weight_bytes = 0
        self.host_slot_bytes: Final = max(16 << 20, workspace_bytes // 4)
        if limit_bytes is not None and slots * workspace_bytes > limit_bytes:
            raise UserError(
                f"{slots} slots of {workspace_bytes} bytes exceed the limit of {limit_bytes} bytes "
                "of device memory; lower workspace_bytes or raise the limit"
            )
        self._slots = deque(
            _Slot.open(self.device, workspace_bytes, self.host_slot_bytes) for _ in range(slots)
        )
        self._workspace_bytes = workspace_bytes

    @property
    def name(self) -> str:
        """``"cuda"``."""
        return "cuda"

    @property
    def device_bytes(self) -> int:
        """Device memory taken: arenas and weights."""
        return len(self._slots) * self._workspace_bytes + self._weight_bytes

    def prepare(self, weights: EncoderWeights) -> CudaEncoder:
        """Upload the weights and capture the launches of every bucket.

        Raises:
            UserError: when the device memory limit, the workspace or the selection cannot hold
                this transcoder.
        """
        shape = Shape(weights.d_in, weights.n_features, self.precision)
        selection = choose_selection(shape, weights.k)
        most = self._largest(shape, selection)
        need = shape.padded * (shape.d_in * self.precision.itemsize + 8)
        if self.limit_bytes is not None and self.device_bytes + need > self.limit_bytes:
            raise UserError(
                f"a transcoder of {need} bytes does not fit: {self.device_bytes} of "
                f"{self.limit_bytes} bytes of device memory are taken; unload one or raise the "
                "limit"
            )
        try:
            loaded = DeviceWeights.load(weights, shape, self.device)
        except torch.cuda.OutOfMemoryError as error:
            raise UserError(
                f"the device has no room for a transcoder of {need} bytes; unload one"
            ) from error
        self._weight_bytes += loaded.n_bytes
        encoder = CudaEncoder(self, shape, selection, loaded, most)
        encoder.warm_up()
        return encoder

    def _largest(self, shape: Shape, selection: Selection) -> int:
        return largest_bucket(
            shape,
            selection,
            max_rows=self.max_rows,
            device_bytes=self._workspace_bytes,
            host_bytes=self.host_slot_bytes,
        )

    def _free_slot(self) -> _Slot:
        """The slot that has been busy longest, finished."""
        slot = self._slots[0]
        self._slots.rotate(-1)
        if slot.launch is not None:
            slot.launch.finish()
        return slot

    def _release(self, weights: DeviceWeights) -> None:
        for slot in self._slots:
            if slot.launch is not None:
                slot.launch.finish()
        self._weight_bytes -= weights.n_bytes


@dataclass(slots=True, eq=False)
class _Slot:
    stream: torch.cuda.Stream
    done: torch.cuda.Event
    device_arena: torch.Tensor
    host_arena: torch.Tensor
    launch: _Launch | None = None

    @classmethod
    def open(cls, device: torch.device, device_bytes: int, host_bytes: int) -> _Slot:
        try:
            device_arena = torch.empty(device_bytes, dtype=torch.uint8, device=device)
        except torch.cuda.OutOfMemoryError as error:
            raise UserError(
                f"the device has no room for a workspace of {device_bytes} bytes; lower "
                "workspace_bytes"
            ) from error
        # Unwritten staging is read by the rows that fill up a bucket: any numbers do, NaN is slow.
        host_arena = torch.zeros(host_bytes, dtype=torch.uint8, pin_memory=True)
        return cls(
            torch.cuda.Stream(device),  # type: ignore[no-untyped-call]  # torch leaves it so
            torch.cuda.Event(),  # type: ignore[no-untyped-call]  # likewise
            device_arena,
            host_arena,
        )


@dataclass(frozen=True, slots=True, eq=False)
class _Captured:
    """One plan on one slot: its graph, and its staging as NumPy sees it."""

    graph: torch.cuda.CUDAGraph
    x: NDArray[np.float32]
    count: NDArray[np.int32]
    indptr: NDArray[np.uint32]
    index: NDArray[np.uint32]
    value: NDArray[np.float32]


@dataclass(slots=True, eq=False)
class _Launch:
    """Rows in flight on a slot; :meth:`finish` takes them off it."""

    encoder: CudaEncoder
    slot: _Slot
    captured: _Captured
    rows: int
    capacity: int
    result: EncodedRows | None = None

    def finish(self) -> EncodedRows:
        if self.result is None:
            self.slot.done.synchronize()
            self.result = self._read()
            self.slot.launch = None
        return self.result

    def _read(self) -> EncodedRows:
        captured = self.captured
        fullest = int(captured.count[: self.rows].max())
        if fullest > self.capacity:
            return self.encoder.encode_with_more_room(
                captured.x[: self.rows].copy(), fullest, self.slot
            )
        indptr = captured.indptr[: self.rows + 1].copy()
        total = int(indptr[-1])
        return EncodedRows(indptr, captured.index[:total].copy(), captured.value[:total].copy())


@dataclass(slots=True, eq=False)
class CudaPending:
    """Rows on the device, in one or more launches."""

    launches: list[_Launch]
    _rows: EncodedRows | None = None

    def done(self) -> bool:
        """Whether :meth:`result` would return at once."""
        return all(
            launch.result is not None or bool(launch.slot.done.query())  # type: ignore[no-untyped-call]  # torch leaves it so
            for launch in self.launches
        )

    def result(self) -> EncodedRows:
        """Wait, and return the rows."""
        if self._rows is None:
            self._rows = EncodedRows.concatenate([launch.finish() for launch in self.launches])
            self.launches = []
        return self._rows


@dataclass(slots=True, eq=False)
class CudaEncoder:
    """One transcoder's weights on the device. ``grown`` counts batches that needed more room."""

    backend: CudaBackend
    shape: Shape
    selection: Selection
    weights: DeviceWeights | None
    max_rows: int
    grown: int = 0
    _captured: dict[tuple[int, int], _Captured] = field(default_factory=dict)

    @property
    def d_in(self) -> int:
        """Width of a row of activations."""
        return self.shape.d_in

    @property
    def n_features(self) -> int:
        """Number of features F."""
        return self.shape.n_features

    def encode(self, x: NDArray[np.floating]) -> EncodedRows:
        """Features of x [n, d_in].

        Raises:
            MismatchError: when x has another width.
        """
        return self.submit(x).result()

    def submit(self, x: NDArray[np.floating]) -> CudaPending:
        """Begin to encode x [n, d_in]; waits only when every slot is busy.

        Raises:
            MismatchError: when x has another width.
        """
        check_rows(x, self.d_in)
        launches = [
            self._launch(x[start : start + self.max_rows])
            for start in range(0, len(x), self.max_rows)
        ]
        return CudaPending(launches)

    def close(self) -> None:
        """Give the weights' memory back, after what is in flight."""
        if self.weights is not None:
            self.backend._release(self.weights)  # noqa: SLF001  # one room, one owner
            self._captured.clear()
            self.weights = None

    def warm_up(self) -> None:
        """Compile the kernels and capture the launches of every bucket on every slot."""
        for slot in self.backend._slots:  # noqa: SLF001  # one room, one owner
            if slot.launch is not None:
                slot.launch.finish()
            for rows in buckets(self.max_rows):
                self._graph(slot, rows)

    def encode_with_more_room(
        self, x: NDArray[np.float32], fullest: int, slot: _Slot
    ) -> EncodedRows:
        """Encode rows again that had more features on than there was room for; remember the room.

        The results are the same numbers: only the room differs.
        """
        self.grown += 1
        room = min(power_of_two(fullest), self.shape.n_features)
        if room > self.selection.capacity:
            selection = choose_selection(self.shape, None, room)
            self.max_rows = self.backend._largest(self.shape, selection)  # noqa: SLF001
            self.selection = selection
            self._captured.clear()
        parts = []
        for start in range(0, len(x), self.max_rows):
            launch = self._start(slot, x[start : start + self.max_rows])
            parts.append(launch.finish())
        return EncodedRows.concatenate(parts)

    def _launch(self, x: NDArray[np.floating]) -> _Launch:
        slot = self.backend._free_slot()  # noqa: SLF001  # one room, one owner
        launch = self._start(slot, x)
        slot.launch = launch
        return launch

    def _start(self, slot: _Slot, x: NDArray[np.floating]) -> _Launch:
        rows = next(size for size in buckets(self.max_rows) if size >= len(x))
        captured = self._graph(slot, rows)
        np.copyto(captured.x[: len(x)], x, casting="same_kind")
        with torch.cuda.stream(slot.stream):
            captured.graph.replay()
            slot.done.record()
        return _Launch(self, slot, captured, len(x), self.selection.capacity)

    def _graph(self, slot: _Slot, rows: int) -> _Captured:
        key = (id(slot), rows)
        captured = self._captured.get(key)
        if captured is None:
            captured = self._captured[key] = self._capture(slot, rows)
        return captured

    def _capture(self, slot: _Slot, rows: int) -> _Captured:
        if self.weights is None:
            raise UserError("this encoder was closed; prepare the transcoder again")
        plan = plan_launch(self.shape, rows, self.selection)
        scratch = Scratch.carve(slot.device_arena, plan)
        staging = Staging.carve(slot.host_arena, plan)
        with torch.cuda.stream(slot.stream):
            issue(plan, self.weights, scratch, staging)  # compiles what is new
        slot.stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        # Thread-local: other threads of the process may use the device meanwhile.
        with torch.cuda.graph(graph, stream=slot.stream, capture_error_mode="thread_local"):
            issue(plan, self.weights, scratch, staging)
        return _Captured(
            graph,
            staging.x.numpy(),
            staging.count.numpy(),
            staging.indptr.numpy().view(np.uint32),
            staging.index.numpy().view(np.uint32),
            staging.value.numpy(),
        )


def issue(plan: LaunchPlan, weights: DeviceWeights, scratch: Scratch, staging: Staging) -> None:
    """Everything from staged rows to the staged result, on the current stream."""
    x = staging.x
    if x.numel() * x.element_size() > ZERO_COPY_BYTES:
        scratch.x.copy_(x, non_blocking=True)
        x = scratch.x
        if plan.cast_first:
            scratch.x_cast.copy_(x)
            x = scratch.x_cast
    encode_rows(plan, weights, x, scratch)
    pack_rows(plan, scratch, staging)
