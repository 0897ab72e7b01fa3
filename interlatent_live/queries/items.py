"""What many answers are made of: sources, addresses, pairs, numbers that may be undefined."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from interlatent_live.feed.documents import DriftStatus
from interlatent_live.queries import messages as m
from interlatent_live.stream import FeatureAddress

if TYPE_CHECKING:
    from collections.abc import Sequence

    from interlatent_live.pipeline.correlator import Stream
    from interlatent_live.statistics.profile import ProfileTable
    from interlatent_live.stream import MetricSpec


def source(stream: Stream) -> m.Source:
    """What an answer about a stream rests on."""
    counts, run = stream.correlator.counts, stream.run
    return m.Source(
        run_id=run.manifest.run_id,
        agent=run.manifest.agent,
        hook_point=stream.hook_point,
        transcoder=stream.transcoder,
        n_features=stream.correlator.n_features,
        rows=counts.rows,
        left_out={
            name: getattr(counts, name)
            for name in ("steered", "no_activation", "bad_activations", "duplicates")
        },
        missing=stream.missing,
        processed_seq=run.next_seq,
        first_ns=stream.first_ns,
        newest_ns=stream.newest_ns,
        ended=run.ended,
    )


def drift_of(stream: Stream) -> list[DriftStatus]:
    """Drift alarms of a stream."""
    return [
        DriftStatus(
            hook_point=stream.hook_point,
            name=alarm.name,
            pane=alarm.pane,
            since_pane=alarm.since,
            evidence=alarm.evidence,
            bar=alarm.bar,
            reference_mean=alarm.reference_mean,
            recent_mean=alarm.recent_mean,
            false_alarm=alarm.false_alarm,
        )
        for alarm in stream.watch.alarms.values()
    ]


def address_of(stream: Stream, feature: int) -> str:
    """The full name of a feature."""
    return str(FeatureAddress(stream.hook_point, feature, stream.transcoder))


def metric_items(specs: Sequence[MetricSpec]) -> list[m.MetricItem]:
    """Metrics as an answer lists them."""
    return [
        m.MetricItem(
            name=spec.name, unit=spec.unit, role=str(spec.role), description=spec.description
        )
        for spec in specs
    ]


def pair_item(stream: Stream, table: ProfileTable, i: int, column: int) -> m.PairItem:
    """The pair of a table's row ``i`` and metric ``column``."""
    profile = table.profile(i)
    return m.PairItem(
        address=address_of(stream, profile.feature),
        feature=profile.feature,
        density=profile.density,
        association=profile.metrics[column],
    )


def numbers(values: Any) -> list[float | None]:
    """Numbers of an array, ``None`` where they are not finite."""
    return [number(value) for value in np.asarray(values, np.float64).tolist()]


def number(value: float) -> float | None:
    """A number, ``None`` when it is not finite."""
    return float(value) if np.isfinite(value) else None
