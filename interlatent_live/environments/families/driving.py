"""highway-fast-v0: speeds, lanes and gaps in metres and seconds again.

highway-env normalises what the ego car sees (``KinematicObservation``: x over 200 m, y over 12 m,
velocities over 80 m/s; the others relative to the ego car, in order of distance, clipped to ± 1). A
gap is from bumper to bumper in one's own lane or the next; it is missing where nobody is seen
there, and so is the time to collision where the gap does not shrink.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from interlatent_live.environments.driving import HIGHWAY_FAST
from interlatent_live.environments.families.family import Family
from interlatent_live.stream import MetricSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray

CARS: Final = 5
LANES: Final = 3
LANE_WIDTH: Final = 4.0
CAR_LENGTH: Final = 5.0
_SCALE: Final = np.array([1.0, 200.0, LANES * LANE_WIDTH, 80.0, 80.0])
_PRESENCE, _X, _Y, _VX, _VY = range(5)


def _measure(obs: NDArray[np.float64]) -> NDArray[np.float64]:
    cars = obs.reshape(len(obs), CARS, 5) * _SCALE
    ego, others = cars[:, 0], cars[:, 1:]
    there = others[:, :, _PRESENCE] > 0.5
    dx, dy = others[:, :, _X], others[:, :, _Y]
    ahead, closing_ahead = _nearest(there & (np.abs(dy) < LANE_WIDTH / 2) & (dx > 0), others)
    behind, _ = _nearest(there & (np.abs(dy) < LANE_WIDTH / 2) & (dx <= 0), others)
    left, _ = _nearest(there & (np.abs(dy + LANE_WIDTH) < LANE_WIDTH / 2), others)
    right, _ = _nearest(there & (np.abs(dy - LANE_WIDTH) < LANE_WIDTH / 2), others)
    shrinking = closing_ahead > 0
    collision = np.where(shrinking, ahead / np.where(shrinking, closing_ahead, 1.0), np.nan)
    lane = ego[:, _Y] / LANE_WIDTH
    columns = [
        np.hypot(ego[:, _VX], ego[:, _VY]),
        lane,
        ego[:, _VY],
        np.arctan2(ego[:, _VY], ego[:, _VX]),
        ahead,
        closing_ahead,
        collision,
        behind,
        left,
        right,
        there.sum(1),
        (lane > 0.5).astype(np.float64),
        (lane < LANES - 1.5).astype(np.float64),
    ]
    return np.stack(columns, axis=1)


def _nearest(
    which: NDArray[np.bool_], others: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Gap [n] to the nearest of the cars ``which`` [n, 4], and how fast it shrinks if ahead."""
    distance = np.where(which, np.abs(others[:, :, _X]), np.inf)
    nearest = distance.argmin(1)
    rows = np.arange(len(others))
    gap = np.maximum(distance[rows, nearest] - CAR_LENGTH, 0.0)
    missing = ~which.any(1)
    closing = -others[rows, nearest, _VX]
    return np.where(missing, np.nan, gap), np.where(missing, np.nan, closing)


HIGHWAY: Final = Family(
    environment=HIGHWAY_FAST,
    obs_dim=CARS * 5,
    specs=(
        MetricSpec("speed", "m/s"),
        MetricSpec("lane", "", description="0 is the leftmost, 2 the rightmost"),
        MetricSpec("lateral_velocity", "m/s", description="to the right is +"),
        MetricSpec("heading", "rad", description="from along the road, right is +"),
        MetricSpec("front_gap", "m", description="to the car ahead in one's lane"),
        MetricSpec("closing_speed", "m/s", description="at which the front gap shrinks"),
        MetricSpec("time_to_collision", "s", description="front gap over closing speed"),
        MetricSpec("rear_gap", "m", description="to the car behind in one's lane"),
        MetricSpec("left_gap", "m", description="along the road to the nearest car one lane left"),
        MetricSpec(
            "right_gap", "m", description="along the road to the nearest car one lane right"
        ),
        MetricSpec("cars_seen", "", description="of the four nearest, how many are in range"),
        MetricSpec("left_lane_exists", "", description="1 where there is a lane to the left"),
        MetricSpec("right_lane_exists", "", description="1 where there is a lane to the right"),
    ),
    measure=_measure,
    step_seconds=1.0,
    actions=("lane left", "idle", "lane right", "faster", "slower"),
)
