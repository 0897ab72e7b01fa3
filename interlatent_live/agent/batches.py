"""From rows of the ring to the step batch that travels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from interlatent_live.agent.acting import NEVER
from interlatent_live.stream import Activations, StepBatch, StepFlag, Steps

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from interlatent_live.agent.acting import Point
    from interlatent_live.agent.ring import Taken


def batch_of(
    taken: Taken, points: Mapping[str, Point], metrics: NDArray[np.float64] | None = None
) -> StepBatch:
    """The columns of a step batch.

    A hook point is left out when it had not fired yet at rows that other hook points have
    activations for: its own would hold nothing there. Where y is optional, the rows without one are
    not among the sampled ones.
    ``metrics`` [n, M] stands in for the ring's columns where these are not yet the metrics.
    """
    facts = taken.facts
    steps = Steps(
        first_seq=taken.first_seq,
        env=facts["env"].copy(),
        episode=facts["episode"].copy(),
        t=facts["t"].copy(),
        time_ns=facts["time_ns"].copy(),
        controller=facts["controller"].copy(),
        flags=facts["flags"].copy(),
        metrics=taken.metrics if metrics is None else metrics,
    )
    activations = {}
    for name, x in taken.x.items():
        point = points[name]
        if point.first_fired == NEVER:
            continue
        before = taken.rows_before(point.first_fired)
        if before and not (steps.flags[:before] & np.uint8(StepFlag.NO_ACTIVATION)).all():
            continue
        y, y_rows = taken.y.get(name), taken.y_rows
        if y is None:
            y, y_rows = np.zeros((0, point.d_out or 1), np.float32), y_rows[:0]
        elif point.y_optional:
            given = ~np.isnan(y[:, 0])
            y, y_rows = y[given], y_rows[given]
        activations[name] = Activations(x, y, y_rows)
    return StepBatch(steps, activations)
