from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from interlatent_live.transcoders.training.selection import batch_cuts, gate, keep_from, row_cuts


@given(
    n=st.integers(1, 20), width=st.integers(1, 30), k=st.integers(1, 40), seed=st.integers(0, 99)
)
def test_row_cuts_keep_the_k_largest_positive(n, width, k, seed):
    pre = torch.randn(2, n, width, generator=torch.Generator().manual_seed(seed))
    kept = keep_from(pre, row_cuts(pre, k))
    for got, row in zip(kept.reshape(-1, width), pre.reshape(-1, width), strict=True):
        expected = sorted((v for v in row.tolist() if v > 0), reverse=True)[:k]
        assert sorted((v for v in got.tolist() if v), reverse=True) == expected


@given(
    n=st.integers(1, 20), width=st.integers(1, 30), k=st.integers(1, 40), seed=st.integers(0, 99)
)
def test_batch_cuts_keep_the_largest_positive_of_the_batch(n, width, k, seed):
    pre = torch.randn(1, n, width, generator=torch.Generator().manual_seed(seed))
    kept = keep_from(pre, batch_cuts(pre, k * n))
    expected = sorted((v for v in pre.flatten().tolist() if v > 0), reverse=True)[: k * n]
    assert sorted((v for v in kept.flatten().tolist() if v), reverse=True) == expected


def test_every_model_has_its_own_cut():
    pre = torch.arange(12.0).reshape(2, 2, 3)
    assert batch_cuts(pre, 2).flatten().tolist() == [4.0, 10.0]
    assert torch.count_nonzero(keep_from(pre, batch_cuts(pre, 2))) == 4


def test_gate_is_relu_backward():
    features = torch.tensor([[0.0, 2.0, 0.0]])
    assert gate(torch.tensor([[1.0, -3.0, 5.0]]), features).tolist() == [[0.0, -3.0, 0.0]]


def test_a_large_batch_is_cut_from_a_sample_of_it():
    pre = torch.randn(2, 4096, 64, generator=torch.Generator().manual_seed(0))
    kept = torch.count_nonzero(keep_from(pre, batch_cuts(pre, 4 * 4096)), dim=(1, 2))
    assert all(abs(int(n) / (4 * 4096) - 1) < 0.1 for n in kept)
