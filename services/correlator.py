"""The correlator service: features in, statistics of every feature with every metric out."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from interlatent_live.feed.documents import Topic
from interlatent_live.pipeline.correlator import CorrelatorCore
from interlatent_live.services.network import Network
from interlatent_live.services.receiver_service import FeatureService
from interlatent_live.services.runtime import ServiceRuntime
from interlatent_live.statistics.config import CorrelatorConfig

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from interlatent_live.config import Settings
    from interlatent_live.feed.documents import ProfilesDocument
    from interlatent_live.services.publishing import FeedPublisher
    from interlatent_live.stream import FeatureBatch, Manifest


def serve(settings: Settings) -> None:
    """Run the correlator until it is told to stop.

    Raises:
        UserError: when an endpoint is taken.
    """
    with (
        ServiceRuntime(
            "correlator",
            health=settings.endpoints.correlator_health,
            budget=settings.buffers("correlator"),
        ) as runtime,
        Network(settings.security.keys) as network,
    ):
        service = FeatureService("correlator", settings, network, CorrelatorShell(settings))
        try:
            runtime.ready()
            service.run(runtime)
        finally:
            service.close()


class CorrelatorShell:
    """Feeds the core and publishes its profiles at a steady pace."""

    def __init__(self, settings: Settings) -> None:
        options = settings.correlator
        config = (
            CorrelatorConfig.core()
            if options.depth == "core"
            else CorrelatorConfig(
                pane_steps=options.pane_steps,
                half_lives=options.half_lives,
                sliding=options.sliding,
            )
        )
        self._core = CorrelatorCore(
            config, clock=time.time_ns, limit_bytes=settings.limits.statistics_bytes
        )
        self._every_s = options.publish_every_s
        self._runs: dict[str, str] = {}
        self._due = 0.0
        self._publishing: Iterator[ProfilesDocument] | None = None
        self._began = self._spent = 0.0

    def hello(self, manifest: Manifest, transcoders: Mapping[str, str]) -> None:
        """A run begins or goes on."""
        del transcoders  # every batch names its own
        self._runs[manifest.boot_id] = manifest.run_id
        self._core.hello(manifest)

    def features(self, batch: FeatureBatch) -> bool:
        """Add rows to the statistics."""
        self._core.features(batch)
        return True

    def goodbye(self, boot_id: str) -> None:
        """A run ended: publish at once."""
        self._core.goodbye(self._runs.pop(boot_id, ""))
        self._due, self._publishing = 0.0, None

    def turn(self, feed: FeedPublisher, lost: Mapping[str, int]) -> list[str]:
        """Publish the profiles of what changed, when it is time: one a turn, rows come first."""
        now = time.monotonic()
        if self._publishing is None:
            if now < self._due:
                return []
            self._publishing, self._began, self._spent = self._core.documents(dict(lost)), now, 0.0
        document = next(self._publishing, None)
        if document is None:
            self._publishing = None
            # Never more than a fifth of the time, however many features there are.
            self._due = self._began + max(self._every_s, 5 * self._spent)
        else:
            key = f"{document.run_id}/{document.hook_point}"
            feed.documents(Topic.PROFILES, document, key=key)
            self._spent += time.monotonic() - now
        return []
