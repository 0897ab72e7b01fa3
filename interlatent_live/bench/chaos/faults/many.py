"""More connections than anybody planned for: a thousand agents, and descriptors that run out."""

from __future__ import annotations

import resource
import socket
import threading
import uuid
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any, ClassVar, Final

import zmq

from interlatent_live.bench.chaos.faults.crowd import Crowd, Orders, Welcomed
from interlatent_live.bench.chaos.faults.fault import Fault
from interlatent_live.bench.chaos.faults.processes import Frozen
from interlatent_live.bench.chaos.policy import HOOKS, METRICS, WIDTH, build_policy
from interlatent_live.bench.chaos.resources import holding
from interlatent_live.bench.chaos.rig import SUPERVISOR, port_of
from interlatent_live.policies.hashing import policy_hash
from interlatent_live.stream import HookPointSpec, Manifest
from interlatent_live.wire.codec import encode_hello
from interlatent_live.wire.sockets import connect_dealer, send_message

if TYPE_CHECKING:
    from interlatent_live.bench.chaos.agent_process import AgentProcess
    from interlatent_live.bench.chaos.measure import Outcome
    from interlatent_live.bench.chaos.orders import Opened
    from interlatent_live.bench.chaos.rig import Rig
    from interlatent_live.config import ServiceName

AGENTS: Final = 1000
PROCESSES: Final = 4
PER_SECOND: Final = 200.0
COME_WITHIN_S: Final = 30.0
PER_AGENT_BYTES: Final = 128 * 1024
"""What the encoder may still hold of an agent that said goodbye: its status, for a while, and what
the allocator keeps of its connection's buffers for the next one (a second crowd adds nothing)."""


class ManyAgents(Fault):
    """Everybody comes at once."""

    name = "1,000 agents connect"
    about = (
        "1,000 more identities in 4 processes, 200 a second, each with a connection and a "
        "heartbeat, and all leave again"
    )

    def __init__(self) -> None:
        self._crowd: Crowd | None = None
        self._stack: ExitStack | None = None
        self._encoder = 0
        self._before = 0
        self._seen = Welcomed(0, 0)

    def prepare(self, rig: Rig, stack: ExitStack) -> str:
        """Nobody comes yet; whatever goes wrong, all leave."""
        self._stack = stack
        self._encoder = rig.pid("encoder")
        self._before = _anonymous(self._encoder)
        return rig.endpoint

    def strike(self, rig: Rig, agent: AgentProcess) -> None:
        """Let them come, and wait until they are all in."""
        del agent
        if self._stack is None:
            raise RuntimeError("a fault is prepared before it strikes")
        identity = policy_hash(build_policy())
        crowd = self._crowd = self._stack.enter_context(
            Crowd(
                Orders(
                    endpoint=rig.endpoint,
                    policy_hash=identity,
                    hook_points=HOOKS,
                    width=WIDTH,
                    metrics=METRICS,
                    name=f"crowd-{number}",
                    count=AGENTS // PROCESSES,
                    per_second=PER_SECOND / PROCESSES,
                )
                for number in range(PROCESSES)
            )
        )

        def all_in() -> bool:
            self._seen = crowd.look()
            return self._seen.welcomed >= AGENTS

        rig.wait(all_in, COME_WITHIN_S)

    def lift(self, rig: Rig, agent: AgentProcess) -> None:
        """Let them go."""
        del rig, agent
        if self._crowd is not None:
            self._seen = self._crowd.look()
            self._crowd.__exit__()

    def complaints(self, rig: Rig, outcome: Outcome) -> tuple[str, ...]:
        """All have to have been let in, by an encoder that lived and gave the memory back."""
        del outcome
        said = []
        if self._seen.welcomed < AGENTS:
            said.append(f"{AGENTS - self._seen.welcomed} agents were not let in")
        if rig.pid("encoder") != self._encoder:
            said.append("the encoder died of it")
        elif (kept := _anonymous(self._encoder) - self._before) > AGENTS * PER_AGENT_BYTES:
            said.append(f"the encoder keeps {kept / 2**20:.0f} MiB")
        return tuple(said)


def _anonymous(pid: int) -> int:
    held = holding(pid)
    return 0 if held is None else held.anonymous_bytes


