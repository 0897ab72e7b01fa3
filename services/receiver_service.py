"""What every service that receives features has in common: sockets, the loop, the counts.

A correlator and an explainer differ in what they do with runs and rows, and in what they publish;
the rest is here once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import zmq

from interlatent_live.errors import UserError
from interlatent_live.logs import get_logger
from interlatent_live.services.publishing import FeedPublisher
from interlatent_live.services.receiving import open_receiver
from interlatent_live.wire.messages import FeaturesMessage, StepsMessage
from interlatent_live.wire.receiver_link import Asked, Deliver, Detached, Ended
from interlatent_live.wire.security import Domain

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from interlatent_live.config import ServiceName, Settings
    from interlatent_live.services.network import Network
    from interlatent_live.services.receiving import Received
    from interlatent_live.services.runtime import ServiceRuntime
    from interlatent_live.stream import FeatureBatch, Manifest

    Losses = Callable[[], Mapping[str, Mapping[str, int]]]
    """Rows that never came, by run and reason."""

LONGEST_POLL_MS = 20


class FeatureHandler(Protocol):
    """What a service does with the rows it receives; always called on the loop's thread."""

    def hello(self, manifest: Manifest, transcoders: Mapping[str, str]) -> None:
        """A run begins or goes on."""
        ...

    def features(self, batch: FeatureBatch) -> bool:
        """Rows, each delivered once; returns whether they are done with already."""
        ...

    def goodbye(self, boot_id: str) -> None:
        """A run ended; all its rows were delivered."""
        ...

    def turn(self, feed: FeedPublisher, lost: Losses) -> Sequence[str]:
        """Once per turn of the loop: publish what is due; ``lost`` looks at every stream's books.

        Returns the streams whose oldest rows are now done with, once per batch.
        """
        ...


class FeatureService:
    """A bound receiver of features and a feed, turned by one loop."""

    def __init__(
        self,
        name: ServiceName,
        settings: Settings,
        network: Network,
        handler: FeatureHandler,
    ) -> None:
        limits = settings.limits
        self._log = get_logger(f"services.{name}")
        self._handler = handler
        self._receiver = open_receiver(settings, network, name, Domain.SERVICES, server=name)
        self._feed = FeedPublisher(
            network, getattr(settings.endpoints, f"{name}_feed"), name, limits.feed_bytes
        )

    def run(self, runtime: ServiceRuntime, *, alive: Callable[[], None] = lambda: None) -> None:
        """Turn until stopped; ``alive`` raises when the handler cannot go on."""
        poller = zmq.Poller()
        for source in (self._receiver.socket, self._feed.socket, runtime.wakeup_fd):
            poller.register(source, zmq.POLLIN)
        while not runtime.stopping:
            runtime.beat()
            alive()
            poller.poll(LONGEST_POLL_MS)
            for received in self._receiver.receive():
                self._on_received(received)
            for received in self._receiver.tick():
                self._on_received(received)
            self._feed.welcome_viewers()
            for boot_id in self._handler.turn(self._feed, self.lost):
                self._receiver.processed(boot_id)

    def lost(self) -> dict[str, dict[str, int]]:
        """Rows that never came, by run and by declared reason or undeclared, over all its boots."""
        found: dict[str, dict[str, int]] = {}
        hub = self._receiver.hub
        for boot_id in hub.streams():
            counts = hub.counts(boot_id)
            if not counts.undeclared and not counts.declared:
                continue
            of_run = found.setdefault(hub.manifest(boot_id).run_id, {})
            for reason, rows in counts.declared.items():
                of_run[reason.value] = of_run.get(reason.value, 0) + rows
            if counts.undeclared:
                of_run["undeclared"] = of_run.get("undeclared", 0) + counts.undeclared
        return found

    def close(self) -> None:
        """Close the sockets."""
        self._feed.close()
        self._receiver.close()

    def _on_received(self, received: Received) -> None:
        match received:
            case Asked():
                manifest = received.hello.manifest
                self._handler.hello(manifest, received.hello.transcoders or {})
                self._receiver.accept(received)
                self._log.info("run", run=manifest.run_id, boot=manifest.boot_id)
            case Deliver(boot_id=boot_id, message=message):
                if self._take(boot_id, message):
                    self._receiver.processed(boot_id)
            case Ended(boot_id=boot_id):
                self._handler.goodbye(boot_id)
            case Detached(boot_id=boot_id):
                self._log.warning("encoder lost", boot=boot_id)

    def _take(self, boot_id: str, message: FeaturesMessage | StepsMessage) -> bool:
        """Give rows to the handler; returns whether they are done with."""
        if not isinstance(message, FeaturesMessage):
            return True
        try:
            return self._handler.features(message.batch)
        except UserError as error:
            self._log.warning("rows not used", boot=boot_id, why=str(error))
            return True
