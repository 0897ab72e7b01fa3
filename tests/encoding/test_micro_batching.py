from __future__ import annotations

from collections import defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlatent_live.encoding.micro_batching import (
    Batch,
    BatchLimits,
    Joiner,
    MicroBatcher,
    Request,
)

LIMITS = st.builds(
    BatchLimits,
    max_rows=st.integers(1, 40),
    max_delay_ns=st.integers(0, 20),
    quantum_rows=st.integers(1, 12),
    max_pending_rows=st.integers(40, 400),
)
ARRIVALS = st.lists(
    st.tuples(
        st.sampled_from("ABCD"),  # source
        st.sampled_from(["t1", "t2", "t3"]),  # transcoder
        st.integers(0, 70),  # rows
        st.integers(0, 6),  # time since the one before
        st.integers(0, 3),  # batches taken after it
    ),
    max_size=60,
)


def drained(batcher: MicroBatcher) -> list[Batch]:
    batches = []
    while (batch := batcher.take_any()) is not None:
        batches.append(batch)
    return batches


@given(LIMITS, ARRIVALS)
def test_every_accepted_row_leaves_once_in_order_within_bounds(limits, arrivals):
    batcher = MicroBatcher(limits)
    now = 0
    batches = []
    accepted: dict[int, Request] = {}
    refused = 0
    for number, (source, transcoder, rows, wait, takes) in enumerate(arrivals):
        now += wait
        request = Request(number, "net.1", source, transcoder, rows)
        if batcher.submit(request, now):
            accepted[number] = request
        else:
            refused += rows
        assert batcher.pending_rows <= limits.max_pending_rows
        for _ in range(takes):
            batch = batcher.take(now)
            if batch is None:
                ready = batcher.next_ready_ns()
                assert ready is None or ready > now
                break
            batches.append(batch)
    batches += drained(batcher)

    assert batcher.pending_rows == 0
    assert batcher.next_ready_ns() is None
    assert batcher.refused_rows == refused
    left = dict.fromkeys(accepted, 0)
    order = defaultdict(list)
    for batch in batches:
        offset = 0
        for piece in batch.slices:
            assert piece.request.transcoder == batch.transcoder
            assert piece.offset == offset
            assert piece.start == left[piece.request.message]  # rows of a request leave in order
            left[piece.request.message] = piece.stop
            offset += len(piece)
            order[piece.request.source, batch.transcoder].append(piece.request.message)
        assert 0 < offset == batch.rows <= limits.max_rows
    assert left == {number: request.rows for number, request in accepted.items()}
    assert all(messages == sorted(messages) for messages in order.values())


@given(LIMITS, ARRIVALS)
def test_a_request_waits_at_most_the_delay_bound_when_the_device_keeps_up(limits, arrivals):
    batcher = MicroBatcher(limits)
    now = 0
    arrived: dict[int, int] = {}
    for number, (source, transcoder, rows, wait, _) in enumerate(arrivals):
        # A loop that wakes when it is told to, and not a moment earlier.
        until = now + wait
        while (ready := batcher.next_ready_ns()) is not None and ready <= until:
            now = max(now, ready)
            batch = batcher.take(now)
            assert batch is not None
            for piece in batch.slices:
                assert now - arrived[piece.request.message] <= limits.max_delay_ns
        now = until
        if batcher.submit(Request(number, "net.1", source, transcoder, rows), now):
            arrived[number] = now


def test_nothing_is_ready_before_its_time_and_a_full_batch_is_ready_at_once():
    batcher = MicroBatcher(BatchLimits(max_rows=8, max_delay_ns=10, quantum_rows=4))
    batcher.submit(Request(0, "a", "A", "t", 7), 100)
    assert batcher.take(109) is None
    assert batcher.next_ready_ns() == 110
    batcher.submit(Request(1, "a", "B", "t", 2), 105)
    batch = batcher.take(105)
    assert batch is not None
    assert batch.rows == 8
    assert batch.oldest_ns == 100
    # The turn of A ended with its last row but one, after B's 2.
    assert batcher.pending_rows == 1
    assert batcher.next_ready_ns() == 110


def test_one_source_alone_gets_one_slice_per_request():
    batcher = MicroBatcher(BatchLimits(max_rows=256, quantum_rows=64))
    batcher.submit(Request(0, "a", "A", "t", 200), 0)
    (batch,) = drained(batcher)
    assert [(piece.start, piece.stop) for piece in batch.slices] == [(0, 200)]


