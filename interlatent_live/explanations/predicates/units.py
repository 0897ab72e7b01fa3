"""Units that predicates may be written in, converted to the unit that a metric declares.

People and language models write degrees where a metric is in radians. The table is short on
purpose: a unit that is not in it must match the metric's own, letter by letter.
"""

from __future__ import annotations

import math
from typing import Final

_SCALE: Final[dict[str, tuple[str, float]]] = {
    "rad": ("angle", 1.0),
    "deg": ("angle", math.pi / 180),
    "°": ("angle", math.pi / 180),
    "rad/s": ("angular velocity", 1.0),
    "deg/s": ("angular velocity", math.pi / 180),
    "°/s": ("angular velocity", math.pi / 180),
    "m": ("length", 1.0),
    "cm": ("length", 0.01),
    "mm": ("length", 0.001),
    "km": ("length", 1000.0),
    "m/s": ("velocity", 1.0),
    "cm/s": ("velocity", 0.01),
    "km/h": ("velocity", 1 / 3.6),
    "s": ("time", 1.0),
    "ms": ("time", 0.001),
    "min": ("time", 60.0),
    "N": ("force", 1.0),
    "kN": ("force", 1000.0),
}


def factor(written: str, declared: str) -> float | None:
    """What a number in ``written`` is multiplied by to be in ``declared``; None: no conversion."""
    if written in ("", declared):
        return 1.0
    if written == "%" and declared == "":
        return 0.01
    source, target = _SCALE.get(written), _SCALE.get(declared)
    if source is None or target is None or source[0] != target[0]:
        return None
    return source[1] / target[1]
