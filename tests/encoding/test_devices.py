from __future__ import annotations

import numpy as np
import pytest
import torch

from interlatent_live.encoding.cpu import CpuBackend
from interlatent_live.encoding.devices import DeviceBackend, open_device
from interlatent_live.errors import UserError
from interlatent_live.stream import Activations
from interlatent_live.transcoders.config import Architecture, TranscoderConfig
from interlatent_live.transcoders.encoding import encode_activations
from interlatent_live.transcoders.transcoder import Baselines, Transcoder

D_IN, D_OUT, F = 12, 7, 300


def transcoder(architecture: Architecture, seed: int = 0) -> Transcoder:
    rng = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=rng)

    relu = architecture is Architecture.RELU
    config = TranscoderConfig(
        architecture=architecture,
        d_in=D_IN,
        d_out=D_OUT,
        n_features=F,
        k=None if relu else 9,
        l1=0.1 if relu else None,
        skip=True,
    )
    tensors = {
        "W_enc": normal(D_IN, F),
        "b_enc": normal(F),
        "W_dec": normal(F, D_OUT),
        "b_dec": normal(D_OUT),
        "W_skip": normal(D_IN, D_OUT),
    }
    if config.thresholded:
        tensors["threshold"] = torch.rand(F, generator=rng) * 3
    baselines = Baselines(normal(D_IN, D_OUT), normal(D_OUT), normal(D_OUT), 3.5)
    return Transcoder.from_tensors(config, tensors, baselines)


def activations(n: int = 20, sampled: int = 6) -> Activations:
    rng = np.random.default_rng(1)
    rows = np.sort(rng.permutation(n)[:sampled]).astype(np.uint16)
    return Activations(
        rng.standard_normal((n, D_IN), np.float32),
        rng.standard_normal((sampled, D_OUT), np.float32),
        rows,
    )


@pytest.mark.parametrize(
    "architecture",
    [Architecture.RELU, Architecture.TOPK, Architecture.BATCHTOPK, Architecture.JUMPRELU],
)
def test_agrees_with_the_transcoders_own_encoding(architecture):
    model, seen = transcoder(architecture), activations()
    own = encode_activations(model, seen)
    ours = encode_activations(model, seen, DeviceBackend(CpuBackend()))
    assert ours.n_features == F
    np.testing.assert_array_equal(ours.indptr, own.indptr)
    np.testing.assert_array_equal(ours.index, own.index)
    np.testing.assert_allclose(ours.value, own.value, rtol=1e-5)
    np.testing.assert_allclose(ours.error, own.error, rtol=1e-4)
    np.testing.assert_allclose(ours.error_affine, own.error_affine, rtol=1e-4)
    assert np.isfinite(ours.error).sum() == 6


def test_keeps_the_encoders_used_last_and_closes_the_others():
    closed = []

    class Device(CpuBackend):
        def prepare(self, weights):
            encoder = super().prepare(weights)
            encoder.close = lambda: closed.append(encoder)  # type: ignore[method-assign]  # a spy
            return encoder

    backend = DeviceBackend(Device(), most=2)
    models = [transcoder(Architecture.TOPK, seed) for seed in range(3)]
    first, second = (backend.prepare(model) for model in models[:2])
    assert backend.prepare(models[0]) is first
    backend.prepare(models[2])
    assert closed == [second]
    backend.release(models[0].identity)
    assert closed == [second, first]
    backend.release("sha256:000000000000")
    assert backend.name == "cpu"


def test_devices_are_found_or_refused_in_a_sentence():
    assert open_device("cpu").name == "cpu"
    with pytest.raises(UserError, match="unknown device 'tpu'"):
        open_device("tpu")
    if not torch.cuda.is_available():
        assert open_device("auto").name == "cpu"
        with pytest.raises(UserError, match="cuda"):
            open_device("cuda")
