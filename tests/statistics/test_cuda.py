from __future__ import annotations

import numpy as np
import pytest
import torch

from interlatent_live.errors import UserError
from interlatent_live.statistics.config import CorrelatorConfig
from interlatent_live.statistics.correlator import Correlator
from interlatent_live.statistics.cuda import DeviceSums
from interlatent_live.statistics.profile import associations
from interlatent_live.stream import MetricSpec
from tests.statistics.streams import codes_from_dense, sparse_dense, steps_of

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("partial", [(), (1,)])
@pytest.mark.parametrize("offset", [0.0, 1e7])
def test_device_sums_are_the_host_sums(device, partial, offset):
    rng = np.random.default_rng(0)
    n, features, m = 3000, 64, 3
    dense = sparse_dense(rng, n, features, 0.1)
    dense[:, 5] = 1000.0 + rng.normal(size=n).astype(np.float32)
    metrics = rng.normal(size=(n, m)) + offset
    metrics[:, 0] += dense[:, 3]
    if partial:
        metrics[:500, 1] = np.nan
    specs = tuple(MetricSpec(f"m{i}") for i in range(m))
    host = Correlator(specs, features, CorrelatorConfig.core())
    sums = DeviceSums(features, m, device=device, partial=partial)
    for low in range(0, n, 500):
        rows = slice(low, low + 500)
        codes = codes_from_dense(dense[rows])
        host.update(steps_of(metrics[rows], first_seq=low), codes)
        sums.update(
            torch.from_numpy(codes.indptr.astype(np.int32)).to(device),
            torch.from_numpy(codes.index.astype(np.int32)).to(device),
            torch.from_numpy(codes.value).to(device),
            torch.from_numpy(metrics[rows]).to(device),
        )
    reference = host.reference_or_zero()
    got = sums.moments(reference)
    assert got.layout == host.layout
    columns = associations(
        got.table, got.layout.group_of(), got.metrics.rows, got.metrics.mean, got.metrics.ss,
        reference,
    )  # fmt: skip
    table = host.table(got.features)
    np.testing.assert_allclose(columns["r"], table.r, atol=1e-9)
    np.testing.assert_allclose(columns["mean_on"] - offset, table.mean_on - offset, atol=1e-8)
    np.testing.assert_array_equal(got.table[:, 0], table.n_on)


def test_absent_values_in_undeclared_columns_are_refused():
    sums = DeviceSums(4, 2, device="cpu")
    indptr = torch.tensor([0, 1], dtype=torch.int32)
    metrics = torch.tensor([[1.0, float("nan")]], dtype=torch.float64)
    sums.update(indptr, torch.tensor([0], dtype=torch.int32), torch.tensor([1.0]), metrics)
    with pytest.raises(UserError, match="1 metric values were absent"):
        sums.pane()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_missing_device_is_one_sentence():
    with pytest.raises(UserError, match="no CUDA device"):
        DeviceSums(4, 2)


def test_clear_starts_the_next_pane():
    sums = DeviceSums(4, 1, device="cpu")
    indptr = torch.tensor([0, 1, 2], dtype=torch.int32)
    index = torch.tensor([0, 2], dtype=torch.int32)
    sums.update(indptr, index, torch.tensor([1.0, 2.0]), torch.tensor([[5.0], [7.0]]).double())
    sums.clear()
    assert sums.moments(np.zeros(1)).metrics.rows[0] == 0
    sums.update(indptr, index, torch.tensor([1.0, 2.0]), torch.tensor([[9.0], [9.0]]).double())
    moments = sums.moments(np.zeros(1))
    assert moments.metrics.rows[0] == 2
    assert moments.metrics.mean[0] == 9.0
