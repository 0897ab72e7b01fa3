"""What the demo shows of each environment: policy, hook points, dictionary, disturbance, seeds.

The numbers were chosen so that 24,000 live steps of 8 copies hold at least 40 episodes and at least
30 eligible features, most of which a rule of depth ≤ 3 on state metrics describes (measured with
``interlatent-live demo``, whose output says it anew each time). What matters most: disturbed starts
and pushes (at rest a solved policy visits one state), a dictionary of 2 × d features (at 4 × d more
of them are thin slices that a rule catches with low precision), and enough calibration episodes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from interlatent_live.environments.disturbance import Disturbance
from interlatent_live.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class DemoTarget:
    """Everything the demo needs to know about one environment."""

    environment: str
    policy: str
    """Name of a built-in policy."""
    hook_points: tuple[str, ...]
    n_features: int
    """F of each transcoder."""
    k: int
    """Mean number of features on per step."""
    training_steps: int
    """Gradient steps of each transcoder."""
    disturbance: Disturbance
    control_hz: float
    """Live steps per second of each copy; the simulated step may be another."""
    copies: int
    """Environment copies that run live."""
    training_episodes: int
    """Episodes collected to train the transcoders on."""
    calibration_episodes: int
    """Episodes of the calibration recording that claims are proposed from."""
    training_seed: int
    calibration_seed: int
    live_seed: int
    """Three streams of seeds that never meet: copy i starts from ``seed + i``."""
    max_episode_steps: int | None = None
    """A time limit below the environment's own, so that a live run holds enough episodes."""


DEMO_TARGETS: Mapping[str, DemoTarget] = {
    target.environment: target
    for target in (
        DemoTarget(
            environment="CartPole-v1",
            policy="cartpole",
            hook_points=("hidden.1",),
            n_features=128,
            k=8,
            training_steps=1500,
            disturbance=Disturbance(start=0.8, push=0.7, push_interval_s=0.8),
            control_hz=100.0,
            copies=8,
            training_episodes=160,
            calibration_episodes=100,
            training_seed=300_000,
            calibration_seed=200_000,
            live_seed=100_000,
        ),
        DemoTarget(
            environment="LunarLander-v3",
            policy="lunarlander-ppo",
            hook_points=("hidden.1",),
            n_features=128,
            k=8,
            training_steps=1500,
            disturbance=Disturbance(start=0.7, push=0.5, push_interval_s=1.0),
            control_hz=100.0,
            copies=8,
            training_episodes=160,
            calibration_episodes=100,
            training_seed=300_000,
            calibration_seed=200_000,
            live_seed=100_000,
        ),
    )
}


def demo_target(environment: str) -> DemoTarget:
    """The target of an environment.

    Raises:
        UserError: when the demo has none for it.
    """
    if environment not in DEMO_TARGETS:
        raise UserError(f"the demo has no target {environment!r}; it has {', '.join(DEMO_TARGETS)}")
    return DEMO_TARGETS[environment]


def slug(environment: str) -> str:
    """``"cartpole"`` for ``"CartPole-v1"``: the folder and file name of a target's products."""
    return environment.partition("-")[0].lower()
