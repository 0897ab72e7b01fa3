"""The control service without its sockets: who may command what, and what must be written first.

Events go in (a message of an agent or an operator, an audit entry that is on the disk, the clock),
instructions come out. The rules:

- What adds energy is forwarded only after its ``permitted`` entry is on the disk; when the audit
  cannot be written it is refused.
- Stop, hold, revert and release are forwarded at once, to every life of the agent, and written
  beside.
- What an agent says took effect or ended is written (``applied`` and so on) before the agent is
  told that it need not repeat it.
- The same request twice has one effect and the same answer. A request that adds energy is fresh for
  a minute and names the life of the agent that its author looked at.
- A viewer commands nothing; an operator everything but what was escalated; and what is larger than
  ``second_above`` of an agent's bound waits for a second person.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from interlatent_live.config import CONTROL_REQUESTS
from interlatent_live.control.commands import ENERGISING, Operation
from interlatent_live.control.delays import Delays
from interlatent_live.control.machine import Fate
from interlatent_live.control.wire import (
    AgentAnswer,
    AgentEvents,
    AgentHello,
    AgentShown,
    AgentsShown,
    AgentState,
    Beat,
    Do,
    EventsKept,
    Look,
    ProposalShown,
    Result,
    Role,
    Second,
    Submit,
    Told,
)
from interlatent_live.wire.speaking import may_speak

if TYPE_CHECKING:
    from collections.abc import Iterator

    from interlatent_live.control.commands import Command
    from interlatent_live.control.wire import (
        AgentEvent,
        FromAgent,
        FromOperator,
        ToAgent,
        ToOperator,
    )

SECOND_NS: Final = 1_000_000_000
FRESH_NS: Final = 60 * SECOND_NS
ANSWER_NS: Final = 5 * SECOND_NS
SECOND_PERSON_NS: Final = 60 * SECOND_NS
BEAT_NS: Final = SECOND_NS
FOLLOW_NS: Final = 5 * SECOND_NS
FORGET_AGENT_NS: Final = 120 * SECOND_NS
MOST_REMEMBERED: Final = 4096
MOST_FOLLOWERS: Final = 64
RATE_NS: Final = SECOND_NS // 10
BURST: Final = 50
"""What adds energy may come ten times a second from one actor, in bursts of so many."""


@dataclass(frozen=True, slots=True)
class ToAgentPeer:
    """Send this to an agent."""

    peer: bytes
    message: ToAgent


@dataclass(frozen=True, slots=True)
class ToOperatorPeer:
    """Send this to an operator."""

    peer: bytes
    message: ToOperator


@dataclass(frozen=True, slots=True)
class Write:
    """Write an entry and say so with :meth:`ControlDesk.written`; in the order given."""

    token: int
    kind: str
    body: dict[str, Any]


Instruction = ToAgentPeer | ToOperatorPeer | Write


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a command, for counters."""

    operation: Operation
    result: str
    """``accepted``, ``refused`` (by the agent), or the word of the desk's own reason."""
    took_ns: int
    """Since it was received, or last waited for a person."""


@dataclass(slots=True)
class _Agent:
    peer: bytes
    hello: AgentHello
    heard_ns: int
    state: AgentState | None = None
    kept: int = 0
    """Number of the last event that was handed to the audit."""


@dataclass(slots=True)
class _Asked:
    """A request on its way."""

    peer: bytes
    submit: Submit
    at_ns: int
    boots: tuple[str, ...] = ()
    late_ns: int = 0
    """How long the request was held up on its way here."""
    second: str = ""
    """Who seconded it."""


@dataclass(slots=True)
class _Rate:
    left: float = BURST
    at_ns: int = 0


