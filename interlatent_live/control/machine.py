"""The agent's side of control, as a state machine without threads, sockets or a clock.

Whoever runs it says what time it is and what arrived; it says what the agent may do. Its promises,
which the tests try to break with random schedules:

- An intervention ends at its deadline, with its lease, by a revert, a hold or a stop, whichever is
  first. It then leaves nothing behind: the policy's own output, to the bit.
- A hold ends by a resume or expires into a stop. A stop ends by a resume only.
- Stop, hold, revert and release are never refused for who sent them, for the version they were
  decided on, or for how many there are. (Stop and hold need a safe action to exist at all.)
- The same command twice has one effect and the same answer.
- Whatever cannot be understood is refused; nothing refused has an effect.

Time is a monotonic clock in nanoseconds. A decision carries the moments at which what it allows
ends, so that an agent whose control thread died still ends what must end: the acting thread's side
is :mod:`interlatent_live.control.turns`.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from interlatent_live.control.commands import ANSWERING, Change, Command, Operation
from interlatent_live.errors import UserError
from interlatent_live.interventions.values import Kind, Plan

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

NEVER: Final = 2**63 - 1
"""A moment that does not come."""
REMEMBERED: Final = 4_096
"""Answers kept for commands that arrive again. Older ones are refused rather than obeyed twice:
their lease and version have moved on."""


class Mode(StrEnum):
    """Who chooses the agent's actions."""

    RUNNING = "running"
    """The policy, perhaps with interventions."""
    HELD = "held"
    """The safe action, until resumed or until the hold expires into a stop."""
    STOPPED = "stopped"
    """The safe action, until an explicit resume."""


class Fate(StrEnum):
    """What became of something that was asked for."""

    REFUSED = "refused"
    APPLIED = "applied"
    REVERTED = "reverted"
    EXPIRED = "expired"
    LEASE_LOST = "lease_lost"


@dataclass(frozen=True, slots=True)
class ControlLimits:
    """What this agent allows, decided by whoever runs it and not by a command."""

    max_norm: Mapping[str, float] = field(default_factory=dict)
    """By hook point, the bound on ‖Δy‖₂ of the *sum* of all interventions; a hook point that is
    missing allows none."""
    transcoders: Mapping[str, str] = field(default_factory=dict)
    """By hook point, the identity of the transcoder whose decoder the agent has."""
    features: Mapping[str, int] = field(default_factory=dict)
    """By hook point, the number of features of that transcoder."""
    max_ttl_ns: int = 60_000_000_000
    lease_ns: int = 2_000_000_000
    """How long a lease lives without being renewed."""
    max_hold_ns: int = 600_000_000_000
    max_active: int = 32
    """Interventions in force at once, dry runs among them."""
    safe_action: bool = False
    """Whether a safe action is configured; hold and stop do not exist without one."""
    require_oversight: bool = False
    """Whether the agent may act by its policy only while somebody holds a lease."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a command was told at once; ``version`` is the state after it."""

    command_id: str
    accepted: bool
    reason: str
    version: int


@dataclass(frozen=True, slots=True)
class Happening:
    """Something that took effect or ended, for acknowledgements, journal and audit.

    ``version`` is the state that it is a part of: it holds from the row in which the acting thread
    first used that version, or a later one.
    """

    version: int
    command_id: str
    operation: Operation
    fate: Fate
    actor: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Question:
    """What a held agent asks a person."""

    question_id: str
    number: int
    """Counts an agent's questions from 1."""
    rule: str
    until_ns: int
    """When nobody's answer becomes a stop."""
    escalated: bool = False


