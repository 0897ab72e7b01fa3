"""Random schedules of commands, delays, losses and crashes, in virtual time.

The real desk, the real state machine and the real reader of decisions, with a network, a disk and a
clock that the world owns. Checked at every step of every agent: no intervention acts past its
lifetime or its lease, a stopped agent does not move, restarts included, a held one moves by the
single steps that it was allowed only, and nothing that adds energy takes effect without its
``permitted`` entry on the disk. :class:`World` waits for somebody to say what happens (the stateful
test does); :class:`Schedule` draws it at random.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from interlatent_live.control.commands import ANSWERING, Change, Command, Operation
from interlatent_live.control.delays import Delays
from interlatent_live.control.desk import ControlDesk, ToAgentPeer, ToOperatorPeer, Write
from interlatent_live.control.machine import ControlLimits, ControlMachine, Mode
from interlatent_live.control.turns import TurnReader
from interlatent_live.control.wire import (
    AgentAnswer,
    AgentHello,
    AgentState,
    Do,
    HookOffer,
    Role,
    Submit,
)
from interlatent_live.interventions.values import Intervention, Kind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from interlatent_live.control.desk import Instruction
    from interlatent_live.control.machine import Decision

MS: Final = 1_000_000
SECOND: Final = 1000 * MS
STEP_NS: Final = 20 * MS
LIMITS: Final = ControlLimits(
    max_norm={"net.0": 2.0},
    transcoders={"net.0": "sha256:aa"},
    features={"net.0": 64},
    max_ttl_ns=5 * SECOND,
    lease_ns=2 * SECOND,
    max_hold_ns=20 * SECOND,
    safe_action=True,
)


@dataclass(slots=True)
class _Agent:
    """One life of the agent."""

    boot: str
    machine: ControlMachine
    reader: TurnReader = field(default_factory=TurnReader)
    delays: Delays = field(default_factory=Delays)
    stalled_until: int = 0
    """The control thread does nothing until then; the acting thread goes on."""
    waiting: list[Do] = field(default_factory=list)
    ends: dict[str, int] = field(default_factory=dict)
    """By command, the latest moment at which its intervention may act, by its lifetime."""
    leases: dict[str, int] = field(default_factory=dict)
    owner: dict[str, str] = field(default_factory=dict)
    asked: bool = False
    """Whether a rule of its own fired that nobody has answered."""
    allowed: int = 0
    """Single steps that a held agent may take."""
    decision: Decision = field(init=False)
    """As it was published last."""
    in_force: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.decision = self.machine.decision

    def publish(self) -> None:
        self.decision = self.machine.decision
        self.in_force = tuple(
            one.command.command_id for one in self.machine.active if not one.command.dry_run
        )


class World:
    """An agent, the service and everything between them; :meth:`advance` lets time pass."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.now = 0
        self.broken: list[str] = []
        self.count: Counter[str] = Counter()
        self._queue: list[tuple[int, int, Callable[[], None]]] = []
        self._numbered = 0
        self._latched = False
        self._still = ""
        """How whoever watches last saw the agent to be still, over all its lives; empty: it may
        move."""
        self._permitted: set[str] = set()
        self._desk = ControlDesk()
        self._desk_life = 0
        self._disk_works = True
        self._agent = self._boot()
        for begin in (self._step, self._control, self._tick):
            self._later(0, begin)

    def advance(self, nanoseconds: int) -> None:
        """Let so much time pass, or until something is broken."""
        end = self.now + nanoseconds
        while not self.broken and self._queue and self._queue[0][0] <= end:
            self.now, _, act = heapq.heappop(self._queue)
            act()
        self.now = max(self.now, end)

    # -- what people and fate do ---------------------------------------------------------------

    def ask(
        self, operation: Operation, *, lease: str = "L", actor: str = "ada", ttl_ns: int = SECOND,
        old: bool = False, role: Role = Role.OPERATOR, change: Change | None = None,
    ) -> None:  # fmt: skip
        """Somebody commands; ``old``: having looked at the agent before it changed last."""
        self._numbered += 1
        machine = self._agent.machine
        targets: tuple[str, ...] = ()
        if operation in ANSWERING:
            question = machine.question
            targets = ("none" if question is None else question.question_id,)
        command = Command(
            f"c{self._numbered}", operation, actor, "a schedule", ttl_ns, lease,
            machine.version - old,
            (change or steering(),) if operation is Operation.INTERVENE else (), targets,
        )  # fmt: skip
        request = Submit(
            id=f"r{self._numbered}",
            sent_ns=self.now,
            agent="walker",
            boot_id=self._agent.boot,
            role=role,
            command=command,
        )
        self._travel(
            lambda: self._carry_out(self._desk.from_operator(b"op", request, self.now, self.now))
        )

    def restart_agent(self) -> None:
        """Its process dies and another one starts."""
        self.count["agent restarts"] += 1
        self._agent = self._boot()

    def restart_service(self) -> None:
        """The control service dies, with what was not on its disk, and another one starts."""
        self.count["service restarts"] += 1
        self._desk, self._desk_life = ControlDesk(), self._desk_life + 1

    def stall(self, nanoseconds: int) -> None:
        """The agent's control thread does nothing for so long; its acting thread goes on."""
        self.count["stalls of the control thread"] += 1
        self._agent.stalled_until = self.now + nanoseconds

    def turn_disk(self) -> None:
        """The audit's disk fills up, or has room again."""
        self.count["full disks"] += self._disk_works
        self._disk_works = not self._disk_works

    def fire_rule(self) -> None:
        """A rule of the agent's own: it holds and asks a person."""
        agent = self._agent
        if agent.reader.read(agent.decision, self.now).mode is not Mode.RUNNING:
            return
        self.count["questions"] += 1
        self._numbered += 1
        agent.reader.questions += 1
        agent.asked, agent.allowed = True, 0
        name = f"q{self._numbered}"

        def taken_in() -> None:
            agent.machine.ask(name, "a rule", 3 * SECOND, self.now)
            self._keep_latch(agent)
            agent.publish()

        self._later(3 * MS, taken_in)

    def _later(self, delay_ns: int, act: Callable[[], None]) -> None:
        self._numbered += 1
        heapq.heappush(self._queue, (self.now + delay_ns, self._numbered, act))

    def _travel(self, act: Callable[[], None]) -> None:
        """A message: late, lost, or twice."""
        fate = self.random.random()
        if fate < 0.03:
            self.count["lost messages"] += 1
            return
        for _ in range(2 if fate > 0.97 else 1):
            self._later(int(self.random.expovariate(1 / (5 * MS))), act)

    # -- the agent -----------------------------------------------------------------------------

    def _boot(self) -> _Agent:
        self._numbered += 1
        machine = ControlMachine(LIMITS, now_ns=self.now, stopped=self._latched)
        agent = _Agent(f"boot{self._numbered}", machine)
        self._greet(agent)
        return agent

    def _greet(self, agent: _Agent) -> None:
        hello = AgentHello(
            agent="walker",
            run_id="r",
            boot_id=agent.boot,
            policy_hash="p",
            hook_points=[
                HookOffer(name="net.0", transcoder="sha256:aa", features=64, max_norm=2.0)
            ],
            safe_action=True,
            require_oversight=False,
            lease_ms=2000,
            max_ttl_ms=5000,
        )
        self._travel(
            lambda: self._carry_out(self._desk.from_agent(agent.boot.encode(), "", hello, self.now))
        )

    def _step(self) -> None:
        agent = self._agent
        turn = agent.reader.read(agent.decision, self.now)
        self.count["steps"] += 1
        if turn.plans:
            self.count["steered steps"] += 1
            for name in agent.in_force:
                if self.now >= agent.ends[name]:
                    self.broken.append(f"{name} acts past its lifetime")
                if self.now >= agent.leases.get(agent.owner[name], 0):
                    self.broken.append(f"{name} acts without its lease")
        if turn.mode is Mode.RUNNING:
            still = self._still or ("held" if agent.asked else "")
            agent.allowed -= bool(still)
            if still and (agent.allowed < 0 or still == "stopped"):
                self.broken.append(f"a {still} agent moved")
        grant = agent.reader.take(agent.decision, turn)
        if grant:
            self._later(MS, lambda: agent.machine.used(grant))
        self._later(STEP_NS, self._step)

    def _control(self) -> None:
        """A turn of the control thread."""
        agent = self._agent
        if self.now >= agent.stalled_until:
            for message in agent.waiting:
                self._do(agent, message)
            agent.waiting.clear()
            agent.machine.tick(self.now)
            self._keep_latch(agent)
            if agent.machine.mode is Mode.STOPPED:
                self._still = "stopped"
            agent.publish()
            machine = agent.machine
            state = AgentState(
                boot_id=agent.boot, version=machine.version, mode=machine.mode, row=0,
                obeyed=True, latched=True,
            )  # fmt: skip
            self._travel(
                lambda: self._carry_out(
                    self._desk.from_agent(agent.boot.encode(), "", state, self.now)
                )
            )
        self._later(self.random.randrange(5, 60) * MS, self._control)

    def _keep_latch(self, agent: _Agent) -> None:
        """As the agent's control thread does; no other life of the agent can have changed it."""
        if agent is self._agent:
            self._latched = self._latched or agent.machine.mode is not Mode.RUNNING

    def _do(self, agent: _Agent, message: Do) -> None:
        command, machine = message.command, agent.machine
        if command.energising and message.boot_id != agent.boot:
            return
        before = machine.version
        known = {one.command.command_id for one in machine.active}
        if command.operation in {Operation.RESUME, Operation.APPROVE}:
            if machine.refusal(command, self.now):
                return
            self._latched = False
        late = message.late_ns + agent.delays.late_ns(message.sent_ns, self.now)
        answer = machine.receive(command, self.now, late_ns=late)
        self._keep_latch(agent)
        if answer.accepted:
            self.count[str(command.operation)] += 1
        took_effect = answer.accepted and machine.version != before
        if took_effect:
            self._watch(agent, command.operation)
        if took_effect and command.energising and command.command_id not in self._permitted:
            self.broken.append(f"{command.command_id} took effect without its audit entry")
        if command.operation is Operation.RENEW and answer.accepted:
            until = self.now - late + min(command.ttl_ns, LIMITS.lease_ns)
            agent.leases[command.lease] = max(agent.leases.get(command.lease, 0), until)
        if command.operation is Operation.RELEASE:
            agent.leases.pop(command.lease, None)
        if command.operation is Operation.INTERVENE and command.command_id not in known:
            agent.ends[command.command_id] = self.now + command.ttl_ns
            agent.owner[command.command_id] = command.lease
        agent.publish()
        reply = AgentAnswer(
            boot_id=agent.boot, command_id=command.command_id, accepted=answer.accepted,
            reason=answer.reason, version=answer.version,
        )  # fmt: skip
        self._travel(
            lambda: self._carry_out(self._desk.from_agent(agent.boot.encode(), "", reply, self.now))
        )

    def _watch(self, agent: _Agent, operation: Operation) -> None:
        match operation:
            case Operation.HOLD:
                self._still, agent.allowed = self._still or "held", 0
            case Operation.STOP:
                self._still, agent.allowed = "stopped", 0
            case Operation.STEP:
                agent.allowed = 1
            case Operation.RESUME | Operation.APPROVE:
                self._still, agent.asked = "", False

    # -- the service ---------------------------------------------------------------------------

    def _tick(self) -> None:
        self._carry_out(self._desk.tick(self.now))
        if not self._desk.agents():
            self._greet(self._agent)
        self._later(100 * MS, self._tick)

    def _carry_out(self, instructions: Iterable[Instruction]) -> None:
        for one in instructions:
            match one:
                case ToAgentPeer(peer, Do() as message):
                    self._travel(self._delivery(peer.decode(), message))
                case Write():
                    self._later(self.random.randrange(1, 40) * MS, self._write(one))
                case ToAgentPeer() | ToOperatorPeer():
                    pass

    def _delivery(self, boot: str, message: Do) -> Callable[[], None]:
        def deliver() -> None:
            if self._agent.boot == boot:
                self._agent.waiting.append(message)

        return deliver

    def _write(self, entry: Write) -> Callable[[], None]:
        life, works = self._desk_life, self._disk_works

        def write() -> None:
            if life != self._desk_life:
                return  # the service died before it was on the disk
            if works and entry.kind == "permitted":
                self._permitted.add(entry.body["command_id"])
            problem = "" if works else "no space left"
            self._carry_out(self._desk.written(entry.token, "seal", problem, self.now))

        return write


