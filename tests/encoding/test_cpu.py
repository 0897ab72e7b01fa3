from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from interlatent_live.encoding import cpu
from interlatent_live.encoding.backend import EncoderWeights
from interlatent_live.encoding.cpu import CpuBackend, CpuEncoder, grouped_bound, top_k_bound
from tests.support.encode_backend import BackendSuite, random_rows, random_weights

COARSE = st.integers(-4, 4).map(float)  # few values: many ties


class TestCpuBackend(BackendSuite):
    @pytest.fixture
    def backend(self) -> CpuBackend:
        return CpuBackend()


ROWS = hnp.arrays(np.float32, st.tuples(st.integers(1, 6), st.integers(1, 90)), elements=COARSE)


@given(ROWS, st.data())
def test_the_bounds_are_bounds(pre, data):
    n_features = pre.shape[1]
    k = data.draw(st.integers(1, n_features))
    kth = np.sort(pre, axis=1)[:, -k]
    np.testing.assert_array_equal(top_k_bound(pre, k), kth)
    bound = grouped_bound(pre, k, data.draw(st.integers(k, n_features)))
    assert (bound <= kth).all()
    assert (bound >= pre.min(axis=1)).all()


@pytest.mark.parametrize("small", [0, cpu.SMALL])
@given(ROWS, st.data())
def test_top_k_with_ties_is_the_stable_sort(small, pre, data):
    n_features = pre.shape[1]
    k = data.draw(st.integers(1, n_features))
    weights = EncoderWeights(
        np.eye(n_features, dtype=np.float32), np.zeros(n_features, np.float32), k=k
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu, "SMALL", small)
        rows = CpuBackend().prepare(weights).encode(pre)
    for i, row in enumerate(pre):
        chosen = np.argsort(-row, kind="stable")[:k]
        expected = np.sort(chosen[row[chosen] > 0])
        np.testing.assert_array_equal(rows.index[rows.indptr[i] : rows.indptr[i + 1]], expected)


@pytest.mark.parametrize("k", [4, None])
def test_blocks_of_rows_give_what_one_block_gives(monkeypatch, k):
    weights = random_weights(16, 256, k=k)
    x = random_rows(70, 16)
    whole = CpuEncoder(weights).encode(x)
    monkeypatch.setattr(cpu, "BLOCK_BYTES", 4 * 256 * 9)
    parts = CpuEncoder(weights).encode(x)
    np.testing.assert_array_equal(whole.indptr, parts.indptr)
    np.testing.assert_array_equal(whole.index, parts.index)
    np.testing.assert_allclose(whole.value, parts.value, rtol=1e-5)
