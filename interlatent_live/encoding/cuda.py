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
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
import torch

from interlatent_live.encoding.backend import EncodedRows, EncoderWeights, check_rows
from interlatent_live.encoding.launch_plan import (
    LaunchPlan,
    Precision,
    Selection,
    Shape,
    Way,
    buckets,
    choose_selection,
    largest_bucket,
    may_mark,
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
from interlatent_live.encoding.lower_bound import LowerBound
from interlatent_live.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

BOUND_STEP: Final = 0.02
"""Relative change of the learned bound that is worth telling the device."""


class CudaBackend:
    """Encodes on one CUDA device.

    Args:
        device: which, such as ``"cuda"`` or ``"cuda:1"``.
        precision: type of the product's operands. ``float32`` by default: the features of a live
            policy should not depend on the device that encodes them; ``bfloat16`` for throughput.
        max_rows: most rows of one launch; larger batches are cut.
        workspace_bytes: device memory of one slot, for pre-activations and results.
        slots: launches in flight.
        warm_rows: row counts whose launches are compiled and captured when a transcoder is
            prepared; ``None`` for all, so that no live batch ever waits for a compiler.
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
        warm_rows: Sequence[int] | None = None,
        limit_bytes: int | None = None,
    ) -> None:
        if not torch.cuda.is_available():
            raise UserError(f"device {device} was asked for, but torch finds no CUDA device here")
        self.device: Final = torch.device(device)
        self.precision: Final = precision
        self.max_rows: Final = max_rows
        self.limit_bytes: Final = limit_bytes
        self.warm_rows: Final = None if warm_rows is None else tuple(warm_rows)
        self._weight_bytes = 0
        self._host_bytes = max(16 << 20, workspace_bytes // 4)
        if limit_bytes is not None and slots * workspace_bytes > limit_bytes:
            raise UserError(
                f"{slots} slots of {workspace_bytes} bytes exceed the limit of {limit_bytes} bytes "
                "of device memory; lower workspace_bytes or raise the limit"
            )
        self.slots: Final = deque(
            _Slot.open(self.device, workspace_bytes, self._host_bytes) for _ in range(slots)
        )
        self._workspace_bytes = workspace_bytes

    @property
    def name(self) -> str:
        """``"cuda"``."""
        return "cuda"

    @property
    def device_bytes(self) -> int:
        """Device memory taken: arenas and weights."""
        return len(self.slots) * self._workspace_bytes + self._weight_bytes

    def bytes_of(self, weights: EncoderWeights) -> int:
        """Device memory of the weights: padded, in the precision's type, and two float32 rows."""
        shape = Shape(weights.d_in, weights.n_features, self.precision)
        return shape.padded * (shape.d_in * self.precision.itemsize + 8)

    def prepare(self, weights: EncoderWeights) -> CudaEncoder:
        """Upload the weights and capture the launches of ``warm_rows``.

        Raises:
            UserError: when the device memory limit, the workspace or the selection cannot hold
                this transcoder.
        """
        shape = Shape(weights.d_in, weights.n_features, self.precision)
        selection = choose_selection(shape, weights.k)
        most = self.most_rows(shape, selection)
        need = self.bytes_of(weights)
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

    def most_rows(self, shape: Shape, selection: Selection) -> int:
        """Rows of the largest launch whose buffers fit a slot."""
        return largest_bucket(
            shape,
            selection,
            max_rows=self.max_rows,
            device_bytes=self._workspace_bytes,
            host_bytes=self._host_bytes,
        )

    def free_slot(self) -> _Slot:
        """The slot that has been busy longest, finished."""
        slot = self.slots[0]
        self.slots.rotate(-1)
        if slot.launch is not None:
            slot.launch.finish()
        return slot

    def release(self, weights: DeviceWeights) -> None:
        """Finish what is in flight, and count the weights' memory as free."""
        for slot in self.slots:
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


class _Key(NamedTuple):
    slot: int
    rows: int
    way: Way


@dataclass(frozen=True, slots=True, eq=False)
class _Captured:
    """One plan on one slot: its graph, and its staging as NumPy sees it."""

    plan: LaunchPlan
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
    result: EncodedRows | None = None

    def finish(self) -> EncodedRows:
        if self.result is None:
            self.slot.done.synchronize()
            self.result = self.encoder.read(self)
            self.slot.launch = None
        return self.result

    def finish_now(self) -> EncodedRows:
        """Finish a launch that repeats the one its slot is busy with."""
        self.slot.done.synchronize()
        return self.encoder.read(self)

    def counts(self) -> NDArray[np.int32]:
        return self.captured.count[: self.rows]

    def copy(self) -> EncodedRows:
        captured = self.captured
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
    """One transcoder's weights on the device.

    ``grown`` counts launches whose rows had more features on than there was room for, and
    ``bound.misses`` those whose learned bound failed; both were encoded again, exactly.
    """

    backend: CudaBackend
    shape: Shape
    selection: Selection
    weights: DeviceWeights | None
    max_rows: int
    grown: int = 0
    bound: LowerBound = field(default_factory=LowerBound)
    _captured: dict[_Key, _Captured] = field(default_factory=dict)
    _bounds: dict[int, tuple[torch.Tensor, float]] = field(default_factory=dict)
    """By slot: what launches there read, and its value."""

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
        launches = []
        for start in range(0, len(x), self.max_rows):
            slot = self.backend.free_slot()
            slot.launch = self._start(slot, x[start : start + self.max_rows])
            launches.append(slot.launch)
        return CudaPending(launches)

    def close(self) -> None:
        """Give the weights' memory back, after what is in flight."""
        if self.weights is not None:
            self.backend.release(self.weights)
            self._captured.clear()
            self._bounds.clear()
            self.weights = None

    def warm_up(self) -> None:
        """Compile the kernels and capture the launches of the backend's ``warm_rows``."""
        for slot in self.backend.slots:
            if slot.launch is not None:
                slot.launch.finish()
            wanted = self.backend.warm_rows
            for rows in buckets(self.max_rows) if wanted is None else map(self._bucket, wanted):
                self._graph(slot, rows, self._sure_way())
                if may_mark(self.shape, rows, self.selection):
                    self._graph(slot, rows, Way.MARKED)

    def read(self, launch: _Launch) -> EncodedRows:
        """The rows of a launch that has ended; encodes them again when they did not come whole."""
        counts = launch.counts()
        k = self.selection.k
        if k is None:
            fullest = int(counts.max())
            if fullest <= launch.captured.plan.selection.capacity:
                return launch.copy()
            return self._encode_with_more_room(launch, fullest)
        if launch.captured.plan.way is Way.MARKED:
            if counts.min() < k or counts.max() > launch.captured.plan.selection.room:
                self.bound.miss()
                again = self._start(launch.slot, self._rows_of(launch), self._sure_way())
                return again.finish_now()
            self.bound.hit()
        result = launch.copy()
        if may_mark(self.shape, launch.captured.plan.rows, self.selection):
            whole = len(result.index) == k * launch.rows
            least = result.value.reshape(-1, k).min(axis=1).min() if whole else 0.0
            self.bound.saw(float(least), launch.rows)
        return result

    def _sure_way(self) -> Way:
        return Way.MARKED if self.selection.k is None else Way.PEAKED

    def _encode_with_more_room(self, launch: _Launch, fullest: int) -> EncodedRows:
        """The same numbers, where there is room for all of them; the room is remembered."""
        self.grown += 1
        x = self._rows_of(launch)
        if fullest > self.selection.capacity:
            self.selection = choose_selection(self.shape, None, power_of_two(fullest))
            self.max_rows = self.backend.most_rows(self.shape, self.selection)
            self._captured.clear()
        return EncodedRows.concatenate(
            [
                self._start(launch.slot, x[start : start + self.max_rows]).finish_now()
                for start in range(0, len(x), self.max_rows)
            ]
        )

    def _bucket(self, rows: int) -> int:
        return next((size for size in buckets(self.max_rows) if size >= rows), self.max_rows)

    def _rows_of(self, launch: _Launch) -> NDArray[np.float32]:
        return launch.captured.x[: launch.rows].copy()

    def _start(self, slot: _Slot, x: NDArray[np.floating], way: Way | None = None) -> _Launch:
        rows = self._bucket(len(x))
        bound = 0.0
        if way is None:
            way = self._sure_way()
            if may_mark(self.shape, rows, self.selection):
                bound = self.bound.value
                way = Way.MARKED if bound > 0 else way
        captured = self._graph(slot, rows, way)
        np.copyto(captured.x[: len(x)], x, casting="same_kind")
        with torch.cuda.stream(slot.stream):
            if bound > 0:
                self._tell_bound(slot, bound)
            captured.graph.replay()
            slot.done.record()
        return _Launch(self, slot, captured, len(x))

    def _tell_bound(self, slot: _Slot, bound: float) -> None:
        """Change the bound that this slot's launches read, on its stream: never under a launch."""
        tensor, told = self._bounds[id(slot)]
        if abs(bound - told) > BOUND_STEP * told:
            tensor.fill_(bound)
            self._bounds[id(slot)] = (tensor, bound)

    def _graph(self, slot: _Slot, rows: int, way: Way) -> _Captured:
        key = _Key(id(slot), rows, way)
        captured = self._captured.get(key)
        if captured is None:
            captured = self._captured[key] = self._capture(slot, rows, way)
        return captured

    def _capture(self, slot: _Slot, rows: int, way: Way) -> _Captured:
        if self.weights is None:
            raise UserError("this encoder was closed; prepare the transcoder again")
        plan = plan_launch(self.shape, rows, self.selection, way)
        scratch = Scratch.carve(slot.device_arena, plan)
        staging = Staging.carve(slot.host_arena, plan)
        if id(slot) not in self._bounds:
            self._bounds[id(slot)] = (torch.zeros(1, device=self.backend.device), 0.0)
        bound, _ = self._bounds[id(slot)]
        torch.cuda.synchronize(self.backend.device)
        with torch.cuda.stream(slot.stream):
            issue(plan, self.weights, bound, scratch, staging)  # compiles what is new
        slot.stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        # Thread-local: other threads of the process may use the device meanwhile.
        with torch.cuda.graph(graph, stream=slot.stream, capture_error_mode="thread_local"):
            issue(plan, self.weights, bound, scratch, staging)
        return _Captured(
            plan,
            graph,
            staging.x.numpy(),
            staging.count.numpy(),
            staging.indptr.numpy().view(np.uint32),
            staging.index.numpy().view(np.uint32),
            staging.value.numpy(),
        )


def issue(
    plan: LaunchPlan,
    weights: DeviceWeights,
    bound: torch.Tensor,
    scratch: Scratch,
    staging: Staging,
) -> None:
    """Everything from staged rows to the staged result, on the current stream."""
    scratch.x.copy_(staging.x, non_blocking=True)
    x = scratch.x
    if plan.cast_first:
        scratch.x_cast.copy_(x)
        x = scratch.x_cast
    encode_rows(plan, weights, x, bound, scratch)
    pack_rows(plan, scratch, staging)
