from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlatent_live.errors import WireError
from interlatent_live.wire import ledger as ledger_module
from interlatent_live.wire.ledger import ReceiverLedger, SenderLedger
from interlatent_live.wire.limits import MAX_RANGES
from interlatent_live.wire.messages import Drop, DropReason, Range


def test_a_row_is_in_flight_until_it_is_acknowledged():
    sender = SenderLedger()
    sender.transmit(0, 10)
    sender.declare(10, 5, DropReason.OVERRUN)
    sender.transmit(15, 5)
    assert sender.counts().in_flight == 15
    assert sender.acknowledge(12) == 10
    counts = sender.counts()
    assert (counts.sent, counts.acknowledged, counts.declared, counts.in_flight) == (20, 10, 5, 5)
    assert sender.acknowledge(12) == 0
    assert sender.acknowledge(20) == 5
    assert sender.unsettled_seq() == 20


def test_part_of_a_batch_may_be_acknowledged():
    sender = SenderLedger()
    sender.transmit(0, 10)
    assert sender.acknowledge(4) == 4
    assert sender.counts().in_flight == 6
    assert sender.unsettled_seq() == 4


def test_rows_out_of_turn_are_a_bug():
    sender = SenderLedger(5)
    for first, rows in ((4, 1), (6, 1), (5, 0)):
        with pytest.raises(ValueError, match="out of turn"):
            sender.transmit(first, rows)
    with pytest.raises(ValueError, match="out of turn"):
        sender.declare(7, 1, DropReason.AGE)


def test_a_receiver_cannot_acknowledge_the_future():
    sender = SenderLedger()
    sender.transmit(0, 3)
    with pytest.raises(WireError) as caught:
        sender.acknowledge(4)
    assert caught.value.reason == "ack"


def test_declarations_are_told_once_and_repeated_to_a_new_peer():
    sender = SenderLedger()
    sender.declare(0, 5, DropReason.NO_PEER)
    sender.declare(5, 5, DropReason.NO_PEER)
    sender.declare(10, 1, DropReason.AGE)
    told = sender.pending_drops()
    assert told == (Drop(0, 10, DropReason.NO_PEER), Drop(10, 1, DropReason.AGE))
    sender.drops_sent(told)
    assert sender.pending_drops() == ()
    sender.lose_peer(0)
    assert sender.pending_drops() == told
    sender.acknowledge(11)
    sender.lose_peer(0)
    assert sender.pending_drops() == ()


def test_what_a_lost_peer_had_not_received_is_declared():
    sender = SenderLedger()
    sender.transmit(0, 64)
    sender.transmit(64, 64)
    sender.acknowledge(10)
    assert sender.lose_peer(70) == 58
    assert sender.counts().in_flight == 60
    assert sender.pending_drops() == (Drop(70, 58, DropReason.PEER_LOST),)
    assert sender.unsettled_seq() == 10


def test_a_hole_that_was_declared_is_declared_again():
    sender = SenderLedger()
    sender.transmit(0, 5)
    sender.declare(5, 5, DropReason.OVERRUN)
    sender.drops_sent(sender.pending_drops())
    assert sender.give_up([Range(3, 4)]) == 2
    assert sender.pending_drops() == (
        Drop(3, 2, DropReason.MISSING),
        Drop(5, 5, DropReason.OVERRUN),
    )
    assert sender.counts().balanced()


def test_rewinding_sends_again_and_passes_over_what_was_declared():
    sender = SenderLedger()
    sender.transmit(0, 10)
    sender.declare(10, 5, DropReason.SPOOL_FULL)
    sender.transmit(15, 10)
    assert sender.rewind(4) == 4
    assert sender.counts().balanced()
    assert sender.counts().sent == 9
    with pytest.raises(ValueError, match="reach into"):
        sender.transmit(4, 8)
    sender.transmit(4, 6)
    assert sender.next_seq == 15
    sender.transmit(15, 10)
    counts = sender.counts()
    assert (counts.sent, counts.in_flight, counts.declared) == (25, 20, 5)


def test_a_sender_without_a_peer_remembers_a_bounded_number_of_declarations(monkeypatch):
    monkeypatch.setattr(ledger_module, "MAX_UNCONFIRMED", 16)
    sender = SenderLedger()
    for seq in range(1000):
        sender.declare(seq, 1, [DropReason.OVERRUN, DropReason.NO_PEER][seq % 2])
    assert len(sender.pending_drops()) <= 17
    assert sum(drop.count for drop in sender.pending_drops()) == 1000
    assert sender.counts().lost == {DropReason.OVERRUN: 500, DropReason.NO_PEER: 500}


def test_duplicates_are_counted_and_cut_away():
    receiver = ReceiverLedger()
    assert receiver.admit(0, 10) == [(0, 10)]
    assert receiver.admit(0, 10) == []
    assert receiver.admit(5, 10) == [(5, 5)]
    counts = receiver.counts()
    assert (counts.received, counts.duplicate, counts.undeclared) == (15, 15, 0)


