from __future__ import annotations

import numpy as np
import pytest

from interlatent_live.errors import UserError
from interlatent_live.statistics.null_audit import audit
from tests.statistics.streams import ar1, codes_from_dense


def rows(n=6000, phi=0.95, planted=0.0, seed=0):
    rng = np.random.default_rng(seed)
    z = ar1(rng, phi, (n, 6))
    metrics = ar1(rng, phi, (n, 3))
    z[:, 1] += planted * metrics[:, 0]
    return codes_from_dense(np.maximum(z - 1.0, 0).astype(np.float32)), metrics


def test_observed_r_is_pearson_and_naive_errors_are_shown():
    codes, metrics = rows()
    result = audit(codes, metrics, draws=99, min_shift=500)
    dense = codes.dense()
    for f in range(6):
        for m in range(3):
            expected = np.corrcoef(dense[:, f], metrics[:, m])[0, 1]
            assert result.r[f, m] == pytest.approx(expected, abs=1e-6)
    assert result.naive_error > 0.3
    assert result.p_adjusted.min() > 0.01
    assert (result.p_adjusted >= result.p_pair).all()


def test_a_planted_pair_stands_out():
    codes, metrics = rows(planted=0.7)
    seen: list[int] = []
    result = audit(codes, metrics, draws=199, min_shift=500, progress=seen.append)
    assert result.p_adjusted[1, 0] == pytest.approx(1 / 200)
    assert abs(result.r[1, 0]) > result.null_95[1, 0]
    assert seen[-1] == 199


def test_whole_episodes_are_reassigned_where_given():
    codes, metrics = rows(planted=0.7)
    episode = np.arange(6000) // 100
    result = audit(codes, metrics, episode=episode, draws=99)
    assert result.kind == "whole-episode reassignment"
    assert result.p_adjusted[1, 0] == pytest.approx(0.01)


def test_copies_are_shifted_each_on_its_own():
    codes, metrics = rows()
    result = audit(codes, metrics, env=np.arange(6000) % 2, draws=19, min_shift=500)
    assert np.isfinite(result.p_pair).all()


def test_undefined_and_refused():
    codes, metrics = rows(n=1500)
    with pytest.raises(UserError, match="too short"):
        audit(codes, metrics, min_shift=1000)
    metrics[:, 1] = 4.0
    result = audit(codes, metrics, draws=9, min_shift=200)
    assert np.isnan(result.r[:, 1]).all()
    assert np.isnan(result.p_adjusted[:, 1]).all()
    metrics[3, 0] = np.nan
    with pytest.raises(UserError, match="finite"):
        audit(codes, metrics, draws=9, min_shift=200)
    with pytest.raises(UserError, match="do not fit"):
        audit(codes, metrics[:10], draws=9)
