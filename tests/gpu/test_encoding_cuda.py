from __future__ import annotations

import numpy as np
import pytest
import torch

from interlatent_live.encoding.backend import EncoderWeights
from interlatent_live.encoding.launch_plan import Precision, buckets
from interlatent_live.errors import UserError
from tests.support.encode_backend import BackendSuite, assert_exact, random_rows, random_weights

pytestmark = pytest.mark.gpu

LARGE = [(64, 512, 16), (256, 4096, 32), (1024, 32768, 32), (300, 10_000, 50)]


@pytest.fixture(scope="module", params=list(Precision), ids=str)
def precision(request):
    return request.param


@pytest.fixture(scope="module")
def backend(cuda_backend, precision):
    # 64 rows a launch: few graphs to capture, and batches of 200 rows need several launches.
    return cuda_backend(precision=precision, max_rows=64, workspace_bytes=64 << 20, warm_rows=())


@pytest.fixture(scope="module")
def large_backend(cuda_backend, precision):
    return cuda_backend(precision=precision, max_rows=1024, workspace_bytes=320 << 20, warm_rows=())


def mass(weights: EncoderWeights, x: np.ndarray) -> np.ndarray:
    product = np.abs(x.astype(np.float64)) @ np.abs(weights.W_enc.astype(np.float64))
    return product + np.abs(weights.b_enc)


class TestCudaBackend(BackendSuite):
    @pytest.fixture(autouse=True)
    def _precision(self, precision):
        self.precision = precision

    def bound(self, weights, x):
        return self.precision.error_bound(weights.d_in) * mass(weights, x)


@pytest.mark.parametrize("shape", LARGE, ids=str)
@pytest.mark.parametrize("by_k", [True, False])
def test_large_shapes_are_exact_within_the_stated_bound(large_backend, precision, shape, by_k):
    d, n_features, k = shape
    weights = random_weights(d, n_features, k=k)
    if not by_k:
        cut = np.full(n_features, 2.6 if n_features > 1000 else 1.8, np.float32)
        weights = EncoderWeights(weights.W_enc, weights.b_enc, threshold=cut)
    encoder = large_backend.prepare(weights)
    for n in (1, 5, 64, 700, 1500):
        x = np.random.default_rng(n).standard_normal((n, d)).astype(np.float32)
        rows = encoder.encode(x)
        check = np.random.default_rng(0).permutation(n)[:40]
        check.sort()
        picked = [rows.rows(i, i + 1) for i in check]
        joined = type(rows).concatenate(picked)
        subset = x[check]
        assert_exact(joined, weights, subset, precision.error_bound(d) * mass(weights, subset))
    encoder.close()


@pytest.mark.parametrize("shape", LARGE, ids=str)
def test_sums_are_float32_whatever_the_operands(large_backend, precision, shape):
    """Against float64 on the *rounded* operands only the summation error is left."""
    if precision is not Precision.BFLOAT16:
        pytest.skip("float32 operands are not rounded")
    d, n_features, k = shape
    base = random_weights(d, n_features, k=k)
    rounded = torch.tensor(base.W_enc).bfloat16().float().numpy()
    weights = EncoderWeights(rounded, base.b_enc, k=k)
    x = torch.randn(64, d, generator=torch.Generator().manual_seed(3)).bfloat16().float().numpy()
    encoder = large_backend.prepare(weights)
    summation = (d + 2) * 2.0**-23
    assert_exact(encoder.encode(x), weights, x, summation * mass(weights, x))
    encoder.close()


def test_replays_of_a_graph_use_the_rows_they_are_given(large_backend, precision):
    weights = random_weights(256, 4096, k=32)
    encoder = large_backend.prepare(weights)
    rng = np.random.default_rng(5)
    batches = [rng.standard_normal((n, 256)).astype(np.float32) for n in (1, 1, 3, 1, 130, 130, 1)]
    results = [encoder.submit(x).result() for x in batches]
    for x, rows in zip(batches, results, strict=True):
        assert_exact(rows, weights, x, precision.error_bound(256) * mass(weights, x))
    again = encoder.encode(batches[0])
    for name in ("indptr", "index", "value"):
        np.testing.assert_array_equal(getattr(again, name), getattr(results[0], name))
    encoder.close()


