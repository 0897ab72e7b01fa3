"""What a network does: delay, cuts, messages doubled and out of order."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, ClassVar

from interlatent_live.bench.chaos.faults.byte_proxy import ByteProxy
from interlatent_live.bench.chaos.faults.fault import Fault
from interlatent_live.bench.chaos.faults.message_proxy import Duplicates, MessageProxy, Reorders
from interlatent_live.bench.chaos.rig import port_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import ExitStack

    from interlatent_live.bench.chaos.agent_process import AgentProcess
    from interlatent_live.bench.chaos.measure import Outcome
    from interlatent_live.bench.chaos.rig import Rig

EVERY_S = 0.7
"""Pause between two cuts: shorter than it takes to reconnect with backoff, now and then."""


class _ThroughBytes(Fault):
    """The agent reaches the encoder through a byte proxy."""

    proxy: ByteProxy

    def prepare(self, rig: Rig, stack: ExitStack) -> str:
        """Put the proxy in between."""
        self.proxy = stack.enter_context(ByteProxy(*port_of(rig.endpoint)))
        return self.proxy.endpoint


class Delay(_ThroughBytes):
    """A long way."""

    name = "network delays 100 ms"
    about = "a byte proxy holds everything for 100 ms, in both directions"

    def strike(self, rig: Rig, agent: AgentProcess) -> None:
        """Lengthen the way."""
        del rig, agent
        self.proxy.delay_s = 0.1

    def lift(self, rig: Rig, agent: AgentProcess) -> None:
        """Shorten it."""
        del rig, agent
        self.proxy.delay_s = 0.0


class _Repeated(_ThroughBytes):
    """Something that the proxy does over and over."""

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def prepare(self, rig: Rig, stack: ExitStack) -> str:
        """Stop before the proxy does."""
        endpoint = super().prepare(rig, stack)
        stack.callback(self._end)
        return endpoint

    def strike(self, rig: Rig, agent: AgentProcess) -> None:
        """Begin."""
        del rig, agent
        self._thread = threading.Thread(target=self._repeat, daemon=True)
        self._thread.start()

    def lift(self, rig: Rig, agent: AgentProcess) -> None:
        """End."""
        del rig, agent
        self._end()

    def act(self) -> None:
        """Once."""
        raise NotImplementedError

    def _repeat(self) -> None:
        self.act()
        while not self._stop.wait(EVERY_S):
            self.act()

    def _end(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None


class Cuts(_Repeated):
    """Connections that break."""

    name = "network cuts"
    about = "a byte proxy resets the connection every 0.7 s"

    def act(self) -> None:
        """Reset it."""
        self.proxy.cut()


class Truncates(_Repeated):
    """Connections that break in the middle of a message."""

    name = "network truncates"
    about = "every 0.7 s a byte proxy passes half of a chunk on and resets the connection"

    def act(self) -> None:
        """Break off."""
        self.proxy.truncate()


class _ThroughMessages(Fault):
    """The agent reaches the encoder through a message proxy."""

    proxy: MessageProxy
    make: ClassVar[Callable[[], Duplicates | Reorders]]
    meddle: Duplicates | Reorders

    def prepare(self, rig: Rig, stack: ExitStack) -> str:
        """Put the proxy in between."""
        self.proxy = stack.enter_context(MessageProxy(rig.endpoint))
        return self.proxy.endpoint

    def strike(self, rig: Rig, agent: AgentProcess) -> None:
        """Begin."""
        del rig, agent
        self.meddle = type(self).make()
        self.proxy.meddle = self.meddle

    def lift(self, rig: Rig, agent: AgentProcess) -> None:
        """End."""
        del rig, agent
        self.proxy.meddle = None

    def complaints(self, rig: Rig, outcome: Outcome) -> tuple[str, ...]:
        """It has to have happened."""
        del rig, outcome
        return () if self.meddle.count else ("the proxy changed nothing",)


class Duplicated(_ThroughMessages):
    """Messages that come twice."""

    name = "messages duplicated"
    about = "a message proxy says every tenth message twice, some of them once more later"
    make = Duplicates


class Reordered(_ThroughMessages):
    """Messages that overtake each other."""

    name = "messages reordered"
    about = "a message proxy lets one or two messages overtake every tenth"
    make = Reorders
