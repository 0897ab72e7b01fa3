"""Stepping in over HTTP: ``/api/v1/control``.

The console vouches for who acts in which role; the control service and the agent decide. Routes
that command are coroutines on the way from the socket to the link's thread, so that a stop waits
for no thread of a pool and no disk.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
import uuid
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
from fastapi import APIRouter, Depends, Response, WebSocket
from pydantic import BaseModel, ConfigDict, Field
from starlette.websockets import WebSocketDisconnect

from interlatent_live.console.access import Access, Caller, DeniedError, RateLimit, too_often
from interlatent_live.console.control_link import AwayError, ControlLink, SilentError
from interlatent_live.control.commands import (
    MAX_ACTION,
    MAX_CHANGES,
    Change,
    Command,
    Operation,
)
from interlatent_live.control.wire import Second, Submit
from interlatent_live.errors import UserError
from interlatent_live.interventions.values import FeatureCondition, Intervention, Kind

if TYPE_CHECKING:
    from interlatent_live.console.control_link import ControlView
    from interlatent_live.control.wire import AgentShown, AgentState, Result

PUSH_EVERY_S: Final = 0.25
RENEW_S: Final = 60.0
"""A lease is asked for so long; the agent's own limit is shorter, and holds."""
MOST_PAGES: Final = 64
UNLIMITED: Final = frozenset({Operation.STOP, Operation.HOLD, Operation.REVERT})
Lease = Annotated[str, Field(pattern=r"^[0-9A-Za-z_-]{0,56}$")]


class WhileBody(BaseModel):
    """A condition on a feature of the same transcoder: above a threshold, or not above it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    feature: Annotated[int, Field(ge=0, lt=2**31)]
    threshold: Annotated[float, Field(allow_inf_nan=False)] = 0.0
    above: bool = True


class ChangeBody(BaseModel):
    """One change of one feature."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    hook_point: Annotated[str, Field(min_length=1, max_length=200)]
    feature: Annotated[int, Field(ge=0, lt=2**31)]
    kind: Kind
    value: Annotated[float, Field(allow_inf_nan=False)] = 0.0
    condition: Annotated[str, Field(max_length=1000)] | None = None
    """Predicate over metrics; empty or null: always."""
    while_feature: WhileBody | None = None
    """Condition on a feature of the row; with both, both must hold."""
    max_norm: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Bound on ‖Δy‖₂; null: the agent's own."""
    transcoder: Annotated[str, Field(max_length=200)] | None = None
    """Null: the agent's own."""


class CommandBody(BaseModel):
    """A command; what it may say depends on the operation, as the agent's rules have it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    operation: Operation
    command_id: Annotated[str, Field(max_length=200)] = ""
    reason: Annotated[str, Field(max_length=1000)] = ""
    ttl_s: Annotated[float, Field(gt=0, le=86_400)] = 60.0
    boot_id: Annotated[str, Field(max_length=200)] | None = None
    base_version: Annotated[int, Field(ge=0, lt=2**62)] | None = None
    changes: Annotated[tuple[ChangeBody, ...], Field(max_length=MAX_CHANGES)] = ()
    targets: Annotated[
        tuple[Annotated[str, Field(max_length=200)], ...], Field(max_length=MAX_CHANGES)
    ] = ()
    dry_run: bool = False
    action: Annotated[
        tuple[Annotated[float, Field(allow_inf_nan=False)], ...], Field(max_length=MAX_ACTION)
    ] = ()
    lease: Lease = ""
    """Made by the page, one for each tab."""


class LeaseBody(BaseModel):
    """Whose lease is renewed where."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    agent: Annotated[str, Field(min_length=1, max_length=200)]
    lease: Lease = ""


