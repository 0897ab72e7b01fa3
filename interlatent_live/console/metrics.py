"""What HTTP clients cost and miss, for Prometheus; every label has few values, whoever asks what.

A request is timed until its answer begins, because a feed's answer does not end. The route is the
template that matched, never the path that was asked for, so that nobody can fill the memory with
series by asking for ever new paths.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from prometheus_client import Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client import CollectorRegistry
    from prometheus_client.core import Metric
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from interlatent_live.console.broadcast import Broadcast

PREFIX: Final = "interlatent_http"
BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
METHODS: Final = frozenset({"GET", "HEAD", "POST"})
OTHER: Final = "other"
PREFIXES: Final = ("/api/v1/statistics", "/api/v1")


class HttpMetrics(Collector):
    """ASGI middleware around the application; also shows what the feed's clients went through.

    Args:
        app: the application.
        broadcast: the ring that the feed's clients read.
        registry: the process's own.
    """

    def __init__(self, app: ASGIApp, broadcast: Broadcast, registry: CollectorRegistry) -> None:
        self._app = app
        self._broadcast = broadcast
        self._seconds = Histogram(
            f"{PREFIX}_request_seconds",
            "From a request to the beginning of its answer.",
            ["route", "method", "status"],
            registry=registry,
            buckets=BUCKETS,
        )
        self._sockets = Gauge(
            f"{PREFIX}_sockets", "Open WebSockets, by route.", ["route"], registry=registry
        )
        registry.register(self)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and time it."""
        if scope["type"] == "http":
            await self._timed(scope, receive, send)
        elif scope["type"] == "websocket":
            await self._counted(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _timed(self, scope: Scope, receive: Receive, send: Send) -> None:
        began = time.perf_counter()

        async def watched(message: Message) -> None:
            if message["type"] == "http.response.start":
                method = scope["method"] if scope["method"] in METHODS else OTHER
                status = f"{message['status'] // 100}xx"
                taken = time.perf_counter() - began
                self._seconds.labels(_route(scope), method, status).observe(taken)
            await send(message)

        await self._app(scope, receive, watched)

    async def _counted(self, scope: Scope, receive: Receive, send: Send) -> None:
        accepted: Gauge | None = None

        async def watched(message: Message) -> None:
            nonlocal accepted
            if message["type"] == "websocket.accept":
                accepted = self._sockets.labels(_route(scope))
                accepted.inc()
            await send(message)

        try:
            await self._app(scope, receive, watched)
        finally:
            if accepted is not None:
                accepted.dec()

    def collect(self) -> Iterator[Metric]:
        """The feed's clients, as the ring counts them."""
        counts = self._broadcast.counts()
        clients = GaugeMetricFamily(f"{PREFIX}_feeds", "Open feeds, by kind.", labels=["client"])
        missed = CounterMetricFamily(
            f"{PREFIX}_feed_events_missed",
            "Events that were gone before a client came to them, by its kind.",
            labels=["client"],
        )
        for kind, count in counts.clients.items():
            clients.add_metric([kind.value], count)
            missed.add_metric([kind.value], counts.missed[kind])
        yield clients
        yield missed
        yield CounterMetricFamily(
            f"{PREFIX}_feeds_refused", "Feeds turned away: too many.", value=counts.refused
        )
        yield CounterMetricFamily(
            f"{PREFIX}_feed_events", "Events published to feeds.", value=counts.published
        )
        yield GaugeMetricFamily(
            f"{PREFIX}_feed_bytes", "Bytes of events kept for clients.", value=counts.held_bytes
        )


def _route(scope: Scope) -> str:
    """The template that matched, behind its router's prefix, which FastAPI leaves out over HTTP."""
    template = getattr(scope.get("route"), "path", None)
    if template is None:
        return OTHER
    prefix = next((one for one in PREFIXES if scope["path"].startswith(f"{one}/")), "")
    return str(template) if template.startswith(f"{prefix}/") else f"{prefix}{template}"
