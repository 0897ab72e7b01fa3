from __future__ import annotations

import numpy as np
import pytest
import torch

from interlatent_live.transcoders.config import Architecture, Target, TranscoderConfig
from interlatent_live.transcoders.dataset import HookRows, split_by_episode
from interlatent_live.transcoders.training.job import Job, hook_data
from interlatent_live.transcoders.training.recipe import Normalise, Recipe
from interlatent_live.transcoders.training.trainer import Trainer

pytestmark = pytest.mark.gpu


def held_out_fvu(device: str, recipe: Recipe, architecture: Architecture) -> float:
    """FVU on the test episodes of a small layer's stand-in, trained on ``device``."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((6000, 12)).astype(np.float32)
    hidden = np.maximum(x @ rng.standard_normal((12, 24)).astype(np.float32), 0)
    y = (hidden @ rng.standard_normal((24, 8)).astype(np.float32)).astype(np.float32)
    rows = HookRows("net", x, y, np.repeat(np.arange(60, dtype=np.uint32), 100))
    split = split_by_episode(rows.episode)
    place = torch.device(device)
    data = hook_data(rows, split, target=Target.OUTPUT, normalise=Normalise.ZSCORE, device=place)
    config = TranscoderConfig(architecture=architecture, d_in=12, d_out=8, n_features=64, k=8)
    job = Job("net", config, seed=0)
    trainer = Trainer([job], {"net": data}, recipe, device=place)
    trainer.run()
    ((_, transcoder),) = trainer.results()
    transcoder = transcoder.to("cpu")
    x_test, y_test = data.test
    residual = y_test - transcoder.reconstruct(x_test)
    return float(residual.square().sum() / (y_test - y_test.mean(0)).square().sum())


@pytest.mark.parametrize("architecture", [Architecture.BATCHTOPK, Architecture.TOPK])
@pytest.mark.parametrize("bf16", [False, True])
def test_training_on_cuda_reaches_what_it_reaches_on_the_cpu(architecture, bf16):
    recipe = Recipe(steps=400, batch=256)
    on_cpu = held_out_fvu("cpu", recipe, architecture)
    on_cuda = held_out_fvu("cuda", Recipe(steps=400, batch=256, bf16=bf16), architecture)
    assert on_cpu < 0.5
    assert on_cuda < 1.25 * on_cpu + 0.02
