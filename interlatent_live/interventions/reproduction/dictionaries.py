"""The experiment's transcoders: 2, 4 and 8 ReLU features at each hidden layer.

Trained on y after the ReLU, where they are steered. There is no sparsity penalty: with 2 to 8
features the bottleneck itself is the constraint, as in the published experiment.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from interlatent_live.interventions.reproduction.rollouts import Net, episodes, trace
from interlatent_live.interventions.reproduction.settings import HOOK_POINTS
from interlatent_live.transcoders.config import Architecture, Target, TranscoderConfig
from interlatent_live.transcoders.dataset import HookRows, split_by_episode
from interlatent_live.transcoders.training.job import Job, hook_data
from interlatent_live.transcoders.training.recipe import Normalise, Recipe
from interlatent_live.transcoders.training.trainer import Trainer

if TYPE_CHECKING:
    from interlatent_live.interventions.reproduction.settings import Settings
    from interlatent_live.policies.mlp import MlpPolicy
    from interlatent_live.transcoders.transcoder import Transcoder

Dictionaries = dict[tuple[int, int], "Transcoder"]
"""By (layer, width)."""


def train_dictionaries(settings: Settings, policy: MlpPolicy, seed: int) -> Dictionaries:
    """All widths at both hidden layers, trained together on the policy's own episodes."""
    net = Net(policy)
    count = max(20, int(np.ceil(settings.transcoder_rows / settings.target_return)))
    seen = trace(net, episodes(settings.evaluation_seed + 10_000 * seed + 9_000, count))
    x = torch.from_numpy(seen.states.astype(np.float32))
    data = {}
    split = split_by_episode(seen.episode.astype(np.uint32))
    with torch.no_grad():
        for layer, hook_point in enumerate(HOOK_POINTS):
            y = net.layer(layer, x)
            rows = HookRows(hook_point, x.numpy(), y.numpy(), seen.episode.astype(np.uint32))
            data[hook_point] = hook_data(
                rows,
                split,
                target=Target.OUTPUT,
                # A cart's metres and a pole's radians differ by an order of magnitude.
                normalise=Normalise.ZSCORE,
                device=torch.device("cpu"),
            )
            x = y
    jobs = [
        Job(
            hook_point,
            TranscoderConfig(
                architecture=Architecture.RELU,
                d_in=data[hook_point].widths[0],
                d_out=data[hook_point].widths[1],
                n_features=width,
                l1=0.0,
            ),
            seed,
        )
        for hook_point in HOOK_POINTS
        for width in settings.widths
    ]
    recipe = Recipe(
        steps=settings.transcoder_steps,
        learning_rate=settings.transcoder_rate,
        normalise=Normalise.ZSCORE,
    )
    trainer = Trainer(jobs, data, recipe)
    trainer.run()
    return {
        (HOOK_POINTS.index(job.hook_point), job.config.n_features): transcoder
        for job, transcoder in trainer.results()
    }


def explained(
    dictionaries: Dictionaries, policy: MlpPolicy, seed: int, settings: Settings
) -> dict[tuple[int, int], float]:
    """FVU of each on fresh episodes of the policy."""
    net = Net(policy)
    seen = trace(net, episodes(settings.evaluation_seed + 10_000 * seed + 9_500, 40))
    x = torch.from_numpy(seen.states.astype(np.float32))
    found = {}
    with torch.no_grad():
        for layer in range(len(HOOK_POINTS)):
            y = net.layer(layer, x)
            spread = float((y - y.mean(0)).square().sum())
            for (where, width), transcoder in dictionaries.items():
                if where == layer:
                    error = float((y - transcoder.decode(transcoder.encode(x), x)).square().sum())
                    found[where, width] = error / spread
            x = y
    return found
