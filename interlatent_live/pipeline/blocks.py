"""Messages of a run that wait together, taken in as one block.

An agent at control rate sends few steps a message, and most of what a message costs does not depend
on how many steps it holds. Statistics are functions of the rows, not of the messages they came in,
so what waits is joined: the busier the service, the larger its blocks.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from interlatent_live.pipeline.gathering import joined

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from interlatent_live.stream import FeatureBatch

MOST_ROWS: Final = 2048
"""Rows of a block, which bounds how long questions wait for it."""


@dataclass(frozen=True, slots=True)
class Block:
    """Rows of one boot, and the messages they came in."""

    batch: FeatureBatch
    messages: int


class Blocks:
    """Messages in the order of their arrival, by boot."""

    def __init__(self) -> None:
        self._waiting: dict[str, list[FeatureBatch]] = {}

    def add(self, batch: FeatureBatch) -> list[Block]:
        """Let a message wait; returns the block before it, when it cannot be joined to that one."""
        waiting = self._waiting.get(batch.boot_id)
        if waiting is None:
            self._waiting[batch.boot_id] = [batch]
            return []
        rows = batch.steps.first_seq + len(batch.steps) - waiting[0].steps.first_seq
        if rows <= MOST_ROWS and _follows(waiting[-1], batch):
            waiting.append(batch)
            return []
        block = list(self.take(batch.boot_id))
        self._waiting[batch.boot_id] = [batch]
        return block

    def take(self, boot_id: str | None = None) -> Iterator[Block]:
        """What waits, of one boot or of all, joined one boot at a time: only one is held twice."""
        for boot in list(self._waiting) if boot_id is None else [boot_id]:
            batches = self._waiting.pop(boot, [])
            if batches:
                yield Block(join(batches), len(batches))


def _follows(before: FeatureBatch, batch: FeatureBatch) -> bool:
    """Whether rows go on without a hole, under the same run and the same transcoders."""
    return (
        batch.steps.first_seq == before.steps.first_seq + len(before.steps)
        and batch.run_id == before.run_id
        and batch.transcoders == before.transcoders
        and batch.codes.keys() == before.codes.keys()
        and batch.steps.metrics.shape[1] == before.steps.metrics.shape[1]
        and all(
            codes.n_features == before.codes[name].n_features for name, codes in batch.codes.items()
        )
    )


def join(batches: Sequence[FeatureBatch]) -> FeatureBatch:
    """Batches that follow each other, as one."""
    if len(batches) == 1:
        return batches[0]
    encoded_ns = max(batch.encoded_ns for batch in batches)
    return replace(joined(batches), encoded_ns=encoded_ns)
