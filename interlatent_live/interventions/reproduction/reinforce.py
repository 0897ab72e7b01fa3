"""REINFORCE policies stopped where the published one was: at a mean return of about 261.

Monte-Carlo policy gradient (Williams 1992) with returns-to-go, discounted and standardised over the
batch. Training passes 261 in one update as often as not, so an update that overshoots is taken back
and tried again at half the rate: what is wanted is a policy in the band, not a trained one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from interlatent_live.interventions.reproduction.arms import UNSTEERED
from interlatent_live.interventions.reproduction.rollouts import (
    Net,
    Trace,
    episodes,
    returns,
    trace,
)
from interlatent_live.policies.mlp import MlpPolicy
from interlatent_live.policies.spec import Activation, Output, PolicySpec

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from interlatent_live.interventions.reproduction.settings import Settings

RATE: Final = 2e-3
GAMMA: Final = 0.99
EPISODES_PER_UPDATE: Final = 8
MAX_UPDATES: Final = 2000


@dataclass(frozen=True, slots=True)
class Trained:
    """A policy in the band, and how it came there."""

    policy: MlpPolicy
    seed: int
    updates: int
    mean_return: float
    """Over ``band_episodes`` episodes that training never saw."""


def train_into_band(settings: Settings, seed: int) -> Trained | None:
    """Train from one seed until the mean return is in the band; None when it never gets there."""
    torch.manual_seed(seed)
    policy = MlpPolicy(
        PolicySpec(settings.layers, activation=Activation.RELU, output=Output.SOFTMAX)
    )
    net = Net(policy)
    optimiser = torch.optim.Adam(policy.parameters(), lr=RATE)
    low = settings.target_return - settings.tolerance
    high = settings.target_return + settings.tolerance
    quick = episodes(settings.evaluation_seed + 10_000 * seed, settings.quick_episodes)
    sure = episodes(settings.evaluation_seed + 10_000 * seed + 5_000, settings.band_episodes)
    luck = np.random.default_rng([seed, 1])
    for update in range(1, MAX_UPDATES + 1):
        before = {key: value.clone() for key, value in policy.state_dict().items()}
        played = episodes(int(luck.integers(1 << 40)), EPISODES_PER_UPDATE)
        seen = trace(net, played)
        _update(policy, optimiser, seen)
        if seen.lengths.mean() < low / 2:
            continue
        mean = float(returns(net, [UNSTEERED], quick).mean())
        if mean < low:
            continue
        if mean <= high:
            certain = float(returns(net, [UNSTEERED], sure).mean())
            if low <= certain <= high:
                return Trained(policy.eval(), seed, update, certain)
            if certain < low:
                continue
        # Overshot: back to before this update, more carefully, with Adam's memory forgotten.
        policy.load_state_dict(before)
        rate = max(optimiser.param_groups[0]["lr"] / 2, RATE / 64)
        optimiser = torch.optim.Adam(policy.parameters(), lr=rate)
    return None


def _update(policy: MlpPolicy, optimiser: torch.optim.Optimizer, seen: Trace) -> None:
    advantage = torch.from_numpy(_standardised_returns_to_go(seen))
    logits = policy(torch.from_numpy(seen.states.astype(np.float32)))
    chosen = torch.from_numpy(seen.actions.astype(np.int64))
    log_p = torch.log_softmax(logits, dim=1).gather(1, chosen[:, None])[:, 0]
    loss = -(log_p * advantage).mean()
    optimiser.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it so
    optimiser.step()


def _standardised_returns_to_go(seen: Trace) -> NDArray[np.float32]:
    """Σ γ^k over the rest of the episode, (1 − γ^left) / (1 − γ), standardised over the batch."""
    left = seen.lengths[seen.episode] - seen.t
    value = (1.0 - np.power(GAMMA, left)) / (1.0 - GAMMA)
    return np.asarray((value - value.mean()) / (value.std() + 1e-8), np.float32)
