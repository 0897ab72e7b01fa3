from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from interlatent_live.encoding.lower_bound import (
    MISSES_ALLOWED,
    REMEMBERED,
    REST,
    ROWS_BEFORE,
    LowerBound,
)


def learned(least: float = 2.0) -> LowerBound:
    bound = LowerBound()
    bound.saw(least, ROWS_BEFORE)
    return bound


def test_no_bound_is_tried_before_enough_rows_were_seen():
    bound = LowerBound()
    assert bound.value == 0.0
    bound.saw(3.0, ROWS_BEFORE - 1)
    assert bound.value == 0.0
    bound.saw(2.0, 1)
    assert 0.9 * 2.0 < bound.value < 2.0


@given(st.lists(st.floats(0.0, 100.0), min_size=1, max_size=100))
def test_the_bound_lies_below_everything_seen_lately(seen):
    bound = LowerBound()
    for least in seen:
        bound.saw(least, ROWS_BEFORE)
    lately = seen[-REMEMBERED:]
    assert 0.0 <= bound.value <= min(lately)


def test_rows_with_fewer_than_k_positive_entries_forbid_a_bound():
    bound = learned()
    bound.saw(0.0, 10)
    assert bound.value == 0.0
    for _ in range(REMEMBERED):
        bound.saw(2.0, 10)
    assert bound.value > 0.0


def test_rare_misses_are_borne_and_frequent_ones_are_not():
    bound = learned()
    for _ in range(20):
        bound.miss()
        for _ in range(63):
            bound.hit()
        assert bound.value > 0.0
    assert bound.misses == 20
    for _ in range(MISSES_ALLOWED + 1):
        bound.miss()
    assert bound.value == 0.0


def test_after_a_rest_it_learns_anew():
    bound = learned()
    for _ in range(MISSES_ALLOWED + 1):
        bound.miss()
    for _ in range(REST - 1):
        bound.saw(5.0, ROWS_BEFORE)
        assert bound.value == 0.0
    bound.saw(5.0, ROWS_BEFORE)
    assert bound.value > 4.0