def test_every_bucket_size_is_right_at_its_edges(backend, precision):
    weights = random_weights(24, 700, k=6)
    encoder = backend.prepare(weights)
    for size in buckets(64):
        for n in {max(size - 1, 1), size, size + 1}:
            x = random_rows(n, 24, seed=n)
            bound = precision.error_bound(24) * mass(weights, x)
            assert_exact(encoder.encode(x), weights, x, bound)
    encoder.close()


def test_submitted_batches_overlap_and_keep_their_rows(large_backend, precision):
    weights = random_weights(256, 4096, k=32)
    encoder = large_backend.prepare(weights)
    rng = np.random.default_rng(6)
    batches = [rng.standard_normal((1024, 256)).astype(np.float32) for _ in range(7)]
    pending = [encoder.submit(x) for x in batches]
    for x, rows in zip(batches, pending, strict=True):
        result = rows.result()
        subset = x[::100]
        picked = type(result).concatenate([result.rows(i, i + 1) for i in range(0, 1024, 100)])
        assert_exact(picked, weights, subset, precision.error_bound(256) * mass(weights, subset))
    encoder.close()


def test_rows_fuller_than_the_room_are_encoded_again_and_counted(backend):
    rng = np.random.default_rng(0)
    weights = EncoderWeights(
        rng.uniform(0.1, 1, (8, 3000)).astype(np.float32),
        np.zeros(3000, np.float32),
        threshold=np.zeros(1, np.float32),
    )
    encoder = backend.prepare(weights)
    rows = encoder.encode(np.ones((5, 8), np.float32))
    np.testing.assert_array_equal(np.diff(rows.indptr), 3000)
    assert encoder.grown == 1
    encoder.encode(np.ones((5, 8), np.float32))
    assert encoder.grown == 1  # the room is remembered
    encoder.close()


def test_a_learned_bound_is_tried_and_a_wrong_one_costs_no_exactness(large_backend, precision):
    weights = random_weights(256, 4096, k=32)
    encoder = large_backend.prepare(weights)
    rng = np.random.default_rng(7)

    def check(x):
        rows = encoder.encode(x)
        picked = type(rows).concatenate([rows.rows(i, i + 1) for i in range(0, len(x), 60)])
        bound = precision.error_bound(256) * mass(weights, x[::60])
        assert_exact(picked, weights, x[::60], bound)

    for _ in range(4):
        check(rng.standard_normal((600, 256)).astype(np.float32))
    assert encoder.bound.value > 1.0
    assert encoder.bound.misses == 0
    check(rng.standard_normal((600, 256)).astype(np.float32) * 0.3)  # all below the bound
    assert encoder.bound.misses == 1
    check(rng.standard_normal((600, 256)).astype(np.float32) * 30)  # more above than there is room
    assert encoder.bound.misses == 2
    encoder.close()


def test_device_memory_is_bounded_and_given_back(cuda_backend, precision):
    limit = 20 << 20
    small = cuda_backend(
        precision=precision, max_rows=16, workspace_bytes=4 << 20, limit_bytes=limit
    )
    weights = random_weights(256, 4096, k=32)
    before = torch.cuda.memory_allocated()
    room = (limit - small.device_bytes) // (4096 * (256 * precision.itemsize + 8))
    encoders = [small.prepare(weights) for _ in range(room)]
    with pytest.raises(UserError, match="does not fit"):
        small.prepare(weights)
    assert len(encoders) >= 2
    assert small.device_bytes <= limit
    for encoder in encoders:
        encoder.close()
    assert torch.cuda.memory_allocated() == before
    assert small.device_bytes == 2 * (4 << 20)
    small.prepare(weights).close()


def test_a_workspace_too_small_for_a_row_is_refused(cuda_backend, precision):
    small = cuda_backend(precision=precision, workspace_bytes=1 << 16)
    with pytest.raises(UserError, match="raise workspace_bytes"):
        small.prepare(random_weights(64, 65_536, k=8))
    with pytest.raises(UserError, match="exceed the limit"):
        cuda_backend(precision=precision, workspace_bytes=1 << 20, limit_bytes=1 << 20)
