"""One tap's way out: what becomes of its rows, and the books of it.

The tap's thread makes it, reads its counters and closes it; everything else happens on the thread
of the courier that carries it.
"""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from interlatent_live.agent.courier import GOODBYE_MS, carry
from interlatent_live.agent.options import DTYPES, OnFull
from interlatent_live.agent.outlets import LosslessOutlet, LossyOutlet, Packer, Source
from interlatent_live.agent.retention import MemoryStore
from interlatent_live.agent.spool import Spool, abandoned
from interlatent_live.agent.stats import LinkStats
from interlatent_live.errors import UserError
from interlatent_live.wire.codec import decode, encode_hello
from interlatent_live.wire.messages import Hello
from interlatent_live.wire.sender_link import LinkState

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy as np
    from numpy.typing import NDArray

    from interlatent_live.agent.acting import Point
    from interlatent_live.agent.courier import Connection
    from interlatent_live.agent.options import TapOptions
    from interlatent_live.agent.outlets import Outlet
    from interlatent_live.agent.ring import Ring
    from interlatent_live.stream import Manifest
    from interlatent_live.wire.clock import Now
    from interlatent_live.wire.sender_link import SenderLink, StreamUp

logger = logging.getLogger(__name__)

GREETING_S: Final = 1.0
"""How long a closing tap waits for a service that may just be starting."""
SNAPSHOT_S: Final = 0.03
"""How old the counters that the tap shows may be."""


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
        self.endpoint = options.endpoint
        self.keys = options.keys
        self.lossless = options.on_full != OnFull.DROP_OLDEST
        self.capacity = ring.capacity
        self.block_rows = ring.layout.rows
        self.closing = False
        self.ended = threading.Event()
        self._options = options
        self._manifest = manifest
        self._ring = ring
        self._head = ring.head
        encoder = None
        if options.encode_at == "agent":
            # Only now: the transcoders bring torch, which publishing agents do without.
            from interlatent_live.agent.features import AgentEncoder  # noqa: PLC0415

            encoder = AgentEncoder(options.transcoders or {}, manifest)
        self._transcoders = None if encoder is None else encoder.identities
        hello = encode_hello(manifest, transcoders=self._transcoders, lossless=self.lossless)[0]
        self._packer = Packer(manifest.boot_id, DTYPES[options.dtype], encoder)
        self._source = Source(ring, points, finish, len(manifest.metrics), self.failed)
        self._stores: list[Spool | MemoryStore] = []
        if self.lossless:
            self._stores.append(self._make_store(hello))
        self._connection: Connection | None = None
        self._outlets: dict[str, Outlet] = {}
        self._deadline = 0.0
        self._born = time.monotonic()
        self._was_up = False
        self._refused = False
        self._error = ""
        self._faults = 0
        self._stats = LinkStats(state="connecting")
        self._snapshot_at = 0.0
        self._courier = carry(self, alone=self.lossless)

    # -- called by the policy's thread ----------------------------------------------------------

    def stats(self) -> LinkStats:
        """The ledger as of the newest turn."""
        return self._stats

    def close(self, timeout_s: float) -> None:
        """Flush for at most ``timeout_s``, say goodbye, leave the courier."""
        self._deadline = time.monotonic() + timeout_s
        self.closing = True
        self._courier.wake()
        self.ended.wait(timeout_s + 2 * GOODBYE_MS / 1000 + 1.0)

    # -- called by the courier ------------------------------------------------------------------

    def begin(self, connection: Connection, now: Now) -> None:
        """Open the stream, and those that ended processes left in the spool."""
        self._connection = connection
        link, manifest = connection.link, self._manifest
        if self.lossless:
            store = self._stores[0]
            outlet: Outlet = LosslessOutlet(
                self._source, link, self._packer, connection.send, store=store
            )
            self._adopt(link, now)
        else:
            outlet = LossyOutlet(
                self._source,
                link,
                self._packer,
                connection.send,
                max_age_s=self._options.max_age_s,
            )
        self._outlets[manifest.boot_id] = outlet
        connection.streams.update(dict.fromkeys(self._outlets, self))
        connection.carry_out(link.open_stream(now, manifest, transcoders=self._transcoders))

    def turn(self, now: Now) -> None:
        """Send what may go now."""
        for outlet in tuple(self._outlets.values()):
            outlet.pump(now)
        if len(self._outlets) > 1:
            self._retire(now)
        if now.mono >= self._snapshot_at:
            self._snapshot_at = now.mono + SNAPSHOT_S
            self._snapshot()

    def blocks_since(self) -> int:
        """Blocks that the policy wrote since the last call."""
        before, self._head = self._head, self._ring.head
        return self._head - before

    def on_up(self, up: StreamUp) -> None:
        """A stream was accepted."""
        if not self._was_up:
            self._was_up = True
            logger.info("streaming to %s", up.server or self.endpoint)
        self._refused = False
        self._outlets[up.boot_id].limit(up.max_rows, up.max_bytes)

    def on_refused(self, sentence: str) -> None:
        """A stream was refused."""
        if sentence != self._error:
            logger.warning("%s; the agent goes on unwatched", sentence)
        self._error = sentence
        self._refused = True

    def on_acknowledged(self, boot_id: str, processed: int) -> None:
        """The receiver is done with all rows of a stream below ``processed``."""
        self._outlets[boot_id].acknowledged(processed)

    def failed(self, error: Exception) -> None:
        """Count what failed, and say it once."""
        self._faults += 1
        self._error = f"{type(error).__name__}: {error}"
        if self._faults == 1:
            logger.error("the tap's sender failed and goes on", exc_info=error)

    def unfinished(self) -> bool:
        """Whether a closing tap still hopes to get rid of rows."""
        now = time.monotonic()
        if now >= self._deadline or self._connection is None:
            return False
        link, boot_id = self._connection.link, self._manifest.boot_id
        if not self._was_up and (self._refused or now - self._born > GREETING_S):
            return False
        if self._was_up and link.state is not LinkState.UP and not self.lossless:
            return False
        return not self._outlets[boot_id].idle() or link.counts(boot_id).in_flight > 0

    def end(self, now: Now) -> None:
        """Settle the books and say goodbye."""
        connection, boot_id = self._connection, self._manifest.boot_id
        if connection is None:
            return
        link, outlet = connection.link, self._outlets[boot_id]
        finished = outlet.idle() and link.counts(boot_id).in_flight == 0
        if isinstance(outlet, LosslessOutlet):
            outlet.pump(now)  # what is left in the ring goes to the store
        outlet.shut()
        if isinstance(outlet, LosslessOutlet) and isinstance(outlet.store, Spool) and not finished:
            # No goodbye: the next process on this folder goes on with the stream.
            self._snapshot("closed")
        else:
            if isinstance(outlet, LosslessOutlet):
                outlet.give_up()
            counts = link.counts(boot_id)
            connection.carry_out(link.close_stream(now, boot_id))
            # A closed stream's ledger is gone, and what was in flight is lost with it.
            lost = {str(reason): rows for reason, rows in counts.lost.items()}
            if counts.in_flight:
                lost["shutdown"] = lost.get("shutdown", 0) + counts.in_flight
            self._stats = LinkStats(
                "closed", counts.sent, counts.acknowledged, lost, 0, self._last_error()
            )
        for one in self._outlets:
            connection.streams.pop(one, None)
        for store in self._stores:
            store.close()

    # -- stores ---------------------------------------------------------------------------------

    def _make_store(self, hello: bytes) -> Spool | MemoryStore:
        options = self._options
        if options.on_full == OnFull.SPOOL:
            folder = Path(options.spool or "") / self._manifest.boot_id
            return Spool(folder, options.spool_bytes, hello)
        return MemoryStore(options.max_bytes)

    def _adopt(self, link: SenderLink, now: Now) -> None:
        """Take over what ended processes left in the spool folder, as streams of their own."""
        if self._options.on_full != OnFull.SPOOL or self._connection is None:
            return
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
            instructions = link.open_stream(
                now, hello.manifest, first_seq=entries[0].first, transcoders=hello.transcoders
            )
            # As far as the books go, all of it was sent; the receiver says from where to repeat.
            for entry in entries:
                if entry.reason is None:
                    link.sent(
                        now, boot_id, first_seq=entry.first, rows=entry.end - entry.first, size=0
                    )
                else:
                    link.declare(boot_id, entry.first, entry.end - entry.first, entry.reason)
            packer = Packer(boot_id, DTYPES[self._options.dtype])
            self._outlets[boot_id] = LosslessOutlet(
                None, link, packer, self._connection.send, store=spool
            )
            self._stores.append(spool)
            self._connection.carry_out(instructions)

    def _retire(self, now: Now) -> None:
        """End adopted streams whose rows have all been delivered."""
        connection = self._connection
        for boot_id in tuple(self._outlets):
            outlet = self._outlets[boot_id]
            if (
                connection is None
                or boot_id == self._manifest.boot_id
                or not isinstance(outlet, LosslessOutlet)
            ):
                continue
            if outlet.idle() and connection.link.state is LinkState.UP:
                connection.carry_out(connection.link.close_stream(now, boot_id))
                del self._outlets[boot_id], connection.streams[boot_id]
                outlet.acknowledged(2**62)
                outlet.store.close()

    # -- what is shown --------------------------------------------------------------------------

    def _snapshot(self, state: str = "") -> None:
        if self._connection is None:
            return
        counts = self._connection.link.counts(self._manifest.boot_id)
        self._stats = LinkStats(
            state=state or self._state(self._connection.link.state),
            sent=counts.sent,
            acknowledged=counts.acknowledged,
            lost={str(reason): rows for reason, rows in counts.lost.items()},
            in_flight=counts.in_flight,
            last_error=self._last_error(),
            spooled_bytes=sum(store.nbytes for store in self._stores),
        )

    def _last_error(self) -> str:
        stores = next((store.error for store in self._stores if store.error), "")
        return stores or self._error or (self._connection.error if self._connection else "")

    def _state(self, link: LinkState) -> str:
        if link is LinkState.UP:
            return "refused" if self._refused else "open"
        return "connecting"
