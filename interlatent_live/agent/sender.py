"""The sender thread: a socket and a clock around the link's state machine.

It wakes every 8 ms or somewhat later, copies what the policy wrote since, encodes and sends it
without ever blocking, and keeps the books. It shares the interpreter with the policy, so each of
its turns is one short burst: handing the interpreter lock back and forth costs the policy more than
the work does. Nothing that happens here (no service, a frozen one, a full disk, garbage on the
wire) reaches the policy.
"""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import zmq

from interlatent_live.agent.options import DTYPES, OnFull
from interlatent_live.agent.outlets import LosslessOutlet, LossyOutlet, Packer, Source
from interlatent_live.agent.retention import MemoryStore
from interlatent_live.agent.spool import Spool, abandoned
from interlatent_live.agent.stats import LinkStats
from interlatent_live.errors import UserError, WireError
from interlatent_live.wire.clock import read_clock
from interlatent_live.wire.codec import decode, encode_hello
from interlatent_live.wire.messages import Ack, Hello
from interlatent_live.wire.sender_link import (
    Close,
    LinkState,
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
    from collections.abc import Callable, Iterable, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from interlatent_live.agent.acting import Point
    from interlatent_live.agent.options import TapOptions
    from interlatent_live.agent.outlets import Outlet
    from interlatent_live.agent.ring import Ring
    from interlatent_live.stream import Manifest
    from interlatent_live.wire.clock import Now
    from interlatent_live.wire.messages import WireMessage
    from interlatent_live.wire.sender_link import SenderInstruction

logger = logging.getLogger(__name__)

PERIOD_S: Final = 0.008
"""Least pause between two turns: what collects meanwhile is one message."""
LONGEST_S: Final = 0.012
"""Longest pause: with what follows, steps must become features within 20 ms."""
REST: Final = 24
"""A pause is so many times as long as the turn before it, up to the longest: where the machine is
busy and turns take longer, messages get fewer and larger by themselves."""
GREETING_S: Final = 1.0
"""How long a closing tap waits for a service that may just be starting."""
GOODBYE_MS: Final = 200
SNAPSHOT_S: Final = 0.03
"""How old the counters that the tap shows may be."""
ANSWERS: Final = 256
"""Most messages read in one turn."""


class Sender:
    """Sends one tap's steps until it is closed.

    Raises:
        UserError: when the names of the manifest do not fit the wire, the spool cannot be used, or
            a transcoder does not belong to the policy.
    """

    def __init__(
        self,
        ring: Ring,
        manifest: Manifest,
        points: Mapping[str, Point],
        options: TapOptions,
        finish: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    ) -> None:
        if options.endpoint is None:
            raise UserError("a sender needs an endpoint")
        self._endpoint = options.endpoint
        self._options = options
        self._manifest = manifest
        self._ring = ring
        self._lossless = options.on_full != OnFull.DROP_OLDEST
        encoder = None
        if options.encode_at == "agent":
            # Only now: the transcoders bring torch, which publishing agents do without.
            from interlatent_live.agent.features import AgentEncoder  # noqa: PLC0415

            encoder = AgentEncoder(options.transcoders or {}, manifest)
        transcoders = None if encoder is None else encoder.identities
        self._link = SenderLink(SenderConfig(lossless=self._lossless))
        self._link.open_stream(read_clock(), manifest, transcoders=transcoders)
        packer = Packer(manifest.boot_id, DTYPES[options.dtype], encoder)
        source = Source(ring, points, finish, len(manifest.metrics), self._failed)
        self._outlets: dict[str, Outlet] = {}
        self._stores: list[Spool | MemoryStore] = []
        if self._lossless:
            hello = encode_hello(manifest, transcoders=transcoders, lossless=True)[0]
            store = self._make_store(hello)
            outlet: Outlet = LosslessOutlet(source, self._link, packer, self._send, store=store)
            self._adopt()
        else:
            outlet = LossyOutlet(
                source, self._link, packer, self._send, max_age_s=options.max_age_s
            )
        self._outlets[manifest.boot_id] = outlet
        self._socket: zmq.Socket[bytes] | None = None
        self._context: zmq.Context[Any] | None = None
        self._stop = threading.Lock()
        self._stop.acquire()
        self._deadline = 0.0
        self._born = time.monotonic()
        self._was_up = False
        self._refused = False
        self._error = ""
        self._faults = 0
        self._stats = LinkStats(state="connecting")
        self._snapshot_at = 0.0
        self._thread = threading.Thread(target=self._run, name="interlatent-tap", daemon=True)
        self._thread.start()

    # -- called by the policy's thread ----------------------------------------------------------

    def stats(self) -> LinkStats:
        """The ledger as of the newest turn."""
        return self._stats

    def close(self, timeout_s: float) -> None:
        """Flush for at most ``timeout_s``, say goodbye, end the thread."""
        self._deadline = time.monotonic() + timeout_s
        self._stop.release()
        self._thread.join(timeout_s + 2 * GOODBYE_MS / 1000 + 1.0)

    # -- the thread -----------------------------------------------------------------------------

    def _run(self) -> None:
        self._context = zmq.Context()
        try:
            self._guard(self._start)
            # A bare lock, since Event.wait runs a dozen lines of Python under the interpreter lock.
            pause, began, head = PERIOD_S, time.monotonic(), self._ring.head
            while not self._stop.acquire(timeout=pause):
                last, began = began, time.monotonic()
                last_head, head = head, self._ring.head
                self._guard(self._turn)
                # The ring must not be half full before the next turn.
                blocks_per_s = (head - last_head) / max(began - last, PERIOD_S)
                longest = min(LONGEST_S, 0.5 * self._ring.capacity / max(blocks_per_s, 1.0))
                rest = REST * (time.monotonic() - began)
                pause = max(PERIOD_S, min(longest, rest)) if not self._lossless else PERIOD_S
            while self._unfinished():
                self._guard(self._turn)
                time.sleep(PERIOD_S / 4)
            self._guard(self._finish)
        finally:
            self._close_socket(0)
            self._context.term()

    def _guard(self, action: Any) -> None:
        try:
            action()
        except Exception as error:  # noqa: BLE001  nothing may end this thread
            self._failed(error)

    def _failed(self, error: Exception) -> None:
        """Count what failed, and say it once."""
        self._faults += 1
        self._error = f"{type(error).__name__}: {error}"
        if self._faults == 1:
            logger.error("the tap's sender failed and goes on", exc_info=error)

    def _start(self) -> None:
        self._carry_out(self._link.start(read_clock()))

    def _turn(self) -> None:
        now = read_clock()
        self._receive(now)
        self._carry_out(self._link.on_tick(now))
        for outlet in tuple(self._outlets.values()):
            outlet.pump(now)
        if len(self._outlets) > 1:
            self._retire(now)
        if now.mono >= self._snapshot_at:
            self._snapshot_at = now.mono + SNAPSHOT_S
            self._snapshot()

    def _unfinished(self) -> bool:
        now = time.monotonic()
        if now >= self._deadline:
            return False
        if not self._was_up and (self._refused or now - self._born > GREETING_S):
            return False
        if self._was_up and self._link.state is not LinkState.UP and not self._lossless:
            return False
        outlet = self._outlets[self._manifest.boot_id]
        return not outlet.idle() or self._link.counts(self._manifest.boot_id).in_flight > 0

    def _finish(self) -> None:
        now = read_clock()
        boot_id = self._manifest.boot_id
        outlet = self._outlets[boot_id]
        finished = outlet.idle() and self._link.counts(boot_id).in_flight == 0
        if isinstance(outlet, LosslessOutlet):
            outlet.pump(now)  # what is left in the ring goes to the store
        outlet.shut()
        goodbye: list[SenderInstruction] = []
        if isinstance(outlet, LosslessOutlet) and isinstance(outlet.store, Spool) and not finished:
            # No goodbye: the next process on this folder goes on with the stream.
            self._snapshot("closed")
        else:
            if isinstance(outlet, LosslessOutlet):
                outlet.give_up()
            counts = self._link.counts(boot_id)
            goodbye = self._link.close_stream(now, boot_id)
            # A closed stream's ledger is gone, and what was in flight is lost with it.
            lost = {str(reason): rows for reason, rows in counts.lost.items()}
            if counts.in_flight:
                lost["shutdown"] = lost.get("shutdown", 0) + counts.in_flight
            self._stats = LinkStats(
                "closed", counts.sent, counts.acknowledged, lost, 0, self._error
            )
        self._carry_out(goodbye)
        self._close_socket(GOODBYE_MS)
        for store in self._stores:
            store.close()

    # -- sockets --------------------------------------------------------------------------------

    def _receive(self, now: Now) -> None:
        for _ in range(ANSWERS):
            # Asking first: an exception for each empty look would cost more than all the rest.
            if self._socket is None or not self._readable(self._socket):
                return
            frames = receive_message(self._socket)
            if frames is None:
                return
            try:
                message = decode(frames)
            except WireError as error:
                self._error = str(error)
                continue
            self._carry_out(self._link.on_message(now, message))
            self._release(message)

    @staticmethod
    def _readable(socket: zmq.Socket[bytes]) -> bool:
        return bool(int(socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN)

    def _send(self, frames: Sequence[bytes]) -> bool:
        return self._socket is not None and send_message(self._socket, frames)

    def _carry_out(self, instructions: Iterable[SenderInstruction]) -> None:
        for instruction in instructions:
            match instruction:
                case Open():
                    self._open_socket()
                case Close():
                    self._close_socket(0)
                case Transmit(frames):
                    self._send(frames)
                case StreamUp():
                    self._on_up(instruction)
                case Refused(_, reason, message):
                    self._on_refused(reason, message)
                case PeerLost(why):
                    self._error = f"the connection to {self._endpoint} ended ({why})"
                case _:
                    pass  # Resume: the outlet asks the link which row is next

    def _on_up(self, up: StreamUp) -> None:
        if not self._was_up:
            self._was_up = True
            logger.info("streaming to %s", up.server or self._endpoint)
        self._refused = False
        self._outlets[up.boot_id].limit(up.max_rows, up.max_bytes)

    def _on_refused(self, reason: str, message: str) -> None:
        sentence = f"{self._endpoint} refused the stream ({reason}): {message}"
        if sentence != self._error:
            logger.warning("%s; the agent goes on unwatched", sentence)
        self._error = sentence
        self._refused = True

    def _open_socket(self) -> None:
        self._close_socket(0)
        if self._context is None:
            return
        self._socket = connect_dealer(self._context, self._endpoint, keys=self._options.keys)

    def _close_socket(self, linger_ms: int) -> None:
        if self._socket is not None:
            self._socket.close(linger_ms)
            self._socket = None

    # -- stores ---------------------------------------------------------------------------------

    def _make_store(self, hello: bytes) -> Spool | MemoryStore:
        options = self._options
        store: Spool | MemoryStore
        if options.on_full == OnFull.SPOOL:
            folder = Path(options.spool or "") / self._manifest.boot_id
            store = Spool(folder, options.spool_bytes, hello)
        else:
            store = MemoryStore(options.max_bytes)
        self._stores.insert(0, store)
        return store

    def _adopt(self) -> None:
        """Take over what ended processes left in the spool folder, as streams of their own."""
        if self._options.on_full != OnFull.SPOOL:
            return
        now = read_clock()
        for folder in abandoned(Path(self._options.spool or "")):
            try:
                spool = Spool(folder, self._options.spool_bytes)
                hello = decode([spool.hello])
                entries = spool.entries()
            except UserError as error:
                logger.warning("the spool %s cannot be replayed: %s", folder, error)
                continue
            if not entries or not isinstance(hello, Hello):
                spool.close()
                continue
            boot_id = hello.manifest.boot_id
            self._link.open_stream(
                now, hello.manifest, first_seq=entries[0].first, transcoders=hello.transcoders
            )
            # As far as the books go, all of it was sent; the receiver says from where to repeat.
            for entry in entries:
                if entry.reason is None:
                    self._link.sent(
                        now, boot_id, first_seq=entry.first, rows=entry.end - entry.first, size=0
                    )
                else:
                    self._link.declare(boot_id, entry.first, entry.end - entry.first, entry.reason)
            packer = Packer(boot_id, DTYPES[self._options.dtype])
            self._outlets[boot_id] = LosslessOutlet(
                None, self._link, packer, self._send, store=spool
            )
            self._stores.append(spool)

    def _release(self, message: WireMessage) -> None:
        if not self._lossless or not isinstance(message, Ack):
            return
        for stream in message.streams:
            outlet = self._outlets.get(stream.boot_id)
            if outlet is not None:
                holes = [hole.first_seq for hole in stream.missing]
                outlet.acknowledged(min([stream.processed, *holes]))

    def _retire(self, now: Now) -> None:
        """End adopted streams whose rows have all been delivered."""
        for boot_id in tuple(self._outlets):
            outlet = self._outlets[boot_id]
            if boot_id == self._manifest.boot_id or not isinstance(outlet, LosslessOutlet):
                continue
            if outlet.idle() and self._link.state is LinkState.UP:
                self._carry_out(self._link.close_stream(now, boot_id))
                del self._outlets[boot_id]
                outlet.acknowledged(2**62)
                outlet.store.close()

    # -- what is shown --------------------------------------------------------------------------

    def _snapshot(self, state: str = "") -> None:
        counts = self._link.counts(self._manifest.boot_id)
        error = next((store.error for store in self._stores if store.error), self._error)
        self._stats = LinkStats(
            state=state or self._state(),
            sent=counts.sent,
            acknowledged=counts.acknowledged,
            lost={str(reason): rows for reason, rows in counts.lost.items()},
            in_flight=counts.in_flight,
            last_error=error,
            spooled_bytes=sum(store.nbytes for store in self._stores),
        )

    def _state(self) -> str:
        if self._link.state is LinkState.UP:
            return "refused" if self._refused else "open"
        return "connecting"
