"""The thread in the agent that takes commands, keeps their time and tells what came of them.

It owns the state machine, the stop latch, the journal and the socket to the control service, and
hands decisions to the acting thread by replacing one immutable value. A stop is handed over first
and latched on the disk right after; a resume is unlatched on the disk first. Nothing that happens
here (no service, a frozen one, a full disk, garbage on the wire) reaches the acting thread, and
what it handed over ends by the clock also when it no longer runs.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections import Counter, deque
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import zmq

from interlatent_live.agent.control import AgentControl, Published
from interlatent_live.control.commands import Command, Operation
from interlatent_live.control.delays import Delays
from interlatent_live.control.machine import NEVER, ControlLimits, ControlMachine, Fate, Mode
from interlatent_live.control.wire import (
    MOST_EVENTS,
    ActiveShown,
    AgentAnswer,
    AgentEvent,
    AgentEvents,
    AgentHello,
    AgentState,
    Beat,
    Do,
    Envelope,
    EventsKept,
    HookOffer,
    QuestionShown,
    Way,
)
from interlatent_live.errors import WireError
from interlatent_live.wire.sockets import (
    SocketTuning,
    connect_dealer,
    receive_message,
    send_message,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from interlatent_live.agent.control import ControlOptions, Report
    from interlatent_live.audit.journal import Journal
    from interlatent_live.control.latch import StopLatch
    from interlatent_live.control.machine import Happening, InForce
    from interlatent_live.control.wire import FromAgent
    from interlatent_live.wire.keys import ClientKeys

logger = logging.getLogger(__name__)

STATE_EVERY_NS: Final = 250_000_000
RESEND_EVERY_NS: Final = 2_000_000_000
LONGEST_WAIT_MS: Final = 100
WAIT_WHILE_BUSY_MS: Final = 5
"""While something was commanded that the acting thread has not used yet."""
MOST_UNCONFIRMED: Final = 4096
COMMANDS_PER_TURN: Final = 64
_LET_GO: Final = frozenset({Operation.RESUME, Operation.APPROVE})
"""What lets a held or stopped agent act by its policy again, for longer than one step."""
TUNING: Final = SocketTuning(
    send_queue=64, receive_queue=64, send_buffer=65536, receive_buffer=65536,
    reconnect_first=20, reconnect_longest=500, largest_message=1024 * 1024,
)  # fmt: skip


class ControlThread:
    """Runs until :meth:`close`.

    Args:
        control: the acting thread's side.
        machine: what obeys; from now on this thread's.
        latch: the stop latch, open; None where there is no safe action.
        journal: where happenings are written.
        hello: who the agent is.
        options: see :class:`~interlatent_live.agent.control.ControlOptions`.
        key: what messages are sealed with; None on CURVE connections.
        keys: CURVE keys.
        encoder_up: whether the encoder hears the tap; None where nothing is streamed.
    """

    def __init__(
        self,
        control: AgentControl,
        machine: ControlMachine,
        *,
        latch: StopLatch | None,
        journal: Journal,
        hello: AgentHello,
        options: ControlOptions,
        key: bytes | None,
        keys: ClientKeys | None,
        encoder_up: Callable[[], bool] | None,
    ) -> None:
        self.refused: Counter[str] = Counter()
        """Messages that were none, by reason."""
        self.faults = 0
        self._control, self._machine, self._latch = control, machine, latch
        self._journal, self._hello = journal, hello
        self._options, self._keys = options, keys
        self._encoder_up = encoder_up if options.follow_encoder else None
        self._encoder_seen = time.monotonic_ns()
        self._envelope = Envelope(key, out=Way.FROM_AGENT, into=Way.TO_AGENT)
        self._decided = machine.decision
        self._used = -1
        self._changed_at = 0
        self._reported: deque[Report] = deque(maxlen=MOST_UNCONFIRMED)
        self._trouble = ""
        self._waiting: deque[Happening] = deque(maxlen=MOST_UNCONFIRMED)
        self._unconfirmed: deque[AgentEvent] = deque(maxlen=MOST_UNCONFIRMED)
        self._numbered = 0
        self._sent = 0
        self._resend_at = 0
        self._state_at = 0
        self._shown: tuple[object, ...] = ()
        self._greeted = False
        self._delays = Delays()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="interlatent-control", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread; what the disk says of a stop stays."""
        self._stop.set()
        self._thread.join(timeout=2.0)

    # -- the loop ------------------------------------------------------------------------------

    def _run(self) -> None:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        endpoint = self._options.endpoint
        socket = (
            None
            if endpoint is None
            else connect_dealer(context, endpoint, keys=self._keys, tuning=TUNING)
        )
        try:
            while not self._stop.is_set():
                try:
                    self._turn(socket)
                except Exception:  # nothing may end this thread
                    self.faults += 1
                    if self.faults == 1:
                        logger.exception("the control thread failed and goes on")
                    self._stop.wait(0.05)
        finally:
            if socket is not None:
                socket.close(0)
            context.term()
            self._journal.close()
            if self._latch is not None:
                self._latch.close()

    def _turn(self, socket: zmq.Socket[bytes] | None) -> None:
        wait_ms = self._wait_ms()
        if socket is None:
            self._stop.wait(wait_ms / 1000)
        else:
            socket.poll(wait_ms)
            self._receive(socket)
        now = time.monotonic_ns()
        self._take_reports(now)
        self._machine.tick(now)
        self._watch_encoder(now)
        self._publish()
        self._keep_latch()
        self._collect()
        if socket is not None:
            self._tell(socket, now)

    def _wait_ms(self) -> int:
        machine = self._machine
        if self._waiting or self._used < machine.version:
            longest = WAIT_WHILE_BUSY_MS if self._recently() else LONGEST_WAIT_MS
        else:
            longest = LONGEST_WAIT_MS
        left_ns = machine.next_end_ns() - time.monotonic_ns()
        return max(0, min(longest, left_ns // 1_000_000 + 1))

    def _recently(self) -> bool:
        """Whether something changed a moment ago; an agent that does not step is not hurried."""
        return time.monotonic_ns() - self._changed_at < 1_000_000_000

    def _publish(self) -> None:
        decision, before = self._machine.decision, self._decided
        if decision == before:
            return
        self._decided = decision
        if decision.version != before.version:
            self._changed_at = time.monotonic_ns()
        made, published = Published.of(decision), self._control.published
        # A renewal changes deadlines and no plan: effects go on being counted.
        same = made.plans == published.plans
        self._control.published = replace(made, plans=published.plans) if same else made

    # -- what comes in -------------------------------------------------------------------------

    def _receive(self, socket: zmq.Socket[bytes]) -> None:
        for _ in range(COMMANDS_PER_TURN):
            frames = receive_message(socket)
            if frames is None:
                return
            try:
                message = self._envelope.open(frames)
            except WireError as error:
                self.refused[error.reason] += 1
                continue
            late_ns = 0
            if isinstance(message, Do | Beat) and message.sent_ns:
                late_ns = self._delays.late_ns(message.sent_ns, time.monotonic_ns())
            match message:
                case Do():
                    self._send(socket, self._do(message, message.late_ns + late_ns))
                case EventsKept(boot_id=boot, number=number) if boot == self._hello.boot_id:
                    while self._unconfirmed and self._unconfirmed[0].number <= number:
                        self._unconfirmed.popleft()
                case Beat(who=True):
                    self._greeted = False
                    self._delays = Delays()  # another service, with another clock

    def _do(self, message: Do, late_ns: int) -> AgentAnswer:
        command, machine = message.command, self._machine
        now = time.monotonic_ns()
        if command.energising and message.boot_id != self._hello.boot_id:
            return self._answer(command, "it was meant for an earlier life of this agent")
        if command.operation in _LET_GO and machine.mode is not Mode.RUNNING:
            reason = machine.refusal(command, now)
            if not reason and not (self._latch is not None and self._latch.resume()):
                reason = f"the stop latch cannot be written, so the agent stays {machine.mode}"
            if reason:
                return self._answer(command, reason)
        answer = machine.receive(command, now, late_ns=late_ns)
        # In force from here on; the disk and everybody else come after.
        self._publish()
        self._keep_latch()
        if answer.accepted:
            self._trouble = ""
        if command.operation is not Operation.RENEW:
            self._journal.write(
                "command",
                {
                    "command_id": command.command_id,
                    "operation": command.operation,
                    "actor": command.actor,
                    "command_reason": command.reason,
                    "accepted": answer.accepted,
                    "why": answer.reason,
                    "version": answer.version,
                    "seal": message.seal,
                },
            )
        return AgentAnswer(
            boot_id=self._hello.boot_id,
            command_id=command.command_id,
            accepted=answer.accepted,
            reason=answer.reason[:1000],
            version=answer.version,
        )

    def _answer(self, command: Command, reason: str) -> AgentAnswer:
        self._journal.write("refused", {"command_id": command.command_id, "why": reason})
        return AgentAnswer(
            boot_id=self._hello.boot_id,
            command_id=command.command_id,
            accepted=False,
            reason=reason,
            version=self._machine.version,
        )

    def _keep_latch(self) -> None:
        """Whatever made the agent stop or hold: the disk must say so, and is asked until it does.

        A held agent that dies comes back stopped: a hold never ends in motion.
        """
        latch = self._latch
        if latch is not None and self._machine.mode is not Mode.RUNNING and not latch.stopped:
            latch.stop()

    # -- the acting thread ---------------------------------------------------------------------

    def _take_reports(self, now: int) -> None:
        reports = self._control.reports
        while reports:
            self._take_report(reports.popleft(), now)

    def _take_report(self, report: Report, now: int) -> None:
        machine = self._machine
        if report.grant:
            machine.used(report.grant)
        elif report.rule is not None:
            name = f"{self._hello.boot_id[:8]}-{report.row}-{report.rule.name}"[:200]
            machine.ask(name, report.rule.name, int(report.rule.timeout_s * 1e9), now)
        elif report.trouble:
            self._trouble = report.trouble[:1000]
            machine.revert(f"reverted: {report.trouble}"[:1000], now)
        else:
            self._used = max(self._used, report.version)
            self._reported.append(report)

    def _watch_encoder(self, now: int) -> None:
        if self._encoder_up is None or not self._machine.active or self._encoder_up():
            self._encoder_seen = now
        elif now - self._encoder_seen > int(self._options.lease_s * 1e9):
            self._machine.revert("the encoder is away: nobody sees what it does", now)

    def _collect(self) -> None:
        """Number what happened, once the acting thread has used the version that it is part of."""
        self._waiting.extend(self._machine.happened())
        while self._waiting:
            happening = self._waiting[0]
            refused = happening.fate is Fate.REFUSED
            if not refused and happening.version > self._used:
                return
            self._waiting.popleft()
            self._numbered += 1
            event = AgentEvent(
                number=self._numbered,
                version=happening.version,
                row=-1 if refused else self._row_of(happening.version),
                command_id=happening.command_id,
                operation=happening.operation,
                fate=happening.fate,
                actor=happening.actor,
                detail=self._detail(happening)[:1000],
                time_ns=time.time_ns(),
            )
            self._unconfirmed.append(event)
            self._journal.write(
                "event",
                {
                    name: getattr(event, name)
                    for name in ("number", "row", "command_id", "operation", "fate", "detail")
                },
            )

    def _detail(self, happening: Happening) -> str:
        """Why or how; of a dry run that ended, also what the actions would have been."""
        if happening.fate in {Fate.APPLIED, Fate.REFUSED}:
            return happening.detail
        return "; ".join(filter(None, (happening.detail, *self._would_have(happening.command_id))))

    def _row_of(self, version: int) -> int:
        """The first row that was taken under a version or a later one."""
        # Happenings come in the order of their versions, so what was passed over is done with.
        while self._reported and self._reported[0].version < version:
            self._reported.popleft()
        return self._reported[0].row if self._reported else -1

    # -- what goes out -------------------------------------------------------------------------

    def _tell(self, socket: zmq.Socket[bytes], now: int) -> None:
        if not self._greeted:
            self._greeted = self._send(socket, self._hello)
            self._sent = 0
        if now >= self._resend_at:
            self._resend_at = now + RESEND_EVERY_NS
            self._sent = 0
        news = [event for event in self._unconfirmed if event.number > self._sent][:MOST_EVENTS]
        if news and self._send(socket, AgentEvents(boot_id=self._hello.boot_id, events=news)):
            self._sent = news[-1].number
            self._resend_at = now + RESEND_EVERY_NS
        machine = self._machine
        shown = machine.version, machine.mode, self._used >= machine.version, self._trouble
        if shown != self._shown or now >= self._state_at:
            self._shown, self._state_at = shown, now + STATE_EVERY_NS
            self._send(socket, self._state(now))

    def _send(self, socket: zmq.Socket[bytes], message: FromAgent) -> bool:
        return send_message(socket, self._envelope.seal(message))

    def _state(self, now: int) -> AgentState:
        machine, latch = self._machine, self._latch
        question = machine.question
        hold_until = machine.decision.hold_until_ns
        still = machine.mode is not Mode.RUNNING
        trouble = self._trouble
        if self._control.ungated:
            trouble = (
                f"{self._control.ungated} steps were taken without control.gate(...), so the agent "
                "moved although it was held"
            )
        return AgentState(
            boot_id=self._hello.boot_id,
            version=machine.version,
            mode=machine.mode,
            row=self._control.row,
            obeyed=self._used >= machine.version,
            latched=latch is None or latch.stopped == still,
            hold_left_ms=None if hold_until == NEVER else (hold_until - now) // 1_000_000,
            active=[self._shown_active(one, now) for one in machine.active][:64],
            question=None
            if question is None
            else QuestionShown(
                question_id=question.question_id,
                rule=question.rule[:1000],
                left_ms=(question.until_ns - now) // 1_000_000,
                escalated=question.escalated,
            ),
            trouble=trouble,
        )

    def _shown_active(self, one: InForce, now: int) -> ActiveShown:
        command = one.command
        which = command.command_id if command.dry_run else ""
        effects = self._control.effects.copy()
        done = [effects.get((change.hook_point, which)) for change in command.changes]
        return ActiveShown(
            command_id=command.command_id,
            actor=command.actor,
            left_ms=(one.until_ns - now) // 1_000_000,
            dry_run=command.dry_run,
            changes=[str(change) for change in command.changes] + self._would_have(which),
            applied_steps=max((effect.rows for effect in done if effect), default=0),
            largest_norm=max((effect.largest_norm for effect in done if effect), default=0.0),
        )

    def _would_have(self, command_id: str) -> list[str]:
        """What a dry run would have done to the action, in a line; none for other commands."""
        dry_runs = self._control.dry_runs
        would = dry_runs.by_command.get(command_id) if dry_runs is not None else None
        return [] if would is None else [str(would)]


def machine_of(
    options: ControlOptions,
    offers: list[HookOffer],
    control: Callable[[str], str],
    *,
    stopped: bool,
) -> ControlMachine:
    """The state machine under an agent's options.

    Raises:
        UserError: when they contradict each other.
    """
    limits = ControlLimits(
        max_norm={one.name: one.max_norm for one in offers},
        transcoders={one.name: one.transcoder for one in offers},
        features={one.name: one.features for one in offers},
        max_ttl_ns=int(options.max_ttl_s * 1e9),
        lease_ns=int(options.lease_s * 1e9),
        max_hold_ns=int(options.max_hold_s * 1e9),
        safe_action=options.safe_action is not None,
        require_oversight=options.require_oversight,
    )
    return ControlMachine(
        limits, now_ns=time.monotonic_ns(), stopped=stopped, check_predicate=control
    )


def agent_folder(state: Path, agent: str) -> Path:
    """Where an agent's latch and journal lie; its name is other people's text, so it is hashed."""
    return state / "agents" / hashlib.sha256(agent.encode()).hexdigest()[:16]
