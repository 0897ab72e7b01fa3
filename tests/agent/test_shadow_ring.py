"""The ring between the acting thread and the shadow's process: whole samples, newest kept."""

from __future__ import annotations

from mmap import mmap

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from interlatent_live.agent.shadow_ring import (
    MOST_BYTES,
    CallShapeError,
    RingReader,
    RingShape,
    RingWriter,
    ring_shape,
)

STEPS = np.arange(2)


def ring(call, copies=2, slots=4):
    shape = ring_shape(call, copies, slots)
    memory = mmap(-1, shape.nbytes)
    told = msgspec.json.decode(msgspec.json.encode(shape), type=RingShape)
    return RingWriter(memory, shape), RingReader(memory, told), memory


def call(number):
    state = (torch.full((1, 2), number, dtype=torch.float64), torch.tensor(number))
    return (torch.full((2, 3), float(number)), [None, 1.5]), {"state": state, "greedy": True}


def equal(one, other):
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, (tuple, list)):
        pairs = zip(one, other, strict=True)
        return type(one) is type(other) and all(equal(a, b) for a, b in pairs)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    return one == other


@given(st.integers(0, 20), st.integers(1, 6))
def test_the_newest_samples_come_out_whole_and_in_order(written, slots):
    writer, reader, _ = ring(call(0), slots=slots)
    for number in range(written):
        assert writer.put(call(number), np.array([number, -number]), STEPS + number, number)
    found = reader.samples()
    expected = range(max(0, written - slots), written)
    assert len(found) == len(expected)
    for one, number in zip(found, expected, strict=True):
        assert equal(one.call, call(number))
        assert one.episode.tolist() == [number, -number]
        assert one.t.tolist() == [number, 1 + number]
        assert one.time_ns == number


@given(st.data())
def test_a_slot_that_is_being_written_is_left_out(data):
    writer, reader, memory = ring(call(0))
    for number in range(6):
        writer.put(call(number), np.array([number, number]), STEPS, 0)
    at = data.draw(st.integers(0, len(memory) - 1))
    memory[at] ^= data.draw(st.integers(1, 255))
    found = [int(one.episode[0]) for one in reader.samples()]
    # One slot at most is hurt; padding is covered too.
    assert len(found) == 3
    assert set(found) < {2, 3, 4, 5}


@pytest.mark.parametrize(
    "other",
    [
        ((torch.zeros(3, 3), [None, 1.5]), call(0)[1]),
        ((torch.zeros(2, 3, dtype=torch.float64), [None, 1.5]), call(0)[1]),
        ((torch.zeros(2, 3), [None, 2.5]), call(0)[1]),
        ((torch.zeros(2, 3), [None, 1.5]), {**call(0)[1], "greedy": object()}),
    ],
)
def test_a_call_of_another_shape_is_left_out(other):
    writer, reader, _ = ring(call(0))
    assert not writer.put(other, np.zeros(2, np.int64), STEPS, 0)
    assert not writer.put(call(0), np.zeros(3, np.int64), STEPS, 0)
    assert not writer.put(call(0), np.zeros(2, np.int64), np.arange(3), 0)
    assert reader.samples() == []


def test_strided_and_low_precision_tensors_go_through():
    seen = torch.arange(12, dtype=torch.bfloat16).reshape(3, 4).T
    writer, reader, _ = ring(((seen,), {}), copies=4)
    assert writer.put(((seen,), {}), np.zeros(4, np.int64), np.arange(4), 0)
    (one,) = reader.samples()
    ((got,), _) = one.call
    assert torch.equal(got, seen)


def test_what_a_ring_takes_is_bounded_and_known_before():
    shape = ring_shape(((torch.zeros(1024, 1024),), {}), 1, 512)
    assert shape.nbytes <= MOST_BYTES
    assert 1 <= shape.slots < 512
    with pytest.raises(CallShapeError, match="called with a object"):
        ring_shape(((object(),), {}), 1, 4)
