"""What may be asked of an agent, as values that are checked where they are made.

A command says who asks, why, for how long and on which state it was decided. Commands that only
take energy out (stop, hold, revert) carry the same fields, but nothing about them can be a reason
to refuse: see :mod:`interlatent_live.control.machine`.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import msgspec

from interlatent_live.errors import UserError
from interlatent_live.interventions.values import Intervention, Kind

MAX_TEXT: Final = 1_000
"""Characters of a reason."""
MAX_NAME: Final = 200
"""Characters of an id, an actor or a lease."""
MAX_CHANGES: Final = 64
"""Interventions that one command may ask for."""
MAX_ACTION: Final = 1_024
"""Numbers of an action that a person gives instead of the policy's."""


class Operation(StrEnum):
    """What is asked."""

    INTERVENE = "intervene"
    """Put interventions into force until they expire."""
    REVERT = "revert"
    """End interventions: those of the named commands, or all."""
    HOLD = "hold"
    """Act safely instead of by the policy, until resumed; expires into a stop."""
    STEP = "step"
    """Let a held agent take one step of its policy."""
    RESUME = "resume"
    """End a hold or a stop: the policy acts again."""
    STOP = "stop"
    """Act safely and never by the policy until an explicit resume; latches."""
    RENEW = "renew"
    """Keep a lease, and with it the interventions made under it."""
    RELEASE = "release"
    """Give a lease up."""
    APPROVE = "approve"
    """Let an agent that asked go on, perhaps with another action for one step."""
    REFUSE = "refuse"
    """Tell an agent that asked no: it stays held."""
    ESCALATE = "escalate"
    """Hand an agent's question to somebody with more rights, once, with its time begun anew."""


ENERGISING: Final = frozenset(
    {Operation.INTERVENE, Operation.STEP, Operation.RESUME, Operation.APPROVE}
)
"""Operations that add energy: they fail closed. All others must always work."""
ANSWERING: Final = frozenset({Operation.APPROVE, Operation.REFUSE, Operation.ESCALATE})
"""Operations that answer a question; ``targets`` is its one id."""


@dataclass(frozen=True, slots=True)
class Change:
    """One intervention at one hook point, and how far it may move the output.

    ``max_norm`` bounds ‖Δy‖₂ in each row, in the units of y; the agent's own bound holds besides.
    """

    hook_point: str
    transcoder_hash: str
    intervention: Intervention
    max_norm: float

    def __post_init__(self) -> None:
        if not (self.max_norm > 0.0 and math.isfinite(self.max_norm)):
            raise UserError(
                f"an intervention at {self.hook_point} needs a positive, finite bound on its norm, "
                f"not {self.max_norm}"
            )

    def __str__(self) -> str:
        """One line for people."""
        item = self.intervention
        words = f"{item.kind} {self.hook_point}/{item.feature}"
        if item.kind is not Kind.ABLATE:
            words += f" {item.value:g}"
        if item.predicate is not None:
            words += f" when {item.predicate}"
        if item.condition is not None:
            sign = ">" if item.condition.above else "≤"
            words += f" while feature {item.condition.feature} {sign} {item.condition.threshold:g}"
        return words[:MAX_TEXT]


@dataclass(frozen=True, slots=True)
class Command:
    """One request to one agent.

    Raises:
        UserError: when a field is empty or too long, the lifetime is not positive, or changes are
            given to an operation that has none (or missing where it needs them).
    """

    command_id: str
    """Unique; the same id again is the same command, and is answered but not obeyed twice."""
    operation: Operation
    actor: str
    reason: str
    ttl_ns: int
    """How long the effect may last, from the moment the agent received it; for a hold, how long
    until it becomes a stop."""
    lease: str = ""
    """The session on whose behalf; interventions end with it."""
    base_version: int | None = None
    """The agent's control version on which an energising command was decided."""
    changes: tuple[Change, ...] = ()
    targets: tuple[str, ...] = ()
    """Of a revert: ids of the commands whose interventions end; all, when empty. Of an answer: the
    id of the question."""
    dry_run: bool = False
    """Of an intervention: compute and log what it would do, and do nothing."""
    action: tuple[float, ...] = ()
    """Of an approval: the action of the next step instead of the policy's, flattened."""

    def __post_init__(self) -> None:
        for name, text, longest in (
            ("command_id", self.command_id, MAX_NAME),
            ("actor", self.actor, MAX_NAME),
            ("reason", self.reason, MAX_TEXT),
        ):
            if not 0 < len(text) <= longest:
                raise UserError(
                    f"a command's {name} must have 1 to {longest} characters, not {len(text)}"
                )
        if len(self.lease) > MAX_NAME:
            raise UserError(f"a lease has at most {MAX_NAME} characters, not {len(self.lease)}")
        if self.ttl_ns <= 0:
            raise UserError(f"{self.operation} needs a positive lifetime, not {self.ttl_ns} ns")
        if (self.operation is Operation.INTERVENE) != bool(self.changes):
            raise UserError("interventions belong to an intervene command, and it needs some")
        if len(self.changes) > MAX_CHANGES:
            raise UserError(
                f"a command asks for {len(self.changes)} interventions; {MAX_CHANGES} are allowed"
            )
        self._check_targets()
        if self.dry_run and self.operation is not Operation.INTERVENE:
            raise UserError(f"only interventions have a dry run; {self.operation} has none")
        if self.operation in {Operation.RENEW, Operation.RELEASE} and not self.lease:
            raise UserError(f"{self.operation} must name the lease")

    def _check_targets(self) -> None:
        if self.operation in ANSWERING:
            if len(self.targets) != 1:
                raise UserError(f"{self.operation} must name the one question that it answers")
        elif self.targets and self.operation is not Operation.REVERT:
            raise UserError("only a revert names the commands that it ends")
        if self.action and self.operation is not Operation.APPROVE:
            raise UserError("only an approval may give another action")
        if len(self.action) > MAX_ACTION or not all(map(math.isfinite, self.action)):
            raise UserError(f"an action has at most {MAX_ACTION} numbers, all of them finite")

    @property
    def energising(self) -> bool:
        """Whether it adds energy. A dry run does not."""
        return self.operation in ENERGISING and not self.dry_run

    def digest(self) -> str:
        """SHA-256 over everything it says: two commands with one id must be the same command."""
        return hashlib.sha256(msgspec.json.encode(self, order="sorted")).hexdigest()
