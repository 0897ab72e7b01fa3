"""The ring against a model, one operation at a time, and against a real second thread."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from interlatent_live.agent.ring import FACTS, FACTS_STRUCT, Ring, RingLayout, plan_layout
from interlatent_live.errors import UserError
from interlatent_live.stream import HookPointSpec

HOOKS = (HookPointSpec("a", 3, 2), HookPointSpec("b", 1, 5))


def layout(rows=1, capacity=8, y_every=2, n_metrics=2):
    return RingLayout(tuple(range(rows)), HOOKS, n_metrics, y_every, capacity)


def write(ring, number, valid):
    """Write one block whose every value says which block it is."""
    slot = ring.slot
    for name, column in ring.x.items():
        column[slot] = number + (0.5 if name == "b" else 0.0)
    if ring.wants_y:
        for column in ring.y.values():
            column[ring.y_slot(ring.head)] = number
    ring.metrics[slot] = number
    ring.facts[slot]["time_ns"] = number
    ring.facts[slot]["t"] = number
    ring.facts[slot]["valid"] = valid
    ring.commit(int(np.count_nonzero(valid)))


def test_the_packed_record_is_the_numpy_record():
    record = np.zeros(1, FACTS)
    FACTS_STRUCT.pack_into(record.view(np.uint8).data, 0, -5, 6, 7, 8, 2, 3, 1)
    assert FACTS.itemsize == FACTS_STRUCT.size
    assert record[0].tolist() == (-5, 6, 7, 8, 2, 3, 1)


def test_layout_counts_the_bytes_that_are_allocated():
    planned = layout(rows=3, capacity=6)
    ring = Ring(planned)
    columns = [ring.facts, ring.metrics, ring.span, *ring.x.values(), *ring.y.values()]
    assert planned.nbytes == sum(column.nbytes for column in columns)


@pytest.mark.parametrize("y_every", [0, 1, 3])
def test_plan_stays_within_bytes_and_steps(y_every):
    planned = plan_layout((0, 1), HOOKS, 4, y_every=y_every, max_bytes=10_000, max_steps=1_000)
    assert planned.nbytes <= 10_000
    assert planned.capacity % max(1, y_every) == 0
    short = plan_layout((0, 1), HOOKS, 4, y_every=y_every, max_bytes=10**9, max_steps=50)
    assert 48 <= short.capacity <= 50


def test_plan_refuses_a_buffer_too_small():
    with pytest.raises(UserError, match="too small"):
        plan_layout((0,), HOOKS, 4, y_every=8, max_bytes=100, max_steps=1_000)


operations = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.lists(st.booleans(), min_size=2, max_size=2)),
        st.tuples(st.just("take"), st.integers(1, 9)),
        st.tuples(st.just("skip"), st.integers(0, 40)),
    ),
    max_size=80,
)


@settings(max_examples=150, deadline=None)
@given(operations, st.sampled_from([0, 1, 2, 4]))
def test_against_a_model(script, y_every):  # noqa: C901  a model is one loop
    """Every row that was a step leaves exactly once, in order, or is declared lost."""
    ring = Ring(layout(rows=2, capacity=4, y_every=y_every))
    written: list[int] = []  # block number of each sequence number
    outcome: dict[int, str] = {}
    block = 0

    def declare(lost, reason):
        if lost is not None:
            assert lost.count > 0
            for seq in range(lost.first_seq, lost.first_seq + lost.count):
                assert seq not in outcome
                outcome[seq] = reason

    for operation, argument in script:
        if operation == "write":
            write(ring, block, argument)
            written.extend([block] * sum(argument))
            block += 1
        elif operation == "take":
            taken, lost = ring.take(argument)
            declare(lost, "overrun")
            if taken is None:
                continue
            assert len(taken) <= max(argument, 2)
            blocks = [written[taken.first_seq + i] for i in range(len(taken))]
            assert taken.facts["t"].tolist() == blocks
            assert taken.metrics[:, 0].tolist() == blocks
            assert taken.x["a"][:, 0].tolist() == blocks
            assert (taken.x["b"][:, 0] - 0.5).tolist() == blocks
            sampled = [i for i, number in enumerate(blocks) if y_every and number % y_every == 0]
            assert taken.y_rows.tolist() == sampled
            for column in taken.y.values():
                assert column[:, 0].tolist() == [blocks[i] for i in sampled]
            for i in range(len(taken)):
                assert taken.first_seq + i not in outcome
                outcome[taken.first_seq + i] = "sent"
        else:
            overwritten, aged = ring.skip_to(argument)
            declare(overwritten, "overrun")
            declare(aged, "age")
            if aged is not None:
                last = aged.first_seq + aged.count - 1
                assert written[last] < argument
    while ring.backlog():
        taken, lost = ring.take(100)
        declare(lost, "overrun")
        if taken is not None:
            for i in range(len(taken)):
                outcome[taken.first_seq + i] = "sent"
    # The newest rows are never the ones lost to overrun: the writer overwrites the oldest.
    settled = [outcome.get(seq) for seq in range(len(written))]
    assert None not in settled[: ring.next_seq]
    assert list(outcome) == sorted(outcome)
    recent = [seq for seq, number in enumerate(written) if number > block - 4]
    assert all(outcome[seq] != "overrun" for seq in recent)


@pytest.mark.parametrize("pause", [0.0, 0.0005])
def test_two_threads_never_show_a_torn_row(pause):
    """A writer at full speed over a tiny ring: rows are whole, ordered, and all accounted for."""
    hooks = (HookPointSpec("h", 64, 64),)
    ring = Ring(RingLayout((0,), hooks, 8, 1, 16))
    total = 30_000
    done = threading.Event()

    def writer():
        for number in range(total):
            slot = ring.slot
            ring.x["h"][slot] = number
            ring.y["h"][ring.y_slot(ring.head)] = number
            ring.metrics[slot] = number
            FACTS_STRUCT.pack_into(
                ring.facts_bytes, slot * FACTS.itemsize, number, 0, number, 0, 0, 0, 1
            )
            ring.commit(1)
            if pause and number % 10 == 0:
                time.sleep(pause)
        done.set()

    thread = threading.Thread(target=writer)
    thread.start()
    sent, lost_rows, expected = 0, 0, 0
    while not (done.is_set() and ring.backlog() == 0):
        taken, lost = ring.take(7)
        if lost is not None:
            assert lost.first_seq == expected
            expected += lost.count
            lost_rows += lost.count
        if taken is None:
            time.sleep(0.0001)
            continue
        numbers = np.arange(taken.first_seq, taken.first_seq + len(taken))
        assert taken.first_seq == expected
        assert np.array_equal(taken.facts["t"], numbers)
        assert np.array_equal(taken.x["h"], np.repeat(numbers[:, None], 64, 1))
        assert np.array_equal(taken.y["h"], np.repeat(numbers[:, None], 64, 1))
        assert np.array_equal(taken.metrics, np.repeat(numbers[:, None], 8, 1))
        expected += len(taken)
        sent += len(taken)
    thread.join()
    _, closing = ring.skip_to(2**62)
    assert closing is None
    assert sent + lost_rows == total
    assert sent > 0


def test_take_stops_before_a_block_that_is_not_ready():
    ring = Ring(layout(capacity=8))
    ready_below = 2
    ring.hold_until(lambda block: block < ready_below)
    for number in range(5):
        write(ring, number, [True])
    taken, lost = ring.take(100)
    assert lost is None
    assert taken is not None
    assert taken.facts["t"].tolist() == [0, 1]
    assert ring.take(100) == (None, None)
    ready_below = 5
    taken, _ = ring.take(100)
    assert taken is not None
    assert taken.facts["t"].tolist() == [2, 3, 4]
