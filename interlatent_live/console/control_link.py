"""The console's connection to the control service: one thread, one socket, any number of askers.

Routes leave a request and await its future; the thread sends it at once and matches answers by id,
so that a command which waits for a slow agent holds nobody else's stop. What only takes energy out
is sent again until it is answered: the service takes it once. What adds energy is sent once, and
only while the service is known to be there, so that it cannot wait in a queue for a service that
comes back later.

The same thread looks at the agents four times a second, and at once when one of them says that
something took effect.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import time
import uuid
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Self

import zmq

from interlatent_live.control.wire import (
    AgentsShown,
    Envelope,
    Look,
    Result,
    Submit,
    Told,
    Way,
)
from interlatent_live.errors import UserError, WireError
from interlatent_live.logs import get_logger
from interlatent_live.wire.sockets import (
    SocketTuning,
    connect_dealer,
    receive_message,
    send_message,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from interlatent_live.control.wire import AgentShown, FromOperator, ProposalShown, Second
    from interlatent_live.wire.keys import ClientKeys

LOOK_EVERY_S: Final = 0.25
AGAIN_AFTER_S: Final = 0.3
AWAY_AFTER_S: Final = 1.5
"""Without an answer for so long, the service is away."""
WITHIN_S: Final = 6.0
MOST_WAITING: Final = 256
TUNING: Final = SocketTuning(
    reconnect_first=20, reconnect_longest=500, largest_message=1024 * 1024 + 4096
)


class AwayError(UserError):
    """The control service is not there, so nothing was sent."""


class SilentError(UserError):
    """No answer came in time; what was asked may still take effect."""


@dataclass(frozen=True, slots=True)
class ControlView:
    """What the service said last."""

    why: str
    """Why nothing is known; empty when the service answers."""
    agents: tuple[AgentShown, ...] = ()
    proposals: tuple[ProposalShown, ...] = ()
    number: int = 0
    """Counts what was heard."""
    changed: int = 0
    """Counts what differed in more than the time that is left."""

    @property
    def available(self) -> bool:
        """Whether the service answers."""
        return not self.why

    def agent(self, name: str, boot_id: str = "") -> AgentShown | None:
        """The newest life of an agent, or the named one."""
        lives = [
            one
            for one in self.agents
            if one.hello.agent == name and boot_id in {"", one.hello.boot_id}
        ]
        return min(lives, key=lambda one: one.silent_ms, default=None)


@dataclass(slots=True)
class _Pending:
    request: FromOperator
    again: bool
    until: float
    next_: float
    future: Future[Result] = field(default_factory=Future)


class ControlLink:
    """A context manager; :meth:`ask` and :attr:`view` may be used from any thread.

    Args:
        endpoint: ``endpoints.control_requests``.
        key: what requests are sealed with; None with CURVE keys.
        keys: CURVE keys.
    """

    def __init__(self, endpoint: str, key: bytes | None, *, keys: ClientKeys | None = None) -> None:
        self.view = ControlView("the control service has not answered yet")
        self.told: Callable[[Told], None] = lambda _: None
        """Called in the link's thread for everything that happens at an agent; must not wait."""
        self._endpoint, self._keys = endpoint, keys
        self._envelope = Envelope(key, out=Way.FROM_OPERATOR, into=Way.TO_OPERATOR)
        self._in: queue.SimpleQueue[_Pending] = queue.SimpleQueue()
        self._pending: dict[str, _Pending] = {}
        self._lock = threading.Lock()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._listeners: dict[object, Callable[[], None]] = {}
        self._stop = threading.Event()
        self._look = ""
        self._look_at = 0.0
        self._heard = time.monotonic()
        self._shape: Any = None
        self._thread = threading.Thread(target=self._run, name="control-link", daemon=True)

    def __enter__(self) -> Self:
        """Connect."""
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        """Disconnect; leases that were held run out."""
        self.close()
        self._thread.join(2.0)
        os.close(self._wake)

    @property
    def closed(self) -> bool:
        """Whether the console is ending."""
        return self._stop.is_set()

    def close(self) -> None:
        """Ask the thread to end, and tell whoever listens."""
        self._stop.set()
        os.eventfd_write(self._wake, 1)
        self._tell()

    def listen(self, key: object, wake: Callable[[], None]) -> None:
        """Call ``wake`` in the link's thread whenever the view is another one; it must not wait."""
        with self._lock:
            self._listeners[key] = wake

    def unlisten(self, key: object) -> None:
        """End :meth:`listen`."""
        with self._lock:
            self._listeners.pop(key, None)

    def ask(self, request: Submit | Second) -> Future[Result]:
        """Send a request; the future has what became of it.

        The same request (by id) while it is on its way gets the same future.

        Raises:
            AwayError: when it adds energy and the service is away, or too many requests wait.
        """
        still = isinstance(request, Submit) and not request.command.energising
        if not still and not self.view.available:
            raise AwayError(f"nothing was sent: {self.view.why}")
        with self._lock:
            known = self._pending.get(request.id)
            if known is not None:
                return known.future
            if len(self._pending) >= MOST_WAITING and not still:
                raise AwayError("too many commands are on their way; try again in a moment")
            now = time.monotonic()
            pending = _Pending(request, still, now + WITHIN_S, now)
            self._pending[request.id] = pending
        self._in.put(pending)
        os.eventfd_write(self._wake, 1)
        return pending.future

    # -- the thread ----------------------------------------------------------------------------

    def _run(self) -> None:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        socket = connect_dealer(context, self._endpoint, keys=self._keys, tuning=TUNING)
        poller = zmq.Poller()
        poller.register(socket, zmq.POLLIN)
        poller.register(self._wake, zmq.POLLIN)
        try:
            while not self._stop.is_set():
                poller.poll(self._wait_ms())
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_read(self._wake)
                self._turn(socket)
        except Exception:
            # Without this thread nobody could command from here, and everybody must learn that.
            get_logger("console.control").exception("the link to control failed")
            self._show(ControlView("the console's link to the control service failed"))
            raise
        finally:
            socket.close(0)
            context.term()
            for pending in list(self._pending.values()):
                self._settle(pending, SilentError("the console is ending; look again"))

    def _wait_ms(self) -> int:
        ends = [self._look_at, *(one.next_ for one in self._pending.values())]
        return max(0, min(100, int((min(ends) - time.monotonic()) * 1000) + 1))

    def _turn(self, socket: zmq.Socket[bytes]) -> None:
        while not self._in.empty():
            self._send(socket, self._in.get())
        self._receive(socket)
        now = time.monotonic()
        for pending in list(self._pending.values()):
            if now >= pending.until:
                self._settle(
                    pending,
                    SilentError("no answer in time; it may still take effect, so look again"),
                )
            elif now >= pending.next_ and pending.again:
                self._send(socket, pending)
        if now - self._heard > AWAY_AFTER_S and self.view.available:
            self._show(ControlView("the control service does not answer"))
        if now >= self._look_at:
            self._look_at = now + LOOK_EVERY_S
            self._look = uuid.uuid4().hex
            look = Look(id=self._look, sent_ns=time.time_ns(), follow=True)
            send_message(socket, self._envelope.seal(look))

    def _receive(self, socket: zmq.Socket[bytes]) -> None:
        while (frames := receive_message(socket)) is not None:
            try:
                message = self._envelope.open(frames)
            except WireError:
                continue
            self._heard = time.monotonic()
            match message:
                case Result():
                    with self._lock:
                        pending = self._pending.get(message.id)
                    if pending is not None:
                        self._settle(pending, message)
                    self._look_at = 0.0
                case Told():
                    self.told(message)
                    self._look_at = 0.0
                case AgentsShown():
                    self._shown(message)

    def _send(self, socket: zmq.Socket[bytes], pending: _Pending) -> None:
        pending.next_ = time.monotonic() + (AGAIN_AFTER_S if pending.again else WITHIN_S)
        if not send_message(socket, self._envelope.seal(pending.request)) and not pending.again:
            self._settle(pending, AwayError("nothing was sent: the control service takes nothing"))

    def _settle(self, pending: _Pending, what: Result | Exception) -> None:
        with self._lock:
            self._pending.pop(pending.request.id, None)
        # Whoever asked may have gone, and cancelled.
        if pending.future.set_running_or_notify_cancel():
            if isinstance(what, Result):
                pending.future.set_result(what)
            else:
                pending.future.set_exception(what)

    def _shown(self, shown: AgentsShown) -> None:
        shape = [_shape(one) for one in shown.agents], [one.command_id for one in shown.proposals]
        before = self.view
        changed = before.changed + (shape != self._shape or not before.available)
        self._shape = shape
        self._show(
            ControlView("", tuple(shown.agents), tuple(shown.proposals), before.number + 1, changed)
        )

    def _show(self, view: ControlView) -> None:
        if not view.available:
            self._shape = None
            view = ControlView(view.why, number=self.view.number + 1, changed=self.view.changed + 1)
        self.view = view
        self._tell()

    def _tell(self) -> None:
        with self._lock:
            listeners = list(self._listeners.values())
        for wake in listeners:
            wake()


def _shape(one: AgentShown) -> tuple[Any, ...]:
    """What of an agent is worth telling at once when it changes."""
    state = one.state
    if state is None:
        return (one.hello,)
    question = state.question
    return (
        one.hello,
        state.version,
        state.mode,
        state.obeyed,
        state.latched,
        state.trouble,
        None if question is None else (question.question_id, question.escalated),
        [active.command_id for active in state.active],
        one.silent_ms > 2000,
    )
