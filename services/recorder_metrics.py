"""The recorder's Prometheus metrics, brought up to date by its loop about once a second."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from interlatent_live.recordings.recorder import RecorderCounts

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from prometheus_client import CollectorRegistry
    from prometheus_client.metrics_core import Metric

    from interlatent_live.recordings.recorder import Recorder


@dataclass(frozen=True, slots=True)
class _Snapshot:
    counts: RecorderCounts = field(default_factory=RecorderCounts)
    lost: Mapping[str, int] = field(default_factory=dict)
    missed: int = 0
    failing: bool = False
    unwritten: int = 0


class RecorderMetrics(Collector):
    """What a recorder says of itself; a scrape reads what was last written."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._snapshot = _Snapshot()
        registry.register(self)

    def update(self, recorder: Recorder, lost: Mapping[str, int], *, missed: int) -> None:
        """Take a snapshot; ``lost`` is by reason, ``missed`` are documents of the feeds."""
        self._snapshot = _Snapshot(
            replace(recorder.counts), lost, missed, bool(recorder.error), recorder.unwritten_bytes
        )

    def collect(self) -> Iterator[Metric]:
        """The last snapshot as families."""
        one = self._snapshot
        counts = one.counts
        for name, help_, value in (
            ("bytes", "Bytes handed to the operating system.", counts.bytes),
            ("files", "Files begun.", counts.files),
            ("chunks", "Chunks written.", counts.chunks),
            ("rows", "Rows written.", counts.rows),
            ("documents", "Documents and pictures written.", counts.documents),
            ("files_removed", "Files that retention removed.", counts.removed),
            ("failures", "Times the disk refused.", counts.failures),
        ):
            yield CounterMetricFamily(f"interlatent_recorded_{name}", help_, value=value)
        yield CounterMetricFamily(
            "interlatent_recorder_pictures_skipped",
            "Pictures beyond the bytes that they may take.",
            value=counts.pictures_skipped,
        )
        missed = CounterMetricFamily(
            "interlatent_recorder_documents_missed",
            "Documents that are in no file, by why.",
            labels=["reason"],
        )
        missed.add_metric(["feed"], one.missed)
        missed.add_metric(["disk"], counts.documents_missed)
        missed.add_metric(["redacted"], counts.documents_redacted)
        yield missed
        lost = GaugeMetricFamily(
            "interlatent_recorder_rows_lost",
            "Rows of the streams known now that never came, by reason.",
            labels=["reason"],
        )
        for reason, rows in one.lost.items():
            lost.add_metric([reason], rows)
        yield lost
        yield GaugeMetricFamily(
            "interlatent_recorder_failing",
            "1 while nothing can be written.",
            value=int(one.failing),
        )
        yield GaugeMetricFamily(
            "interlatent_recorder_unwritten_bytes",
            "Bytes of rows that wait for their chunk.",
            value=one.unwritten,
        )
