"""The gateway: in the place of one encoder and one correlator, before several shards of them.

Agents, viewers and those who ask find it where they would find a system without shards; shards find
it where the encoder would send features, and claim their slots there. It holds no statistics and
decodes no rows. Which start of a shard speaks for a run is for the leases to say.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

import zmq
from prometheus_client import Gauge

from interlatent_live.engine.leases import Leases
from interlatent_live.services.claiming import ClaimDesk
from interlatent_live.services.gateway_agents import AgentRelay
from interlatent_live.services.gateway_feeds import FeedMerger
from interlatent_live.services.gateway_queries import QueryRelay
from interlatent_live.services.network import Network
from interlatent_live.services.runtime import ServiceRuntime
from interlatent_live.wire.keys import ServerKeys

if TYPE_CHECKING:
    from interlatent_live.config import Settings

LONGEST_POLL_MS: Final = 20
METRICS_EVERY_S: Final = 1.0


def serve(settings: Settings) -> None:
    """Run the gateway until it is told to stop.

    Raises:
        UserError: when an endpoint is taken.
    """
    endpoints = settings.endpoints
    with (
        ServiceRuntime("gateway", health=endpoints.encoder_health) as runtime,
        # Whoever asks for the correlator's health is answered too.
        ServiceRuntime("gateway", health=endpoints.correlator_health) as second,
        Network(settings.security.keys) as network,
    ):
        gateway = Gateway(settings, network)
        gauges = _Gauges(runtime)
        try:
            for one in (runtime, second):
                one.ready()
            while not (runtime.stopping or second.stopping):
                for one in (runtime, second):
                    one.beat()
                gateway.turn()
                gauges.update(gateway)
        finally:
            gateway.close()


class Gateway:
    """The gateway's sockets; :meth:`turn` does what there is to do."""

    def __init__(self, settings: Settings, network: Network) -> None:
        endpoints, keys = settings.endpoints, settings.security.keys
        viewer = None if keys is None else ServerKeys.load(keys).client()
        self._poller = zmq.Poller()
        self.leases = Leases()
        self.claims = ClaimDesk(network, endpoints.correlator, self.leases, self._poller)
        self.agents = AgentRelay(
            network, endpoints.agents, self.leases, self._poller, 4 * settings.limits.agents
        )
        self.feeds = FeedMerger(network, settings, self.leases, viewer)
        self.queries = QueryRelay(network, endpoints.correlator_queries, self.leases, self._poller)

    def turn(self) -> None:
        """Wait a little for something to do, and do it."""
        ready = {socket for socket, _ in self._poller.poll(LONGEST_POLL_MS)}
        if self.claims.turn():
            self.feeds.follow()
            self.queries.follow()
            self.agents.reroute()
        self.agents.turn(ready)
        self.queries.turn(self.agents.newest_run)
        self.feeds.turn()

    def close(self) -> None:
        """Close every socket."""
        for part in (self.agents, self.queries, self.feeds, self.claims):
            part.close()


class _Gauges:
    """What Prometheus is told."""

    def __init__(self, runtime: ServiceRuntime) -> None:
        self._due = 0.0

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"interlatent_gateway_{name}", text, registry=runtime.registry)

        self._shards = gauge("shards", "Shards that own slots.")
        self._agents = gauge("agents", "Connections of agents.")
        self._fenced = gauge("fenced", "Claims and documents of starts that are over, so far.")

    def update(self, gateway: Gateway) -> None:
        now = time.monotonic()
        if now >= self._due:
            self._due = now + METRICS_EVERY_S
            self._shards.set(len(gateway.leases.holders()))
            self._agents.set(gateway.agents.connections)
            self._fenced.set(gateway.claims.fenced + gateway.feeds.fenced)
