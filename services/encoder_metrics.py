"""The encoder's Prometheus metrics, brought up to date a few times a second, never per step."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from prometheus_client import CollectorRegistry
    from prometheus_client.core import Metric

    from interlatent_live.feed.documents import AgentStatus
    from interlatent_live.pipeline.encoder import EncoderCore
    from interlatent_live.pipeline.latency import LatencyHistogram
    from interlatent_live.pipeline.stages import StageTimes
    from interlatent_live.services.sending import FeatureSender

BOUNDS_MS = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 5000.0)
STAGE_BOUNDS_MS = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 200.0, 1000.0)


@dataclass(slots=True)
class VersionCounts:
    """Versions of transcoders that came while the service ran, counted by its loop."""

    adopted: int = 0
    refused: int = 0


@dataclass(frozen=True, slots=True)
class _Snapshot:
    agents: Sequence[AgentStatus] = ()
    latencies: Mapping[str, LatencyHistogram] = field(default_factory=dict)
    queued: Sequence[int] = ()
    """Bytes by consumer."""
    stages: Mapping[str, LatencyHistogram] = field(default_factory=dict)


class EncoderMetrics(Collector):
    """Counts and latencies by agent name; scraped from the last snapshot, so from any thread."""

    def __init__(
        self,
        registry: CollectorRegistry,
        core: EncoderCore,
        consumers: Sequence[FeatureSender],
        versions: VersionCounts,
        stages: StageTimes,
    ) -> None:
        self._core = core
        self._versions = versions
        self._stages = stages
        self._consumers = consumers
        self._snapshot = _Snapshot()
        registry.register(self)

    def update(self, agents: Sequence[AgentStatus]) -> None:
        """Take a snapshot; called by the service's loop, with the status that it publishes."""
        self._snapshot = _Snapshot(
            agents,
            self._core.latencies(),
            tuple(consumer.queued_bytes for consumer in self._consumers),
            self._stages.histograms(),
        )

    def collect(self) -> Iterable[Metric]:
        """The last snapshot as families; they are made when they are asked for, by who asks."""
        return self._families(self._snapshot)

    def _families(self, snapshot: _Snapshot) -> Iterable[Metric]:
        received = CounterMetricFamily(
            "interlatent_steps_received", "Steps received from agents.", labels=["agent"]
        )
        encoded = CounterMetricFamily(
            "interlatent_steps_encoded", "Steps turned into features.", labels=["agent"]
        )
        lost = CounterMetricFamily(
            "interlatent_steps_lost",
            "Steps that never arrived: declared by reason, or undeclared.",
            labels=["agent", "reason"],
        )
        fvu = GaugeMetricFamily(
            "interlatent_fvu_ratio",
            "Fraction of variance unexplained on the live stream.",
            labels=["agent", "hook_point"],
        )
        by_agent: dict[str, list[AgentStatus]] = {}
        for status in snapshot.agents:
            by_agent.setdefault(status.agent, []).append(status)
        for agent, runs in by_agent.items():
            received.add_metric([agent], sum(run.steps_received for run in runs))
            encoded.add_metric([agent], sum(run.steps_encoded for run in runs))
            reasons: dict[str, int] = {"undeclared": sum(run.gaps_undeclared for run in runs)}
            for run in runs:
                for reason, count in run.dropped_declared.items():
                    reasons[reason] = reasons.get(reason, 0) + count
            for reason, count in reasons.items():
                lost.add_metric([agent, reason], count)
            for hook in runs[-1].hook_points:
                if hook.fvu is not None:
                    fvu.add_metric([agent, hook.name], hook.fvu)
        versions = CounterMetricFamily(
            "interlatent_transcoder_versions",
            "Versions of transcoders that came while the encoder ran, by what became of them.",
            labels=["result"],
        )
        versions.add_metric(["adopted"], self._versions.adopted)
        versions.add_metric(["refused"], self._versions.refused)
        vanished = CounterMetricFamily(
            "interlatent_runs_vanished", "Runs that ended without a goodbye."
        )
        vanished.add_metric([], self._core.vanished)
        yield from (received, encoded, lost, fvu, versions, vanished)
        yield self._histograms(
            "interlatent_step_to_feature_seconds",
            "From the agent's step to its features.",
            "agent",
            snapshot.latencies,
            BOUNDS_MS,
        )
        yield self._histograms(
            "interlatent_encoder_stage_seconds",
            "What a message of steps waits before it is encoded, what encoding a micro-batch takes,"
            " and handing features on to the consumers.",
            "stage",
            snapshot.stages,
            STAGE_BOUNDS_MS,
        )
        yield self._links(snapshot)

    @staticmethod
    def _histograms(
        name: str,
        about: str,
        label: str,
        histograms: Mapping[str, LatencyHistogram],
        bounds_ms: tuple[float, ...],
    ) -> Metric:
        family = HistogramMetricFamily(name, about, labels=[label])
        for of, histogram in histograms.items():
            counts = histogram.cumulative(bounds_ms)
            buckets = [
                (str(bound / 1e3), float(count))
                for bound, count in zip(bounds_ms, counts, strict=True)
            ]
            buckets.append(("+Inf", float(histogram.n)))
            family.add_metric([of], buckets, sum_value=histogram.sum_ms / 1e3)
        return family

    @staticmethod
    def _links(snapshot: _Snapshot) -> Metric:
        queued = GaugeMetricFamily(
            "interlatent_consumer_queue_bytes",
            "Features that wait for a consumer's credit.",
            labels=["consumer"],
        )
        for number, size in enumerate(snapshot.queued):
            queued.add_metric([str(number)], size)
        return queued
