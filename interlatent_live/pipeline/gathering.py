"""Many small feature batches of one run become few larger ones on their way to the consumers.

A consumer pays for each message what it pays for a hundred rows: a header to check, an entry in two
ledgers, an update of its tables. Statistics do not need their rows at once, so here rows of a run
wait for each other, bounded in rows, bytes and time. Viewers get their copy before this.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

import numpy as np

from interlatent_live.stream import FeatureBatch, SparseCodes, Steps

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

ROWS: Final = 256
"""A run's rows go on as soon as they are so many: from there on a message costs nothing beside its
rows."""
DELAY_NS: Final = 50_000_000
"""Longest wait of a row for others, while few runs wait."""
FEW: Final = 32
"""Up to so many runs. Each of more brings a smaller share of what a consumer can take, and so few
rows that they wait for more of them, in proportion."""
LONGEST: Final = 4
"""Times as long at most."""


@dataclass(slots=True)
class _Waiting:
    since_ns: int
    batches: list[FeatureBatch] = field(default_factory=list)
    rows: int = 0
    n_bytes: int = 0


class Gatherer:
    """Joins batches of each run; pure, ``now_ns`` is monotonic.

    Args:
        limit_bytes: all rows that wait, over all runs; beyond it everything goes on at once.
    """

    def __init__(self, limit_bytes: int, *, rows: int = ROWS, delay_ns: int = DELAY_NS) -> None:
        self._limit = limit_bytes
        self._rows = rows
        self._delay_ns = delay_ns
        # In the order in which they began to wait, so the oldest is the first.
        self._waiting: dict[str, _Waiting] = {}
        self._n_bytes = 0

    @property
    def n_bytes(self) -> int:
        """Bytes that wait."""
        return self._n_bytes

    def add(self, batch: FeatureBatch, now_ns: int) -> Iterator[FeatureBatch]:
        """Let a batch wait; yields what is to go on now, each run's rows in order."""
        boot_id = batch.boot_id
        waiting = self._waiting.get(boot_id)
        if waiting is not None and not _continues(waiting.batches[-1], batch):
            yield self._take(boot_id)
            waiting = None
        if waiting is None:
            waiting = self._waiting[boot_id] = _Waiting(now_ns)
        size = _n_bytes(batch)
        waiting.batches.append(batch)
        waiting.rows += len(batch.steps)
        waiting.n_bytes += size
        self._n_bytes += size
        if waiting.rows >= self._rows:
            yield self._take(boot_id)
        elif self._n_bytes > self._limit:
            yield from self.flush()

    def due(self, now_ns: int) -> Iterator[FeatureBatch]:
        """What has waited long enough."""
        while self._waiting:
            boot_id, oldest = next(iter(self._waiting.items()))
            if oldest.since_ns + self._delay() > now_ns:
                return
            yield self._take(boot_id)

    def next_due_ns(self) -> int | None:
        """When :meth:`due` next has something; ``None`` when nothing waits."""
        for oldest in self._waiting.values():
            return oldest.since_ns + self._delay()
        return None

    def _delay(self) -> int:
        runs = min(LONGEST * FEW, max(FEW, len(self._waiting)))
        return self._delay_ns * runs // FEW

    def flush(self, boot_id: str | None = None) -> Iterator[FeatureBatch]:
        """What waits of one run, or of all."""
        for one in [*self._waiting] if boot_id is None else [boot_id]:
            if one in self._waiting:
                yield self._take(one)

    def _take(self, boot_id: str) -> FeatureBatch:
        waiting = self._waiting.pop(boot_id)
        self._n_bytes -= waiting.n_bytes
        return joined(waiting.batches)


def _continues(before: FeatureBatch, batch: FeatureBatch) -> bool:
    """Whether one message can hold both: no hole between them, the same features."""
    return (
        batch.steps.first_seq == before.steps.first_seq + len(before.steps)
        and batch.transcoders == before.transcoders
    )


def joined(batches: Sequence[FeatureBatch]) -> FeatureBatch:
    """Consecutive batches of one run as one, encoded when the last of them was."""
    if len(batches) == 1:
        return batches[0]
    first = batches[0]
    every = [batch.steps for batch in batches]
    steps = Steps(
        first_seq=first.steps.first_seq,
        env=np.concatenate([one.env for one in every]),
        episode=np.concatenate([one.episode for one in every]),
        t=np.concatenate([one.t for one in every]),
        time_ns=np.concatenate([one.time_ns for one in every]),
        controller=np.concatenate([one.controller for one in every]),
        flags=np.concatenate([one.flags for one in every]),
        metrics=np.concatenate([one.metrics for one in every]),
    )
    return replace(
        first,
        steps=steps,
        codes={
            name: joined_codes([batch.codes[name] for batch in batches]) for name in first.codes
        },
        encoded_ns=batches[-1].encoded_ns,
    )


def joined_codes(parts: Sequence[SparseCodes]) -> SparseCodes:
    """Rows of ``parts`` in order."""
    starts = np.cumsum([0, *(len(part.index) for part in parts)], dtype=np.uint32)
    return SparseCodes(
        n_features=parts[0].n_features,
        indptr=np.concatenate(
            [
                starts[:1],
                *(part.indptr[1:] + start for part, start in zip(parts, starts, strict=False)),
            ]
        ),
        index=np.concatenate([part.index for part in parts]),
        value=np.concatenate([part.value for part in parts]),
        error=np.concatenate([part.error for part in parts]),
        error_affine=np.concatenate([part.error_affine for part in parts]),
    )


def _n_bytes(batch: FeatureBatch) -> int:
    steps = batch.steps
    # 20 bytes of facts a row; 12 a row of codes and 8 a feature.
    size = len(steps) * 20 + steps.metrics.nbytes
    return size + sum(12 * len(code) + 8 * len(code.index) for code in batch.codes.values())
