"""What came while a correlator was away, read from a recording before anything newer is taken in.

Rows of an agent must come in order, so what arrives meanwhile is held: its sender's credit bounds
it. A recorder writes chunk by chunk, so where the first row over the wire does not follow the last
recorded one, the recording is looked at again for a moment; only then are rows counted as missing.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

from interlatent_live.errors import UserError
from interlatent_live.stream import FeatureBatch, Manifest
from interlatent_live.wire.messages import Bye, FeaturesMessage, Hello

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from interlatent_live.pipeline.correlator import CorrelatorCore
    from interlatent_live.wire.messages import WireMessage

WAIT_S: Final = 5.0
"""How long rows are held for a recorder to write what came before them."""
LOOK_EVERY_S: Final = 0.25
SLICE_S: Final = 0.05
"""Longest turn: questions and viewers are served in between."""


class RecordedRows(Protocol):
    """Recordings, read piece by piece."""

    @property
    def complete(self) -> bool:
        """Whether nothing more will be written."""
        ...

    def read(self) -> Iterator[WireMessage]:
        """What is there and was not read before, in order of recording."""
        ...


class Taker(Protocol):
    """Who takes in what was held or recorded."""

    def hello(self, manifest: Manifest) -> None:
        """A run begins or goes on."""
        ...

    def rows(self, batch: FeatureBatch, *, replayed: bool) -> int:
        """Rows of a run, in order; returns how many were new."""
        ...

    def goodbye(self, boot_id: str) -> None:
        """A run ended."""
        ...


@dataclass(slots=True)
class _Held:
    since: float
    events: deque[Manifest | FeatureBatch | None] = field(default_factory=deque)
    """A hello, rows, or ``None`` for a goodbye."""


class CatchUp:
    """Stands between the wire and a correlator that was restarted.

    Args:
        core: what knows which rows it has.
        taker: who takes rows in.
        recorded: the recordings.
        clock: seconds.
        warn: told one sentence about what cannot be used.
    """

    def __init__(
        self,
        core: CorrelatorCore,
        taker: Taker,
        recorded: RecordedRows,
        clock: Callable[[], float],
        warn: Callable[[str], None],
    ) -> None:
        self.rows = 0
        """Rows taken from recordings."""
        self._core = core
        self._taker = taker
        self._recorded = recorded
        self._clock = clock
        self._warn = warn
        self._said: dict[str, Manifest] = {}
        self._unknown: set[str] = set()
        self._held: dict[str, _Held] = {}
        self._reading: Iterator[WireMessage] | None = recorded.read()
        self._first = True
        self._look_at = 0.0

    @property
    def busy(self) -> bool:
        """Whether there is something to do without waiting for the wire."""
        return self._reading is not None or bool(self._held)

    def holds(self, boot_id: str, event: Manifest | FeatureBatch | None) -> bool:
        """Offer what came over the wire; whether it is held, to be taken in a later turn."""
        held = self._held.get(boot_id)
        if held is None:
            if not (self._first or self._early(event)):
                return False
            held = self._held[boot_id] = _Held(self._clock())
        held.events.append(event)
        return True

    def turn(self) -> list[str]:
        """Do a little; returns the boots whose oldest held rows are done with, once per batch."""
        now = self._clock()
        until = now + SLICE_S
        if self._reading is None and self._held and now >= self._look_at:
            self._reading = self._recorded.read()
        if self._reading is not None:
            if not self._read(self._reading, until):
                return []
            self._reading, self._first = None, False
            self._look_at = self._clock() + LOOK_EVERY_S
        return self._release(until)

    def _early(self, event: Manifest | FeatureBatch | None) -> bool:
        return (
            isinstance(event, FeatureBatch)
            and self._core.gap(event) > 0
            and not self._recorded.complete
        )

    def _read(self, messages: Iterator[WireMessage], until: float) -> bool:
        """Take in recorded messages; whether there are no more."""
        while self._clock() < until:
            message = next(messages, None)
            if message is None:
                return True
            try:
                self._replay(message)
            except UserError as error:
                self._warn(f"recorded rows not used: {error}")
        return False

    def _replay(self, message: WireMessage) -> None:
        if isinstance(message, Hello):
            self._said[message.manifest.boot_id] = message.manifest
        elif isinstance(message, FeaturesMessage):
            self._replay_rows(message.batch)
        elif isinstance(message, Bye) and self._core.newest_boot(message.boot_id):
            self._taker.goodbye(message.boot_id)

    def _replay_rows(self, batch: FeatureBatch) -> None:
        if not self._core.wants(batch):
            return
        if not self._core.newest_boot(batch.boot_id):
            manifest = self._said.get(batch.boot_id)
            if manifest is None:
                if batch.boot_id not in self._unknown:
                    self._unknown.add(batch.boot_id)
                    self._warn(f"recorded rows not used: nothing says what boot {batch.boot_id} is")
                return
            self._taker.hello(manifest)
        held = self._held.get(batch.boot_id)
        first = None if held is None else _first_row(held)
        if first is not None and batch.steps.first_seq >= first:
            return  # The wire has it.
        self.rows += self._taker.rows(batch, replayed=True)

    def _release(self, until: float) -> list[str]:
        done: list[str] = []
        for boot_id in tuple(self._held):
            held = self._held[boot_id]
            waits = self._clock() - held.since < WAIT_S and not self._recorded.complete
            while held.events and self._clock() < until:
                event = held.events[0]
                if waits and isinstance(event, FeatureBatch) and self._core.gap(event):
                    break
                held.events.popleft()
                if isinstance(event, FeatureBatch):
                    done.append(boot_id)
                self._pass_on(boot_id, event)
            if not held.events:
                del self._held[boot_id]
        return done

    def _pass_on(self, boot_id: str, event: Manifest | FeatureBatch | None) -> None:
        if isinstance(event, Manifest):
            self._taker.hello(event)
        elif event is None:
            self._taker.goodbye(boot_id)
        else:
            try:
                self._taker.rows(event, replayed=False)
            except UserError as error:
                self._warn(f"rows not used: {error}")


def _first_row(held: _Held) -> int | None:
    for event in held.events:
        if isinstance(event, FeatureBatch):
            return event.steps.first_seq
    return None
