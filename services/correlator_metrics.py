"""The correlator's Prometheus metrics: rows, questions, alerts, and the values that rules speak of.

Brought up to date by the service's loop about once a second; a scrape on another thread only reads
what was last written. Labels are bounded: rules and receivers are the configuration's, and values
are told of the newest runs that go on.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from interlatent_live.statistics.rules import Phase

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from prometheus_client import CollectorRegistry
    from prometheus_client.metrics_core import Metric

    from interlatent_live.alerts.delivery import Delivery
    from interlatent_live.alerts.rules_engine import RulesEngine
    from interlatent_live.pipeline.correlator import CorrelatorCore
    from interlatent_live.services.querying import QueryServer

MOST_RUNS: Final = 64
"""Runs whose values are told."""


@dataclass(frozen=True, slots=True)
class _Snapshot:
    rows: int = 0
    missing: int = 0
    replayed: int = 0
    held_bytes: int = 0
    answered: int = 0
    refused: int = 0
    slowest_s: float = 0.0
    phases: Mapping[tuple[str, str], int] = field(default_factory=dict)
    """Hook points by rule and phase."""
    values: Mapping[tuple[str, str, str], float] = field(default_factory=dict)
    """By run, hook point and name."""
    deliveries: Mapping[str, Mapping[str, int]] = field(default_factory=dict)


class CorrelatorMetrics(Collector):
    """What a correlator says of itself."""

    def __init__(
        self,
        registry: CollectorRegistry,
        core: CorrelatorCore,
        rules: RulesEngine,
        deliveries: Sequence[Delivery],
        queries: QueryServer,
    ) -> None:
        self._core = core
        self._rules = rules
        self._deliveries = tuple(deliveries)
        self._queries = queries
        self._snapshot = _Snapshot()
        registry.register(self)

    def update(self, replayed: int) -> None:
        """Take a snapshot; ``replayed``: rows taken from recordings."""
        streams = self._core.streams()
        runs = [run.manifest.run_id for run in self._core.runs() if not run.ended][:MOST_RUNS]
        phases = Counter({(one.rule.name, str(p)): 0 for one in self._rules.rules for p in Phase})
        for run in self._core.runs():
            for status in self._rules.statuses(run.manifest.run_id):
                phases[status.rule, status.phase] += 1
        self._snapshot = _Snapshot(
            rows=sum(stream.correlator.counts.rows for stream in streams),
            missing=sum(stream.missing for stream in streams),
            replayed=replayed,
            held_bytes=self._core.nbytes,
            answered=self._queries.answered,
            refused=self._queries.refused,
            slowest_s=self._queries.slowest_ms / 1e3,
            phases=phases,
            values=self._rules.values(runs),
            deliveries={one.receiver.name: one.counts() for one in self._deliveries},
        )

    def collect(self) -> Iterator[Metric]:
        """The last snapshot as families."""
        one = self._snapshot
        yield GaugeMetricFamily(
            "interlatent_statistics_rows",
            "Rows in the statistics of all hook points kept.",
            value=one.rows,
        )
        yield GaugeMetricFamily(
            "interlatent_rows_missing",
            "Rows that came before a restart, in no snapshot and no recording.",
            value=one.missing,
        )
        yield _counter("rows_replayed", "Rows taken from recordings at a restart.", one.replayed)
        yield GaugeMetricFamily(
            "interlatent_statistics_bytes", "Bytes of all tables.", value=one.held_bytes
        )
        yield _counter("queries_answered", "Questions answered.", one.answered)
        yield _counter("queries_refused", "Questions refused.", one.refused)
        yield GaugeMetricFamily(
            "interlatent_query_slowest_seconds",
            "Longest answer since the start.",
            value=one.slowest_s,
        )
        yield from self._alerts(one)

    @staticmethod
    def _alerts(one: _Snapshot) -> Iterator[Metric]:
        alerts = GaugeMetricFamily(
            "interlatent_alerts", "Hook points by rule and phase.", labels=["rule", "phase"]
        )
        for (rule, phase), count in one.phases.items():
            alerts.add_metric([rule, phase], count)
        yield alerts
        values = GaugeMetricFamily(
            "interlatent_value",
            "Values that alert rules speak of, at their last evaluation.",
            labels=["run", "hook_point", "name"],
        )
        for (run, hook_point, name), value in one.values.items():
            values.add_metric([run, hook_point, name], value)
        yield values
        told = CounterMetricFamily(
            "interlatent_alert_deliveries",
            "Attempts to tell a receiver, by what became of them.",
            labels=["receiver", "result"],
        )
        waiting = GaugeMetricFamily(
            "interlatent_alert_deliveries_waiting", "Alerts not told yet.", labels=["receiver"]
        )
        for receiver, counts in one.deliveries.items():
            for result in ("delivered", "failed", "dropped"):
                told.add_metric([receiver, result], counts[result])
            waiting.add_metric([receiver], counts["waiting"])
        yield from (told, waiting)


def _counter(name: str, help_: str, value: int) -> CounterMetricFamily:
    return CounterMetricFamily(f"interlatent_{name}", help_, value=value)