@dataclass(slots=True)
class ControlDesk:
    """See the module's text.

    Args:
        second_above: share of an agent's bound above which an intervention needs a second person;
            1 is never.
        most_agents: lives of agents that are known at once.
    """

    second_above: float = 1.0
    most_agents: int = 256
    refused: Counter[str] = field(default_factory=Counter)
    """What was refused here, by a short word."""
    outcomes: deque[Outcome] = field(default_factory=lambda: deque(maxlen=MOST_REMEMBERED))
    """For whoever counts them, and takes them out."""
    _agents: dict[str, _Agent] = field(default_factory=dict)
    """By boot id."""
    _asked: OrderedDict[str, _Asked] = field(default_factory=OrderedDict)
    """Forwarded and not yet answered, by command id."""
    _proposed: OrderedDict[str, _Asked] = field(default_factory=OrderedDict)
    """Waiting for a second person."""
    _results: OrderedDict[str, Result] = field(default_factory=OrderedDict)
    _ours: OrderedDict[str, None] = field(default_factory=OrderedDict)
    """Command ids that were ever forwarded as adding energy."""
    _writes: dict[int, Any] = field(default_factory=dict)
    _tokens: int = 0
    _followers: dict[bytes, int] = field(default_factory=dict)
    _delays: OrderedDict[bytes, Delays] = field(default_factory=OrderedDict)
    """By operator's connection."""
    _rates: dict[str, _Rate] = field(default_factory=dict)
    _beat_ns: int = 0
    _out: deque[Instruction] = field(default_factory=deque)

    # -- events in -------------------------------------------------------------------------------

    def from_agent(
        self, peer: bytes, user_id: str, message: FromAgent, now_ns: int
    ) -> list[Instruction]:
        """An agent said something; ``user_id`` is what its CURVE key says, or empty."""
        if isinstance(message, AgentHello):
            self._hello(peer, user_id, message, now_ns)
            return self._done()
        agent = self._agents.get(message.boot_id)
        if agent is None or agent.peer != peer:
            self._out.append(ToAgentPeer(peer, Beat(who=True, sent_ns=now_ns)))
            return self._done()
        agent.heard_ns = now_ns
        match message:
            case AgentState():
                agent.state = message
            case AgentAnswer():
                self._answered(agent, message, now_ns)
            case AgentEvents():
                self._events(agent, message)
        return self._done()

    def from_operator(
        self, peer: bytes, message: FromOperator, now_ns: int, wall_ns: int
    ) -> list[Instruction]:
        """Somebody asked something."""
        late_ns = self._late(peer, message.sent_ns, wall_ns)
        match message:
            case Look():
                self._look(peer, message, now_ns)
            case Submit():
                self._submit(peer, message, now_ns, wall_ns, late_ns)
            case Second():
                self._second(peer, message, now_ns)
        return self._done()

    def written(self, token: int, seal: str, problem: str, now_ns: int) -> list[Instruction]:
        """The entry of that token is on the disk under ``seal``, or cannot be for a reason."""
        match self._writes.pop(token, None):
            case _Asked() as asked if problem:
                self._refuse(
                    asked, "audit", f"the audit cannot be written, so no: {problem}", now_ns
                )
            case _Asked() as asked:
                asked.at_ns = now_ns
                self._forward(asked, seal, now_ns)
            case (str() as boot, int() as number) if not problem:
                agent = self._agents.get(boot)
                if agent is not None:
                    kept = EventsKept(boot_id=boot, number=number)
                    self._out.append(ToAgentPeer(agent.peer, kept))
            case (str() as boot, int() as number):
                # Not kept, so the agent repeats them.
                agent = self._agents.get(boot)
                if agent is not None:
                    agent.kept = 0
        return self._done()

    def tick(self, now_ns: int) -> list[Instruction]:
        """Time went by."""
        for asked in [one for one in self._asked.values() if now_ns - one.at_ns > ANSWER_NS]:
            del self._asked[asked.submit.command.command_id]
            self._refuse(
                asked,
                "silent",
                "the agent did not answer; what it did will be in the audit",
                now_ns,
            )
        for asked in [
            one for one in self._proposed.values() if now_ns - one.at_ns > SECOND_PERSON_NS
        ]:
            del self._proposed[asked.submit.command.command_id]
            self._refuse(asked, "second", "no second person agreed within a minute", now_ns)
        self._followers = {peer: until for peer, until in self._followers.items() if until > now_ns}
        for boot, agent in list(self._agents.items()):
            if now_ns - agent.heard_ns > FORGET_AGENT_NS:
                del self._agents[boot]
        if now_ns - self._beat_ns >= BEAT_NS:
            self._beat_ns = now_ns
            self._out.extend(
                ToAgentPeer(one.peer, Beat(sent_ns=now_ns)) for one in self._agents.values()
            )
        return self._done()

    def agents(self) -> tuple[tuple[str, AgentState | None], ...]:
        """Name and newest state of every agent that is known; one for each of its lives."""
        return tuple((agent.hello.agent, agent.state) for agent in self._agents.values())

    # -- agents ----------------------------------------------------------------------------------

    def _hello(self, peer: bytes, user_id: str, hello: AgentHello, now_ns: int) -> None:
        if not may_speak(user_id, hello.agent):
            self.refused["name"] += 1
            return
        known = self._agents.get(hello.boot_id)
        if known is None and len(self._agents) >= self.most_agents:
            self.refused["agents"] += 1
            return
        kept = 0 if known is None else known.kept
        self._agents[hello.boot_id] = _Agent(peer, hello, now_ns, kept=kept)
        if known is None:
            self._write(
                "agent",
                {
                    "agent": hello.agent,
                    "run_id": hello.run_id,
                    "boot_id": hello.boot_id,
                    "policy": hello.policy_hash,
                },
            )

    def _answered(self, agent: _Agent, answer: AgentAnswer, now_ns: int) -> None:
        asked = self._asked.pop(answer.command_id, None)
        if asked is None:
            return
        word = "accepted" if answer.accepted else "refused"
        self.outcomes.append(Outcome(asked.submit.command.operation, word, now_ns - asked.at_ns))
        result = Result(
            id=asked.submit.id,
            command_id=answer.command_id,
            accepted=answer.accepted,
            reason=answer.reason,
            version=answer.version,
        )
        self._out.append(ToOperatorPeer(asked.peer, result))
        if asked.submit.command.operation is not Operation.RENEW:
            self._remember(result)
            self._write(
                "answered",
                {
                    "command_id": answer.command_id,
                    "agent": agent.hello.agent,
                    "boot_id": answer.boot_id,
                    "accepted": answer.accepted,
                    "why": answer.reason,
                    "version": answer.version,
                },
            )

    def _events(self, agent: _Agent, message: AgentEvents) -> None:
        news = [event for event in message.events if event.number > agent.kept]
        if not news:
            # All were written; the agent just did not hear it.
            last = max((event.number for event in message.events), default=0)
            kept = EventsKept(boot_id=message.boot_id, number=last)
            self._out.append(ToAgentPeer(agent.peer, kept))
            return
        for event in news:
            self._write(_kind(event), _event_body(agent, event, self._ours))
            for peer in self._followers:
                told = Told(agent=agent.hello.agent, boot_id=message.boot_id, event=event)
                self._out.append(ToOperatorPeer(peer, told))
        # The last entry that is on the disk speaks for those before it.
        agent.kept = news[-1].number
        self._writes[self._tokens] = message.boot_id, news[-1].number

    # -- operators -------------------------------------------------------------------------------

    def _look(self, peer: bytes, look: Look, now_ns: int) -> None:
        if look.follow and (peer in self._followers or len(self._followers) < MOST_FOLLOWERS):
            self._followers[peer] = now_ns + FOLLOW_NS
        shown = [
            AgentShown(
                hello=one.hello, state=one.state, silent_ms=(now_ns - one.heard_ns) // 1_000_000
            )
            for one in self._agents.values()
        ]
        answer = AgentsShown(
            id=look.id,
            agents=shown,
            waiting=list(self._proposed),
            proposals=[_proposal(one, now_ns) for one in self._proposed.values()],
        )
        self._out.append(ToOperatorPeer(peer, answer))

    def _late(self, peer: bytes, sent_ns: int, wall_ns: int) -> int:
        delays = self._delays.setdefault(peer, Delays())
        self._delays.move_to_end(peer)
        if len(self._delays) > MOST_REMEMBERED:
            self._delays.popitem(last=False)
        return delays.late_ns(sent_ns, wall_ns)

    def _submit(self, peer: bytes, submit: Submit, now_ns: int, wall_ns: int, late_ns: int) -> None:
        command = submit.command
        asked = _Asked(peer, submit, now_ns, late_ns=late_ns)
        known = self._results.get(submit.id)
        if known is not None:
            self._out.append(ToOperatorPeer(peer, known))
            return
        if command.command_id in self._asked or command.command_id in self._proposed:
            return  # on its way; its answer goes to who asked first
        asked.boots = self._lives(submit)
        why = next(self._against(asked, now_ns, wall_ns), None)
        if why is not None:
            self._refuse(asked, *why, now_ns)
        elif not command.energising:
            self._forward(asked, "", now_ns)
            if command.operation is not Operation.RENEW:
                self._write("commanded", _command_body(asked))
        elif self._large(asked):
            self._propose(asked)
        else:
            self._permit(asked)

    def _against(self, asked: _Asked, now_ns: int, wall_ns: int) -> Iterator[tuple[str, str]]:
        """Words and sentences why not; none when nothing is against it here."""
        submit, command = asked.submit, asked.submit.command
        if submit.role is Role.VIEWER:
            yield "role", "a viewer commands nothing: ask an operator"
        if not asked.boots:
            yield "agent", f"no agent {submit.agent!r} is connected in the life that was meant"
        elif command.energising:
            yield from self._against_energy(asked, now_ns, wall_ns)

    def _against_energy(
        self, asked: _Asked, now_ns: int, wall_ns: int
    ) -> Iterator[tuple[str, str]]:
        submit, command = asked.submit, asked.submit.command
        if abs(wall_ns - submit.sent_ns) > FRESH_NS:
            yield "stale", "the request is older than a minute: look again"
        if len(self._asked) + len(self._proposed) >= CONTROL_REQUESTS:
            yield "busy", "too many commands are on their way; try again in a moment"
        if command.command_id in self._ours:
            yield "replayed", "this command was forwarded before"
        if command.operation is Operation.APPROVE and submit.role is not Role.ADMIN:
            state = self._agents[asked.boots[0]].state
            if state is not None and state.question is not None and state.question.escalated:
                yield "role", "the question was escalated: an admin must answer it"
        if not self._within_rate(command.actor, now_ns):
            yield "rate", f"{command.actor} asks too often; stop, hold and revert always work"

    def _lives(self, submit: Submit) -> tuple[str, ...]:
        """The boots of the agent that a command goes to: the one named, or all for a stop."""
        lives = [b for b, one in self._agents.items() if one.hello.agent == submit.agent]
        command = submit.command
        if submit.boot_id and (command.operation in ENERGISING or command.dry_run):
            return (submit.boot_id,) if submit.boot_id in lives else ()
        if command.energising:
            return ()
        return tuple(lives)

    def _within_rate(self, actor: str, now_ns: int) -> bool:
        if len(self._rates) > MOST_REMEMBERED:
            self._rates.clear()
        rate = self._rates.setdefault(actor, _Rate(at_ns=now_ns))
        rate.left = min(float(BURST), rate.left + (now_ns - rate.at_ns) / RATE_NS)
        rate.at_ns = now_ns
        if rate.left < 1.0:
            return False
        rate.left -= 1.0
        return True

    def _large(self, asked: _Asked) -> bool:
        bounds = {one.name: one.max_norm for one in self._agents[asked.boots[0]].hello.hook_points}
        return (
            any(
                change.max_norm > self.second_above * bounds.get(change.hook_point, 0.0)
                for change in asked.submit.command.changes
            )
            and self.second_above < 1.0
        )

    def _propose(self, asked: _Asked) -> None:
        command = asked.submit.command
        self._proposed[command.command_id] = asked
        self._write("proposed", _command_body(asked))
        waits = Result(
            id=asked.submit.id,
            command_id=command.command_id,
            accepted=False,
            reason="it is large: a second person must agree within a minute",
            waits_for_second=True,
        )
        self._out.append(ToOperatorPeer(asked.peer, waits))

    def _second(self, peer: bytes, second: Second, now_ns: int) -> None:
        asked = self._proposed.get(second.command_id)
        why = ""
        if second.role is Role.VIEWER:
            why = "a viewer commands nothing: ask an operator"
        elif asked is None:
            why = "no such command waits for a second person"
        elif asked.submit.command.actor == second.actor:
            why = "the second person must be another one"
        result = Result(id=second.id, command_id=second.command_id, accepted=not why, reason=why)
        self._out.append(ToOperatorPeer(peer, result))
        if not why and asked is not None:
            del self._proposed[second.command_id]
            asked.second, asked.at_ns = second.actor, now_ns
            self._permit(asked)

    def _permit(self, asked: _Asked) -> None:
        """Write first; :meth:`written` forwards it."""
        command = asked.submit.command
        self._asked[command.command_id] = asked
        self._ours[command.command_id] = None
        if len(self._ours) > MOST_REMEMBERED:
            self._ours.popitem(last=False)
        self._write("permitted", _command_body(asked), asked)

    def _forward(self, asked: _Asked, seal: str, now_ns: int) -> None:
        command = asked.submit.command
        # Of a flood of stops every one is forwarded, and as many are answered as have room.
        if command.energising or len(self._asked) < CONTROL_REQUESTS:
            self._asked[command.command_id] = asked
        for boot in asked.boots:
            agent = self._agents.get(boot)
            if agent is not None:
                message = Do(
                    boot_id=boot, command=command, seal=seal, sent_ns=now_ns, late_ns=asked.late_ns
                )
                self._out.append(ToAgentPeer(agent.peer, message))

    def _refuse(self, asked: _Asked, word: str, reason: str, now_ns: int) -> None:
        self.refused[word] += 1
        command = asked.submit.command
        self.outcomes.append(Outcome(command.operation, word, now_ns - asked.at_ns))
        self._asked.pop(command.command_id, None)
        result = Result(
            id=asked.submit.id, command_id=command.command_id, accepted=False, reason=reason[:1000]
        )
        if word not in {"audit", "silent"}:
            self._write("refused", _command_body(asked) | {"why": reason})
            self._remember(result)
        self._out.append(ToOperatorPeer(asked.peer, result))

    def _remember(self, result: Result) -> None:
        self._results[result.id] = result
        if len(self._results) > MOST_REMEMBERED:
            self._results.popitem(last=False)

    def _write(self, kind: str, body: dict[str, Any], then: Any = None) -> None:
        self._tokens += 1
        if then is not None:
            self._writes[self._tokens] = then
        self._out.append(Write(self._tokens, kind, body))

    def _done(self) -> list[Instruction]:
        out = list(self._out)
        self._out.clear()
        return out


