from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlatent_live.wire.ranges import RangeSet

OPERATIONS = st.lists(st.tuples(st.booleans(), st.integers(0, 40), st.integers(0, 12)), max_size=30)


@given(OPERATIONS)
def test_behaves_as_a_set_of_integers(operations):
    ranges = RangeSet()
    model: set[int] = set()
    for add, start, length in operations:
        part = set(range(start, start + length))
        if add:
            assert ranges.add(start, start + length) == len(part - model)
            model |= part
        else:
            taken = ranges.remove(start, start + length)
            assert {i for low, high in taken for i in range(low, high)} == part & model
            model -= part
        pairs = list(ranges)
        assert {i for low, high in pairs for i in range(low, high)} == model
        assert ranges.total == len(model)
        assert len(ranges) == len(pairs)
        assert ranges.first() == (min(model) if model else None)
        # Disjoint, ascending, and never touching.
        assert all(left[1] < right[0] for left, right in itertools.pairwise(pairs))


def test_pop_first():
    ranges = RangeSet()
    ranges.add(5, 7)
    ranges.add(1, 2)
    assert ranges.pop_first() == (1, 2)
    assert ranges.pop_first() == (5, 7)
    with pytest.raises(IndexError):
        ranges.pop_first()
