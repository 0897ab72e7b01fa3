from __future__ import annotations

import numpy as np
import pytest
import torch

from interlatent_live.transcoders.config import Architecture, Target, TranscoderConfig
from interlatent_live.transcoders.dataset import HookRows, some_rows, split_by_episode
from interlatent_live.transcoders.training import finish as finishing
from interlatent_live.transcoders.training.finish import calibrated_threshold, finish
from interlatent_live.transcoders.training.job import hook_data
from interlatent_live.transcoders.training.recipe import Normalise

F, K = 32, 4


def uneven(seed=0):
    """Rows whose episodes differ much in how large they are, and so in how many features are on."""
    rng = np.random.default_rng(seed)
    episode = np.repeat(np.arange(40, dtype=np.uint32), 50)
    size = np.exp(rng.normal(0, 1.5, 40))[episode, None]
    x = (rng.standard_normal((2000, 6)) * size).astype(np.float32)
    return HookRows("h", x, x[:, :3].copy(), episode)


def finished(rows):
    split = split_by_episode(rows.episode)
    data = hook_data(
        rows,
        split,
        target=Target.OUTPUT,
        normalise=Normalise.ZSCORE,
        device=torch.device("cpu"),
    )
    config = TranscoderConfig(
        architecture=Architecture.BATCHTOPK, d_in=6, d_out=3, n_features=F, k=K
    )
    generator = torch.Generator().manual_seed(1)
    parameters = {
        "W_enc": torch.randn(6, F, generator=generator),
        "b_enc": torch.zeros(1, F),
        "W_dec": torch.randn(F, 3, generator=generator),
        "b_dec": torch.zeros(1, 3),
    }
    return finish(config, parameters, data), split


def l0(transcoder, x):
    return float((transcoder.encode(torch.from_numpy(x)) > 0).sum(1).double().mean())


def test_k_features_are_on_over_all_episodes_that_are_not_reported_on():
    rows = uneven()
    transcoder, split = finished(rows)
    assert l0(transcoder, rows.x[~split.test]) == pytest.approx(K, abs=0.01)
    # The validation episodes alone are too few to say: theirs is another mean.
    assert abs(l0(transcoder, rows.x[split.validation]) - K) > 0.2


def test_a_sample_of_many_rows_gives_about_the_same(monkeypatch):
    rows = uneven()
    monkeypatch.setattr(finishing, "_MAX_ENTRIES", F * 900)
    transcoder, split = finished(rows)
    assert l0(transcoder, rows.x[~split.test]) == pytest.approx(K, rel=0.15)


@pytest.mark.parametrize(("n", "most"), [(0, 5), (5, 5), (1000, 17)])
def test_some_rows_are_always_the_same_in_order_and_without_repetition(n, most):
    rows = some_rows(n, most)
    assert len(rows) == min(n, most)
    assert (np.diff(rows) > 0).all()
    assert np.array_equal(rows, some_rows(n, most))
    assert not len(rows) or (rows[0] >= 0 and rows[-1] < n)


def test_a_sample_leaves_no_copy_of_the_environment_out():
    """Rows of 32 copies side by side: every fourth row would be those of 8 copies."""
    copies = np.arange(32_000) % 32
    assert len(np.unique(copies[some_rows(32_000, 8000)])) == 32


def test_as_many_features_as_there_are_need_no_threshold():
    assert calibrated_threshold(np.ones((3, 4), np.float32), 4) == 0.0
