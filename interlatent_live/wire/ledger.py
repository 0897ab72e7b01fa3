"""Both ends' books of one stream: no row disappears without an entry.

A stream is the rows of one ``boot_id``, numbered without holes. The sender's ledger keeps
``sent = acknowledged + lost + in flight`` at every moment, where ``sent`` counts every row whose
turn came, whether it was transmitted or declared lost. The receiver's ledger keeps
``seen = received + declared + undeclared``, where ``seen`` counts the rows up to the highest number
it has heard of.

Both are pure: rows and declarations go in, counts come out.
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING, Final

from interlatent_live.errors import WireError
from interlatent_live.wire.limits import MAX_RANGES
from interlatent_live.wire.messages import Drop, DropReason, Range
from interlatent_live.wire.ranges import RangeSet

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

MAX_UNCONFIRMED: Final = 4096
"""Declarations a sender remembers; beyond it neighbours are merged under one reason."""

_FIRST = attrgetter("first_seq")


@dataclass(frozen=True, slots=True)
class SenderCounts:
    """A sender's ledger at one moment, in rows."""

    sent: int
    acknowledged: int
    lost: dict[DropReason, int]
    in_flight: int

    @property
    def declared(self) -> int:
        """Rows declared lost, for whatever reason."""
        return sum(self.lost.values())

    def balanced(self) -> bool:
        """Whether ``sent = acknowledged + declared lost + in flight``."""
        return self.sent == self.acknowledged + self.declared + self.in_flight


