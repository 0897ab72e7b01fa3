"""The messages of control, and the envelope that keeps strangers out.

Control has connections of its own: agents connect out to the control service, and so do those who
command (console, command line). A message is three frames: the version, a seal and a JSON body.
Without CURVE the seal is an HMAC-SHA256 (RFC 2104) under a key that only this user's processes can
read, made for one direction, so that nothing can be sent back where it came from; another user of
the machine can connect to the port, and is not heard. With CURVE the connection itself is
authenticated and the seal is empty.

Whatever comes in is bounded and typed before anything is done with it, and every fault is a
:class:`~interlatent_live.errors.WireError` with a word for counters, never another exception.
"""

from __future__ import annotations

import hmac
import re
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
from msgspec import Meta

from interlatent_live.control.commands import MAX_NAME, MAX_TEXT, Command, Operation
from interlatent_live.control.machine import Fate, Mode
from interlatent_live.errors import UserError, WireError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

VERSION: Final = b"interlatent-control/1"
LARGEST: Final = 1024 * 1024
"""Bytes of a body."""
LARGEST_FROM_OUTSIDE: Final = 256 * 1024
"""Bytes of what an agent or an operator may send to the service."""
MOST_EVENTS: Final = 256
"""Happenings in one message."""
MOST_INT: Final = 2**62

# As everywhere on the wire: what ends up in terminals and pages has no control characters and no
# marks that reorder text.
_UNSAFE: Final = re.compile(
    "[\\x00-\\x1f\\x7f-\\x9f\\u061c\\u200e\\u200f\\u2028\\u2029\\u202a-\\u202e\\u2066-\\u2069]"
)

Name = Annotated[str, Meta(max_length=MAX_NAME)]
Text = Annotated[str, Meta(max_length=MAX_TEXT)]
Count = Annotated[int, Meta(ge=0, le=MOST_INT)]
Whole = Annotated[int, Meta(ge=-MOST_INT, le=MOST_INT)]


class Role(StrEnum):
    """What somebody may do."""

    VIEWER = "viewer"
    OPERATOR = "operator"
    ADMIN = "admin"


