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

Time is a monotonic clock in nanoseconds. A decision carries the moment until which it may be used,
so that an agent whose control thread died still ends what must end.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from interlatent_live.control.commands import Change, Command, Operation
from interlatent_live.errors import UserError
from interlatent_live.interventions.values import Kind, Plan
from interlatent_live.stream import Controller

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

    ``seq`` is the row from which it holds.
    """

    seq: int
    command_id: str
    operation: Operation
    fate: Fate
    actor: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Decision:
    """What the agent may do until ``until_ns``; afterwards it must ask again."""

    version: int
    mode: Mode
    plans: tuple[Plan, ...]
    """In force, one per hook point."""
    shadows: tuple[Plan, ...]
    """Dry runs: to be computed beside, never applied."""
    until_ns: int

    @property
    def controller(self) -> Controller:
        """The tag of steps taken under this decision."""
        if self.mode is not Mode.RUNNING:
            return Controller.HOLD
        return Controller.INTERVENTION if self.plans else Controller.POLICY


@dataclass(frozen=True, slots=True)
class _Active:
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
        self._one_step = False
        self._active: dict[str, _Active] = {}
        self._leases: dict[str, int] = {}
        self._answers: OrderedDict[str, tuple[str, Answer]] = OrderedDict()
        # An agent that does not step must not be filled up by whoever sends it commands.
        self._pending: deque[Happening] = deque(maxlen=REMEMBERED)
        self._now = now_ns
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
    def active(self) -> tuple[str, ...]:
        """Ids of the commands whose interventions (or dry runs) are in force."""
        return tuple(self._active)

    # -- what happens ---------------------------------------------------------------------------

    def receive(self, command: Command, now_ns: int) -> Answer:
        """Obey or refuse a command; the answer says which and why."""
        self.tick(now_ns)
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
            self._pending.append(
                Happening(-1, "", Operation.STOP, Fate.APPLIED, "", "the hold expired")
            )
        self._check_oversight()
        self._decision = self._decide()

    def begin_step(self, seq: int, now_ns: int) -> tuple[Decision, tuple[Happening, ...]]:
        """The decision for row ``seq``, and what took effect or ended with it.

        A single step that was granted to a held agent is used up by this call.
        """
        self.tick(now_ns)
        decision = self._decision
        if self._one_step and self._mode is Mode.HELD:
            self._one_step = False
            decision = replace(decision, mode=Mode.RUNNING, until_ns=self._now)
        happened = tuple(replace(item, seq=seq) for item in self._pending)
        self._pending.clear()
        return decision, happened

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
        if operation is Operation.STEP and self._mode is not Mode.HELD:
            yield f"a single step is for a held agent; this one is {self._mode}"
        if operation is Operation.RESUME and self._mode is Mode.RUNNING:
            yield "the agent is running"
        if operation is Operation.INTERVENE:
            yield from self._reasons_against_intervention(command)
            for change in command.changes:
                yield from self._reasons_against(change)

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
                self._active[command.command_id] = _Active(command, self._now + command.ttl_ns)
                self._version += 1
            case Operation.REVERT:
                self._end_all(command.targets)
            case Operation.HOLD:
                self._hold(min(command.ttl_ns, self._limits.max_hold_ns))
            case Operation.STEP:
                self._one_step = True
                self._version += 1
            case Operation.RESUME:
                self._mode, self._hold_until, self._one_step = Mode.RUNNING, NEVER, False
                self._version += 1
            case Operation.STOP:
                self._stop()
            case Operation.RENEW:
                self._ever_overseen = True
                self._leases[command.lease] = self._now + min(command.ttl_ns, self._limits.lease_ns)
                return  # every second; not worth a line in a journal
            case Operation.RELEASE:
                self._lose(command.lease)
                self._check_oversight()
        self._note(command, Fate.APPLIED)

    def _hold(self, lasts_ns: int) -> None:
        self._end_all()
        if self._mode is Mode.STOPPED:
            return  # a hold never loosens a stop
        # A second hold never postpones the first one's end: holding on needs a decision.
        until = self._now + lasts_ns
        self._hold_until = min(self._hold_until, until) if self._mode is Mode.HELD else until
        self._mode, self._one_step = Mode.HELD, False
        self._version += 1

    def _stop(self) -> None:
        self._end_all()
        if self._mode is not Mode.STOPPED:
            self._mode, self._hold_until, self._one_step = Mode.STOPPED, NEVER, False
            self._version += 1

    def _check_oversight(self) -> None:
        if self._limits.require_oversight and not self._leases and self._mode is Mode.RUNNING:
            self._hold(self._limits.max_hold_ns)
            why = "oversight was lost" if self._ever_overseen else "nobody oversees this agent yet"
            self._pending.append(Happening(-1, "", Operation.HOLD, Fate.APPLIED, "", why))

    def _lose(self, lease: str) -> None:
        self._leases.pop(lease, None)
        for command_id, active in list(self._active.items()):
            if active.command.lease == lease:
                self._end(command_id, Fate.LEASE_LOST)

    def _end_all(self, which: Iterable[str] = ()) -> None:
        for command_id in tuple(which) or tuple(self._active):
            if command_id in self._active:
                self._end(command_id, Fate.REVERTED)

    def _end(self, command_id: str, fate: Fate) -> None:
        active = self._active.pop(command_id)
        self._version += 1
        self._note(active.command, fate)

    def _note(self, command: Command, fate: Fate, detail: str = "") -> None:
        self._pending.append(
            Happening(-1, command.command_id, command.operation, fate, command.actor, detail)
        )

    # -- deciding -------------------------------------------------------------------------------

    def _decide(self) -> Decision:
        ends = [self._hold_until, *self._leases.values()]
        ends += [active.until_ns for active in self._active.values()]
        return Decision(
            self._version,
            self._mode,
            _plans(self._active.values(), self._limits, dry=False),
            _plans(self._active.values(), self._limits, dry=True),
            min(ends),
        )


def _plans(active: Iterable[_Active], limits: ControlLimits, *, dry: bool) -> tuple[Plan, ...]:
    """What is in force, or in dry run, per hook point, under the tightest of the bounds."""
    changes: dict[str, list[Change]] = {}
    for item in active:
        if item.command.dry_run is dry:
            for change in item.command.changes:
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