class SenderLedger:
    """What became of the rows of one stream, on the side that sends them.

    Rows settle in order: each is either transmitted or declared when its turn comes, and a
    transmitted one is later acknowledged, declared lost, or (lossless) sent again.
    """

    def __init__(self, first_seq: int = 0) -> None:
        self.first_seq = first_seq
        self.next_seq = first_seq
        """One more than the last row that was transmitted or declared."""
        self._acknowledged = 0
        self._lost: dict[DropReason, int] = {}
        self._flights: deque[tuple[int, int]] = deque()
        self._in_flight = 0
        # Ascending by first row: what the receiver has not confirmed, and of it what it was not
        # told on this connection.
        self._unconfirmed: list[Drop] = []
        self._untold: list[Drop] = []
        # After a rewind: declared rows above next_seq, which the replay passes over.
        self._ahead: deque[tuple[int, int]] = deque()
        self._ahead_rows = 0

    # --- what happened --------------------------------------------------------------------------

    def transmit(self, first: int, rows: int) -> None:
        """Rows ``first … first + rows − 1`` went onto the wire.

        Raises:
            ValueError: when ``first`` is not the next row: one was skipped or repeated.
        """
        self._advance(first, rows)
        self._flights.append((first, first + rows))
        self._in_flight += rows

    def declare(self, first: int, rows: int, reason: DropReason) -> None:
        """Rows ``first … first + rows − 1`` will never be sent.

        Raises:
            ValueError: when ``first`` is not the next row: one was skipped or repeated.
        """
        self._advance(first, rows)
        self._lose(first, rows, reason)

    def acknowledge(self, processed: int) -> int:
        """The receiver is done with every row below ``processed``; returns the rows that landed.

        Raises:
            WireError: reason ``ack`` when the receiver speaks of rows that were never sent.
        """
        if processed > self.next_seq:
            raise WireError(
                "ack",
                f"the receiver acknowledges row {processed - 1} and the last one sent is "
                f"{self.next_seq - 1}",
            )
        rows = sum(end - first for first, end in self._land(self.first_seq, processed))
        self._acknowledged += rows
        if self._unconfirmed:
            self._unconfirmed = [drop for drop in self._unconfirmed if _end(drop) > processed]
            self._untold = [drop for drop in self._untold if _end(drop) > processed]
        return rows

    def give_up(self, missing: Iterable[Range]) -> int:
        """The receiver reports holes: rows in flight there are lost, declarations are repeated.

        Returns the number of rows newly declared lost, reason ``missing``.
        """
        lost = 0
        for hole in missing:
            end = hole.first_seq + hole.count
            for first, last in self._land(hole.first_seq, end):
                self._lose(first, last - first, DropReason.MISSING)
                lost += last - first
            for drop in self._unconfirmed:
                if drop.first_seq < end and hole.first_seq < _end(drop):
                    self._tell(drop)
        return lost

    def lose_peer(self, received: int, reason: DropReason = DropReason.PEER_LOST) -> int:
        """A connection ended, and the receiver holds all rows below ``received``.

        What was in flight from there on is declared lost (returned, in rows). What is below stays
        in flight until it is acknowledged. Every unconfirmed declaration will be repeated.
        """
        lost = 0
        for first, end in self._land(received, self.next_seq):
            self._lose(first, end - first, reason)
            lost += end - first
        self.repeat_declarations()
        return lost

    def rewind(self, received: int) -> int:
        """A connection ended and nothing may be given up: rows from ``received`` on are unsent.

        The caller transmits them once more, from its spool; rows that had been declared lost are
        passed over. Returns the row to go on from.
        """
        resume = max(received, self.first_seq)
        if resume >= self.next_seq:
            self.repeat_declarations()
            return self.next_seq
        landed = self._land(resume, self.next_seq)
        flown = RangeSet()
        for first, end in landed:
            flown.add(first, end)
        declared = RangeSet()
        declared.add(resume, self.next_seq)
        for first, end in flown:
            declared.remove(first, end)
        for first, end in self._ahead:
            declared.add(first, end)
        self._ahead = deque(declared)
        self._ahead_rows = declared.total
        self.next_seq = resume
        self._pass_over()
        self.repeat_declarations()
        return self.next_seq

    def repeat_declarations(self) -> None:
        """Say everything unconfirmed again, because the peer may be a new one."""
        self._untold = list(self._unconfirmed)

    # --- what to say ----------------------------------------------------------------------------

    def pending_drops(self) -> tuple[Drop, ...]:
        """Declarations that the next message must carry, at most as many as one message may."""
        return tuple(self._untold[:MAX_RANGES])

    def drops_sent(self, drops: Sequence[Drop]) -> None:
        """The message with these :meth:`pending_drops` was sent."""
        del self._untold[: len(drops)]

    def unsettled_seq(self) -> int:
        """The lowest row that the receiver has not confirmed: where a new receiver would begin."""
        lowest = self.next_seq
        if self._flights:
            lowest = min(lowest, self._flights[0][0])
        if self._unconfirmed:
            lowest = min(lowest, self._unconfirmed[0].first_seq)
        return lowest

    def counts(self) -> SenderCounts:
        """The ledger now."""
        return SenderCounts(
            sent=self.next_seq - self.first_seq + self._ahead_rows,
            acknowledged=self._acknowledged,
            lost=dict(self._lost),
            in_flight=self._in_flight,
        )

    @property
    def in_flight(self) -> int:
        """Rows transmitted and neither acknowledged nor given up."""
        return self._in_flight

    # --- bookkeeping ----------------------------------------------------------------------------

    def _advance(self, first: int, rows: int) -> None:
        if first != self.next_seq or rows < 1:
            raise ValueError(
                f"rows {first} … {first + rows - 1} are out of turn: the next row is "
                f"{self.next_seq}"
            )
        if self._ahead and first + rows > self._ahead[0][0]:
            raise ValueError(
                f"rows {first} … {first + rows - 1} reach into rows from {self._ahead[0][0]} on, "
                "which were declared lost"
            )
        self.next_seq = first + rows
        self._pass_over()

    def _pass_over(self) -> None:
        while self._ahead and self._ahead[0][0] == self.next_seq:
            first, end = self._ahead.popleft()
            self.next_seq = end
            self._ahead_rows -= end - first

    def _land(self, start: int, end: int) -> list[tuple[int, int]]:
        """Take rows ``[start, end)`` out of flight; returns the parts that were flying."""
        landed: list[tuple[int, int]] = []
        if not self._flights or self._flights[0][0] >= end:
            return landed
        kept: list[tuple[int, int]] = []
        while self._flights and self._flights[0][0] < end:
            first, last = self._flights.popleft()
            low, high = max(first, start), min(last, end)
            if low >= high:
                kept.append((first, last))
                continue
            landed.append((low, high))
            if first < low:
                kept.append((first, low))
            if high < last:
                kept.append((high, last))
        self._flights.extendleft(reversed(kept))
        self._in_flight -= sum(high - low for low, high in landed)
        return landed

    def _lose(self, first: int, rows: int, reason: DropReason) -> None:
        self._lost[reason] = self._lost.get(reason, 0) + rows
        drop = Drop(first, rows, reason)
        _insert(self._unconfirmed, drop)
        self._tell(drop)
        if len(self._unconfirmed) > MAX_UNCONFIRMED:
            self._unconfirmed = _merged(self._unconfirmed)
            self._untold = _merged(self._untold)

    def _tell(self, drop: Drop) -> None:
        if drop not in self._untold[-4:] and drop not in self._untold:
            _insert(self._untold, drop)


