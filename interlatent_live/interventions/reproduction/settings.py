"""Every number of the experiment in one frozen value: what is not here is not a choice."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

HOOK_POINTS = ("hidden.0", "hidden.1")

STAGES = 10
"""Progress reports of one policy: training, transcoders, seven searches, the test."""


@dataclass(frozen=True, slots=True)
class Settings:
    """The experiment, from policies to held-out episodes.

    Seeds of episodes: selection, held-out and evaluation ranges never overlap; an arm and its
    control play the same episodes (same start, same random numbers).
    """

    policies: int = 5
    layers: tuple[int, ...] = (4, 128, 64, 2)
    target_return: float = 261.0
    tolerance: float = 25.0
    first_training_seed: int = 1
    quick_episodes: int = 200
    """Looked at after an update, to see whether the band is near."""
    band_episodes: int = 2000
    """Played to be sure of it."""

    widths: tuple[int, ...] = (2, 4, 8)
    transcoder_rows: int = 40_000
    transcoder_steps: int = 1500
    transcoder_rate: float = 1e-2

    alphas: tuple[float, ...] = (-3, -2.5, -2, -1.5, -1, -0.5, 0.5, 1, 1.5, 2, 2.5, 3)
    biases: tuple[float, ...] = tuple(round(0.1 * i, 1) for i in range(-20, 21) if i)
    condition_alphas: tuple[float, ...] = (-3, -1.5, 1.5, 3)
    condition_biases: tuple[float, ...] = (-2, -1.5, -1, -0.6, -0.3, 0.3, 0.6, 1, 1.5, 2)
    condition_width: int = 4
    """Features of this width are steered conditionally; the others only unconditionally."""

    screening_episodes: int = 30
    """Every arm plays these; the best of each family go on."""
    finalists: int = 16
    selection_episodes: int = 100
    """Finalists play all of these; the winner of each family is fixed on them."""
    held_out_episodes: int = 2000
    control_directions: int = 100
    """Random directions of the steered winner's norm, unselected, for its percentile."""
    control_episodes: int = 200

    selection_seed: int = 1_000_000
    held_out_seed: int = 2_000_000
    evaluation_seed: int = 3_000_000

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    def digest(self) -> str:
        """Names these settings in files, so that a resumed run cannot mix two."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]