@given(st.integers(2, 6), st.integers(1, 8), st.integers(1, 5))
def test_a_flooding_source_cannot_starve_the_others(sources, quantum, rounds):
    limits = BatchLimits(max_rows=sources * quantum, quantum_rows=quantum, max_pending_rows=10_000)
    batcher = MicroBatcher(limits)
    for number in range(50):
        batcher.submit(Request(number, "a", "flood", "t", 40), 0)
    others = [f"s{i}" for i in range(sources - 1)]
    for i, source in enumerate(others):
        batcher.submit(Request(1000 + i, "a", source, "t", quantum * rounds), 0)
    for _ in range(rounds):
        batch = batcher.take(0)
        assert batch is not None
        rows: dict[str, int] = defaultdict(int)
        for piece in batch.slices:
            rows[piece.request.source] += len(piece)
        assert all(rows[source] == quantum for source in others)


def test_a_busy_transcoder_takes_turns_with_the_others():
    batcher = MicroBatcher(BatchLimits(max_rows=4, max_delay_ns=0, quantum_rows=4))
    batcher.submit(Request(0, "a", "A", "busy", 400), 0)
    for i in range(3):
        batcher.submit(Request(1 + i, "a", "B", f"t{i}", 1), 1)
    order = []
    for _ in range(5):
        batch = batcher.take(1)
        assert batch is not None
        order.append(batch.transcoder)
    assert order == ["busy", "t0", "t1", "t2", "busy"]


def test_draining_makes_a_transcoder_ready_and_a_later_request_waits_again():
    batcher = MicroBatcher(BatchLimits(max_rows=8, max_delay_ns=1000))
    batcher.submit(Request(0, "a", "A", "old", 3), 0)
    batcher.submit(Request(1, "a", "A", "new", 3), 0)
    batcher.drain("old")
    batch = batcher.take(0)
    assert batch is not None
    assert batch.transcoder == "old"
    assert batcher.take(0) is None
    batcher.submit(Request(2, "a", "A", "old", 3), 0)
    assert batcher.take(0) is None
    batcher.drain("never seen")
    assert batcher.take(0) is None


@pytest.mark.parametrize(
    "bad",
    [{"max_rows": 0}, {"quantum_rows": 0}, {"max_delay_ns": -1}, {"max_pending_rows": 5}],
)
def test_limits_that_cannot_work_are_refused(bad):
    with pytest.raises(ValueError, match=r"limits|max_pending_rows"):
        BatchLimits(**bad)


def test_negative_rows_are_refused():
    with pytest.raises(ValueError, match="-1 rows"):
        MicroBatcher().submit(Request(0, "a", "A", "t", -1), 0)


@given(
    st.lists(
        st.tuples(
            st.sampled_from("AB"),
            st.dictionaries(st.sampled_from(["h1", "h2"]), st.integers(0, 9), max_size=2),
        ),
        max_size=20,
    ),
    st.randoms(use_true_random=False),
)
def test_messages_come_out_whole_once_and_in_order_per_source(messages, random):
    batcher = MicroBatcher(BatchLimits(max_rows=5, quantum_rows=3))
    joiner = Joiner()
    released: list[int] = []
    done: set[tuple[int, str, int]] = set()
    source_of = {}
    for number, (source, parts) in enumerate(messages):
        source_of[number] = source
        requests = [Request(number, hook, source, f"t-{hook}", n) for hook, n in parts.items()]
        released += joiner.open(number, source, [r for r in requests if batcher.submit(r, number)])
    batches = drained(batcher)
    by_transcoder = defaultdict(list)
    for batch in batches:
        by_transcoder[batch.transcoder].append(batch)
    while any(by_transcoder.values()):  # batches of different transcoders finish in any order
        line = random.choice([line for line in by_transcoder.values() if line])
        batch = line.pop(0)
        for piece in batch.slices:
            done |= {
                (piece.request.message, piece.request.hook_point, row)
                for row in range(piece.start, piece.stop)
            }
        for message in joiner.finish(batch):
            rows = sum(messages[message][1].values())
            assert sum(1 for entry in done if entry[0] == message) == rows
            released.append(message)
    assert sorted(released) == list(range(len(messages)))
    for source in "AB":
        mine = [number for number in released if source_of[number] == source]
        assert mine == sorted(mine)
    assert len(joiner) == 0


def test_the_joiner_refuses_what_it_does_not_expect():
    batcher, joiner = MicroBatcher(), Joiner()
    request = Request(7, "h", "A", "t", 2)
    batcher.submit(request, 0)
    batch = batcher.take_any()
    assert batch is not None
    with pytest.raises(ValueError, match="nothing waits"):
        joiner.finish(batch)
    assert joiner.open(7, "A", [request]) == ()
    with pytest.raises(ValueError, match="open already"):
        joiner.open(7, "A", [request])
    with pytest.raises(ValueError, match="twice"):
        joiner.open(8, "A", [request, request])
    assert joiner.finish(batch) == (7,)
    with pytest.raises(ValueError, match="nothing waits"):
        joiner.finish(batch)
