"""The shape of a family: which environment, which columns, how they are computed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from interlatent_live.stream import MetricSpec, Role

Measure = Callable[[NDArray[np.float64]], NDArray[np.float64]]


@dataclass(frozen=True, slots=True)
class Family:
    """What one environment's numbers mean.

    ``measure`` maps observations [n, obs_dim], or what ``measured_from`` leaves of them, to state
    metrics [n, len(specs)]. ``actions`` names discrete actions index by index; ``joints`` names the
    parts of a continuous action. An environment with neither has no action metrics.
    """

    environment: str
    obs_dim: int
    specs: tuple[MetricSpec, ...]
    measure: Measure
    step_seconds: float = 1.0
    """Simulated time per step; 1 where it is unknown, so that the clock counts steps."""
    measured_from: int = 0
    """Which of the obs_dim numbers ``measure`` is given: those from here on. Before lie pixels."""
    actions: tuple[str, ...] = ()
    joints: tuple[str, ...] = ()

    @property
    def action_specs(self) -> tuple[MetricSpec, ...]:
        """One 0/1 column per discrete action but the first of two; one column per joint."""
        if self.actions:
            return tuple(
                MetricSpec(
                    f"action_{name.replace(' ', '_')}", "", Role.ACTION, f"1 when it does: {name}"
                )
                for name in self._shown_actions
            )
        return tuple(
            MetricSpec(f"command_{name}", "", Role.ACTION, f"actuator command of {name}")
            for name in self.joints
        )

    @property
    def _shown_actions(self) -> tuple[str, ...]:
        # Of two actions, one column says it all; two would be collinear.
        return self.actions[1:] if len(self.actions) == 2 else self.actions

    def measure_actions(self, actions: NDArray[np.generic]) -> NDArray[np.float64]:
        """Action metrics [n, len(action_specs)] of indices [n] or commands [n, A]."""
        if self.actions:
            first = len(self.actions) - len(self._shown_actions)
            shown = np.arange(first, len(self.actions))
            return np.asarray(np.asarray(actions)[:, None] == shown, np.float64)
        if self.joints:
            return np.asarray(actions, np.float64)
        return np.zeros((len(actions), 0))
