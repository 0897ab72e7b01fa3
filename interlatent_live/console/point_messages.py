"""Points as the page reads them, live or recorded: one binary message.

Little-endian: eight u32 (version, points P, metrics M, activations N, missed steps, three unused),
then ``time_ms`` f64 [P], and u32 or f32 columns in the order of
:class:`~interlatent_live.console.live.Points`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from interlatent_live.console.live import Points

VERSION: Final = 1
_HEAD: Final = 8


def encode_points(points: Points, missed: int) -> bytes:
    """One binary message."""
    head = np.zeros(_HEAD, "<u4")
    head[:5] = (VERSION, len(points), points.metrics.shape[1], len(points.index), missed)
    columns = (
        points.time_ms.astype("<f8"),
        points.episode.astype("<u4"),
        points.t.astype("<u4"),
        points.steps.astype("<u4"),
        points.controller.astype("<u4"),
        points.flags.astype("<u4"),
        points.metrics.astype("<f4"),
        points.indptr.astype("<u4"),
        points.index.astype("<u4"),
        points.value.astype("<f4"),
    )
    return b"".join([head.tobytes(), *(one.tobytes() for one in columns)])
