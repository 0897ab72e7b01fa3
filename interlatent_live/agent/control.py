"""The acting thread's side of control: ``tap.control``.

Interventions and dry runs act in forward hooks (:mod:`interlatent_live.agent.steering`); hold, stop
and questions act in :meth:`AgentControl.gate`, which every action passes on its way to the
environment. Both read one immutable value that the control thread
(:mod:`interlatent_live.agent.control_thread`) replaces; nothing here waits, and what is in force
ends by the clock also when that thread is late or dead.

Without a call of ``gate`` between forward and step nothing can hold this agent. ``tap.wrap(env)``
calls it; a loop of one's own must. This is not a safety-rated emergency stop.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from dataclasses import dataclass, field
from time import monotonic_ns
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from interlatent_live.agent.conditions import Conditions
from interlatent_live.control.machine import Mode
from interlatent_live.control.turns import Turn, TurnReader
from interlatent_live.errors import UserError
from interlatent_live.stream import Controller

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from interlatent_live.agent.dry_run import DryRunActions
    from interlatent_live.agent.metrics import MetricSet
    from interlatent_live.control.machine import Decision
    from interlatent_live.interventions.values import Plan
    from interlatent_live.transcoders.native import LoadedTranscoder

logger = logging.getLogger(__name__)

DEFAULT_CONTROL: Final = "tcp://127.0.0.1:28418"
"""Where the control service listens for agents unless configured otherwise."""
MISSING_STEPS: Final = 64
"""Steps in which a hook with an intervention did not run before the intervention is given up; some
agents repeat an action for several steps."""
MOST_REPORTS: Final = 4096
MOST_EFFECTS: Final = 256


@dataclass(frozen=True, slots=True)
class ApprovalRule:
    """A rule that makes the agent hold and ask a person.

    Attributes:
        name: what people are shown.
        when: predicate over metrics; it is judged on the newest complete row, before each action.
        timeout_s: how long the agent waits, held, before it stops.
    """

    name: str
    when: str
    timeout_s: float = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlOptions:
    """What people may do to this agent, and how far.

    Attributes:
        endpoint: the control service's address; None takes no commands from outside.
        safe_action: what a held or stopped agent does: an action, or a function of the action that
            it stands in for. Without one there is no hold and no stop. Zero is not safe for
            everything.
        transcoders: by hook point: a folder in the native format, or one that was loaded; only
            there can people intervene.
        max_norm: by hook point, the bound on ‖Δy‖₂ of the sum of all interventions, in the units
            of y.
        approvals: rules that hold the agent until a person answers.
        require_oversight: act by the policy only while somebody holds a lease.
        lease_s: how long a lease lives without being renewed.
        max_ttl_s: longest life of an intervention.
        max_hold_s: longest hold; it ends in a stop.
        follow_encoder: end interventions when the encoder is away for ``lease_s``: nobody sees
            then what they do.
        state: folder of the stop latch and the journal; None is this user's state folder.
        key: what commands are sealed with; None is this user's own key. Not used with CURVE keys.
    """

    endpoint: str | None = DEFAULT_CONTROL
    safe_action: Any = None
    transcoders: Mapping[str, LoadedTranscoder | Path | str] = field(default_factory=dict)
    max_norm: Mapping[str, float] = field(default_factory=dict)
    approvals: tuple[ApprovalRule, ...] = ()
    require_oversight: bool = False
    lease_s: float = 2.0
    max_ttl_s: float = 60.0
    max_hold_s: float = 600.0
    follow_encoder: bool = True
    state: Path | str | None = None
    key: bytes | None = None

    def __post_init__(self) -> None:
        for name in ("lease_s", "max_ttl_s", "max_hold_s"):
            if not 0.05 <= getattr(self, name) <= 86_400:
                raise UserError(f"control: {name} is {getattr(self, name)}; 0.05 to 86400 seconds")
        if set(self.max_norm) != set(self.transcoders):
            raise UserError(
                "control: each hook point with a transcoder needs a bound in max_norm, and the "
                f"other way round; transcoders has {sorted(self.transcoders)}, max_norm "
                f"{sorted(self.max_norm)}"
            )
        for name, bound in self.max_norm.items():
            if not 0.0 < bound < float("inf"):
                raise UserError(f"control: max_norm of {name!r} is {bound}; it must be positive")
        if self.safe_action is None and (self.approvals or self.require_oversight):
            raise UserError("control: approvals and require_oversight need a safe_action")


@dataclass(frozen=True, slots=True)
class Published:
    """What the control thread hands over: a decision and, ready to run, what it asks of hooks."""

    decision: Decision
    plans: Mapping[str, Plan] = field(default_factory=dict)
    shadows: Mapping[str, tuple[tuple[str, Plan], ...]] = field(default_factory=dict)
    """By hook point, dry runs with the ids of their commands."""

    @classmethod
    def of(cls, decision: Decision) -> Published:
        """Sorted by hook point."""
        shadows: dict[str, tuple[tuple[str, Plan], ...]] = {}
        for command_id, plan in decision.shadows:
            known = shadows.get(plan.hook_point, ())
            shadows[plan.hook_point] = (*known, (command_id, plan))
        return cls(decision, {plan.hook_point: plan for plan in decision.plans}, shadows)


@dataclass(frozen=True, slots=True)
class Report:
    """What the acting thread tells the control thread."""

    version: int
    row: int
    at_ns: int
    """Monotonic clock."""
    grant: int = 0
    """The single step that was used."""
    rule: ApprovalRule | None = None
    """The rule that fired."""
    trouble: str = ""
    """Why interventions cannot take effect."""


@dataclass(slots=True)
class Effect:
    """What one plan did to rows so far, written by the acting thread."""

    plan: Plan
    rows: int = 0
    largest_norm: float = 0.0


class AgentControl:
    """Obeys; belongs to the acting thread, except where said.

    Args:
        options: see :class:`ControlOptions`.
        published: what holds at first.
        metrics: of the tap, for conditions and rules.
        row: number of the row under construction.
        strict: raise errors instead of counting them.
    """

    def __init__(
        self,
        options: ControlOptions,
        published: Published,
        metrics: MetricSet,
        *,
        row: Callable[[], int],
        strict: bool = False,
    ) -> None:
        self.published = published
        """Replaced by the control thread; read once per turn."""
        self.reports: deque[Report] = deque(maxlen=MOST_REPORTS)
        """Appended here, taken by the control thread."""
        self.conditions = Conditions(metrics)
        self.dry_runs: DryRunActions | None = None
        """Says what actions would have been; None where no hook point can be intervened on."""
        self.effects: dict[tuple[str, str], Effect] = {}
        """By hook point and command id of a dry run, empty for what is in force; read by the
        control thread."""
        self.faults = 0
        self.last_error = ""
        self.ungated = 0
        """Steps that were taken without :meth:`gate` while the agent was to be still."""
        self._safe = options.safe_action
        self._rules = options.approvals
        self._armed = {rule.name: True for rule in self._rules}
        for rule in self._rules:
            self.conditions.need(rule.when, always=True)
        self._row = row
        self._strict = strict
        self._pid = os.getpid()
        self._reader = TurnReader()
        self._current: tuple[Published, Turn] | None = None
        self._gated: tuple[Published, Turn] | None = None
        self._ran: set[str] = set()
        self._changed = False
        self._missing = 0
        self._told = -1

    @property
    def mode(self) -> Mode:
        """Who chooses the actions now."""
        published = self.published
        return self._reader.read(published.decision, monotonic_ns()).mode

    @property
    def row(self) -> int:
        """Number of the row under construction; from any thread."""
        return self._row()

    # -- in the forward ------------------------------------------------------------------------

    def turn(self) -> tuple[Published, Turn]:
        """What holds for the step at hand; the first question of a step settles it."""
        current = self._current
        if current is None:
            published = self.published
            turn = self._reader.read(published.decision, monotonic_ns())
            current = self._current = published, turn
        return current

    def note(self, plan: Plan, norms: NDArray[np.floating], *, dry_run: str = "") -> None:
        """A hook ran a plan; ``norms`` [n] of what it added, or would have in that dry run."""
        key = plan.hook_point, dry_run
        effect = self.effects.get(key)
        if effect is None or effect.plan is not plan:
            if len(self.effects) >= MOST_EFFECTS:
                self.effects.clear()
            effect = self.effects[key] = Effect(plan)
        largest = float(norms.max(initial=0.0))
        effect.rows += int(np.count_nonzero(norms))
        effect.largest_norm = max(effect.largest_norm, largest)
        if not dry_run:
            self._ran.add(plan.hook_point)
            self._changed = self._changed or largest > 0.0

    def fault(self, error: Exception) -> None:
        """Count an error of ours, and end interventions for it; the policy must not notice.

        Raises:
            Exception: the error itself, under ``strict``.
        """
        if self._strict:
            raise error
        self.faults += 1
        self.last_error = f"{type(error).__name__}: {error}"
        if self.faults == 1:
            logger.error("control failed inside the agent", exc_info=error)
        self._report(self._told, trouble=self.last_error)

    # -- before the step -----------------------------------------------------------------------

    def gate(self, action: Any) -> Any:
        """The action to take: this one, the safe one, or one that a person gave.

        To be called once, between the forward and ``env.step``, in the thread that acts.
        """
        published = self.published
        turn = self._reader.read(published.decision, monotonic_ns())
        if self._rules and turn.mode is Mode.RUNNING and not turn.action:
            try:
                turn = self._asked(turn)
            except Exception as error:  # noqa: BLE001  a rule of ours must never reach the agent
                self.fault(error)
        self._gated = published, turn
        if turn.mode is Mode.RUNNING:
            return _like(action, turn.action) if turn.action else action
        # Told before the environment moves: whoever asked learns it within this step.
        self._tell(turn.version)
        return self._safe(action) if callable(self._safe) else _shaped(self._safe, action)

    def _asked(self, turn: Turn) -> Turn:
        """The turn after the rules were looked at."""
        for rule in self._rules:
            if not self.conditions.holds(rule.when).any():
                self._armed[rule.name] = True
            elif self._armed[rule.name]:
                self._armed[rule.name] = False
                self._reader.questions += 1
                self._report(turn.version, rule=rule)
                return Turn(turn.version, Mode.HELD)
        return turn

    # -- after the step ------------------------------------------------------------------------

    def finish(
        self, row: NDArray[np.float64], terminated: Any, truncated: Any, controller: Any
    ) -> Any:
        """The step is done; returns who controlled it. Called by the tap, never raises."""
        try:
            return self._finish(row, terminated, truncated, controller)
        except Exception as error:  # noqa: BLE001  a bug of ours must never reach the agent
            self._current = self._gated = None
            self.fault(error)
            return controller

    def _finish(
        self, row: NDArray[np.float64], terminated: Any, truncated: Any, controller: Any
    ) -> Any:
        published, turn = self._gated or self._current or self.turn()
        if turn.mode is not Mode.RUNNING and self._gated is None:
            self.ungated += 1
        elif turn.mode is not Mode.RUNNING:
            controller = int(Controller.HOLD)
        elif turn.action:
            controller = int(Controller.HUMAN)
        elif self._changed:
            controller = int(Controller.INTERVENTION)
        if self._gated is not None and turn.mode is Mode.RUNNING:
            grant = self._reader.take(published.decision, turn)
            if grant:
                self._report(turn.version, grant=grant)
        self._settle(*(self._current or (published, turn)))
        if self.dry_runs is not None and turn.shadows:
            self.dry_runs.finish()
        self._current = self._gated = None
        self._ran.clear()
        self._changed = False
        if self.conditions.needed:
            self.conditions.push(row, terminated, truncated)
        return controller

    def _settle(self, published: Published, turn: Turn) -> None:
        """Tell which version the forwards of this step ran under, if it took effect."""
        missing = [plan.hook_point for plan in turn.plans if plan.hook_point not in self._ran]
        if not missing:
            self._missing = 0
            if turn.mode is Mode.RUNNING:
                self._tell(turn.version)
            return
        self._missing += 1
        if self._missing == MISSING_STEPS:
            self._missing = 0
            self._report(
                published.decision.version,
                trouble=f"{', '.join(missing)} did not run as a module of its own in "
                f"{MISSING_STEPS} steps (compiled, or not on the way to the action)",
            )

    def _tell(self, version: int) -> None:
        if version != self._told:
            self._told = version
            self._report(version)

    def _report(
        self, version: int, *, grant: int = 0, rule: ApprovalRule | None = None, trouble: str = ""
    ) -> None:
        if os.getpid() == self._pid:
            self.reports.append(Report(version, self._row(), monotonic_ns(), grant, rule, trouble))


def _like(action: Any, given: tuple[float, ...]) -> Any:
    """A person's numbers in the form of the policy's action; the policy's where they do not fit."""
    if isinstance(action, (int, np.integer)):
        return type(action)(given[0])
    array = np.asarray(action)
    if array.size != len(given):
        logger.error("an action of %d numbers was given; %d are needed", len(given), array.size)
        return action
    shaped = np.array(given, array.dtype).reshape(array.shape)
    return shaped if isinstance(action, np.ndarray) else type(action)(shaped)


def _shaped(safe: Any, action: Any) -> Any:
    """The safe action, one for each agent copy."""
    if isinstance(action, np.ndarray):
        array = np.asarray(safe, action.dtype)
        return (
            array.copy()
            if array.shape == action.shape
            else np.broadcast_to(array, action.shape).copy()
        )
    return safe
