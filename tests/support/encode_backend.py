"""What every encode backend must do; each adapter's tests inherit it.

The reference is float64 on the host. A backend states its error bound per pre-activation, and may
differ from the reference only within it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from interlatent_live.encoding.backend import EncodedRows, EncoderWeights
from interlatent_live.errors import MismatchError

if TYPE_CHECKING:
    from interlatent_live.encoding.backend import EncodeBackend

SHAPES = [(4, 16, 2), (7, 33, 5), (64, 512, 16), (96, 2048, 8), (64, 5000, 32), (3, 8, 8)]


def random_weights(d: int, n_features: int, *, k: int | None, seed: int = 0) -> EncoderWeights:
    rng = np.random.default_rng(seed)
    W_enc = (rng.standard_normal((d, n_features)) / d**0.5).astype(np.float32)
    b_enc = (0.1 * rng.standard_normal(n_features)).astype(np.float32)
    if k is not None:
        return EncoderWeights(W_enc, b_enc, k=k)
    threshold = rng.uniform(0.5, 2.5, n_features).astype(np.float32)
    return EncoderWeights(W_enc, b_enc, threshold=threshold)


def random_rows(n: int, d: int, *, seed: int = 1, dtype: type = np.float32) -> np.ndarray:
    rng = np.random.default_rng(seed)
    scale = rng.lognormal(0, 1, (n, 1))
    return (scale * rng.standard_normal((n, d))).astype(dtype)


def reference(weights: EncoderWeights, x: np.ndarray) -> np.ndarray:
    """Pre-activations [n, F] in float64."""
    return x.astype(np.float64) @ weights.W_enc.astype(np.float64) + weights.b_enc


def assert_exact(
    rows: EncodedRows, weights: EncoderWeights, x: np.ndarray, bound: np.ndarray
) -> None:
    """The support differs from float64 only within ``bound`` [n, F] of the cut, values likewise."""
    n, n_features = len(x), weights.n_features
    assert rows.indptr.dtype == rows.index.dtype == np.uint32
    assert rows.value.dtype == np.float32
    assert len(rows) == n
    assert rows.indptr[0] == 0
    assert rows.indptr[-1] == len(rows.index) == len(rows.value)
    assert (rows.value > 0).all()
    pre = reference(weights, x)
    for i in range(n):
        start, stop = rows.indptr[i], rows.indptr[i + 1]
        index, value = rows.index[start:stop].astype(np.int64), rows.value[start:stop]
        assert (np.diff(index) > 0).all()
        assert not len(index) or index[-1] < n_features
        assert (np.abs(value - pre[i, index]) <= bound[i, index]).all()
        on = np.zeros(n_features, np.bool_)
        on[index] = True
        if weights.k is None:
            cut = np.broadcast_to(np.asarray(weights.threshold, np.float64), n_features)
        else:
            assert len(index) <= weights.k
            kth = np.partition(pre[i], n_features - weights.k)[n_features - weights.k]
            cut = np.full(n_features, max(kth, 0.0))
            if len(index) < weights.k:  # fewer than k only when the rest is not positive
                assert (pre[i, ~on] <= bound[i, ~on]).all()
        # Either side of the cut may be wrong only within the bound of both entries compared.
        slack = bound[i] if weights.k is None else bound[i] + bound[i].max()
        assert (pre[i, on] > cut[on] - slack[on]).all()
        missed = ~on & (pre[i] > cut + slack)
        assert not missed.any()


class BackendSuite:
    """Inherit, and give a fixture ``backend``."""

    def bound(self, weights: EncoderWeights, x: np.ndarray) -> np.ndarray:
        """Float32 products and sums: γ_{d+2} (|x| |W| + |b|), Higham 2002, section 3.1."""
        steps = (weights.d_in + 2) * np.finfo(np.float32).eps
        mass = np.abs(x.astype(np.float64)) @ np.abs(weights.W_enc.astype(np.float64))
        return steps * (mass + np.abs(weights.b_enc))

    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    @pytest.mark.parametrize("n", [1, 3, 50])
    @pytest.mark.parametrize("by_k", [False, True])
    def test_agrees_with_float64(self, backend: EncodeBackend, shape, n, by_k):
        d, n_features, k = shape
        weights = random_weights(d, n_features, k=k if by_k else None)
        encoder = backend.prepare(weights)
        assert (encoder.d_in, encoder.n_features) == (d, n_features)
        for seed in (1, 2):
            x = random_rows(n, d, seed=seed)
            assert_exact(encoder.encode(x), weights, x, self.bound(weights, x))
        encoder.close()

    def test_takes_float16(self, backend: EncodeBackend):
        weights = random_weights(16, 64, k=4)
        x = random_rows(9, 16, dtype=np.float16)
        rows = backend.prepare(weights).encode(x)
        assert_exact(rows, weights, x, self.bound(weights, x))

    def test_one_threshold_for_all_equals_the_same_repeated(self, backend: EncodeBackend):
        base = random_weights(16, 64, k=1)
        x = random_rows(20, 16)
        results = [
            backend.prepare(
                EncoderWeights(base.W_enc, base.b_enc, threshold=np.full(size, 0.75, np.float32))
            ).encode(x)
            for size in (1, 64)
        ]
        assert len(results[0].index)
        for name in ("indptr", "index", "value"):
            np.testing.assert_array_equal(getattr(results[0], name), getattr(results[1], name))

    def test_ties_go_to_the_lower_index(self, backend: EncodeBackend):
        column = np.array([[1.0], [2.0]], np.float32)
        weights = EncoderWeights(np.repeat(column, 40, axis=1), np.zeros(40, np.float32), k=3)
        rows = backend.prepare(weights).encode(np.array([[1, 1], [2, -2]], np.float32))
        np.testing.assert_array_equal(rows.indptr, [0, 3, 3])
        np.testing.assert_array_equal(rows.index, [0, 1, 2])
        np.testing.assert_array_equal(rows.value, [3, 3, 3])

    def test_ties_inside_a_row_of_many_features(self, backend: EncodeBackend):
        n_features = 4096
        W_enc = np.zeros((1, n_features), np.float32)
        W_enc[0, 100:3000:2] = 1.0  # 1450 ties for k = 8, in many groups
        W_enc[0, 3500] = 2.0
        weights = EncoderWeights(W_enc, np.zeros(n_features, np.float32), k=8)
        rows = backend.prepare(weights).encode(np.ones((2, 1), np.float32))
        np.testing.assert_array_equal(rows.index.reshape(2, 8), [[*range(100, 114, 2), 3500]] * 2)

    @pytest.mark.parametrize("by_k", [False, True])
    def test_a_row_without_features_and_one_of_nan(self, backend: EncodeBackend, by_k):
        W_enc = np.eye(4, 2048, dtype=np.float32)
        b_enc = np.full(2048, -1.0, np.float32)
        weights = EncoderWeights(
            W_enc, b_enc, **({"k": 2} if by_k else {"threshold": np.zeros(2048, np.float32)})
        )
        x = np.zeros((4, 4), np.float32)
        x[1, 2] = 5.0
        x[2] = np.nan
        x[3, 0] = 3.0
        rows = backend.prepare(weights).encode(x)
        np.testing.assert_array_equal(rows.indptr, [0, 0, 1, 1, 2])
        np.testing.assert_array_equal(rows.index, [2, 0])
        np.testing.assert_array_equal(rows.value, [4, 2])

    @pytest.mark.parametrize("by_k", [False, True])
    def test_no_rows(self, backend: EncodeBackend, by_k):
        rows = backend.prepare(random_weights(4, 16, k=2 if by_k else None)).encode(
            np.zeros((0, 4), np.float32)
        )
        np.testing.assert_array_equal(rows.indptr, [0])
        assert len(rows.index) == len(rows.value) == 0

    def test_dense_rows_are_not_cut_short(self, backend: EncodeBackend):
        rng = np.random.default_rng(0)
        W_enc = rng.uniform(0.1, 1, (8, 3000)).astype(np.float32)
        weights = EncoderWeights(
            W_enc, np.zeros(3000, np.float32), threshold=np.zeros(1, np.float32)
        )
        rows = backend.prepare(weights).encode(np.ones((5, 8), np.float32))
        np.testing.assert_array_equal(np.diff(rows.indptr), 3000)
        np.testing.assert_array_equal(rows.index, np.tile(np.arange(3000), 5))

    def test_several_encoders_and_submitted_rows_do_not_mix(self, backend: EncodeBackend):
        cases = [random_weights(8, 64, k=4, seed=1), random_weights(24, 1500, k=None, seed=2)]
        encoders = [backend.prepare(weights) for weights in cases]
        inputs = [
            [random_rows(1 + 7 * i, weights.d_in, seed=i) for i in range(6)] for weights in cases
        ]
        pending = []
        for i in range(6):
            for encoder, batches in zip(encoders, inputs, strict=True):
                x = batches[i].copy()
                pending.append(encoder.submit(x))
                x[:] = np.nan  # the caller may reuse its buffer at once
        for number, rows in enumerate(pending):
            weights, x = cases[number % 2], inputs[number % 2][number // 2]
            result = rows.result()
            assert rows.done()
            assert rows.result() is result
            assert_exact(result, weights, x, self.bound(weights, x))
        for encoder in encoders:
            encoder.close()
            encoder.close()

    def test_refuses_another_width(self, backend: EncodeBackend):
        encoder = backend.prepare(random_weights(8, 32, k=4))
        for bad in (np.zeros((2, 9), np.float32), np.zeros(8, np.float32)):
            with pytest.raises(MismatchError, match="width 8"):
                encoder.encode(bad)
            with pytest.raises(MismatchError, match="width 8"):
                encoder.submit(bad)
