"""The thread that sends for every tap of a process: one clock, a socket and a link per receiver.

It shares the interpreter with the policies, and handing the interpreter lock back and forth costs a
policy more than the work does: so all taps share one thread, and each of its turns is one burst.
Streams to the same receiver under the same key share one connection. A pause between two turns is
at least 8 ms; it grows with the rows that come, since few large messages cost much less than many
small ones, and with the processor time of a turn, so that many taps take a fortieth of a core as
long as pauses of a tenth of a second allow it. A process that waits for its clock has time to spare
and gets its steps out soon; one that computes without a break pays for each turn with its own
throughput, so there the pauses are longer. Nothing that happens here (no service, a
frozen one, a full disk, garbage on the wire) reaches a policy.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from typing import TYPE_CHECKING, Any, Final

import zmq

from interlatent_live.errors import WireError
from interlatent_live.wire.clock import read_clock
from interlatent_live.wire.codec import decode
from interlatent_live.wire.messages import Ack
from interlatent_live.wire.sender_link import (
    Close,
    Open,
    PeerLost,
    Refused,
    SenderConfig,
    SenderLink,
    StreamUp,
    Transmit,
)
from interlatent_live.wire.sockets import connect_dealer, receive_message, send_message

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from interlatent_live.agent.sender import Sender
    from interlatent_live.wire.clock import Now
    from interlatent_live.wire.keys import ClientKeys
    from interlatent_live.wire.sender_link import SenderInstruction

logger = logging.getLogger(__name__)

PERIOD_S: Final = 0.008
"""Least pause between two turns: what collects meanwhile is one message."""
FULL_ROWS: Final = 8
"""Rows that the busiest stream may bring in a least pause; where it brings more, pauses grow in
proportion: 32 ms at 4,000 rows a second."""
LONGEST_S: Final = 0.05
"""Longest pause for the sake of larger messages."""
REST: Final = 40
"""A pause is at least so many times as long as the processor time of a turn, in the mean of about
the last ten: one turn that was interrupted makes no long pause."""
RESTED_S: Final = 0.01
"""Longest pause for the sake of the processor, for each tap: steps must become features within
20 ms where there is one."""
RESTED_BUSY_S: Final = 0.05
"""The same where the process computes without a break."""
BUSY: Final = 0.75
"""Share of a core, beside the courier's own, from which on a process computes without a break.
Below 1: it waits for the interpreter lock, and a shared machine takes it off its core."""
MOST_RESTED_S: Final = 0.1
GOODBYE_MS: Final = 200
_READABLE: Final = int(zmq.POLLIN)  # as a plain number: an enumeration's & is a call of Python
ANSWERS: Final = 256
"""Most messages read in one turn."""


def carry(sender: Sender, *, alone: bool) -> Courier:
    """Let a courier carry a tap's stream: the process's own, or one for it ``alone``.

    A tap that writes to a disk gets its own: a slow disk must not delay the others.
    """
    # By process: a forked child must not wait for a thread that it does not have.
    home = _Home() if alone else _HOMES.setdefault(os.getpid(), _Home())
    with home.lock:
        if home.courier is None:
            home.courier = Courier(home)
        home.courier.add(sender)
        return home.courier


class _Home:
    """Where a courier is found as long as it runs."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.courier: Courier | None = None


_HOMES: Final[dict[int, _Home]] = {}


class Courier:
    """Carries the streams of taps until the last of them has left. Made by :func:`carry`."""

    def __init__(self, home: _Home) -> None:
        self._home = home
        self._coming: list[Sender] = []
        self._senders: list[Sender] = []
        self._connections: dict[tuple[str, ClientKeys | None, bool], Connection] = {}
        self._context: zmq.Context[Any] = zmq.Context()
        # A bare lock to sleep on, since Event.wait runs a dozen lines of Python each time.
        self._bell = threading.Lock()
        self._bell.acquire()
        self._thread = threading.Thread(target=self._run, name="interlatent-tap", daemon=True)
        self._thread.start()

    # -- called by policies' threads -------------------------------------------------------------

    def add(self, sender: Sender) -> None:
        """Carry one more; under the home's lock."""
        self._coming.append(sender)
        self._ring()

    def wake(self) -> None:
        """Take a turn now: a tap closes."""
        with self._home.lock:
            self._ring()

    def _ring(self) -> None:
        if self._bell.locked():
            self._bell.release()

    # -- the thread ------------------------------------------------------------------------------

    def _run(self) -> None:
        last: list[Sender] = []
        try:
            pause, began, usual, busy = PERIOD_S, time.monotonic(), 0.0, 0.0
            spent = time.process_time()
            while True:
                self._bell.acquire(timeout=pause)
                before, began = began, time.monotonic()
                used = time.thread_time()
                others, spent = spent, time.process_time() - used
                busy += 0.1 * ((spent - others) / max(began - before, PERIOD_S) - busy)
                left = self._turn()
                if left and self._is_over():
                    last = left
                    return
                for sender in left:
                    sender.ended.set()
                usual += 0.1 * (time.thread_time() - used - usual)
                pause = self._pause(began - before, usual, busy=busy >= BUSY)
        finally:
            for connection in self._connections.values():
                connection.close(GOODBYE_MS)
            self._context.term()
            # Only now, since the process may end as soon as its last tap is closed.
            for sender in (*last, *self._senders):
                sender.ended.set()

    def _turn(self) -> list[Sender]:
        """One burst of work; returns the senders that left."""
        with self._home.lock:
            coming, self._coming = self._coming, []
        now = read_clock()
        for sender in coming:
            self._senders.append(sender)
            self._guard(sender, self._begin, sender, now)
        for connection in self._connections.values():
            try:
                connection.turn(now)
            except Exception as error:  # noqa: BLE001  nothing may end this thread
                for sender in {id(one): one for one in connection.streams.values()}.values():
                    sender.failed(error)
        for sender in self._senders:
            self._guard(sender, sender.turn, now)
        left = [one for one in self._senders if one.closing and not one.unfinished()]
        for sender in left:
            self._guard(sender, sender.end, read_clock())
            self._senders.remove(sender)
        if left:
            self._hang_up()
        return left

    def _hang_up(self) -> None:
        """Close connections that nobody who is left sends on."""
        used = {_connection_key(one) for one in self._senders}
        for key in self._connections.keys() - used:
            self._connections.pop(key).close(GOODBYE_MS)

    @staticmethod
    def _guard(sender: Sender, action: Any, *given: Any) -> None:
        try:
            action(*given)
        except Exception as error:  # noqa: BLE001  nothing may end this thread
            sender.failed(error)

    def _is_over(self) -> bool:
        """Whether nobody is left; from then on the next tap gets another courier."""
        with self._home.lock:
            if self._senders or self._coming:
                return False
            self._home.courier = None
            return True

    def _pause(self, elapsed: float, used: float, *, busy: bool) -> float:
        if any(sender.closing for sender in self._senders):
            return PERIOD_S / 4
        since = max(elapsed, PERIOD_S)
        busiest, longest = 0.0, MOST_RESTED_S
        for sender in self._senders:
            blocks = sender.blocks_since() / since
            busiest = max(busiest, blocks * sender.block_rows)
            # No ring may be half full before the next turn; one that stores keeps up with it.
            full = 0.5 * sender.capacity / max(blocks, 1.0)
            longest = min(longest, PERIOD_S if sender.lossless else full)
        together = min(LONGEST_S, PERIOD_S * busiest * PERIOD_S / FULL_ROWS)
        each = RESTED_BUSY_S if busy else RESTED_S
        rest = min(REST * used, each * len(self._senders))
        return max(PERIOD_S, min(longest, max(together, rest)))

    def _begin(self, sender: Sender, now: Now) -> None:
        key = _connection_key(sender)
        connection = self._connections.get(key)
        if connection is None:
            connection = self._connections[key] = Connection(self._context, *key)
            # Without a socket (no descriptor left, say) the link tries again later.
            self._guard(sender, connection.carry_out, connection.link.start(now))
        sender.begin(connection, now)


