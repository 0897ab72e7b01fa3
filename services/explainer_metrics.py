"""What the explainer holds and has said, for Prometheus; read when it is asked for."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from interlatent_live.explanations.triggers import TriggerKind
from interlatent_live.explanations.truth import Citations
from interlatent_live.explanations.verification import Verdict
from interlatent_live.feed.documents import ClaimsDocument

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from prometheus_client import CollectorRegistry
    from prometheus_client.metrics_core import Metric

    from interlatent_live.feed.documents import NarrationDocument

INTERVAL: Final = "interval"
"""What had the narrator speak where nothing had happened."""
MOST_SOURCES: Final = 256
"""Runs and hook points whose newest claims are counted; the oldest go first."""


class ExplainerMetrics(Collector):
    """Claims by verdict, narrated intervals and the evidence behind them.

    Args:
        evidence_bytes: bytes of all rows that are held.
        registry: the process's own.
    """

    def __init__(self, evidence_bytes: Callable[[], int], registry: CollectorRegistry) -> None:
        self._evidence_bytes = evidence_bytes
        self._claims: dict[tuple[str, str], Counter[str]] = {}
        self._narrated: Counter[str] = Counter()
        self._truth = Citations()
        registry.register(self)

    def note(self, document: ClaimsDocument | NarrationDocument) -> None:
        """Take in what is published; called by the service's loop."""
        if not isinstance(document, ClaimsDocument):
            self._narrated[INTERVAL if document.trigger is None else document.trigger.kind] += 1
            if document.truth is not None:
                found = document.truth
                self._truth += Citations(found.cited, found.true, found.still)
            return
        source = (document.run_id, document.hook_point)
        claims = {**self._claims}
        claims.pop(source, None)
        claims[source] = Counter(str(one["verdict"]) for one in document.claims)
        while len(claims) > MOST_SOURCES:
            del claims[next(iter(claims))]
        # Replaced whole: whoever scrapes reads it on another thread.
        self._claims = claims

    def collect(self) -> Iterator[Metric]:
        """The newest counts as families."""
        claims = GaugeMetricFamily(
            "interlatent_claims",
            "Claims by verdict, of the runs and hook points heard of last.",
            labels=["verdict"],
        )
        totals: Counter[str] = Counter()
        for counts in self._claims.values():
            totals.update(counts)
        for verdict in Verdict:
            claims.add_metric([verdict.value], totals[verdict.value])
        yield claims
        narrations = CounterMetricFamily(
            "interlatent_narrations",
            "Intervals that were narrated, by what had the narrator speak.",
            labels=["trigger"],
        )
        for trigger in (INTERVAL, *TriggerKind):
            narrations.add_metric([str(trigger)], self._narrated[trigger])
        yield narrations
        cited = CounterMetricFamily(
            "interlatent_narration_predicates",
            "Predicates cited by the narrator: all, those that held in their interval, and those "
            "that still held when their line was published.",
            labels=["outcome"],
        )
        truth = self._truth
        for outcome, count in (
            ("cited", truth.cited),
            ("true", truth.true),
            ("still", truth.still),
        ):
            cited.add_metric([outcome], count)
        yield cited
        yield GaugeMetricFamily(
            "interlatent_evidence_bytes",
            "Bytes of the steps that claims are scored on.",
            value=self._evidence_bytes(),
        )
