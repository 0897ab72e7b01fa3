"""An operator's connection to the control service; for programs, the console and the CLI.

One thread at a time. What it vouches for (who acts, in which role) is believed, because only this
user's processes, or with CURVE a service's key, can seal a request.
"""

from __future__ import annotations

import time
import uuid
from typing import TYPE_CHECKING, Any

import zmq

from interlatent_live.closing import Closing
from interlatent_live.control.commands import Command, Operation
from interlatent_live.control.wire import (
    AgentsShown,
    Envelope,
    Look,
    Result,
    Role,
    Second,
    Submit,
    Told,
    Way,
)
from interlatent_live.errors import UserError, WireError
from interlatent_live.wire.sockets import connect_dealer, receive_message, send_message

if TYPE_CHECKING:
    from interlatent_live.control.commands import Change
    from interlatent_live.control.wire import AgentShown
    from interlatent_live.wire.keys import ClientKeys


class ControlClient(Closing):
    """Asks and commands; a context manager.

    Args:
        endpoint: ``endpoints.control_requests``.
        key: what requests are sealed with; None with CURVE keys.
        actor: who acts, as the audit names them.
        role: what they may do.
        keys: CURVE keys.
        timeout_s: how long an answer may take.

    Raises:
        UserError: when the endpoint is beyond this machine and there are no keys.
    """

    def __init__(
        self,
        endpoint: str,
        key: bytes | None,
        *,
        actor: str,
        role: Role = Role.OPERATOR,
        keys: ClientKeys | None = None,
        timeout_s: float = 6.0,
    ) -> None:
        self.actor, self.role = actor, role
        self.lease = uuid.uuid4().hex
        """Interventions made through this client end when it no longer renews this."""
        self.told: list[Told] = []
        """What happened at agents since it was last emptied, while :meth:`look` follows."""
        self._endpoint, self._timeout_s = endpoint, timeout_s
        self._envelope = Envelope(key, out=Way.FROM_OPERATOR, into=Way.TO_OPERATOR)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = connect_dealer(self._context, endpoint, keys=keys)

    def close(self) -> None:
        """Close the connection; leases that were held run out."""
        self._socket.close(200)
        self._context.term()

    def look(self, *, follow: bool = False) -> AgentsShown:
        """All agents as the service knows them; with ``follow``, also what happens (5 s long).

        Raises:
            UserError: when the service does not answer.
        """
        request = Look(id=uuid.uuid4().hex, sent_ns=time.time_ns(), follow=follow)
        answer = self._ask(request, self._timeout_s)
        if not isinstance(answer, AgentsShown):
            raise UserError("the control service gave another answer than asked for")
        return answer

    def agent(self, name: str = "") -> AgentShown:
        """The newest life of the named agent, or of the only one.

        Raises:
            UserError: when there is none, or several and no name.
        """
        shown = sorted(self.look(follow=True).agents, key=lambda one: one.silent_ms)
        if name:
            shown = [one for one in shown if one.hello.agent == name]
        if not shown:
            raise UserError(
                f"no agent {name!r} is connected to control" if name else "no agent is connected"
            )
        if len({one.hello.agent for one in shown}) > 1:
            names = ", ".join(sorted({one.hello.agent for one in shown}))
            raise UserError(f"there are several agents ({names}); name one")
        return shown[0]

    def command(
        self,
        operation: Operation,
        agent: AgentShown | str,
        *,
        reason: str,
        ttl_s: float = 60.0,
        base_version: int | None = None,
        changes: tuple[Change, ...] = (),
        targets: tuple[str, ...] = (),
        dry_run: bool = False,
        action: tuple[float, ...] = (),
    ) -> Result:
        """Command an agent; a stop, hold or revert needs no more than its name.

        What adds energy is bound to the life and version that ``agent`` shows, unless
        ``base_version`` names another.

        Raises:
            UserError: when the command contradicts itself or the service does not answer.
        """
        shown = None if isinstance(agent, str) else agent
        if base_version is None and shown is not None and shown.state is not None:
            base_version = shown.state.version
        made = Command(
            command_id=uuid.uuid4().hex,
            operation=operation,
            actor=self.actor,
            reason=reason,
            ttl_ns=int(ttl_s * 1e9),
            lease=self.lease,
            base_version=base_version,
            changes=changes,
            targets=targets,
            dry_run=dry_run,
            action=action,
        )
        return self.submit(
            made,
            agent if isinstance(agent, str) else agent.hello.agent,
            "" if shown is None else shown.hello.boot_id,
        )

    def submit(self, made: Command, agent: str, boot_id: str = "") -> Result:
        """Send a command and wait for what the agent said.

        Raises:
            UserError: when the service does not answer.
        """
        request = Submit(
            id=uuid.uuid4().hex,
            sent_ns=time.time_ns(),
            agent=agent,
            boot_id=boot_id,
            role=self.role,
            command=made,
        )
        return self._result(request)

    def second(self, command_id: str) -> Result:
        """Agree to another person's command that waits for it.

        Raises:
            UserError: when the service does not answer.
        """
        request = Second(
            id=uuid.uuid4().hex,
            sent_ns=time.time_ns(),
            command_id=command_id,
            actor=self.actor,
            role=self.role,
        )
        return self._result(request)

    def renew(self, agent: str) -> Result:
        """Keep this client's lease at an agent.

        Raises:
            UserError: when the service does not answer.
        """
        return self.command(Operation.RENEW, agent, reason="lease", ttl_s=60.0)

    def listen(self, timeout_s: float) -> None:
        """Take in what happens, into :attr:`told`."""
        if self._socket.poll(int(timeout_s * 1000)):
            self._receive("")

    def _result(self, request: Submit | Second) -> Result:
        answer = self._ask(request, self._timeout_s)
        if not isinstance(answer, Result):
            raise UserError("the control service gave another answer than asked for")
        return answer

    def _ask(self, request: Look | Submit | Second, timeout_s: float) -> Any:
        if not send_message(self._socket, self._envelope.seal(request)):
            raise UserError(f"no control service at {self._endpoint}; is it up?")
        deadline = time.monotonic() + timeout_s
        while (left := deadline - time.monotonic()) > 0:
            if self._socket.poll(int(left * 1000) + 1):
                answer = self._receive(request.id)
                if answer is not None:
                    return answer
        raise UserError(
            f"no answer from the control service at {self._endpoint} within {timeout_s:g} s; start "
            "it with `interlatent-live control`, as the same user"
        )

    def _receive(self, wanted: str) -> Any:
        while (frames := receive_message(self._socket)) is not None:
            try:
                message = self._envelope.open(frames)
            except WireError:
                continue
            if isinstance(message, Told):
                self.told.append(message)
            elif message.id == wanted:
                return message
        return None