class _Message(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


# ------------------------------------------------------------------------------------- agents


class HookOffer(_Message, frozen=True, kw_only=True):
    """A hook point at which an agent can intervene."""

    name: Name
    transcoder: Name
    features: Count
    max_norm: Annotated[float, Meta(gt=0)]
    """The agent's own bound on ‖Δy‖₂ of the sum of all interventions."""


class AgentHello(_Message, frozen=True, kw_only=True, tag="hello"):
    """Who an agent is and what it allows; once per connection, and again when it is asked for."""

    agent: Annotated[str, Meta(min_length=1, max_length=MAX_NAME)]
    run_id: Name
    boot_id: Annotated[str, Meta(min_length=1, max_length=MAX_NAME)]
    policy_hash: Name
    hook_points: Annotated[list[HookOffer], Meta(max_length=64)]
    safe_action: bool
    require_oversight: bool
    lease_ms: Count
    max_ttl_ms: Count


class ActiveShown(_Message, frozen=True, kw_only=True):
    """A command whose interventions or dry runs are in force."""

    command_id: Name
    actor: Name
    left_ms: Whole
    dry_run: bool
    changes: Annotated[list[Text], Meta(max_length=64)]
    """One line for each."""
    applied_steps: Count = 0
    """Rows in which something was really changed; in a dry run, would have been."""
    largest_norm: float = 0.0


class QuestionShown(_Message, frozen=True, kw_only=True):
    """What a held agent asks."""

    question_id: Name
    rule: Text
    left_ms: Whole
    escalated: bool


class AgentState(_Message, frozen=True, kw_only=True, tag="state"):
    """How an agent is; several times a second, and the heartbeat."""

    boot_id: Name
    version: Count
    mode: Mode
    row: Count
    """Number of the row under construction."""
    obeyed: bool
    """Whether the acting thread has used this version."""
    latched: bool
    """Whether the disk holds a stop just when the agent is stopped or held."""
    hold_left_ms: Whole | None = None
    active: Annotated[list[ActiveShown], Meta(max_length=64)] = []
    question: QuestionShown | None = None
    trouble: Text = ""
    """Why what was asked cannot take effect; empty when it does."""


class AgentAnswer(_Message, frozen=True, kw_only=True, tag="answer"):
    """What an agent said to a command."""

    boot_id: Name
    command_id: Name
    accepted: bool
    reason: Text
    version: Count


class AgentEvent(_Message, frozen=True, kw_only=True):
    """Something took effect or ended."""

    number: Count
    """Counts the events of one boot."""
    version: Count
    row: Whole
    """The row from which it holds; −1 where it needed none."""
    command_id: Name
    operation: Operation
    fate: Fate
    actor: Name
    detail: Text
    time_ns: Count
    """Wall clock of the agent."""


class AgentEvents(_Message, frozen=True, kw_only=True, tag="events"):
    """Events that the service has not confirmed yet; sent again until it does."""

    boot_id: Name
    events: Annotated[list[AgentEvent], Meta(max_length=MOST_EVENTS)]


FromAgent = AgentHello | AgentState | AgentAnswer | AgentEvents


class Do(_Message, frozen=True, kw_only=True, tag="do"):
    """A command. ``boot_id`` binds what adds energy to one life of the agent."""

    boot_id: Name
    command: Command
    seal: Name = ""
    """Seal of the audit's entry that permits it; agents keep it."""
    sent_ns: Count = 0
    """The service's monotonic clock, by which agents tell what was held up; 0: not said."""
    late_ns: Count = 0
    """How long it had been held up before. A lease counts from when its renewal was made."""


class EventsKept(_Message, frozen=True, kw_only=True, tag="kept"):
    """Events up to this number are in the audit."""

    boot_id: Name
    number: Count


class Beat(_Message, frozen=True, kw_only=True, tag="beat"):
    """The service is there; ``who`` asks for a hello."""

    who: bool = False
    sent_ns: Count = 0
    """As in :class:`Do`."""


ToAgent = Do | EventsKept | Beat

# ---------------------------------------------------------------------------------- operators


class Submit(_Message, frozen=True, kw_only=True, tag="submit"):
    """A command for an agent, from somebody in a role that the sender vouches for."""

    id: Annotated[str, Meta(min_length=1, max_length=MAX_NAME)]
    sent_ns: Count
    agent: Name
    boot_id: Name = ""
    """The life of the agent that was looked at; needed for what adds energy."""
    role: Role
    command: Command


class Second(_Message, frozen=True, kw_only=True, tag="second"):
    """A second person's word on a command that needs one."""

    id: Annotated[str, Meta(min_length=1, max_length=MAX_NAME)]
    sent_ns: Count
    command_id: Name
    actor: Annotated[str, Meta(min_length=1, max_length=MAX_NAME)]
    role: Role


class Look(_Message, frozen=True, kw_only=True, tag="look"):
    """How are the agents? ``follow``: also tell what happens for the next seconds."""

    id: Annotated[str, Meta(min_length=1, max_length=MAX_NAME)]
    sent_ns: Count
    follow: bool = False


FromOperator = Submit | Second | Look


class Result(_Message, frozen=True, kw_only=True, tag="result"):
    """What became of a request."""

    id: Name
    command_id: Name = ""
    accepted: bool
    reason: Text = ""
    version: Count = 0
    waits_for_second: bool = False


class AgentShown(_Message, frozen=True, kw_only=True):
    """An agent as the service knows it."""

    hello: AgentHello
    state: AgentState | None
    silent_ms: Whole
    """Since its last word."""


class ProposalShown(_Message, frozen=True, kw_only=True):
    """A command that waits for a second person."""

    command_id: Name
    agent: Name
    actor: Name
    operation: Operation
    reason: Text
    changes: Annotated[list[Text], Meta(max_length=64)]
    """One line for each."""
    left_ms: Whole


class AgentsShown(_Message, frozen=True, kw_only=True, tag="agents"):
    """All agents that are connected or were a short while ago."""

    id: Name
    agents: Annotated[list[AgentShown], Meta(max_length=1024)]
    waiting: Annotated[list[Name], Meta(max_length=1024)] = []
    """Ids of commands that wait for a second person."""
    proposals: Annotated[list[ProposalShown], Meta(max_length=1024)] = []
    """The same commands, as people see them."""


class Told(_Message, frozen=True, kw_only=True, tag="told"):
    """Something happened at an agent."""

    agent: Name
    boot_id: Name
    event: AgentEvent


ToOperator = Result | AgentsShown | Told


# --------------------------------------------------------------------------------- the envelope


class Way(StrEnum):
    """Who speaks to whom; a message sealed for one way is none on another."""

    FROM_AGENT = "from-agent"
    TO_AGENT = "to-agent"
    FROM_OPERATOR = "from-operator"
    TO_OPERATOR = "to-operator"


_TYPES: Final[Mapping[Way, Any]] = {
    Way.FROM_AGENT: FromAgent,
    Way.TO_AGENT: ToAgent,
    Way.FROM_OPERATOR: FromOperator,
    Way.TO_OPERATOR: ToOperator,
}
_LIMITS: Final[Mapping[Way, int]] = {
    Way.FROM_AGENT: LARGEST_FROM_OUTSIDE,
    Way.TO_AGENT: LARGEST_FROM_OUTSIDE,
    Way.FROM_OPERATOR: LARGEST_FROM_OUTSIDE,
    Way.TO_OPERATOR: LARGEST,
}


def control_key(token: str) -> bytes:
    """The key of control, from the token that only this user can read."""
    return hmac.digest(token.encode(), b"interlatent-live control", "sha256")


class Envelope:
    """Seals what goes one way and opens what comes the other.

    Args:
        key: the shared secret; None where CURVE has authenticated the connection.
        out: the way of what is sealed.
        into: the way of what is opened.

    Raises:
        ValueError: for an empty key, which would admit everybody.
    """

    def __init__(self, key: bytes | None, *, out: Way, into: Way) -> None:
        if key is not None and not key:
            raise ValueError("an envelope needs a key, or None on a CURVE connection")
        self._keys = None if key is None else (_for(key, out), _for(key, into))
        self._decoder = msgspec.json.Decoder(_TYPES[into])
        self._limit = _LIMITS[into]

    def seal(self, message: FromAgent | ToAgent | FromOperator | ToOperator) -> list[bytes]:
        """The frames of a message."""
        body = msgspec.json.encode(message)
        seal = b"" if self._keys is None else hmac.digest(self._keys[0], body, "sha256")
        return [VERSION, seal, body]

    def open(self, frames: Sequence[bytes | memoryview]) -> Any:
        """The message in the frames; one of the types of this way.

        Raises:
            WireError: ``frames``, ``version``, ``length``, ``seal`` or ``message``.
        """
        if len(frames) != 3:
            raise WireError("frames", f"a control message has 3 frames, not {len(frames)}")
        version, seal, body = (bytes(frame) for frame in frames)
        if version != VERSION:
            raise WireError("version", "another version of control")
        if len(body) > self._limit:
            raise WireError("length", f"{len(body)} bytes exceed {self._limit}")
        wanted = b"" if self._keys is None else hmac.digest(self._keys[1], body, "sha256")
        if not hmac.compare_digest(seal, wanted):
            raise WireError("seal", "sealed with another key, or for another way")
        try:
            message = self._decoder.decode(body)
        except (msgspec.DecodeError, UserError, RecursionError, UnicodeDecodeError) as error:
            raise WireError("message", str(error)[:200]) from error
        if any(_UNSAFE.search(text) for text in _texts(message)):
            raise WireError("message", "text with control characters")
        return message


def _for(key: bytes, way: Way) -> bytes:
    return hmac.digest(key, way.encode(), "sha256")


def _texts(value: Any) -> Iterator[str]:
    """Every text in a message."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _texts(item)
    elif isinstance(value, msgspec.Struct) or hasattr(value, "__dataclass_fields__"):
        names = getattr(value, "__struct_fields__", None) or value.__dataclass_fields__
        for name in names:
            yield from _texts(getattr(value, name))