def _connection_key(sender: Sender) -> tuple[str, ClientKeys | None, bool]:
    return sender.endpoint, sender.keys, sender.lossless


class Connection:
    """A socket to one receiver, and the link that says what to do with it.

    Attributes:
        link: knows what may go.
        streams: who sends each stream, by ``boot_id``.
        error: what last went wrong with the connection itself.
    """

    def __init__(
        self,
        context: zmq.Context[Any],
        endpoint: str,
        keys: ClientKeys | None,
        lossless: bool,  # noqa: FBT001 - the last part of the key it is kept under
    ) -> None:
        self.link = SenderLink(SenderConfig(lossless=lossless))
        self.streams: dict[str, Sender] = {}
        self.error = ""
        self._context = context
        self._endpoint = endpoint
        self._keys = keys
        self._socket: zmq.Socket[bytes] | None = None

    def turn(self, now: Now) -> None:
        """Hear what the receiver says, and let time pass."""
        for _ in range(ANSWERS):
            # Asking first: an exception for each empty look would cost more than all the rest.
            if self._socket is None or not self._readable(self._socket):
                break
            frames = receive_message(self._socket)
            if frames is None:
                break
            try:
                message = decode(frames)
            except WireError as error:
                self.error = str(error)
                continue
            self.carry_out(self.link.on_message(now, message))
            if isinstance(message, Ack) and self.link.config.lossless:
                self._release(message)
        self.carry_out(self.link.on_tick(now))

    def send(self, frames: Sequence[bytes]) -> bool:
        """Hand a message to the socket without blocking; False when it takes none."""
        return self._socket is not None and send_message(self._socket, frames)

    def carry_out(self, instructions: Iterable[SenderInstruction]) -> None:
        """Do what the link says."""
        for instruction in instructions:
            match instruction:
                case Open():
                    self.close(0)
                    self._socket = connect_dealer(self._context, self._endpoint, keys=self._keys)
                case Close():
                    self.close(0)
                case Transmit(frames):
                    self.send(frames)
                case StreamUp(boot_id=boot_id) if boot_id in self.streams:
                    self.streams[boot_id].on_up(instruction)
                case Refused(boot_id, reason, message):
                    self._refused(
                        boot_id, f"{self._endpoint} refused the stream ({reason}): {message}"
                    )
                case PeerLost(why):
                    self.error = f"the connection to {self._endpoint} ended ({why})"
                case _:
                    pass  # Resume: the outlet asks the link which row is next

    def close(self, linger_ms: int) -> None:
        """Close the socket; what it holds has so long to go."""
        if self._socket is not None:
            self._socket.close(linger_ms)
            self._socket = None

    @staticmethod
    def _readable(socket: zmq.Socket[bytes]) -> bool:
        return bool(int(socket.getsockopt(zmq.EVENTS)) & _READABLE)

    def _refused(self, boot_id: str, sentence: str) -> None:
        if boot_id in self.streams:
            self.streams[boot_id].on_refused(sentence)
        elif not boot_id:
            # A message and not a stream: nobody knows whose.
            if sentence != self.error:
                logger.warning("%s; the agent goes on unwatched", sentence)
            self.error = sentence

    def _release(self, ack: Ack) -> None:
        for stream in ack.streams:
            sender = self.streams.get(stream.boot_id)
            if sender is not None:
                holes = [hole.first_seq for hole in stream.missing]
                sender.on_acknowledged(stream.boot_id, min([stream.processed, *holes]))
