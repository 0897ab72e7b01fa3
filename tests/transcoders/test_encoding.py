from __future__ import annotations

import numpy as np
import pytest
import torch

from interlatent_live.encoding.cpu import CpuBackend
from interlatent_live.errors import MismatchError
from interlatent_live.stream import Activations
from interlatent_live.transcoders.config import Architecture, Target, TranscoderConfig
from interlatent_live.transcoders.encoding import encode_activations, weights_of
from interlatent_live.transcoders.transcoder import Transcoder


def sample(transcoder, n=40, every=4, seed=3):
    config = transcoder.config
    generator = np.random.default_rng(seed)
    x = generator.standard_normal((n, config.d_in)).astype(np.float32)
    kept = np.arange(0, n, every, dtype=np.uint16)
    y = generator.standard_normal((len(kept), config.d_out)).astype(np.float32)
    return Activations(x=x, y=y, y_rows=kept)


def test_codes_and_errors_of_the_sampled_rows(any_transcoder):
    activations = sample(any_transcoder)
    codes = encode_activations(any_transcoder, activations)
    x = torch.from_numpy(activations.x)
    np.testing.assert_allclose(codes.dense(), any_transcoder.encode(x).numpy(), atol=1e-5)
    kept = activations.y_rows
    y_hat = any_transcoder.reconstruct(x)[kept.astype(int)].numpy()
    baselines = any_transcoder.baselines
    expected = ((activations.y - y_hat) ** 2).sum(1) / baselines.y_variance
    np.testing.assert_allclose(codes.error[kept], expected, rtol=1e-4)
    affine = (x @ baselines.affine_weight + baselines.affine_bias)[kept.astype(int)].numpy()
    expected = ((activations.y - affine) ** 2).sum(1) / baselines.y_variance
    np.testing.assert_allclose(codes.error_affine[kept], expected, rtol=1e-4)
    unsampled = np.setdiff1d(np.arange(40), kept)
    assert np.isnan(codes.error[unsampled]).all()
    assert np.isnan(codes.error_affine[unsampled]).all()


def test_without_baselines_there_is_no_error(build_transcoder):
    transcoder = build_transcoder(baselines=False)
    codes = encode_activations(transcoder, sample(transcoder))
    assert np.isnan(codes.error).all()


def test_half_precision_on_the_wire(build_transcoder):
    transcoder = build_transcoder()
    full = sample(transcoder)
    half = Activations(full.x.astype(np.float16), full.y.astype(np.float16), full.y_rows)
    rounded = Activations(half.x.astype(np.float32), half.y.astype(np.float32), full.y_rows)
    one, two = encode_activations(transcoder, half), encode_activations(transcoder, rounded)
    np.testing.assert_array_equal(one.dense(), two.dense())
    np.testing.assert_array_equal(one.error, two.error)


def test_an_autoencoder_is_scored_on_every_row(build_transcoder):
    source = build_transcoder("topk", d_in=6, d_out=6)
    config = TranscoderConfig(
        architecture=Architecture.TOPK, d_in=6, d_out=6, n_features=24, k=3, target=Target.INPUT
    )
    transcoder = Transcoder.from_tensors(config, source.tensors(), source.baselines)
    activations = sample(transcoder)
    codes = encode_activations(transcoder, activations)
    x = torch.from_numpy(activations.x)
    expected = ((x - transcoder.reconstruct(x)) ** 2).sum(1) / source.baselines.y_variance
    np.testing.assert_allclose(codes.error, expected.numpy(), rtol=1e-4)


def test_wrong_widths_are_refused(build_transcoder):
    transcoder = build_transcoder()
    activations = sample(transcoder)
    with pytest.raises(MismatchError, match="width 5"):
        encode_activations(
            transcoder, Activations(activations.x[:, :4], activations.y, activations.y_rows)
        )
    with pytest.raises(MismatchError, match="width 7"):
        encode_activations(
            transcoder, Activations(activations.x, activations.y[:, :4], activations.y_rows)
        )


def test_prepared_weights_give_the_same_codes(any_transcoder):
    activations = sample(any_transcoder)
    prepared = CpuBackend().prepare(weights_of(any_transcoder))
    alone = encode_activations(any_transcoder, activations)
    codes = encode_activations(any_transcoder, activations, prepared)
    for name in ("indptr", "index", "value", "error", "error_affine"):
        np.testing.assert_array_equal(getattr(codes, name), getattr(alone, name))


def test_agrees_with_the_transcoders_own_sparse_encoding(any_transcoder):
    activations = sample(any_transcoder)
    own = any_transcoder.encode_sparse(activations.x)
    codes = encode_activations(any_transcoder, activations)
    np.testing.assert_array_equal(codes.indptr, own.indptr)
    np.testing.assert_array_equal(codes.index, own.index)
    np.testing.assert_allclose(codes.value, own.value, rtol=1e-5)


def test_the_weights_on_the_host_are_not_copied(build_transcoder):
    transcoder = build_transcoder()
    assert np.shares_memory(weights_of(transcoder).W_enc, transcoder.W_enc.numpy())
