"""Ms. Pac-Man from the console's RAM: where everyone is, who is edible, what is left to eat.

The map of the 128 bytes was checked against rendered frames (``tests/environments/test_arcade.py``
checks it again): positions are in pixels of the 160 × 210 screen, a byte less 13 from the left and
a byte plus 1 from the top, both of a sprite's corner. Distances are straight lines between corners,
so the maze's walls are not in them. A distance to something that is not there (no ghost is edible,
all power pills are eaten) is missing, not far.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

import numpy as np

from interlatent_live.environments.arcade import (
    FRAME_BYTES,
    MSPACMAN_PIXELS,
    MSPACMAN_RAM,
    RAM_BYTES,
)
from interlatent_live.environments.families.family import Family
from interlatent_live.stream import MetricSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray

GHOSTS: Final = ("sue", "inky", "pinky", "blinky")
PILLS: Final = ((148, 146), (148, 14), (8, 147), (8, 15))
"""Pixel corners of the power pills of bits 2, 3, 4 and 5 of byte 117."""
FRAME_SECONDS: Final = 1 / 60
STEP_SECONDS: Final = 4 * FRAME_SECONDS
FRIGHT_TICK_SECONDS: Final = 8 * FRAME_SECONDS
"""The frightened timer counts down once in 8 frames."""

_PLAYER_X, _PLAYER_Y = 10, 16
_GHOST_X, _GHOST_Y = slice(6, 10), slice(12, 16)
_GHOST_STATE = slice(1, 5)
_FRUIT_X, _FRUIT_Y = 11, 17
_HEADING = 56
_FRIGHT, _PILL_BITS, _DOTS, _LIVES = 116, 117, 119, 123
_SCORE = (120, 121, 122)


def frightened(obs: NDArray[np.generic]) -> NDArray[np.bool_]:
    """[n] whether the ghosts are frightened, of RAM [n, 128]."""
    return np.asarray(np.asarray(obs)[:, _FRIGHT] > 0)


def _measure(obs: NDArray[np.float64]) -> NDArray[np.float64]:
    ram = obs.astype(np.int64)
    x, y = ram[:, _PLAYER_X] - 13.0, ram[:, _PLAYER_Y] + 1.0
    ghost_dx = ram[:, _GHOST_X] - 13.0 - x[:, None]
    ghost_dy = ram[:, _GHOST_Y] + 1.0 - y[:, None]
    ghost = np.hypot(ghost_dx, ghost_dy)
    edible = ram[:, _GHOST_STATE] >= 128
    threat = np.where(edible, np.nan, ghost)
    pills = (ram[:, [_PILL_BITS]] >> np.arange(2, 6)) & 1 == 1
    pill_dx = np.where(pills, np.array([p[0] for p in PILLS]) - x[:, None], np.nan)
    pill_dy = np.where(pills, np.array([p[1] for p in PILLS]) - y[:, None], np.nan)
    pill = np.hypot(pill_dx, pill_dy)
    fruit_x, fruit_y = ram[:, _FRUIT_X], ram[:, _FRUIT_Y]
    fruit = np.where(
        (fruit_x > 0) & (fruit_y > 0), np.hypot(fruit_x - 13.0 - x, fruit_y + 1.0 - y), np.nan
    )
    heading = ram[:, _HEADING]
    columns = [
        x,
        y,
        np.select([heading == 1, heading == 3], [1.0, -1.0], 0.0),
        np.select([heading == 2, heading == 0], [1.0, -1.0], 0.0),
        *ghost.T,
        *edible.T.astype(np.float64),
        edible.sum(1),
        np.fmin.reduce(threat, axis=1),
        _of_nearest(threat, ghost_dx),
        _of_nearest(threat, ghost_dy),
        np.fmin.reduce(np.where(edible, ghost, np.nan), axis=1),
        (ram[:, _FRIGHT] > 0).astype(np.float64),
        ram[:, _FRIGHT] * FRIGHT_TICK_SECONDS,
        np.fmin.reduce(pill, axis=1),
        _of_nearest(pill, pill_dx),
        _of_nearest(pill, pill_dy),
        pills.sum(1),
        ram[:, _DOTS],
        fruit,
        ram[:, _LIVES] & 0b111,
        sum(_bcd(ram[:, byte]) * 100.0**place for place, byte in enumerate(_SCORE)),
    ]
    return np.stack(columns, axis=1).astype(np.float64)


def _of_nearest(distance: NDArray[np.float64], value: NDArray[np.float64]) -> NDArray[np.float64]:
    """[n] ``value`` of the nearest of k things, NaN where none of them is there."""
    nearest = np.where(np.isnan(distance), np.inf, distance).argmin(1)
    rows = np.arange(len(distance))
    return np.where(np.isnan(distance[rows, nearest]), np.nan, value[rows, nearest])


def _bcd(byte: NDArray[np.int64]) -> NDArray[np.int64]:
    """Two decimal digits in one byte."""
    return (byte >> 4) * 10 + (byte & 15)


MSPACMAN: Final = Family(
    environment=MSPACMAN_RAM,
    obs_dim=RAM_BYTES,
    specs=(
        MetricSpec("player_x", "px", description="from the left edge"),
        MetricSpec("player_y", "px", description="from the top edge"),
        MetricSpec("heading_x", "", description="1 heads right, -1 left, 0 neither"),
        MetricSpec("heading_y", "", description="1 heads down, -1 up, 0 neither"),
        *(
            MetricSpec(f"{name}_distance", "px", description=f"to the ghost {name}")
            for name in GHOSTS
        ),
        *(
            MetricSpec(f"{name}_edible", "", description=f"1 while {name} can be eaten")
            for name in GHOSTS
        ),
        MetricSpec("edible_ghosts", "", description="how many ghosts can be eaten"),
        MetricSpec("threat_distance", "px", description="to the nearest ghost that kills"),
        MetricSpec("threat_right", "px", description="nearest ghost that kills: how far right"),
        MetricSpec("threat_below", "px", description="nearest ghost that kills: how far below"),
        MetricSpec("prey_distance", "px", description="to the nearest ghost that can be eaten"),
        MetricSpec("frightened", "", description="1 while the ghosts are frightened"),
        MetricSpec("frightened_time", "s", description="left on the frightened timer"),
        MetricSpec("pill_distance", "px", description="to the nearest power pill"),
        MetricSpec("pill_right", "px", description="nearest power pill: how far right"),
        MetricSpec("pill_below", "px", description="nearest power pill: how far below"),
        MetricSpec("pills_left", "", description="power pills not eaten yet"),
        MetricSpec("dots_eaten", "", description="dots eaten in this maze"),
        MetricSpec("fruit_distance", "px", description="to the fruit"),
        MetricSpec("lives", "", description="lives left beyond this one"),
        MetricSpec("score", "", description="points shown on the screen"),
    ),
    measure=_measure,
    step_seconds=STEP_SECONDS,
    actions=(
        "noop",
        "up",
        "right",
        "left",
        "down",
        "up right",
        "up left",
        "down right",
        "down left",
    ),
)

MSPACMAN_FROM_PIXELS: Final = replace(
    MSPACMAN,
    environment=MSPACMAN_PIXELS,
    obs_dim=FRAME_BYTES + RAM_BYTES,
    measured_from=FRAME_BYTES,
)
"""The same, where the RAM lies behind the frames that the policy sees."""
