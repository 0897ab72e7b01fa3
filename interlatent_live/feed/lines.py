"""The feed as JSON lines: every document whole, and the present of every agent copy.

One object a line with ``topic``, ``time_ns`` and ``value``. Feature batches become topic ``now``
(the newest step of each copy, at most once per poll) or, on request, topic ``step`` (every row).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from interlatent_live.feed.documents import document_payload
from interlatent_live.feed.state import FeedState, active_features
from interlatent_live.stream import FeatureBatch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from interlatent_live.feed.client import FeedEvent
    from interlatent_live.feed.state import CopyNow


class JsonLines:
    """Feed events in, JSON-ready objects out."""

    def __init__(self, *, every_step: bool = False) -> None:
        self.state = FeedState()
        self._every_step = every_step
        self._shown: dict[tuple[str, str, int], tuple[int, int]] = {}

    def take(self, event: FeedEvent) -> Iterator[dict[str, Any]]:
        """What to write because of one event."""
        self.state.take(event)
        value = event.value
        if isinstance(value, FeatureBatch):
            if self._every_step:
                yield from self._rows(value, event.received_ns)
            return
        yield {
            "topic": event.topic.value,
            "time_ns": event.received_ns,
            "value": document_payload(value),
        }

    def present(self) -> Iterator[dict[str, Any]]:
        """The newest step of every copy that has moved since the last call."""
        if self._every_step:
            return
        for (run_id, boot_id), run in self.state.runs.items():
            for env, copy in run.copies.items():
                key, at = (run_id, boot_id, env), (copy.episode, copy.t)
                if self._shown.get(key) == at:
                    continue
                self._shown[key] = at
                yield {"topic": "now", "time_ns": copy.time_ns, "value": _copy(run_id, env, copy)}

    def _rows(self, batch: FeatureBatch, received_ns: int) -> Iterator[dict[str, Any]]:
        steps = batch.steps
        names = self.state.metric_names(batch.run_id)
        for row in range(len(steps)):
            yield {
                "topic": "step",
                "time_ns": received_ns,
                "value": {
                    "run_id": batch.run_id,
                    "seq": steps.first_seq + row,
                    "env": int(steps.env[row]),
                    "episode": int(steps.episode[row]),
                    "t": int(steps.t[row]),
                    "metrics": _finite(dict(zip(names, steps.metrics[row].tolist(), strict=False))),
                    "features": {
                        hook: dict(active_features(codes, row))
                        for hook, codes in batch.codes.items()
                    },
                },
            }


def _copy(run_id: str, env: int, copy: CopyNow) -> dict[str, Any]:
    return {
        "run_id": run_id,
        "env": env,
        "episode": copy.episode,
        "t": copy.t,
        "metrics": _finite(copy.metrics),
        "features": {hook: dict(active) for hook, active in copy.active.items()},
    }


def _finite(metrics: dict[str, float]) -> dict[str, float | None]:
    """JSON has no NaN: an absent metric is null."""
    return {name: value if abs(value) < float("inf") else None for name, value in metrics.items()}
