"""Chooses on the selection seeds: feature, dose and moment for each target, and its best bias.

Screened on few starts, the finalists on more; the winner is the one whose effect has the best lower
bound. Nothing of this is evidence; it says what the test shall be about.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from interlatent_live.errors import UserError
from interlatent_live.interventions.experiment.analysis import lower_bound, paired
from interlatent_live.interventions.experiment.live import Arm
from interlatent_live.interventions.experiment.setup import Hypothesis, Setup, Target, When

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from interlatent_live.interventions.experiment.live import Played
    from interlatent_live.interventions.experiment.playing import Start
    from interlatent_live.transcoders.transcoder import Transcoder

    Play = Callable[[Arm, Sequence[Start]], Played]

LEAST_DENSITY, MOST_DENSITY = 0.005, 0.5
LEAST_BOUTS, LEAST_EPISODES = 20, 6
LIVE_DENSITY, LIVE_EPISODES = 0.001, 3


@dataclass(frozen=True, slots=True, eq=False)
class Calibration:
    """What the hook point did while nobody intervened."""

    y: NDArray[np.float32]
    """[n, d_out]."""
    features: NDArray[np.float32]
    """[n, F]."""
    episode: NDArray[np.int64]
    """[n]."""

    @property
    def size(self) -> float:
        """Root mean square norm of y."""
        return float(np.sqrt(np.square(self.y, dtype=np.float64).sum(1).mean()))

    def amount(self, feature: int) -> float:
        """Median activation while on."""
        column = self.features[:, feature]
        return float(np.median(column[column > 0]))

    def eligible(self) -> NDArray[np.intp]:
        """Features that are on often enough to be judged and not nearly always."""
        on = self.features > 0
        density = on.mean(axis=0)
        begins = on & ~np.vstack([np.zeros((1, on.shape[1]), np.bool_), on[:-1]])
        return np.flatnonzero(
            (density >= LEAST_DENSITY)
            & (density <= MOST_DENSITY)
            & (begins.sum(axis=0) >= LEAST_BOUTS)
            & (self._episodes(on) >= LEAST_EPISODES)
        )

    def live(self) -> NDArray[np.intp]:
        """Features that are on at all: what the other features are drawn from as controls."""
        on = self.features > 0
        return np.flatnonzero(
            (on.mean(axis=0) >= LIVE_DENSITY) & (self._episodes(on) >= LIVE_EPISODES)
        )

    def _episodes(self, on: NDArray[np.bool_]) -> NDArray[np.intp]:
        return np.array([len(np.unique(self.episode[column])) for column in on.T])


def candidates(
    calibration: Calibration,
    transcoder: Transcoder,
    tail: Callable[[torch.Tensor], torch.Tensor] | None,
    count: int,
) -> list[int]:
    """Eligible features, those first that move the head's outputs most while they are on.

    Args:
        calibration: see there.
        transcoder: whose decoder is added.
        tail: from y to the outputs; without one the size of what is added decides.
        count: how many at most.

    Raises:
        UserError: when no feature is eligible.
    """
    eligible = calibration.eligible()
    if not len(eligible):
        raise UserError("no feature is on often enough in the calibration episodes to be steered")
    moved = {}
    for feature in map(int, eligible):
        change = calibration.amount(feature) * transcoder.W_dec[feature]
        on = np.flatnonzero(calibration.features[:, feature] > 0)[:256]
        if tail is None:
            moved[feature] = float(change.norm())
        else:
            y = torch.from_numpy(calibration.y[on]).to(change.dtype)
            with torch.no_grad():
                moved[feature] = float((tail(y + change) - tail(y)).norm(dim=1).mean())
    return sorted(moved, key=lambda feature: -moved[feature])[:count]


def feature_arms(
    setup: Setup, point: str, calibration: Calibration, transcoder: Transcoder, chosen: list[int]
) -> list[Arm]:
    """Every dose and moment of the candidates whose norm is within the bound."""
    bound = setup.bound * calibration.size
    arms = []
    for feature in chosen:
        amount = calibration.amount(feature)
        norm = float(transcoder.W_dec[feature].norm())
        for dose in setup.doses:
            if abs(dose) * amount * norm > bound:
                continue
            arms += [
                Arm(f"{feature} {dose:+g} {when}", point, feature, dose * amount, when, feature)
                for when in setup.when
            ]
    return arms


def bias_arms(setup: Setup, point: str, outputs: int) -> list[Arm]:
    """Every bias on every output of the head."""
    return [
        Arm(f"bias {output} {value:+g}", point, output, value)
        for output in range(outputs)
        for value in setup.biases
    ]


def choose(
    arms: Sequence[Arm],
    target: Target,
    metrics: Sequence[str],
    play: Play,
    *,
    starts: Sequence[Start],
    units: NDArray[np.integer],
    screening: int,
    finalists: int,
) -> tuple[Arm, float]:
    """The arm with the best lower bound for a target, and its mean effect on all the starts.

    Raises:
        UserError: when the metric is none of this environment's, or there is no arm.
    """
    if target.metric not in metrics:
        raise UserError(f"there is no metric {target.metric!r}; there are {', '.join(metrics)}")
    if not arms:
        raise UserError("no arm is within the bound: give smaller doses or a larger bound")
    column = list(metrics).index(target.metric)

    def bound(arm: Arm, n: int) -> float:
        untouched = play(Arm("untouched"), starts[:n]).values[:, column]
        values = play(arm, starts[:n]).values[:, column]
        return lower_bound(values, untouched, units[:n], target.direction)

    screened = sorted(arms, key=lambda arm: -bound(arm, screening))[:finalists]
    best = max(screened, key=lambda arm: bound(arm, len(starts)))
    untouched = play(Arm("untouched"), starts).values[:, column]
    return best, paired(play(best, starts).values[:, column], untouched, units).mean


def hypothesis(
    target: Target,
    chosen: tuple[Arm, float],
    bias: tuple[Arm, float],
    *,
    amount: float,
    norm: float,
    tried: tuple[int, int],
) -> Hypothesis:
    """What will be tested.

    Args:
        target: the metric and its direction.
        chosen: the feature's arm and its effect on the selection seeds.
        bias: the same of the best constant bias.
        amount: the feature's median activation while on.
        norm: of its decoder row.
        tried: arms that were compared, of features and of biases.
    """
    arm, effect = chosen
    return Hypothesis(
        feature=arm.feature,
        when=When(arm.when),
        dose=arm.value / amount,
        value=arm.value,
        norm=abs(arm.value) * norm,
        metric=target.metric,
        direction=target.direction,
        selected_effect=effect,
        tried=tried[0],
        bias_output=bias[0].feature,
        bias=bias[0].value,
        bias_selected_effect=bias[1],
        bias_tried=tried[1],
    )
