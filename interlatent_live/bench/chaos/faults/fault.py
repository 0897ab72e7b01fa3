"""What every fault is: done to the rig, undone again, and how one knows that it healed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextlib import ExitStack

    from interlatent_live.bench.chaos.agent_process import AgentProcess
    from interlatent_live.bench.chaos.measure import Outcome
    from interlatent_live.bench.chaos.orders import Opened
    from interlatent_live.bench.chaos.rig import Rig


class Fault:
    """One row of the table; a subclass each, made anew for each time.

    Attributes:
        name: of the row.
        about: what is done, in a sentence.
        lossless: whether every row has to arrive.
        sudden: whether it is over in a moment, so that recovery counts from there.
        whole_at_correlator: whether the correlator lives through it, so that its books must add up.
    """

    name: ClassVar[str]
    about: ClassVar[str]
    lossless: ClassVar[bool] = False
    sudden: ClassVar[bool] = False
    whole_at_correlator: ClassVar[bool] = True

    def options(self, rig: Rig) -> Mapping[str, Any]:
        """Options of the tap, beside the defaults."""
        del rig
        return {}

    def prepare(self, rig: Rig, stack: ExitStack) -> str:
        """Set up what stands between agent and services; returns where the agent connects."""
        del stack
        return rig.endpoint

    def strike(self, rig: Rig, agent: AgentProcess) -> None:
        """Let it happen."""

    def lift(self, rig: Rig, agent: AgentProcess) -> None:
        """End it."""

    def healed(self, rig: Rig, opened: Opened, seq: int) -> bool:
        """Whether all is well again, beyond new rows arriving at the witness.

        ``seq`` is a row of the stream ``opened`` that was taken after the fault was lifted.
        """
        del rig, opened, seq
        return True

    def complaints(self, rig: Rig, outcome: Outcome) -> tuple[str, ...]:
        """What else should have happened and did not, in words."""
        del rig, outcome
        return ()
