"""What a viewer knows: documents and feature batches reduced to the present, and nothing more.

Pure and bounded: the terminal view, the JSON lines and the headless report all read this state, so
they can't disagree.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from interlatent_live.feed.documents import (
    AgentsDocument,
    AgentStatus,
    AlertsDocument,
    ClaimsDocument,
    CostsDocument,
    NarrationDocument,
    ProfilesDocument,
)
from interlatent_live.pipeline.latency import LatencyHistogram
from interlatent_live.stream import EPISODE_END, FeatureBatch

if TYPE_CHECKING:
    import msgspec

    from interlatent_live.feed.client import FeedEvent
    from interlatent_live.stream import SparseCodes

NARRATION_KEPT = 200


@dataclass(slots=True)
class CopyNow:
    """The newest step of one agent copy."""

    episode: int
    t: int
    time_ns: int
    ended: bool
    metrics: dict[str, float]
    active: dict[str, list[tuple[int, float]]]
    """By hook point: (feature, activation), strongest first."""


@dataclass(slots=True)
class RunView:
    """One run as this viewer has seen it on the features topic."""

    next_seq: int | None = None
    steps_seen: int = 0
    steps_missed: int = 0
    copies: dict[int, CopyNow] = field(default_factory=dict)


class FeedState:
    """Feed events in, the present out.

    ``max_runs`` and ``max_copies`` bound the memory whatever a feed sends.
    """

    def __init__(self, *, max_runs: int = 64, max_copies: int = 64) -> None:
        self.agents: AgentsDocument | None = None
        self.profiles: dict[tuple[str, str], ProfilesDocument] = {}
        self.claims: dict[tuple[str, str], ClaimsDocument] = {}
        self.alerts: dict[str, AlertsDocument] = {}
        self.costs: CostsDocument | None = None
        self.narration: deque[NarrationDocument] = deque(maxlen=NARRATION_KEPT)
        self.runs: dict[tuple[str, str], RunView] = {}
        self.step_to_feed = LatencyHistogram()
        self._max_runs = max_runs
        self._max_copies = max_copies

    def take(self, event: FeedEvent) -> None:
        """Take in whatever a feed client received."""
        if isinstance(event.value, FeatureBatch):
            self.on_features(event.value, event.received_ns)
        else:
            self.on_document(event.value)

    def on_document(self, document: msgspec.Struct) -> None:
        """Take in one parsed document."""
        match document:
            case AgentsDocument():
                self.agents = document
            case ProfilesDocument(run_id=run, hook_point=hook):
                self._bounded(self.profiles, (run, hook), document)
            case ClaimsDocument(run_id=run, hook_point=hook):
                self._bounded(self.claims, (run, hook), document)
            case AlertsDocument(run_id=run):
                self._bounded(self.alerts, run, document)
            case CostsDocument():
                self.costs = document
            case NarrationDocument():
                self.narration.append(document)
            case _:
                raise TypeError(f"{type(document).__name__} is not a feed document")

    def on_features(self, batch: FeatureBatch, received_ns: int) -> None:
        """Take in one feature batch; a hole in its numbering counts as missed by this viewer."""
        key = (batch.run_id, batch.boot_id)
        run = self.runs.get(key)
        if run is None:
            if len(self.runs) >= self._max_runs:
                del self.runs[next(iter(self.runs))]
            run = self.runs[key] = RunView()
        steps = batch.steps
        count = len(steps)
        if count == 0:
            return
        if run.next_seq is not None:
            run.steps_missed += max(0, steps.first_seq - run.next_seq)
        run.next_seq = max(run.next_seq or 0, steps.first_seq + count)
        run.steps_seen += count
        self.step_to_feed.observe((received_ns - steps.time_ns) / 1e6)
        names = self.metric_names(batch.run_id)
        newest = {int(env): row for row, env in enumerate(steps.env)}
        for env, row in newest.items():
            if env not in run.copies and len(run.copies) >= self._max_copies:
                continue
            run.copies[env] = CopyNow(
                episode=int(steps.episode[row]),
                t=int(steps.t[row]),
                time_ns=int(steps.time_ns[row]),
                ended=bool(steps.flags[row] & EPISODE_END),
                metrics=dict(zip(names, steps.metrics[row].tolist(), strict=False)),
                active={hook: active_features(codes, row) for hook, codes in batch.codes.items()},
            )

    def agent(self, run_id: str) -> AgentStatus | None:
        """The encoder's status of a run, its newest boot."""
        if self.agents is None:
            return None
        found = [status for status in self.agents.agents if status.run_id == run_id]
        return found[-1] if found else None

    def settled(self, run_id: str) -> bool:
        """Whether the run ended and the statistics and claims have seen all of it."""
        status = self.agent(run_id)
        if status is None or not status.ended or status.steps_sent is None:
            return False
        for hook in status.hook_points:
            profiles = self.profiles.get((run_id, hook.name))
            claims = self.claims.get((run_id, hook.name))
            if profiles is None or profiles.processed_seq < status.steps_sent:
                return False
            if claims is None or not claims.final:
                return False
        return bool(status.hook_points)

    def claim_by_address(self) -> dict[str, dict[str, Any]]:
        """Every claim of every run by feature address."""
        return {
            claim["address"]: claim
            for document in self.claims.values()
            for claim in document.claims
        }

    def metric_names(self, run_id: str) -> list[str]:
        """Names of a run's metric columns; empty until the encoder reported the run."""
        status = self.agent(run_id)
        return [metric["name"] for metric in status.metrics] if status else []

    def _bounded(self, kept: dict[Any, Any], key: Any, value: Any) -> None:
        kept.pop(key, None)
        if len(kept) >= self._max_runs:
            del kept[next(iter(kept))]
        kept[key] = value


def active_features(codes: SparseCodes, row: int) -> list[tuple[int, float]]:
    """Features that are on in one row, strongest first, as (index, activation)."""
    start, stop = int(codes.indptr[row]), int(codes.indptr[row + 1])
    order = np.argsort(-codes.value[start:stop], kind="stable")
    return [(int(codes.index[start + i]), float(codes.value[start + i])) for i in order.tolist()]