@dataclass(frozen=True, slots=True)
class Substitute:
    """An action that a person gave in answer to a question, for one step."""

    number: int
    """Of the question."""
    action: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Decision:
    """What the agent may do, and until when."""

    version: int
    mode: Mode
    plans: tuple[Plan, ...]
    """In force, one per hook point."""
    shadows: tuple[tuple[str, Plan], ...]
    """Dry runs, each with its command's id: to be computed beside, each alone, never applied."""
    until_ns: int
    """When the first of plans and dry runs ends; NEVER without any."""
    hold_until_ns: int
    """When a hold becomes a stop; NEVER unless held."""
    overseen_until_ns: int
    """When an agent that may act under oversight only must hold; NEVER for others."""
    grant: int = 0
    """Number of the single step that a held agent may take; each number is good for one."""
    questions: int = 0
    """How many of the agent's questions were taken in."""
    substitute: Substitute | None = None


@dataclass(frozen=True, slots=True)
class InForce:
    """A command whose interventions (or dry runs) are in force."""

    command: Command
    until_ns: int


class ControlMachine:
    """Obeys commands within limits.

    Args:
        limits: what this agent allows.
        now_ns: the clock now.
        stopped: whether a stop was latched before (by an earlier process of this agent).
        check_predicate: why a condition's text cannot be evaluated here, or empty when it can;
            without it, conditions on metrics are refused.

    Raises:
        UserError: when oversight is required and no safe action is configured.
    """

    def __init__(
        self,
        limits: ControlLimits,
        *,
        now_ns: int,
        stopped: bool = False,
        check_predicate: Callable[[str], str] | None = None,
    ) -> None:
        if limits.require_oversight and not limits.safe_action:
            raise UserError("require_oversight needs a safe action: configure safe_action")
        self._limits = limits
        self._check_predicate = check_predicate
        self._mode = Mode.STOPPED if stopped else Mode.RUNNING
        self._version = 0
        self._hold_until = NEVER
        self._grant = 0
        self._questions = 0
        self._question: Question | None = None
        self._substitute: Substitute | None = None
        self._active: dict[str, InForce] = {}
        self._leases: dict[str, int] = {}
        self._answers: OrderedDict[str, tuple[str, Answer]] = OrderedDict()
        # An agent that does not step must not be filled up by whoever sends it commands.
        self._pending: deque[Happening] = deque(maxlen=REMEMBERED)
        self._now = now_ns
        self._late = 0
        """How long the command at hand was held up on its way, ns."""
        self._ever_overseen = False
        self._check_oversight()
        self._decision = self._decide()

    @property
    def mode(self) -> Mode:
        """Who chooses the actions now."""
        return self._mode

    @property
    def version(self) -> int:
        """Counts every change of what the agent may do."""
        return self._version

    @property
    def decision(self) -> Decision:
        """What holds now; immutable, so another thread may read it."""
        return self._decision

    @property
    def active(self) -> tuple[InForce, ...]:
        """What is in force, dry runs among it."""
        return tuple(self._active.values())

    @property
    def leases(self) -> tuple[str, ...]:
        """The leases that live."""
        return tuple(self._leases)

    @property
    def question(self) -> Question | None:
        """What the agent waits to hear about."""
        return self._question

    def next_end_ns(self) -> int:
        """When :meth:`tick` has something to end; NEVER when nothing is to end by itself."""
        ends = [self._hold_until, *self._leases.values()]
        return min(ends + [one.until_ns for one in self._active.values()])

    # -- what happens ---------------------------------------------------------------------------

    def receive(self, command: Command, now_ns: int, *, late_ns: int = 0) -> Answer:
        """Obey or refuse a command; the answer says which and why.

        Args:
            command: what is asked.
            now_ns: the clock now.
            late_ns: how long it was held up on its way. A lease counts from when its renewal was
                made; all else from when it is received.
        """
        self.tick(now_ns)
        self._late = max(0, late_ns)
        known = self._answers.get(command.command_id)
        digest = command.digest()
        if known is not None:
            if known[0] == digest:
                return known[1]
            return Answer(
                command.command_id, False, "this id was used for another command", self._version
            )
        reason = next(self._reasons(command), "")
        if reason:
            self._note(command, Fate.REFUSED, reason)
        else:
            self._obey(command)
        answer = Answer(command.command_id, not reason, reason, self._version)
        # Renewals come every second and repeating one is harmless; they must not crowd out
        # the rest.
        if command.operation is not Operation.RENEW:
            self._answers[command.command_id] = (digest, answer)
            if len(self._answers) > REMEMBERED:
                self._answers.popitem(last=False)
        self._decision = self._decide()
        return answer

    def tick(self, now_ns: int) -> None:
        """End what the clock ends. A clock that runs backwards stands still instead."""
        self._now = max(self._now, now_ns)
        for lease, until in list(self._leases.items()):
            if self._now >= until:
                self._lose(lease)
        for command_id, active in list(self._active.items()):
            if self._now >= active.until_ns:
                self._end(command_id, Fate.EXPIRED)
        if self._mode is Mode.HELD and self._now >= self._hold_until:
            self._stop()
            self._note_own(Operation.STOP, "the hold expired")
        self._check_oversight()
        self._decision = self._decide()

    def refusal(self, command: Command, now_ns: int) -> str:
        """Why the command would be refused now; empty when it would be obeyed (or was before)."""
        self.tick(now_ns)
        self._late = 0
        return "" if command.command_id in self._answers else next(self._reasons(command), "")

    def ask(self, question_id: str, rule: str, timeout_ns: int, now_ns: int) -> None:
        """Hold because a rule of the agent's fired, and wait for a person's answer.

        Without one the hold becomes a stop after ``timeout_ns``. An agent that is held already
        asks nothing more, and one that is stopped waits for a resume.
        """
        self.tick(now_ns)
        self._questions += 1
        if self._mode is Mode.RUNNING:
            self._hold(min(timeout_ns, self._limits.max_hold_ns))
            self._question = Question(question_id, self._questions, rule, self._hold_until)
            self._pending.append(
                Happening(
                    self._version, question_id, Operation.HOLD, Fate.APPLIED, "", f"asks: {rule}"
                )
            )
        self._decision = self._decide()

    def used(self, grant: int) -> None:
        """The acting thread took the single step of that number."""
        if grant == self._grant:
            self._grant = 0
            self._decision = self._decide()

    def revert(self, why: str, now_ns: int) -> None:
        """End all interventions, for a reason of the agent's own."""
        self.tick(now_ns)
        for command_id in tuple(self._active):
            self._end(command_id, Fate.REVERTED, why)
        self._decision = self._decide()

    def happened(self) -> tuple[Happening, ...]:
        """What took effect or ended since this was last asked."""
        happened = tuple(self._pending)
        self._pending.clear()
        return happened

    # -- refusing -------------------------------------------------------------------------------

    def _reasons(self, command: Command) -> Iterator[str]:
        """Every reason not to obey, the plainest first."""
        operation = command.operation
        if operation in {Operation.STOP, Operation.HOLD} and not self._limits.safe_action:
            yield f"{operation} needs a safe action, and this agent has none configured"
        if command.energising:
            if command.base_version != self._version:
                yield (
                    f"decided on version {command.base_version}, but the agent is at version "
                    f"{self._version}: look again"
                )
            if self._limits.require_oversight and not self._leases:
                yield "this agent acts under oversight only: hold a lease first"
        if operation is Operation.RENEW and self._renewed_until(command) <= self._now:
            yield f"the renewal was held up for {self._late / 1e9:.1f} s: renew again"
        if operation in {Operation.STEP, Operation.RESUME}:
            yield from self._reasons_against_going_on(operation)
        if operation in ANSWERING:
            yield from self._reasons_against_answer(command)
        if operation is Operation.INTERVENE:
            yield from self._reasons_against_intervention(command)
            for change in command.changes:
                yield from self._reasons_against(change)

    def _reasons_against_going_on(self, operation: Operation) -> Iterator[str]:
        if operation is Operation.STEP and self._mode is not Mode.HELD:
            yield f"a single step is for a held agent; this one is {self._mode}"
        if operation is Operation.RESUME and self._mode is Mode.RUNNING:
            yield "the agent is running"
        if operation is Operation.RESUME and self._question is not None:
            yield f"the agent asks about {self._question.rule!r}: approve or refuse that"

    def _reasons_against_answer(self, command: Command) -> Iterator[str]:
        question = self._question
        if question is None or command.targets != (question.question_id,):
            yield "the agent does not ask that (any more)"
        elif command.operation is Operation.ESCALATE and question.escalated:
            yield "it is escalated already"

    def _reasons_against_intervention(self, command: Command) -> Iterator[str]:
        limits = self._limits
        if self._mode is not Mode.RUNNING:
            yield f"the agent is {self._mode}: interventions act on a running policy"
        if command.lease not in self._leases:
            yield "an intervention needs a live lease: renew one first"
        if command.ttl_ns > limits.max_ttl_ns:
            yield f"lifetime {command.ttl_ns / 1e9:g} s exceeds {limits.max_ttl_ns / 1e9:g} s"
        asked = sum(len(item.command.changes) for item in self._active.values())
        if asked + len(command.changes) > limits.max_active:
            yield f"{asked} of at most {limits.max_active} interventions are in force"
        others = [item.command for item in self._active.values() if not item.command.dry_run]
        yield from _clashes((command,) if command.dry_run else (*others, command))

    def _reasons_against(self, change: Change) -> Iterator[str]:
        limits = self._limits
        point = change.hook_point
        if point not in limits.max_norm:
            yield f"no interventions are allowed at hook point {point!r}"
            return
        known = limits.transcoders.get(point)
        if known != change.transcoder_hash:
            yield f"{point} has transcoder {known}, not {change.transcoder_hash}"
        count = limits.features.get(point, 0)
        condition = change.intervention.condition
        largest = max(change.intervention.feature, condition.feature if condition else 0)
        if largest >= count:
            yield f"feature {largest} does not exist at {point}: it has {count}"
        if change.max_norm > limits.max_norm[point]:
            yield (
                f"a norm of {change.max_norm:g} exceeds this agent's bound of "
                f"{limits.max_norm[point]:g} at {point}"
            )
        predicate = change.intervention.predicate
        if predicate is not None:
            if self._check_predicate is None:
                yield "this agent has no metrics to evaluate a condition on"
            elif why := self._check_predicate(predicate):
                yield why

    # -- obeying --------------------------------------------------------------------------------

    def _obey(self, command: Command) -> None:
        match command.operation:
            case Operation.INTERVENE:
                self._active[command.command_id] = InForce(command, self._now + command.ttl_ns)
                self._version += 1
            case Operation.REVERT:
                self._end_all(command.targets)
            case Operation.HOLD:
                self._hold(min(command.ttl_ns, self._limits.max_hold_ns))
            case Operation.STEP:
                self._version += 1
                self._grant = self._version
            case Operation.RESUME:
                self._run()
            case Operation.STOP:
                self._stop()
            case Operation.RENEW:
                self._ever_overseen = True
                # A renewal that was overtaken by a later one takes nothing from it.
                until = self._leases.get(command.lease, 0)
                self._leases[command.lease] = max(until, self._renewed_until(command))
                return  # every second; not worth a line in a journal
            case Operation.RELEASE:
                self._lose(command.lease)
                self._check_oversight()
            case _:
                self._obey_answer(command)
        self._note(command, Fate.APPLIED)

    def _renewed_until(self, command: Command) -> int:
        return self._now - self._late + min(command.ttl_ns, self._limits.lease_ns)

    def _obey_answer(self, command: Command) -> None:
        question = self._question
        if question is None:  # pragma: no cover - refused before
            raise AssertionError("nothing was asked")
        if command.operation is Operation.APPROVE:
            given = Substitute(question.number, command.action) if command.action else None
            self._run()
            self._substitute = given
            return
        self._version += 1
        if command.operation is Operation.REFUSE:
            self._question = None
            return
        self._hold_until = self._now + min(command.ttl_ns, self._limits.max_hold_ns)
        self._question = replace(question, until_ns=self._hold_until, escalated=True)

    def _run(self) -> None:
        self._mode, self._hold_until, self._grant = Mode.RUNNING, NEVER, 0
        self._question = self._substitute = None
        self._version += 1

    def _hold(self, lasts_ns: int) -> None:
        self._end_all()
        if self._mode is Mode.STOPPED:
            return  # a hold never loosens a stop
        # A second hold never postpones the first one's end: holding on needs a decision.
        until = self._now + lasts_ns
        self._hold_until = min(self._hold_until, until) if self._mode is Mode.HELD else until
        self._mode, self._grant, self._substitute = Mode.HELD, 0, None
        # A person who holds takes the question over: the answer would be a resume.
        self._question = None
        self._version += 1

    def _stop(self) -> None:
        self._end_all()
        if self._mode is not Mode.STOPPED:
            self._mode, self._hold_until, self._grant = Mode.STOPPED, NEVER, 0
            self._question = self._substitute = None
            self._version += 1

    def _check_oversight(self) -> None:
        if self._limits.require_oversight and not self._leases and self._mode is Mode.RUNNING:
            self._hold(self._limits.max_hold_ns)
            why = "oversight was lost" if self._ever_overseen else "nobody oversees this agent yet"
            self._note_own(Operation.HOLD, why)

    def _lose(self, lease: str) -> None:
        self._leases.pop(lease, None)
        for command_id, active in list(self._active.items()):
            if active.command.lease == lease:
                self._end(command_id, Fate.LEASE_LOST)

    def _end_all(self, which: Iterable[str] = ()) -> None:
        for command_id in tuple(which) or tuple(self._active):
            if command_id in self._active:
                self._end(command_id, Fate.REVERTED)

    def _end(self, command_id: str, fate: Fate, detail: str = "") -> None:
        active = self._active.pop(command_id)
        self._version += 1
        self._note(active.command, fate, detail)

    def _note(self, command: Command, fate: Fate, detail: str = "") -> None:
        self._pending.append(
            Happening(
                self._version, command.command_id, command.operation, fate, command.actor, detail
            )
        )

    def _note_own(self, operation: Operation, why: str) -> None:
        self._pending.append(Happening(self._version, "", operation, Fate.APPLIED, "", why))

    # -- deciding -------------------------------------------------------------------------------

    def _decide(self) -> Decision:
        active = self._active.values()
        ends = [min(one.until_ns, self._leases[one.command.lease]) for one in active]
        overseen = max(self._leases.values(), default=self._now)
        return Decision(
            self._version,
            self._mode,
            _plans((one.command for one in active if not one.command.dry_run), self._limits),
            tuple(
                (one.command.command_id, plan)
                for one in active
                if one.command.dry_run
                for plan in _plans((one.command,), self._limits)
            ),
            min(ends, default=NEVER),
            self._hold_until,
            overseen if self._limits.require_oversight else NEVER,
            self._grant,
            self._questions,
            self._substitute,
        )


def _plans(commands: Iterable[Command], limits: ControlLimits) -> tuple[Plan, ...]:
    """What commands do together, per hook point, under the tightest of the bounds."""
    changes: dict[str, list[Change]] = {}
    for command in commands:
        for change in command.changes:
            changes.setdefault(change.hook_point, []).append(change)
    return tuple(
        Plan(
            point,
            limits.transcoders[point],
            tuple(change.intervention for change in these),
            min(limits.max_norm[point], *(change.max_norm for change in these)),
        )
        for point, these in changes.items()
    )


def _clashes(commands: Iterable[Command]) -> Iterator[str]:
    """Features that two interventions would both set, in words."""
    taken: set[tuple[str, int]] = set()
    for command in commands:
        for change in command.changes:
            if change.intervention.kind is Kind.STEER:
                continue  # steering adds to whatever is set
            key = change.hook_point, change.intervention.feature
            if key in taken:
                yield f"feature {key[1]} of {key[0]} is already set: revert that first"
            taken.add(key)
