"""Sets of sequence numbers as disjoint ranges, for holes in a stream.

Streams are nearly in order, so a set has a handful of ranges and its ends are where things happen;
a sorted list with bisection is then faster than any tree.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


class RangeSet:
    """Disjoint, non-touching half-open ranges of integers, ascending."""

    __slots__ = ("_ends", "_starts", "_total")

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        self._total = 0

    def __len__(self) -> int:
        """Number of ranges."""
        return len(self._starts)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Pairs (start, end), ascending."""
        return iter(zip(self._starts, self._ends, strict=True))

    @property
    def total(self) -> int:
        """Number of integers in the set."""
        return self._total

    def first(self) -> int | None:
        """The smallest integer, or ``None``."""
        return self._starts[0] if self._starts else None

    def add(self, start: int, end: int) -> int:
        """Add ``[start, end)``; returns how many integers were new."""
        if start >= end:
            return 0
        # Every range that overlaps or touches [start, end) becomes one.
        low = bisect_left(self._ends, start)
        high = bisect_right(self._starts, end)
        before = sum(self._ends[i] - self._starts[i] for i in range(low, high))
        if low < high:
            start = min(start, self._starts[low])
            end = max(end, self._ends[high - 1])
        self._starts[low:high] = [start]
        self._ends[low:high] = [end]
        self._total += end - start - before
        return end - start - before

    def remove(self, start: int, end: int) -> list[tuple[int, int]]:
        """Take ``[start, end)`` out; returns the parts that were in the set."""
        low = bisect_right(self._ends, start)
        high = bisect_left(self._starts, end)
        if start >= end or low >= high:
            return []
        taken = []
        left: list[tuple[int, int]] = []
        for index in range(low, high):
            first, last = self._starts[index], self._ends[index]
            taken.append((max(first, start), min(last, end)))
            if first < start:
                left.append((first, start))
            if last > end:
                left.append((end, last))
        self._starts[low:high] = [pair[0] for pair in left]
        self._ends[low:high] = [pair[1] for pair in left]
        self._total -= sum(last - first for first, last in taken)
        return taken

    def pop_first(self) -> tuple[int, int]:
        """Remove and return the lowest range.

        Raises:
            IndexError: when the set is empty.
        """
        start, end = self._starts.pop(0), self._ends.pop(0)
        self._total -= end - start
        return start, end
