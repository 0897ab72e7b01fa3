"""Choosing each family's winner on the selection episodes, and writing it down before the test.

Every arm of a family plays the screening episodes; the best go on to all selection episodes; the
best of those is the family's winner. Steering, random directions and biases are searched in the
same way on the same episodes, so that no family wins by having been searched harder.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from interlatent_live.interventions.reproduction.rollouts import returns

if TYPE_CHECKING:
    from collections.abc import Sequence

    from interlatent_live.interventions.reproduction.arms import Arm
    from interlatent_live.interventions.reproduction.rollouts import Episodes, Net
    from interlatent_live.interventions.reproduction.settings import Settings


@dataclass(frozen=True, slots=True, eq=False)
class Chosen:
    """The winner of a family on the selection episodes."""

    family: str
    arm: Arm
    tried: int
    selection_mean: float
    """What it was chosen for; optimistic by the winner's curse, so never reported as a result."""


def choose(
    family: str, arms: Sequence[Arm], net: Net, selection: Episodes, settings: Settings
) -> Chosen:
    """The arm of a family with the highest mean return; ties go to the earlier arm."""
    screened = returns(net, arms, selection.first(settings.screening_episodes)).mean(axis=1)
    best = np.argsort(-screened, kind="stable")[: settings.finalists]
    finalists = [arms[index] for index in best]
    means = returns(net, finalists, selection).mean(axis=1)
    winner = int(np.argmax(means))
    return Chosen(family, finalists[winner], len(arms), float(means[winner]))
