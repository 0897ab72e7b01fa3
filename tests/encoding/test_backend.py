from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlatent_live.encoding.backend import EncodedRows, EncoderWeights
from interlatent_live.errors import UserError

W = np.ones((3, 5), np.float32)
B = np.zeros(5, np.float32)


@pytest.mark.parametrize(
    ("weights", "says"),
    [
        ((W[0], B, None, 2), "W_enc has shape"),
        ((W[:0], B, None, 2), "W_enc has shape"),
        ((W, B[:4], None, 2), "b_enc has shape"),
        ((W, B, None, None), "exactly one"),
        ((W, B, B, 2), "exactly one"),
        ((W, B, None, 0), "between 1 and 5"),
        ((W, B, None, 6), "between 1 and 5"),
        ((W, B, B[:2], None), "threshold has shape"),
        ((W, B, B - 1, None), "negative"),
        ((W * np.nan, B, B, None), "not finite"),
        ((W, B, B + np.inf, None), "not finite"),
    ],
)
def test_weights_that_cannot_be_honoured_are_refused(weights, says):
    with pytest.raises(UserError, match=says):
        EncoderWeights(*weights)


def encoded(counts: list[int]) -> EncodedRows:
    indptr = np.cumsum([0, *counts], dtype=np.uint32)
    total = int(indptr[-1])
    return EncodedRows(
        indptr, np.arange(total, dtype=np.uint32), np.arange(1, total + 1, dtype=np.float32)
    )


@given(st.lists(st.integers(0, 4), max_size=12), st.data())
def test_cutting_and_joining_gives_the_same_rows_back(counts, data):
    rows = encoded(counts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(counts)), max_size=4)))
    edges = [0, *cuts, len(counts)]
    parts = [rows.rows(a, b) for a, b in pairwise(edges)]
    assert [len(part) for part in parts] == [b - a for a, b in pairwise(edges)]
    joined = EncodedRows.concatenate(parts)
    for name in ("indptr", "index", "value"):
        np.testing.assert_array_equal(getattr(joined, name), getattr(rows, name))
        assert getattr(joined, name).dtype == getattr(rows, name).dtype


def test_joining_nothing_gives_no_rows():
    assert len(EncodedRows.concatenate([])) == 0
