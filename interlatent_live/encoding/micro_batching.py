"""When to encode what: requests from agents × hook points become device batches.

An encoder sees many small messages: a few steps from each of many agents, each with several hook
points, each hook point with its own transcoder. A device wants few large batches. This module
decides, and only decides: no arrays, no clock, no thread. The service feeds it arrivals and the
time, takes :class:`Batch` values out, and hands finished ones to :class:`Joiner`, which says which
messages are complete.

Rules that the tests hold it to:

* a batch holds rows of one transcoder only and never more than ``max_rows``;
* a request waits at most ``max_delay_ns`` before a batch that holds it is *ready*;
* every row leaves exactly once, and per transcoder the rows of a source leave as they came;
* ready transcoders take turns, and within a transcoder sources take turns of ``quantum_rows`` rows,
  so neither a busy transcoder nor a flooding agent can starve another (deficit round robin:
  Shreedhar and Varghese, "Efficient fair queuing using deficit round-robin", SIGCOMM 1995);
* rows waiting are bounded by ``max_pending_rows``; what does not fit is refused and counted.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

MILLISECOND_NS: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """Bounds on a micro-batch.

    ``max_delay_ns`` 0 means: whatever waits is ready at once, so that batches form only while the
    device is busy.

    Raises:
        ValueError: when a bound is not positive, or fewer rows may wait than one batch holds.
    """

    max_rows: int = 1024
    max_delay_ns: int = 2 * MILLISECOND_NS
    quantum_rows: int = 64
    max_pending_rows: int = 65_536

    def __post_init__(self) -> None:
        if self.max_rows < 1 or self.quantum_rows < 1 or self.max_delay_ns < 0:
            raise ValueError(f"batch limits must be positive: {self}")
        if self.max_pending_rows < self.max_rows:
            raise ValueError(f"max_pending_rows must be at least max_rows: {self}")


@dataclass(frozen=True, slots=True)
class Request:
    """Rows of one hook point of one message, to be encoded by one transcoder.

    ``message`` is the service's number for the message; it and ``hook_point`` name the array that
    holds the rows. ``source`` is whoever must be treated fairly: an agent.
    """

    message: int
    hook_point: str
    source: str
    transcoder: str
    rows: int


@dataclass(frozen=True, slots=True)
class Slice:
    """Rows ``start:stop`` of a request, standing at ``offset`` of their batch."""

    request: Request
    start: int
    stop: int
    offset: int

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class Batch:
    """One device batch: ``rows`` rows for ``transcoder``, in the order of ``slices``."""

    transcoder: str
    slices: tuple[Slice, ...]
    rows: int
    oldest_ns: int
    """Arrival of the oldest row that was waiting when the batch was formed."""


@dataclass(slots=True)
class _Waiting:
    request: Request
    arrived_ns: int
    taken: int = 0

    @property
    def left(self) -> int:
        return self.request.rows - self.taken


@dataclass(slots=True)
class _Queue:
    """What waits for one transcoder: a line per source, and all of it by age."""

    lines: OrderedDict[str, deque[_Waiting]] = field(default_factory=OrderedDict)
    by_age: deque[_Waiting] = field(default_factory=deque)
    rows: int = 0
    credit: int = 0
    """Rows left of the turn of the source that stands first."""
    draining: bool = False

    def oldest_ns(self) -> int:
        while self.by_age[0].left == 0:
            self.by_age.popleft()
        return self.by_age[0].arrived_ns


class MicroBatcher:
    """Forms batches from requests; times are any monotonic nanoseconds.

    The service's loop: :meth:`submit` what arrived, :meth:`take` until it returns ``None``, then
    sleep until the next arrival or :meth:`next_ready_ns`, whichever comes first.
    """

    def __init__(self, limits: BatchLimits | None = None) -> None:
        self.limits: Final = limits or BatchLimits()
        self._queues: OrderedDict[str, _Queue] = OrderedDict()
        self._pending_rows = 0
        self._refused_rows = 0

    @property
    def pending_rows(self) -> int:
        """Rows submitted and not yet taken."""
        return self._pending_rows

    @property
    def refused_rows(self) -> int:
        """Rows refused since the start because ``max_pending_rows`` was reached."""
        return self._refused_rows

    def submit(self, request: Request, now_ns: int) -> bool:
        """Let ``request`` wait; False, and counted, when its rows do not fit ``max_pending_rows``.

        A request without rows is complete as it stands: nothing waits and True is returned.
        ``now_ns`` must not decrease from call to call.

        Raises:
            ValueError: when ``rows`` is negative.
        """
        if request.rows < 0:
            raise ValueError(f"a request cannot have {request.rows} rows")
        if request.rows == 0:
            return True
        if self._pending_rows + request.rows > self.limits.max_pending_rows:
            self._refused_rows += request.rows
            return False
        queue = self._queues.get(request.transcoder)
        if queue is None:
            queue = self._queues[request.transcoder] = _Queue(credit=self.limits.quantum_rows)
        waiting = _Waiting(request, now_ns)
        queue.lines.setdefault(request.source, deque()).append(waiting)
        queue.by_age.append(waiting)
        queue.rows += request.rows
        self._pending_rows += request.rows
        return True

    def take(self, now_ns: int) -> Batch | None:
        """The next ready batch, or ``None``; ready transcoders take turns."""
        for transcoder, queue in self._queues.items():
            if self._is_ready(queue, now_ns):
                return self._form(transcoder, queue)
        return None

    def take_any(self) -> Batch | None:
        """The next batch whether it is ready or not: for an idle device, or to empty at the end."""
        for transcoder, queue in self._queues.items():
            return self._form(transcoder, queue)
        return None

    def next_ready_ns(self) -> int | None:
        """When :meth:`take` will next return a batch if nothing arrives; ``None`` if nothing waits.

        A time in the past means that a batch is ready now.
        """
        return min((self._ready_ns(queue) for queue in self._queues.values()), default=None)

    def drain(self, transcoder: str) -> None:
        """Make all that waits for ``transcoder`` ready now: before it is replaced or unloaded."""
        queue = self._queues.get(transcoder)
        if queue is not None:
            queue.draining = True

    def _ready_ns(self, queue: _Queue) -> int:
        oldest = queue.oldest_ns()
        if queue.draining or queue.rows >= self.limits.max_rows:
            return oldest
        return oldest + self.limits.max_delay_ns

    def _is_ready(self, queue: _Queue, now_ns: int) -> bool:
        if queue.draining or queue.rows >= self.limits.max_rows:
            return True
        return queue.oldest_ns() + self.limits.max_delay_ns <= now_ns

    def _form(self, transcoder: str, queue: _Queue) -> Batch:
        oldest = queue.oldest_ns()
        slices: list[Slice] = []
        rows = 0
        while queue.rows and rows < self.limits.max_rows:
            source, line = next(iter(queue.lines.items()))
            waiting = line[0]
            count = min(waiting.left, queue.credit, self.limits.max_rows - rows)
            start = waiting.taken
            slices.append(Slice(waiting.request, start, start + count, rows))
            waiting.taken += count
            queue.rows -= count
            queue.credit -= count
            rows += count
            if waiting.left == 0:
                line.popleft()
            if not line:
                del queue.lines[source]
                queue.credit = self.limits.quantum_rows
            elif queue.credit == 0:
                queue.lines.move_to_end(source)
                queue.credit = self.limits.quantum_rows
        self._pending_rows -= rows
        if queue.rows:
            self._queues.move_to_end(transcoder)
        else:
            del self._queues[transcoder]
        return Batch(transcoder, _merged(slices), rows, oldest)


def _merged(slices: list[Slice]) -> tuple[Slice, ...]:
    """Join neighbours that continue each other (one source alone takes turn after turn)."""
    merged: list[Slice] = []
    for piece in slices:
        last = merged[-1] if merged else None
        if last is not None and last.request is piece.request:
            merged[-1] = Slice(last.request, last.start, piece.stop, last.offset)
        else:
            merged.append(piece)
    return tuple(merged)


@dataclass(slots=True)
class _OpenMessage:
    message: int
    rows_left: dict[str, int]


class Joiner:
    """Says when a message is whole again, and keeps the messages of each source in order.

    The hook points of one message go through different transcoders, so their batches may finish in
    any order; statistics need the steps of a source in order. A message is released when all its
    rows are done and every earlier message of its source has been released.
    """

    def __init__(self) -> None:
        self._lines: dict[str, deque[_OpenMessage]] = {}
        self._open: dict[int, tuple[str, _OpenMessage]] = {}

    def __len__(self) -> int:
        """Messages opened and not yet released."""
        return len(self._open)

    def open(self, message: int, source: str, requests: Iterable[Request]) -> tuple[int, ...]:
        """Expect the rows of ``requests`` (those that were accepted) for ``message``.

        Returns the messages released by this, namely ``message`` itself when it has no rows and
        nothing stands before it.

        Raises:
            ValueError: when ``message`` is open already, or two requests share a hook point.
        """
        if message in self._open:
            raise ValueError(f"message {message} is open already")
        rows_left: dict[str, int] = {}
        for request in requests:
            if request.hook_point in rows_left:
                raise ValueError(f"message {message} has hook point {request.hook_point!r} twice")
            if request.rows:
                rows_left[request.hook_point] = request.rows
        entry = _OpenMessage(message, rows_left)
        self._open[message] = (source, entry)
        self._lines.setdefault(source, deque()).append(entry)
        return self._release(source)

    def finish(self, batch: Batch) -> tuple[int, ...]:
        """Mark the rows of ``batch`` as done; returns the messages this releases, in order.

        Raises:
            ValueError: when a slice belongs to no open message or holds more rows than expected.
        """
        sources: dict[str, None] = {}
        for piece in batch.slices:
            request = piece.request
            source, entry = self._open.get(request.message, (None, None))
            left = entry.rows_left.get(request.hook_point, 0) if entry is not None else 0
            if source is None or entry is None or left < len(piece):
                raise ValueError(f"nothing waits for rows {piece.start}:{piece.stop} of {request}")
            if left == len(piece):
                del entry.rows_left[request.hook_point]
            else:
                entry.rows_left[request.hook_point] = left - len(piece)
            sources[source] = None
        return tuple(message for source in sources for message in self._release(source))

    def _release(self, source: str) -> tuple[int, ...]:
        line = self._lines[source]
        released: list[int] = []
        while line and not line[0].rows_left:
            entry = line.popleft()
            del self._open[entry.message]
            released.append(entry.message)
        if not line:
            del self._lines[source]
        return tuple(released)
