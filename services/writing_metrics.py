"""What wording costs, for Prometheus; read when it is asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from prometheus_client import CollectorRegistry
    from prometheus_client.metrics_core import Metric

    from interlatent_live.feed.documents import CostsDocument

PREFIX = "interlatent_writer"


class WriterMetrics(Collector):
    """Requests, tokens and money of one explainer, as ``costs`` tells them."""

    def __init__(self, costs: Callable[[], CostsDocument], registry: CollectorRegistry) -> None:
        self._costs = costs
        registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """One sample of each."""
        costs = self._costs()
        yield CounterMetricFamily(
            f"{PREFIX}_requests", "Requests sent to the writer.", value=costs.requests
        )
        tokens = CounterMetricFamily(
            f"{PREFIX}_tokens", "Tokens, by direction.", labels=["direction"]
        )
        tokens.add_metric(["input"], costs.input_tokens)
        tokens.add_metric(["output"], costs.output_tokens)
        yield tokens
        yield CounterMetricFamily(
            f"{PREFIX}_dollars", "US dollars spent since the start.", value=costs.dollars
        )
        yield GaugeMetricFamily(
            f"{PREFIX}_dollars_limit", "US dollars that may be spent.", value=costs.limit_dollars
        )
        if costs.dollars_per_hour is not None:
            yield GaugeMetricFamily(
                f"{PREFIX}_dollars_per_hour", "Over the last hour.", value=costs.dollars_per_hour
            )
        if costs.claims:
            yield GaugeMetricFamily(
                f"{PREFIX}_dollars_per_claim",
                "Mean over the claims that a model worded or judged.",
                value=costs.dollars / len(costs.claims),
            )
        opinions = sum(claim.opinion_dollars for claim in costs.claims)
        yield CounterMetricFamily(
            f"{PREFIX}_opinion_dollars", "US dollars spent on second opinions.", value=opinions
        )
        refused = CounterMetricFamily(
            f"{PREFIX}_refused", "Requests that were not sent, by reason.", labels=["reason"]
        )
        for reason, count in sorted(costs.refused.items()):
            refused.add_metric([reason], count)
        yield refused
