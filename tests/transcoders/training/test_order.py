from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from interlatent_live.transcoders.training.order import RowOrder

CPU = torch.device("cpu")


@given(n=st.integers(1, 50), batch=st.integers(1, 20), seed=st.integers(0, 9))
def test_rows_follow_from_seed_and_step_alone(n, batch, seed):
    steps = [7, 0, 3, 30, 3]
    jumping = RowOrder(n, batch, seed, CPU)
    for step in steps:
        fresh = RowOrder(n, batch, seed, CPU).rows(step)
        assert torch.equal(jumping.rows(step), fresh)
        assert fresh.shape == (batch,)
        assert int(fresh.max()) < n


def test_an_epoch_sees_each_row_once():
    order = RowOrder(40, 8, 1, CPU)
    epoch = torch.cat([order.rows(step) for step in range(5)])
    assert sorted(epoch.tolist()) == list(range(40))
    again = torch.cat([order.rows(step) for step in range(5, 10)])
    assert sorted(again.tolist()) == list(range(40))
    assert not torch.equal(epoch, again)
