"""The shards' feeds as one: what viewers subscribe to does not change with the number of shards.

Every document is asked for its lease: what a start of a shard says of a run whose slot has a newer
owner is refused and counted. Late joiners and holes in the numbers are this publisher's own, as
those of any service.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

from interlatent_live.feed.client import FeedClient
from interlatent_live.feed.documents import (
    AgentsDocument,
    AgentStatus,
    AlertsDocument,
    ProfilesDocument,
    Topic,
    agents_that_fit,
)
from interlatent_live.logs import get_logger
from interlatent_live.services.publishing import FeedPublisher
from interlatent_live.stream import FeatureBatch
from interlatent_live.wire.codec import encode_features
from interlatent_live.wire.limits import DEFAULT_LIMITS

if TYPE_CHECKING:
    from interlatent_live.config import Settings
    from interlatent_live.engine.leases import Leases
    from interlatent_live.feed.client import FeedEvent
    from interlatent_live.services.network import Network
    from interlatent_live.wire.keys import ClientKeys

STATUS_BYTES: Final = DEFAULT_LIMITS.document_bytes * 3 // 4
"""Of the agents in a list; the rest of the document is for what the encoders say of themselves."""
DOCUMENTS: Final = (Topic.AGENTS, Topic.PROFILES, Topic.ALERTS)

Start = tuple[str, int]
"""A start of a shard: its name and its epoch."""


class FeedMerger:
    """Subscribes to every shard that owns slots, and publishes in the place of one encoder and one
    correlator.

    Raises:
        UserError: when an endpoint is taken.
    """  # noqa: D205 - one sentence, too long for a line

    def __init__(
        self, network: Network, settings: Settings, leases: Leases, keys: ClientKeys | None
    ) -> None:
        endpoints, limit = settings.endpoints, settings.limits.feed_bytes
        self._leases = leases
        self._keys = keys
        self._encoder = FeedPublisher(network, endpoints.encoder_feed, "encoder", limit)
        self._correlator = FeedPublisher(network, endpoints.correlator_feed, "correlator", limit)
        self._clients: dict[Start, FeedClient] = {}
        self._agents: dict[Start, AgentsDocument] = {}
        self._shown: dict[str, AgentStatus] = {}
        self._features = False
        self.fenced = 0
        """Documents and batches of shards that own their run no more."""
        self._log = get_logger("services.gateway")

    def follow(self) -> None:
        """Leases changed: subscribe to who is new, and no longer to who owns nothing."""
        holders = self._leases.holders()
        for start in [one for one in self._clients if one not in holders]:
            self._clients.pop(start).close()
            self._agents.pop(start, None)
        for start, claim in holders.items():
            if start not in self._clients:
                topics = (*DOCUMENTS, Topic.FEATURES) if self._features else DOCUMENTS
                feeds = (claim.encoder_feed, claim.correlator_feed)
                self._clients[start] = FeedClient(feeds, topics, keys=self._keys)

    def turn(self) -> None:
        """Pass on what came."""
        for feed in (self._encoder, self._correlator):
            feed.welcome_viewers()
        wanted = self._encoder.wanted(Topic.FEATURES)
        if wanted != self._features:
            self._features = wanted
            for client in self._clients.values():
                client.subscribe(Topic.FEATURES, wanted=wanted)
        for start, client in tuple(self._clients.items()):
            for event in client.events(0.0):
                self.take(start, event)

    def take(self, start: Start, event: FeedEvent) -> None:
        """Publish what a start of a shard said, unless it is fenced."""
        value = event.value
        if isinstance(value, AgentsDocument):
            self._agents[start] = value
            self._publish_agents()
            return
        if not isinstance(value, (FeatureBatch, ProfilesDocument, AlertsDocument)):
            return
        if not self._leases.admits(*start, value.run_id):
            self.fenced += 1
            self._log.debug("fenced", shard=start[0], epoch=start[1], run=value.run_id)
        elif isinstance(value, FeatureBatch):
            self._encoder.forward(event.topic, encode_features(value, sent_ns=value.encoded_ns))
        elif isinstance(value, ProfilesDocument):
            key = f"{value.run_id}/{value.hook_point}"
            self._correlator.documents(Topic.PROFILES, value, key=key)
        else:
            self._correlator.documents(Topic.ALERTS, value, key=value.run_id)

    def _publish_agents(self) -> None:
        """One list of agents, each as the shard that owns it sees it."""
        agents = [
            one
            for start, document in self._agents.items()
            for one in document.agents
            if self._leases.admits(*start, one.run_id)
        ]
        shown = agents_that_fit(agents, STATUS_BYTES)
        services = {start[0]: document.service for start, document in self._agents.items()}
        service: dict[str, Any] = {
            "agents_known": sum(one.get("agents_known", 0) for one in services.values()),
            "agents_shown": len(shown),
            "shards": sorted(services),
            "consumers": [one for own in services.values() for one in own.get("consumers", ())],
        }
        document = AgentsDocument(agents=shown, service=service, published_ns=time.time_ns())
        self._encoder.documents(Topic.AGENTS, document)

    def close(self) -> None:
        """Close every socket."""
        for client in self._clients.values():
            client.close()
        self._encoder.close()
        self._correlator.close()