class ControlDoor:
    """What the routes share: who may how often, and the words of the agents' state.

    Args:
        link: the connection to the control service.
    """

    def __init__(self, link: ControlLink) -> None:
        self.link = link
        self._commands = RateLimit(10.0, 30)
        self._leases = RateLimit(50.0, 100)
        self._pages = 0
        self._encoded: tuple[int, str] = (-1, "")

    def text(self) -> str:
        """``GET /control`` as JSON, made once for each answer of the service."""
        view = self.link.view
        if self._encoded[0] != view.number:
            self._encoded = view.number, msgspec.json.encode(shown(view)).decode()
        return self._encoded[1]

    async def command(self, caller: Caller, agent: str, body: CommandBody) -> Result:
        """Carry a command out.

        Raises:
            DeniedError: 422 for one that contradicts itself, 429, 503, 504.
        """
        operation = body.operation
        if operation not in UNLIMITED:
            wait = self._commands.take(caller.actor)
            if wait:
                raise too_often(wait, "too many commands; stop, hold and revert always work")
        try:
            made = _command(caller, body, self.link.view.agent(agent, body.boot_id or ""))
        except UserError as error:
            raise DeniedError(422, "command", str(error)) from error
        if made.energising or made.dry_run:
            self._ask(_submit(caller, agent, _renewal(caller, body.lease), ""))
        return await self.answer(_submit(caller, agent, made, body.boot_id or ""))

    async def renew(self, caller: Caller, body: LeaseBody) -> Result:
        """Renew a lease.

        Raises:
            DeniedError: 429, 503, 504.
        """
        wait = self._leases.take(caller.actor)
        if wait:
            raise too_often(wait, "a lease is renewed a few times in its life, not more")
        return await self.answer(_submit(caller, body.agent, _renewal(caller, body.lease), ""))

    async def second(self, caller: Caller, command_id: str) -> Result:
        """Agree to somebody else's command.

        Raises:
            DeniedError: 429, 503, 504.
        """
        wait = self._commands.take(caller.actor)
        if wait:
            raise too_often(wait, "too many commands; stop, hold and revert always work")
        request = Second(
            id=uuid.uuid4().hex,
            sent_ns=time.time_ns(),
            command_id=command_id[:200],
            actor=caller.actor,
            role=caller.role,
        )
        return await self.answer(request)

    async def answer(self, request: Submit | Second) -> Result:
        """Ask and await, in terms of HTTP."""
        try:
            return await asyncio.shield(asyncio.wrap_future(self._ask(request)))
        except SilentError as error:
            raise DeniedError(504, "silent", str(error)) from error

    def _ask(self, request: Submit | Second) -> Any:
        try:
            return self.link.ask(request)
        except AwayError as error:
            raise DeniedError(503, "away", str(error)) from error

    async def push(self, socket: WebSocket) -> None:
        """Send the state to a page: at once, when it changed, and at most four times a second."""
        if self._pages >= MOST_PAGES:
            await socket.close(1013)
            return
        await socket.accept()
        self._pages += 1
        gone = asyncio.create_task(_gone(socket))
        news = News(self)
        try:
            while not gone.done() and not self.link.closed:
                text = news.next()
                if text is not None:
                    await socket.send_text(text)
                await news.wait(gone)
            if self.link.closed:
                await socket.close(1001)
        except (WebSocketDisconnect, RuntimeError) as error:
            if isinstance(error, RuntimeError) and "close" not in str(error).lower():
                raise
        finally:
            gone.cancel()
            news.close()
            self._pages -= 1


