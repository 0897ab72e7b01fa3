"""The acting thread's side of control: what a published decision means for the step at hand.

The control thread publishes immutable decisions; the acting thread reads the newest one without a
lock. Between two publications it is on its own: whatever a decision allowed ends at the moment that
the decision names, also when the control thread is late, starved or dead. All doubt is resolved
towards less energy: interventions end, a running agent that must be overseen holds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from interlatent_live.control.machine import Mode

if TYPE_CHECKING:
    from interlatent_live.control.machine import Decision
    from interlatent_live.interventions.values import Plan


@dataclass(frozen=True, slots=True)
class Turn:
    """What holds for one step."""

    version: int
    mode: Mode
    plans: tuple[Plan, ...] = ()
    shadows: tuple[tuple[str, Plan], ...] = ()
    action: tuple[float, ...] = ()
    """A person's action instead of the policy's, flattened; empty for the policy's."""


class TurnReader:
    """Turns decisions into turns, and remembers which permissions for one step are used up.

    ``questions`` counts what the agent itself asked: from that moment it holds, whether or not the
    control thread has taken the question in yet.
    """

    def __init__(self) -> None:
        self.questions = 0
        self._granted = 0
        self._substituted = 0

    def read(self, decision: Decision, now_ns: int) -> Turn:
        """The turn for a step that begins now; uses nothing up."""
        mode = decision.mode
        if self.questions > decision.questions and mode is Mode.RUNNING:
            return Turn(decision.version, Mode.HELD)
        if mode is Mode.HELD and now_ns >= decision.hold_until_ns:
            return Turn(decision.version, Mode.STOPPED)
        if now_ns >= decision.overseen_until_ns and mode is Mode.RUNNING:
            return Turn(decision.version, Mode.HELD)
        if mode is Mode.HELD and decision.grant > self._granted:
            return Turn(decision.version, Mode.RUNNING)
        substitute = decision.substitute
        action: tuple[float, ...] = ()
        if mode is Mode.RUNNING and substitute is not None:
            action = substitute.action if substitute.number > self._substituted else ()
        if now_ns >= decision.until_ns:
            return Turn(decision.version, mode, action=action)
        return Turn(decision.version, mode, decision.plans, decision.shadows, action)

    def take(self, decision: Decision, turn: Turn) -> int:
        """A step was taken under the turn; returns the number of the grant it used, 0 for none."""
        if turn.action and decision.substitute is not None:
            self._substituted = decision.substitute.number
        if decision.mode is Mode.HELD and turn.mode is Mode.RUNNING:
            self._granted = decision.grant
            return decision.grant
        return 0
