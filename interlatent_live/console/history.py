"""What metrics were before an intervention and while it was in force, kept small.

Steps are summed in blocks of consecutive steps of one copy and one episode; a block costs some
hundred bytes, so minutes of many copies fit where seconds of steps would. Blocks are taken in while
a page shows steps or an intervention is in force.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from interlatent_live.control.commands import Operation
from interlatent_live.control.machine import Fate

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from interlatent_live.control.wire import Told
    from interlatent_live.feed.documents import AgentsDocument
    from interlatent_live.stream import FeatureBatch

BLOCK_STEPS: Final = 32
MOST_SPANS: Final = 1024
MOST_BOOTS: Final = 256
LONGEST_S: Final = 600.0
"""Steps are taken in for an intervention no longer than this, unless a page shows them."""
_BLOCK_BYTES: Final = 400


@dataclass(slots=True, eq=False)
class Block:
    """Consecutive steps of one copy in one episode."""

    boot_id: str
    env: int
    episode: int
    first: int
    """Row number of its first step."""
    last: int
    """Row number of its last step."""
    steps: int
    controller: int
    """The highest :class:`~interlatent_live.stream.Controller` among them."""
    sums: NDArray[np.float64]
    """[M] over the steps in which the metric was there."""
    counts: NDArray[np.int64]
    """[M]"""


@dataclass(frozen=True, slots=True)
class Span:
    """The rows under an intervention."""

    boot_id: str
    agent: str
    first: int
    end: int | None = None
    """First row that was the policy's own again; None while it is in force."""
    began_s: float = field(default_factory=time.monotonic, compare=False)


@dataclass(frozen=True, slots=True)
class MetricName:
    """A metric as its agent calls it."""

    name: str
    unit: str
    role: str


class StepHistory:
    """Blocks, spans and names. Safe to use from several threads.

    Args:
        most_bytes: of the blocks.
    """

    def __init__(self, most_bytes: int = 8 * 2**20) -> None:
        self._most_bytes = most_bytes
        self._bytes = 0
        self._blocks: deque[Block] = deque()
        self._open: dict[tuple[str, int], Block] = {}
        self._spans: OrderedDict[str, Span] = OrderedDict()
        self._names: OrderedDict[str, tuple[MetricName, ...]] = OrderedDict()
        self._lock = threading.Lock()

    def told(self, told: Told) -> None:
        """Something took effect or ended at an agent."""
        event = told.event
        if event.operation is not Operation.INTERVENE:
            return
        with self._lock:
            if event.fate is Fate.APPLIED:
                self._spans[event.command_id] = Span(told.boot_id, told.agent, event.row)
                if len(self._spans) > MOST_SPANS:
                    self._spans.popitem(last=False)
            elif event.command_id in self._spans and event.fate is not Fate.REFUSED:
                begun = self._spans[event.command_id]
                self._spans[event.command_id] = Span(
                    begun.boot_id, begun.agent, begun.first, event.row
                )

    @property
    def wanted(self) -> bool:
        """Whether an intervention is in force, so that steps are to be taken in."""
        # An agent that died never says that one ended.
        recent = time.monotonic() - LONGEST_S
        return any(
            span.end is None and span.began_s > recent for span in list(self._spans.values())[-8:]
        )

    def describe(self, document: AgentsDocument) -> None:
        """Learn what metrics are called."""
        with self._lock:
            for agent in document.agents:
                self._names[agent.boot_id] = tuple(
                    MetricName(one["name"], one.get("unit", ""), one.get("role", ""))
                    for one in agent.metrics
                )
                self._names.move_to_end(agent.boot_id)
            while len(self._names) > MOST_BOOTS:
                self._names.popitem(last=False)

    def take(self, batch: FeatureBatch) -> None:
        """Take steps in."""
        steps = batch.steps
        with self._lock:
            for env in np.unique(steps.env):
                own = np.flatnonzero(steps.env == env)
                self._add(batch, int(env), own)

    def span(self, command_id: str) -> Span | None:
        """Where an intervention was in force."""
        return self._spans.get(command_id)

    def names(self, boot_id: str) -> tuple[MetricName, ...]:
        """What the metrics of a boot are called; empty when nobody has said."""
        return self._names.get(boot_id, ())

    def blocks(self, boot_id: str) -> list[Block]:
        """Whole blocks of a boot, oldest first."""
        with self._lock:
            return [one for one in self._blocks if one.boot_id == boot_id]

    def _add(self, batch: FeatureBatch, env: int, own: NDArray[np.intp]) -> None:
        steps = batch.steps
        key = batch.boot_id, env
        at = 0
        while at < len(own):
            row = int(own[at])
            episode, seq = int(steps.episode[row]), steps.first_seq + row
            block = self._open.get(key)
            if block is not None and (
                block.episode != episode
                or block.steps >= BLOCK_STEPS
                or len(block.sums) != steps.metrics.shape[1]
            ):
                self._close(key, block)
                block = None
            if block is None:
                width = steps.metrics.shape[1]
                block = Block(
                    batch.boot_id, env, episode, seq, seq, 0, 0,
                    np.zeros(width), np.zeros(width, np.int64),
                )  # fmt: skip
                self._open[key] = block
            many = own[at : at + BLOCK_STEPS - block.steps]
            # An episode ends within the batch: only its own rows.
            many = many[: int(np.argmin(steps.episode[many] == episode)) or len(many)]
            metrics = steps.metrics[many]
            there = np.isfinite(metrics)
            block.sums += np.where(there, metrics, 0.0).sum(axis=0)
            block.counts += there.sum(axis=0)
            block.steps += len(many)
            block.last = steps.first_seq + int(many[-1])
            block.controller = max(block.controller, int(steps.controller[many].max()))
            at += len(many)

    def _close(self, key: tuple[str, int], block: Block) -> None:
        del self._open[key]
        self._blocks.append(block)
        self._bytes += _size(block)
        while self._bytes > self._most_bytes:
            self._bytes -= _size(self._blocks.popleft())
        if len(self._open) > 65_536:
            self._open.pop(next(iter(self._open)))


def _size(block: Any) -> int:
    return _BLOCK_BYTES + 16 * len(block.sums)
