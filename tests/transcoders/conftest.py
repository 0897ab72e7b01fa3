"""Builders of small transcoders that several test modules need."""

from __future__ import annotations

import pytest
import torch

from interlatent_live.transcoders.config import Architecture, TranscoderConfig
from interlatent_live.transcoders.transcoder import Baselines, Transcoder

ALL = [*((kind, skip) for kind in Architecture for skip in (False, True))]


def make_config(architecture, *, skip=False, d_in=5, d_out=7, n_features=24, k=3):
    kind = Architecture(architecture)
    return TranscoderConfig(
        architecture=kind,
        d_in=d_in,
        d_out=d_out,
        n_features=n_features,
        k=None if kind is Architecture.RELU else k,
        l1=0.01 if kind is Architecture.RELU else None,
        widths=(4, 12, n_features) if kind is Architecture.MATRYOSHKA else None,
        skip=skip,
    )


def make_transcoder(architecture="batchtopk", *, seed=0, baselines=True, **sizes):
    config = make_config(architecture, **sizes)
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        name: torch.randn(shape, generator=generator)
        for name, shape in config.tensor_shapes().items()
    }
    if "threshold" in tensors:
        tensors["threshold"] = tensors["threshold"].abs()
        if config.architecture is not Architecture.JUMPRELU:
            tensors["threshold"][:] = 0.7
    affine = Baselines(
        torch.randn(config.d_in, config.d_out, generator=generator),
        torch.randn(config.d_out, generator=generator),
        torch.randn(config.d_out, generator=generator),
        2.5,
    )
    return Transcoder.from_tensors(config, tensors, affine if baselines else None)


@pytest.fixture
def build_config():
    return make_config


@pytest.fixture
def build_transcoder():
    return make_transcoder


@pytest.fixture(params=ALL, ids=lambda case: f"{case[0]}{'-skip' if case[1] else ''}")
def any_transcoder(request):
    kind, skip = request.param
    return make_transcoder(kind, skip=skip)
