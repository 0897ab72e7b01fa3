"""The policy that is watched while things break, and the transcoders that belong to it.

Agent and services live in different processes; both build the same weights from the same seed, so
the content hash binds the one's transcoders to the other's policy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch
from torch import nn

from interlatent_live.policies.hashing import policy_hash
from interlatent_live.transcoders.config import Architecture, TranscoderConfig
from interlatent_live.transcoders.native import Provenance, save_transcoder
from interlatent_live.transcoders.transcoder import Transcoder

if TYPE_CHECKING:
    from pathlib import Path

HOOKS: Final = ("first", "second")
WIDTH: Final = 64
FEATURES: Final = 128
METRICS: Final = 12


class Policy(nn.Module):
    """Two hook points of width 64 and a head of four actions."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(WIDTH, WIDTH)
        self.second = nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, 4)

    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        """Logits [n, 4] of observations [n, 64]."""
        logits: torch.Tensor = self.head(torch.tanh(self.second(torch.tanh(self.first(obs)))))
        return logits


def build_policy() -> Policy:
    """The same policy in every process; the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Policy()


def write_transcoders(folder: Path, *, version: int = 0) -> dict[str, Path]:
    """Random dictionaries for both hook points, one folder each.

    Another ``version`` has other weights, and replaces what is there.

    Returns:
        The folder by hook point.
    """
    identity = policy_hash(build_policy())
    random = torch.Generator().manual_seed(version)
    made = {}
    for name in HOOKS:
        transcoder = Transcoder(
            config=TranscoderConfig(
                architecture=Architecture.BATCHTOPK,
                d_in=WIDTH,
                d_out=WIDTH,
                n_features=FEATURES,
                k=8,
            ),
            W_enc=torch.randn(WIDTH, FEATURES, generator=random) / WIDTH**0.5,
            b_enc=torch.zeros(FEATURES),
            W_dec=torch.randn(FEATURES, WIDTH, generator=random),
            b_dec=torch.zeros(WIDTH),
            threshold=torch.full((FEATURES,), 1.0),
        )
        provenance = Provenance(policy_hash=identity, hook_point=name)
        made[name] = save_transcoder(folder / name, transcoder, provenance)
    return made
