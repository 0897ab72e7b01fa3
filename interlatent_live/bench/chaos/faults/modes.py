"""No broken process or network: nothing, a spool, encoding at the agent, versions, clocks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from interlatent_live.bench.chaos.faults.fault import Fault
from interlatent_live.bench.chaos.faults.processes import EncoderKilled
from interlatent_live.bench.chaos.policy import write_transcoders

if TYPE_CHECKING:
    from collections.abc import Mapping

    from interlatent_live.bench.chaos.agent_process import AgentProcess
    from interlatent_live.bench.chaos.measure import Outcome
    from interlatent_live.bench.chaos.orders import Opened
    from interlatent_live.bench.chaos.rig import Rig


class Nothing(Fault):
    """What the other rows are to be held against."""

    name = "nothing"
    about = "nothing is broken: what being watched by living services costs by itself"


class Spooled(EncoderKilled):
    """What cannot be sent waits on disk."""

    name = "spool across an outage"
    about = "SIGKILL of the encoder while the tap has a spool: nothing may be missing"
    lossless = True

    def options(self, rig: Rig) -> Mapping[str, Any]:
        """With a spool of its own."""
        return {"on_full": "spool", "spool": str(rig.folder / "spool")}


class EncodedAtAgent(EncoderKilled):
    """The agent sends features, and the encoder passes them on."""

    name = "encode at the agent"
    about = "SIGKILL of the encoder while the agent itself computes the features"

    def options(self, rig: Rig) -> Mapping[str, Any]:
        """With the encoder's own transcoders."""
        folders = {name: str(path) for name, path in rig.transcoder_folders.items()}
        return {"encode_at": "agent", "transcoders": folders}


class HotReload(Fault):
    """Not a fault, but as rude: other weights under way."""

    name = "hot reload"
    about = "new versions of both transcoders replace the old ones while the agent runs"
    sudden = True
    lossless = True
    # Its statistics of other features begin anew.
    whole_at_correlator = False

    def __init__(self) -> None:
        self._boot_id = ""

    def strike(self, rig: Rig, agent: AgentProcess) -> None:
        """Write them where the old ones were."""
        del agent
        rig.version += 1
        write_transcoders(rig.transcoders, version=rig.version)

    def healed(self, rig: Rig, opened: Opened, seq: int) -> bool:
        """Rows come from the new ones, at both hook points."""
        del seq
        self._boot_id = opened.boot_id
        used = rig.witness.transcoders(opened.boot_id)
        return len(used) > 1 and all(used[0][name] != used[-1][name] for name in used[0])

    def complaints(self, rig: Rig, outcome: Outcome) -> tuple[str, ...]:
        """The old ones must have been in use before."""
        del outcome
        before = rig.witness.transcoders(self._boot_id)
        return () if len(before) > 1 else ("the encoder never changed its transcoders",)


class ClockJumps(Fault):
    """Somebody sets the clock."""

    name = "clock jumps"
    about = "the wall clock of agent and services jumps an hour ahead, and back again"
    seconds: ClassVar[float] = 3600.0

    def strike(self, rig: Rig, agent: AgentProcess) -> None:
        """There."""
        del agent
        rig.clock.jump(self.seconds)

    def lift(self, rig: Rig, agent: AgentProcess) -> None:
        """And back."""
        del agent
        rig.clock.jump(0.0)


class ClockJumpsBack(ClockJumps):
    """Somebody sets the clock."""

    name = "clock jumps back"
    about = "the wall clock of agent and services jumps an hour back, and ahead again"
    seconds = -3600.0