class _OutOfDescriptors(Fault):
    """A service may open no more files, and connections keep coming."""

    victim: ClassVar[ServiceName]
    listens: ClassVar[str]
    """Its endpoint that they come to."""
    SPARE: ClassVar[int] = 4
    COMING: ClassVar[int] = 64

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._pid = 0
        self._limits = (0, 0)

    def prepare(self, rig: Rig, stack: ExitStack) -> str:
        """Whatever goes wrong, the limit is as it was."""
        stack.callback(self._release)
        return rig.endpoint

    def strike(self, rig: Rig, agent: AgentProcess) -> None:
        """Lower the limit to what is open and a little more, then connect."""
        del agent
        self._pid = rig.pid(self.victim)
        held = holding(self._pid)
        self._limits = resource.prlimit(self._pid, resource.RLIMIT_NOFILE)
        soft = (held.fds if held else 64) + self.SPARE
        resource.prlimit(self._pid, resource.RLIMIT_NOFILE, (soft, self._limits[1]))
        address = port_of(getattr(rig.settings.endpoints, self.listens))
        for _ in range(self.COMING):
            # The backlog takes them in, whether or not the process ever does.
            self._stack.enter_context(socket.create_connection(address, timeout=1.0))

    def lift(self, rig: Rig, agent: AgentProcess) -> None:
        """The limit as before; the connections go away."""
        del rig, agent
        self._release()

    def healed(self, rig: Rig, opened: Opened, seq: int) -> bool:
        """It answers, and the correlator has the rows of after."""
        return rig.health(self.victim) is not None and rig.processed(opened.run_id) > seq

    def complaints(self, rig: Rig, outcome: Outcome) -> tuple[str, ...]:
        """It has to have lived through it."""
        del outcome
        return () if rig.pid(self.victim) == self._pid else (f"the {self.victim} died of it",)

    def _release(self) -> None:
        self._stack.close()
        if self._limits[1]:
            with suppress(ProcessLookupError):
                resource.prlimit(self._pid, resource.RLIMIT_NOFILE, self._limits)


class EncoderOutOfDescriptors(_OutOfDescriptors):
    """Agents keep coming."""

    name = "encoder out of descriptors"
    about = "RLIMIT_NOFILE of the encoder lowered to what it has open, 64 connections come"
    victim = "encoder"
    listens = "agents"


class CorrelatorOutOfDescriptors(_OutOfDescriptors):
    """Encoders keep coming."""

    name = "correlator out of descriptors"
    about = "RLIMIT_NOFILE of the correlator lowered to what it has open, 64 connections come"
    victim = "correlator"
    listens = "correlator"


class SupervisorFrozen(Frozen):
    """Nobody reads what the services log, and there is much to log."""

    name = "supervisor frozen"
    about = (
        "SIGSTOP of `interlatent-live up`, while strangers whom the encoder refuses make it log "
        "more than the pipe to its supervisor holds"
    )
    victim = SUPERVISOR
    PAUSE_S: ClassVar[float] = 0.001
    ENOUGH: ClassVar[int] = 400
    """Refusals whose lines, of 300 bytes or more, are more than a pipe of 64 KiB holds."""
    KNOCKS_FOR_S: ClassVar[float] = 20.0

    def __init__(self) -> None:
        super().__init__()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.refused = 0

    def strike(self, rig: Rig, agent: AgentProcess) -> None:
        """Freeze it, then make the encoder talk."""
        super().strike(rig, agent)
        self._thread = threading.Thread(target=self._knock, args=(rig.endpoint,), daemon=True)
        self._thread.start()

    def lift(self, rig: Rig, agent: AgentProcess) -> None:
        """Let it go on, once there was enough to log."""
        rig.wait(lambda: self.refused >= self.ENOUGH, self.KNOCKS_FOR_S)
        super().lift(rig, agent)

    def complaints(self, rig: Rig, outcome: Outcome) -> tuple[str, ...]:
        """There has to have been more to say than the pipe holds, and nobody waited to say it."""
        del rig
        if self.refused < self.ENOUGH:
            return (f"{self.refused} refusals are too few to fill the pipe",)
        return ("the encoder stood still",) if outcome.declared else ()

    def _knock(self, endpoint: str) -> None:
        context: zmq.Context[Any] = zmq.Context()
        try:
            dealer = connect_dealer(context, endpoint)
            while not self._stop.wait(self.PAUSE_S):
                if send_message(dealer, encode_hello(stranger())):
                    self.refused += 1
        finally:
            context.destroy(linger=0)

    def _thaw(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        super()._thaw()


def stranger() -> Manifest:
    """An agent whose policy no transcoder was trained on."""
    name = uuid.uuid4().hex
    return Manifest(
        agent="stranger",
        run_id=name,
        boot_id=name,
        policy_hash="sha256:" + "0" * 64,
        hook_points=(HookPointSpec("nowhere", WIDTH, WIDTH),),
        metrics=(),
    )
