"""SIGSTOP and SIGKILL of the supervisor and of each service, and a consumer too slow to keep up."""

from __future__ import annotations

import os
import signal
import threading
from typing import TYPE_CHECKING, ClassVar

from interlatent_live.bench.chaos.faults.fault import Fault
from interlatent_live.bench.chaos.rig import SUPERVISOR

if TYPE_CHECKING:
    from contextlib import ExitStack

    from interlatent_live.bench.chaos.agent_process import AgentProcess
    from interlatent_live.bench.chaos.orders import Opened
    from interlatent_live.bench.chaos.rig import Rig


class Frozen(Fault):
    """A process is stopped in its tracks, and later goes on as if nothing had been."""

    victim: ClassVar[str]

    def __init__(self) -> None:
        self._pid = 0

    def prepare(self, rig: Rig, stack: ExitStack) -> str:
        """Whatever goes wrong, nobody is left frozen."""
        stack.callback(self._thaw)
        return rig.endpoint

    def strike(self, rig: Rig, agent: AgentProcess) -> None:
        """SIGSTOP."""
        del agent
        self._pid = rig.pid(self.victim)
        os.kill(self._pid, signal.SIGSTOP)

    def lift(self, rig: Rig, agent: AgentProcess) -> None:
        """SIGCONT."""
        del rig, agent
        self._thaw()

    def _thaw(self) -> None:
        if self._pid:
            os.kill(self._pid, signal.SIGCONT)
            self._pid = 0


class Killed(Fault):
    """A process is killed; whoever supervises it brings another one up."""

    sudden = True
    victim: ClassVar[str]
    how: ClassVar[signal.Signals] = signal.SIGKILL

    def __init__(self) -> None:
        self._pid = 0

    def strike(self, rig: Rig, agent: AgentProcess) -> None:
        """Send the signal."""
        del agent
        self._pid = rig.pid(self.victim)
        os.kill(self._pid, self.how)

    def lift(self, rig: Rig, agent: AgentProcess) -> None:
        """Nothing to undo: wait until it is back."""
        del agent
        rig.wait(lambda: rig.is_another(self.victim, self._pid), 60.0)


class EncoderFrozen(Frozen):
    """The agent's own peer."""

    name = "encoder frozen"
    about = "SIGSTOP of the encoder, then SIGCONT: the agent's peer is there and says nothing"
    victim = "encoder"


class EncoderKilled(Killed):
    """The agent's own peer."""

    name = "encoder killed"
    about = "SIGKILL of the encoder; the supervisor starts another one, which knows nothing"
    victim = "encoder"


class _CorrelatorCatchesUp(Fault):
    def healed(self, rig: Rig, opened: Opened, seq: int) -> bool:
        """The correlator publishes statistics that hold a row from after the fault."""
        return rig.processed(opened.run_id) > seq


class CorrelatorFrozen(Frozen, _CorrelatorCatchesUp):
    """A consumer with credit."""

    name = "correlator frozen"
    about = "SIGSTOP of the correlator, then SIGCONT: features wait for it at the encoder"
    victim = "correlator"


class CorrelatorKilled(Killed, _CorrelatorCatchesUp):
    """A consumer with credit."""

    name = "correlator killed"
    about = "SIGKILL of the correlator; the next one goes on from its newest snapshot"
    victim = "correlator"
    whole_at_correlator = False


class CorrelatorRestarted(Killed, _CorrelatorCatchesUp):
    """As for an upgrade: it saves its statistics, and the next one goes on with them."""

    name = "correlator restarted"
    about = "SIGTERM of the correlator; the next one goes on from what it saved: no row is missing"
    victim = "correlator"
    how = signal.SIGTERM


class _ExplainerCatchesUp(Fault):
    def healed(self, rig: Rig, opened: Opened, seq: int) -> bool:
        """The encoder's link to it is up and nothing waits there."""
        del opened, seq
        link = rig.consumer("explainer")
        return link.get("state") == "up" and rig.health("explainer") is not None


class ExplainerFrozen(Frozen, _ExplainerCatchesUp):
    """A consumer with credit."""

    name = "explainer frozen"
    about = "SIGSTOP of the explainer, then SIGCONT"
    victim = "explainer"


class ExplainerKilled(Killed, _ExplainerCatchesUp):
    """A consumer with credit."""

    name = "explainer killed"
    about = "SIGKILL of the explainer; its claims are proposed again"
    victim = "explainer"


class SupervisorKilled(Killed):
    """With it go all services, so that none is left without anybody who would restart it."""

    name = "supervisor killed"
    about = "SIGKILL of `interlatent-live up`: every service dies with it, and all start anew"
    victim = SUPERVISOR
    whole_at_correlator = False


class SlowCorrelator(Fault):
    """A reader that is there, answers now and then, and never keeps up."""

    name = "slow reader: correlator"
    about = "the correlator runs for 5 ms in every 100 ms: features pile up to its bound"
    AWAKE_S = 0.005
    ASLEEP_S = 0.095

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def prepare(self, rig: Rig, stack: ExitStack) -> str:
        """Whatever goes wrong, it is awake in the end."""
        stack.callback(self._wake)
        return rig.endpoint

    def strike(self, rig: Rig, agent: AgentProcess) -> None:
        """Begin to put it to sleep over and over."""
        del agent
        pid = rig.pid("correlator")
        self._thread = threading.Thread(target=self._nod, args=(pid,), daemon=True)
        self._thread.start()

    def lift(self, rig: Rig, agent: AgentProcess) -> None:
        """Leave it awake."""
        del rig, agent
        self._wake()

    def healed(self, rig: Rig, opened: Opened, seq: int) -> bool:
        """It caught up."""
        return rig.processed(opened.run_id) > seq

    def _nod(self, pid: int) -> None:
        try:
            while not self._stop.wait(self.AWAKE_S):
                os.kill(pid, signal.SIGSTOP)
                self._stop.wait(self.ASLEEP_S)
                os.kill(pid, signal.SIGCONT)
        finally:
            os.kill(pid, signal.SIGCONT)

    def _wake(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