class News:
    """What of the state one page has not had; used by one coroutine."""

    def __init__(self, door: ControlDoor) -> None:
        self._door = door
        self._loop = asyncio.get_running_loop()
        self._event = asyncio.Event()
        self._sent = self._changed = -1
        self._at = 0.0
        door.link.listen(self, self._wake)

    def next(self) -> str | None:
        """The state, if it is another one than the page has and may be sent now."""
        view = self._door.link.view
        now = time.monotonic()
        if view.number == self._sent:
            return None
        # Countdowns run every time; only what really changed need not wait.
        if view.changed == self._changed and now - self._at < PUSH_EVERY_S:
            return None
        self._sent, self._changed, self._at = view.number, view.changed, now
        return self._door.text()

    async def wait(self, gone: asyncio.Task[None]) -> None:
        """Until there may be news, or the page is gone."""
        self._event.clear()
        if self._door.link.view.number != self._sent:
            await asyncio.wait({gone}, timeout=PUSH_EVERY_S / 4)
            return
        waiter = asyncio.ensure_future(self._event.wait())
        try:
            await asyncio.wait({gone, waiter}, timeout=1.0, return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiter.cancel()

    def close(self) -> None:
        """No more."""
        self._door.link.unlisten(self)

    def _wake(self) -> None:
        # The loop may have ended since.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._event.set)


def router(door: ControlDoor, access: Access) -> APIRouter:
    """The routes."""
    out = APIRouter(tags=["control"], default_response_class=Response)
    allowed = Depends(access.caller)

    @out.get("/control", summary="Agents under control, what is in force, and what waits")
    async def control() -> Response:
        return Response(door.text(), media_type="application/json")

    @out.post("/control/agents/{agent:path}/commands", summary="Command an agent")
    async def command(agent: str, body: CommandBody, caller: Caller = allowed) -> Response:
        return _result(await door.command(caller, agent[:200], body))

    @out.post("/control/commands/{command_id}/second", summary="Agree to another's command")
    async def second(command_id: str, caller: Caller = allowed) -> Response:
        return _result(await door.second(caller, command_id))

    @out.post("/control/lease", summary="Keep what was begun under a lease in force")
    async def lease(body: LeaseBody, caller: Caller = allowed) -> Response:
        return _result(await door.renew(caller, body))

    @out.websocket("/control/ws")
    async def socket(socket: WebSocket) -> None:
        await door.push(socket)

    return out


def shown(view: ControlView) -> dict[str, Any]:
    """The state as pages see it."""
    return {
        "available": view.available,
        "why": view.why,
        "waiting": [msgspec.to_builtins(one) for one in view.proposals],
        "agents": [_agent(one) for one in view.agents],
    }


def _agent(one: AgentShown) -> dict[str, Any]:
    fields: dict[str, Any] = msgspec.to_builtins(one.hello)
    fields.pop("type", None)
    return fields | {"silent_ms": one.silent_ms, "state": _state(one.state)}


def _state(state: AgentState | None) -> dict[str, Any] | None:
    if state is None:
        return None
    fields: dict[str, Any] = msgspec.to_builtins(state)
    fields.pop("type", None)
    return fields


def _command(caller: Caller, body: CommandBody, agent: AgentShown | None) -> Command:
    """The command that a person means.

    Raises:
        UserError: when it contradicts itself, or names a hook point that the agent does not offer.
    """
    offers = {} if agent is None else {one.name: one for one in agent.hello.hook_points}
    changes = []
    for one in body.changes:
        offer = offers.get(one.hook_point)
        if offer is None:
            known = ", ".join(sorted(offers)) or "none"
            raise UserError(
                f"the agent offers no interventions at {one.hook_point!r}; it offers: {known}"
            )
        item = Intervention(
            one.feature,
            one.kind,
            one.value,
            condition=_condition(one.while_feature),
            predicate=one.condition or None,
        )
        changes.append(
            Change(
                one.hook_point,
                one.transcoder or offer.transcoder,
                item,
                one.max_norm or offer.max_norm,
            )
        )
    return Command(
        command_id=body.command_id or uuid.uuid4().hex,
        operation=body.operation,
        actor=caller.actor,
        reason=body.reason or "from the console",
        ttl_ns=int(body.ttl_s * 1e9),
        lease=_lease(caller, body.lease),
        base_version=body.base_version,
        changes=tuple(changes),
        targets=body.targets,
        dry_run=body.dry_run,
        action=body.action,
    )


def _condition(body: WhileBody | None) -> FeatureCondition | None:
    return None if body is None else FeatureCondition(body.feature, body.threshold, body.above)


def _renewal(caller: Caller, page: str) -> Command:
    return Command(
        command_id=uuid.uuid4().hex,
        operation=Operation.RENEW,
        actor=caller.actor,
        reason="lease",
        ttl_ns=int(RENEW_S * 1e9),
        lease=_lease(caller, page),
    )


def _lease(caller: Caller, page: str) -> str:
    return f"{caller.lease}.{page}" if page else caller.lease


def _submit(caller: Caller, agent: str, made: Command, boot_id: str) -> Submit:
    # The same request again has the same id, so it has one effect and one answer.
    parts = (caller.actor, caller.role.value, agent, boot_id, made.digest())
    return Submit(
        id=hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32],
        sent_ns=time.time_ns(),
        agent=agent,
        boot_id=boot_id,
        role=caller.role,
        command=made,
    )


def _result(result: Result) -> Response:
    fields: dict[str, Any] = msgspec.to_builtins(result)
    for name in ("type", "id"):
        fields.pop(name, None)
    return Response(msgspec.json.encode(fields), media_type="application/json")


async def _gone(socket: WebSocket) -> None:
    """Ends when the page closes; whatever else it says is not listened to."""
    with contextlib.suppress(WebSocketDisconnect):
        while True:
            await socket.receive_text()