@dataclass(frozen=True, slots=True)
class ReceiverCounts:
    """A receiver's ledger at one moment, in rows."""

    received: int
    declared: dict[DropReason, int]
    undeclared: int
    duplicate: int
    late: int
    reordered: int

    @property
    def declared_total(self) -> int:
        """Rows the sender declared lost."""
        return sum(self.declared.values())


class ReceiverLedger:
    """What arrived of one stream, what its sender declared lost, and what simply is not there.

    A hole first waits for rows that overtook each other. :meth:`age` makes it *reported*: the next
    acknowledgement names it, and from then on, unless the stream is lossless, its rows count as
    gone even if they come, so that both ledgers agree.
    """

    def __init__(self, first_seq: int = 0, *, lossless: bool = False) -> None:
        self.first_seq = first_seq
        self.next_seq = first_seq
        """One more than the highest row received or declared."""
        self._lossless = lossless
        self._received = 0
        self._declared: dict[DropReason, int] = {}
        self._young = RangeSet()
        self._aging = RangeSet()
        self._reported = RangeSet()
        self._closed = 0
        self._duplicate = 0
        self._late = 0
        self._reordered = 0

    def admit(self, first: int, rows: int) -> list[tuple[int, int]]:
        """Rows ``first … first + rows − 1`` arrived; returns the new ones as (offset, count).

        Anything left out was here before, or had been given up.
        """
        end = first + rows
        if first == self.next_seq:
            self.next_seq = end
            self._received += rows
            return [(0, rows)]
        fresh: list[tuple[int, int]] = []
        if first < self.next_seq:
            known = min(end, self.next_seq)
            late = 0
            found: list[tuple[int, int]] = []
            for holes in (self._young, self._aging):
                found += holes.remove(first, known)
            for start, stop in self._reported.remove(first, known):
                if self._lossless:
                    found.append((start, stop))
                else:
                    self._reported.add(start, stop)
                    late += stop - start
            fresh = sorted(found)
            filled = sum(stop - start for start, stop in fresh)
            self._reordered += filled
            self._late += late
            self._duplicate += known - first - filled - late
        else:
            self._hole(first)
        if end > self.next_seq:
            fresh.append((max(first, self.next_seq), end))
            self.next_seq = end
        self._received += sum(stop - start for start, stop in fresh)
        return [(start - first, stop - start) for start, stop in _joined(fresh)]

    def declare(self, drops: Iterable[Drop]) -> None:
        """The sender declares rows lost; what is here already stays, repeats change nothing."""
        for drop in drops:
            start, end = drop.first_seq, drop.first_seq + drop.count
            if end > self.next_seq:
                self._hole(start)
                above = max(start, self.next_seq)
                self._count(drop.reason, end - above)
                self.next_seq = end
                end = above
            for holes in (self._young, self._aging):
                for low, high in holes.remove(start, end):
                    self._count(drop.reason, high - low)
            for low, high in self._reported.remove(start, end):
                if drop.reason is DropReason.MISSING:
                    # The sender only repeats what it heard from here: a hole stays a hole.
                    self._closed += high - low
                else:
                    self._count(drop.reason, high - low)

    def resume(self, first_seq: int) -> None:
        """The sender opens the stream again and settled everything before ``first_seq``."""
        if first_seq > self.next_seq:
            self._count(DropReason.PEER_LOST, first_seq - self.next_seq)
            self.next_seq = first_seq

    def expect(self, next_seq: int) -> None:
        """The sender says that every row below ``next_seq`` was sent or declared before this."""
        self._hole(next_seq)

    def holes(self) -> bool:
        """Whether a hole waits to be filled or reported."""
        return bool(len(self._young) or len(self._aging))

    def age(self) -> bool:
        """One grace period has passed; returns whether there is a hole to report."""
        for start, end in self._aging:
            self._reported.add(start, end)
        self._aging, self._young = self._young, RangeSet()
        while len(self._reported) > MAX_RANGES:
            start, end = self._reported.pop_first()
            self._closed += end - start
        return len(self._reported) > 0

    def settled_seq(self) -> int:
        """Every row below is here, declared or reported: as far as an acknowledgement may go.

        A hole that was not reported yet holds it back, or the sender would take its rows for
        landed; in a lossless stream a reported hole does too, until it is filled.
        """
        lowest = self.next_seq
        for holes in (self._young, self._aging, *((self._reported,) if self._lossless else ())):
            first = holes.first()
            if first is not None:
                lowest = min(lowest, first)
        return lowest

    def missing(self) -> tuple[Range, ...]:
        """Holes to report, at most as many as one message may name."""
        return tuple(Range(start, end - start) for start, end in self._reported)[:MAX_RANGES]

    def counts(self) -> ReceiverCounts:
        """The ledger now."""
        holes = self._young.total + self._aging.total + self._reported.total
        return ReceiverCounts(
            received=self._received,
            declared=dict(self._declared),
            undeclared=holes + self._closed,
            duplicate=self._duplicate,
            late=self._late,
            reordered=self._reordered,
        )

    def _hole(self, end: int) -> None:
        if end > self.next_seq:
            self._young.add(self.next_seq, end)
            self.next_seq = end
            while len(self._young) > MAX_RANGES:
                low, high = self._young.pop_first()
                self._reported.add(low, high)
            while len(self._reported) > MAX_RANGES:
                low, high = self._reported.pop_first()
                self._closed += high - low

    def _count(self, reason: DropReason, rows: int) -> None:
        self._declared[reason] = self._declared.get(reason, 0) + rows


def _end(drop: Drop) -> int:
    return drop.first_seq + drop.count


def _insert(drops: list[Drop], drop: Drop) -> None:
    """Insert in order, growing the neighbour below when it is the same kind of loss."""
    if drops and drop.first_seq >= _end(drops[-1]):
        last = drops[-1]
        if last.reason is drop.reason and _end(last) == drop.first_seq:
            drops[-1] = Drop(last.first_seq, last.count + drop.count, last.reason)
        else:
            drops.append(drop)
    else:
        insort(drops, drop, key=_FIRST)


def _merged(drops: list[Drop]) -> list[Drop]:
    """Neighbours become one range under the reason of the larger: fewer words, the same rows."""
    merged: list[Drop] = []
    for drop in drops:
        last = merged[-1] if merged else None
        if last is not None and _end(last) == drop.first_seq:
            reason = last.reason if last.count >= drop.count else drop.reason
            merged[-1] = Drop(last.first_seq, last.count + drop.count, reason)
        else:
            merged.append(drop)
    return merged


def _joined(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    joined: list[tuple[int, int]] = []
    for start, end in ranges:
        if joined and joined[-1][1] == start:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((start, end))
    return joined