class Schedule(World):
    """A world in which chance commands and breaks; :meth:`run` returns what promise it broke."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self._gone_until: dict[str, int] = {}
        self._later(0, self._operate)
        self._later(0, self._break)

    def run(self, seconds: int = 8) -> list[str]:
        """Let it happen for so long; what was broken, which should be nothing."""
        self.advance(seconds * SECOND)
        return self.broken

    def _operate(self) -> None:
        pick = self.random
        for lease in "LM":
            if self.now >= self._gone_until.get(lease, 0):
                self.ask(Operation.RENEW, lease=lease, ttl_ns=60 * SECOND)
        operation = pick.choices(list(_OFTEN), list(_OFTEN.values()))[0]
        if self._agent.machine.question is not None and pick.random() < 0.5:
            operation = pick.choice(sorted(ANSWERING))
        change = steering(
            pick.randrange(66), pick.choice([Kind.STEER, Kind.CLAMP]),
            pick.choice([0.5, 1.0, 1.5, 2.0, 3.0]),
        )  # fmt: skip
        self.ask(
            operation, lease=pick.choice("LM"), actor=pick.choice(["ada", "bob"]),
            ttl_ns=pick.randrange(100, 6000) * MS, old=pick.random() < 0.15,
            role=pick.choices([Role.OPERATOR, Role.ADMIN, Role.VIEWER], [8, 3, 1])[0],
            change=change,
        )  # fmt: skip
        self._later(pick.randrange(50, 600) * MS, self._operate)

    def _break(self) -> None:
        pick = self.random
        match pick.choice(["agent", "service", "operator", "stall", "disk", "rule", "nothing"]):
            case "agent":
                self.restart_agent()
            case "service":
                self.restart_service()
            case "operator":
                self.count["operators gone"] += 1
                self._gone_until[pick.choice("LM")] = self.now + 4 * SECOND
            case "stall":
                self.stall(pick.randrange(100, 5000) * MS)
            case "disk":
                self.turn_disk()
            case "rule":
                self.fire_rule()
        self._later(pick.randrange(500, 5000) * MS, self._break)


def steering(feature: int = 3, kind: Kind = Kind.STEER, max_norm: float = 1.0) -> Change:
    """A change to the one feature at the one hook point."""
    return Change("net.0", "sha256:aa", Intervention(feature, kind, 1.0), max_norm)


_OFTEN: Final = {
    Operation.INTERVENE: 20,
    Operation.RESUME: 12,
    Operation.STEP: 3,
    Operation.HOLD: 2,
    Operation.STOP: 1,
    Operation.REVERT: 1,
    Operation.RELEASE: 1,
}


def run_schedules(count: int, seed: int) -> tuple[list[str], Counter[str]]:
    """Run schedules ``seed`` to ``seed + count - 1``; what they broke, and how much happened."""
    broken: list[str] = []
    happened: Counter[str] = Counter()
    for number in range(seed, seed + count):
        schedule = Schedule(number)
        broken += [f"schedule {number}: {what}" for what in schedule.run()]
        happened += schedule.count
    return broken, happened
