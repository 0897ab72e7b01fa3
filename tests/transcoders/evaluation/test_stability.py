from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from interlatent_live.transcoders.evaluation.stability import (
    match_features,
    random_dictionary,
    seed_stability,
)


@pytest.fixture
def x():
    return np.random.default_rng(1).standard_normal((2000, 5)).astype(np.float32)


def permuted(transcoder, order):
    order = torch.as_tensor(order)
    return replace(
        transcoder,
        W_enc=transcoder.W_enc[:, order],
        b_enc=transcoder.b_enc[order],
        W_dec=transcoder.W_dec[order],
        threshold=transcoder.threshold[order],
    )


def test_a_permutation_is_undone(build_transcoder, x):
    one = build_transcoder("batchtopk")
    order = np.random.default_rng(2).permutation(24)
    every = np.arange(24)
    matched = match_features(one, permuted(one, order), x, every, every)
    assert all(order[b] == a for a, b in matched.pairs)
    np.testing.assert_allclose(matched.correlation, 1.0, atol=1e-6)
    np.testing.assert_allclose(matched.decoder_cosine, 1.0, atol=1e-5)


def test_equal_seeds_are_stable_and_random_ones_are_the_control(build_transcoder, x):
    one = build_transcoder("batchtopk")
    twin = permuted(one, np.roll(np.arange(24), 5))
    live = np.ones(24, np.bool_)
    found = seed_stability([one, twin], [live, live], x, l0=4.0)
    assert found is not None
    assert found.correlation == pytest.approx(1.0, abs=1e-6)
    assert found.random_correlation < 0.95
    assert seed_stability([one], [live], x, l0=4.0) is None


def test_random_dictionaries_have_the_asked_sparsity(build_transcoder, x):
    random = random_dictionary(build_transcoder("topk"), x * 40 + 3, 50, 4.2, seed=3)
    l0 = (random.encode(torch.from_numpy(x * 40 + 3)) > 0).sum(1).float().mean()
    assert float(l0) == pytest.approx(4.0, abs=0.05)