def _kind(event: AgentEvent) -> str:
    return "applied" if event.fate is Fate.APPLIED else f"agent-{event.fate}"


def _event_body(agent: _Agent, event: AgentEvent, ours: OrderedDict[str, None]) -> dict[str, Any]:
    return {
        "agent": agent.hello.agent,
        "boot_id": agent.hello.boot_id,
        "number": event.number,
        "row": event.row,
        "version": event.version,
        "command_id": event.command_id,
        "operation": event.operation,
        "actor": event.actor,
        "detail": event.detail,
        "agent_time_ns": event.time_ns,
        # False for what the agent decided by itself, or an earlier life of this service permitted.
        "permitted_here": event.command_id in ours,
    }


def _command_body(asked: _Asked) -> dict[str, Any]:
    submit, command = asked.submit, asked.submit.command
    return {
        "command_id": command.command_id,
        "operation": command.operation,
        "agent": submit.agent,
        "boot_ids": list(asked.boots),
        "actor": command.actor,
        "role": submit.role,
        "second": asked.second,
        "reason": command.reason,
        "ttl_ns": command.ttl_ns,
        "base_version": command.base_version,
        "dry_run": command.dry_run,
        "targets": list(command.targets[:64]),
        "changes": [_change(command, i) for i in range(len(command.changes))],
        "digest": command.digest(),
    }


def _proposal(asked: _Asked, now_ns: int) -> ProposalShown:
    command = asked.submit.command
    return ProposalShown(
        command_id=command.command_id,
        agent=asked.submit.agent,
        actor=command.actor,
        operation=command.operation,
        reason=command.reason,
        changes=[str(change) for change in command.changes],
        left_ms=max(0, SECOND_PERSON_NS - (now_ns - asked.at_ns)) // 1_000_000,
    )


def _change(command: Command, i: int) -> dict[str, Any]:
    change = command.changes[i]
    item = change.intervention
    return {
        "feature": f"{change.hook_point}/{item.feature}@{change.transcoder_hash}",
        "kind": item.kind,
        "value": item.value,
        "max_norm": change.max_norm,
        "predicate": item.predicate,
        "condition": None
        if item.condition is None
        else [item.condition.feature, item.condition.threshold, item.condition.above],
    }
