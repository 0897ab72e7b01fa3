from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interlatent_live.encoding.launch_plan import (
    ALIGNMENT,
    MAX_CANDIDATES,
    Precision,
    Shape,
    buckets,
    choose_selection,
    largest_bucket,
    plan_launch,
    power_of_two,
)
from interlatent_live.errors import UserError

SHAPES = st.builds(
    Shape,
    d_in=st.integers(1, 4096),
    n_features=st.integers(1, 200_000),
    precision=st.sampled_from(Precision),
)


@given(SHAPES, st.integers(1, 8192), st.none() | st.integers(1, 64))
def test_a_plan_covers_its_work_and_its_buffers_do_not_overlap(shape, rows, k):
    if k is not None and k > shape.n_features:
        k = shape.n_features
    selection = choose_selection(shape, k)
    plan = plan_launch(shape, rows, selection)
    tile = plan.tile
    assert shape.padded >= shape.n_features
    assert shape.padded % tile.features == 0
    assert min(tile.rows, tile.features, tile.inner) >= 16
    assert selection.capacity >= (k or 1)
    assert selection.room >= (k or 1)
    if selection.group:
        assert shape.padded % selection.group == 0
        assert tile.features % selection.group == 0
        assert (k is None) or power_of_two(k) * selection.group <= MAX_CANDIDATES
    for buffers, total in ((plan.device, plan.device_bytes), (plan.host, plan.host_bytes)):
        end = 0
        for buffer in buffers.values():
            assert buffer.offset % ALIGNMENT == 0
            assert buffer.offset >= end
            end = buffer.offset + 4 * buffer.elements
        assert end <= total
    # Whole tiles of x are read; whole rows of everything else are written.
    assert plan.device["x"].elements >= -(-rows // tile.rows) * tile.rows * shape.d_in
    assert plan.device["pre"].elements == rows * shape.padded
    assert plan.host["indptr"].elements == rows + 1


@given(st.integers(1, 100_000))
def test_buckets_ascend_to_the_maximum_and_waste_little(max_rows):
    sizes = buckets(max_rows)
    assert list(sizes) == sorted(set(sizes))
    assert sizes[-1] == max_rows
    for small, large in pairwise(sizes):
        assert large <= (4 if large <= 64 else 2) * small


def test_the_largest_bucket_is_the_largest_that_fits():
    shape = Shape(1024, 32_768, Precision.BFLOAT16)
    selection = choose_selection(shape, 32)
    rows = largest_bucket(
        shape, selection, max_rows=8192, device_bytes=256 << 20, host_bytes=64 << 20
    )
    assert plan_launch(shape, rows, selection).device_bytes <= 256 << 20
    assert plan_launch(shape, 2 * rows, selection).device_bytes > 256 << 20
    with pytest.raises(UserError, match="raise workspace_bytes"):
        largest_bucket(shape, selection, max_rows=64, device_bytes=1 << 10, host_bytes=1 << 20)


def test_a_k_beyond_the_registers_is_refused_with_the_remedy():
    shape = Shape(64, 131_072, Precision.FLOAT32)
    with pytest.raises(UserError, match="device cpu"):
        choose_selection(shape, 4096)


def test_room_grows_to_what_is_asked_and_never_beyond_the_features():
    shape = Shape(64, 5000, Precision.FLOAT32)
    assert choose_selection(shape, None).capacity == 256
    assert choose_selection(shape, None, 2048).capacity == 2048
    assert choose_selection(shape, None, 8192).capacity == shape.padded == 5120


def test_error_bounds_are_those_of_the_operands():
    assert Precision.BFLOAT16.error_bound(256) == pytest.approx(2**-7, rel=0.01)
    assert Precision.FLOAT32.error_bound(256) < 2**-14