def test_a_hole_is_undeclared_until_declared_or_filled():
    receiver = ReceiverLedger()
    receiver.admit(10, 5)
    assert receiver.counts().undeclared == 10
    assert receiver.settled_seq() == 0
    assert receiver.admit(3, 2) == [(0, 2)]
    receiver.declare([Drop(0, 3, DropReason.AGE), Drop(5, 5, DropReason.OVERRUN)])
    counts = receiver.counts()
    assert (counts.received, counts.declared_total, counts.undeclared) == (7, 8, 0)
    assert counts.reordered == 2
    assert receiver.settled_seq() == 15


def test_a_reported_hole_is_final_unless_the_stream_is_lossless():
    for lossless in (False, True):
        receiver = ReceiverLedger(lossless=lossless)
        receiver.admit(5, 5)
        assert not receiver.age()
        assert receiver.age()
        assert receiver.missing() == (Range(0, 5),)
        assert receiver.settled_seq() == (0 if lossless else 10)
        assert receiver.admit(0, 5) == ([(0, 5)] if lossless else [])
        counts = receiver.counts()
        assert counts.late == (0 if lossless else 5)
        assert counts.undeclared == (0 if lossless else 5)
    receiver = ReceiverLedger()
    receiver.admit(5, 5)
    receiver.age()
    receiver.age()
    receiver.declare([Drop(0, 2, DropReason.OVERRUN), Drop(2, 3, DropReason.MISSING)])
    counts = receiver.counts()
    assert (counts.declared_total, counts.undeclared) == (2, 3)
    assert receiver.missing() == ()


def test_one_batch_may_fill_two_holes():
    receiver = ReceiverLedger()
    receiver.admit(2, 2)
    receiver.admit(6, 2)
    assert receiver.admit(0, 10) == [(0, 2), (4, 2), (8, 2)]
    assert receiver.counts().received == 10
    assert receiver.counts().duplicate == 4


def test_a_stream_opened_further_on_was_settled_elsewhere():
    receiver = ReceiverLedger()
    receiver.admit(0, 5)
    receiver.resume(9)
    receiver.resume(2)
    assert receiver.counts().declared == {DropReason.PEER_LOST: 4}
    assert receiver.next_seq == 9


def test_holes_take_bounded_memory():
    receiver = ReceiverLedger()
    for number in range(5 * MAX_RANGES):
        receiver.admit(2 * number + 1, 1)
    assert len(receiver.missing()) <= MAX_RANGES
    assert receiver.counts().undeclared == 5 * MAX_RANGES


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["rows", "declare", "expect", "age", "resume"]),
        st.integers(0, 60),
        st.integers(1, 9),
        st.sampled_from([DropReason.AGE, DropReason.MISSING]),
    ),
    max_size=25,
)


@given(EVENTS, st.booleans())
def test_the_receivers_books_always_balance(events, lossless):
    receiver = ReceiverLedger(lossless=lossless)
    seen: set[int] = set()
    for kind, first, rows, reason in events:
        if kind == "rows":
            fresh = receiver.admit(first, rows)
            parts = {first + offset + i for offset, count in fresh for i in range(count)}
            assert not parts & seen
            seen |= parts
        elif kind == "declare":
            receiver.declare([Drop(first, rows, reason)])
        elif kind == "expect":
            receiver.expect(first)
        elif kind == "age":
            receiver.age()
        else:
            receiver.resume(first)
        counts = receiver.counts()
        assert counts.received == len(seen)
        assert receiver.next_seq == counts.received + counts.declared_total + counts.undeclared
        assert receiver.settled_seq() <= receiver.next_seq


SENDER_EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["transmit", "declare", "ack", "missing", "lose", "rewind", "told"]),
        st.integers(0, 60),
        st.integers(1, 9),
    ),
    max_size=30,
)


@given(SENDER_EVENTS)
def test_the_senders_books_always_balance(events):
    sender = SenderLedger()
    for kind, seq, rows in events:
        if kind == "transmit":
            ahead = sender._ahead[0][0] - sender.next_seq if sender._ahead else rows
            sender.transmit(sender.next_seq, min(rows, ahead))
        elif kind == "declare":
            ahead = sender._ahead[0][0] - sender.next_seq if sender._ahead else rows
            sender.declare(sender.next_seq, min(rows, ahead), DropReason.AGE)
        elif kind == "ack":
            sender.acknowledge(min(seq, sender.next_seq))
        elif kind == "missing":
            sender.give_up([Range(seq, rows)])
        elif kind == "lose":
            sender.lose_peer(min(seq, sender.next_seq))
        elif kind == "rewind":
            sender.rewind(max(seq, sender.next_seq - sender.in_flight))
        else:
            sender.drops_sent(sender.pending_drops())
        counts = sender.counts()
        assert counts.balanced(), (kind, counts)
        assert all(
            left.first_seq <= right.first_seq
            for left, right in itertools.pairwise(sender._unconfirmed)
        )
