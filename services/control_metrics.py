"""The control service's Prometheus metrics: who is held, what is in force, what became of commands.

Agents are labelled by name, of which the service knows a bounded number; reasons and operations are
words of ours.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from prometheus_client import Counter as Count
from prometheus_client import Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from interlatent_live.control.machine import Mode

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from prometheus_client import CollectorRegistry
    from prometheus_client.core import Metric

    from interlatent_live.control.desk import Outcome
    from interlatent_live.control.wire import AgentState

PREFIX: Final = "interlatent_control"
BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)


@dataclass(frozen=True, slots=True)
class _Snapshot:
    modes: Mapping[str, int] = field(default_factory=dict)
    active: Mapping[str, int] = field(default_factory=dict)
    refused: Mapping[str, int] = field(default_factory=dict)
    kept: int = 0
    failed: int = 0


class ControlMetrics(Collector):
    """Scraped from the last snapshot, so from any thread."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._snapshot = _Snapshot()
        self._commands = Count(
            f"{PREFIX}_commands",
            "Commands by what became of them.",
            ["operation", "result"],
            registry=registry,
        )
        self._seconds = Histogram(
            f"{PREFIX}_answer_seconds",
            "From a command's arrival to the agent's answer.",
            ["operation"],
            registry=registry,
            buckets=BUCKETS,
        )
        registry.register(self)

    def count(self, outcome: Outcome) -> None:
        """A command is done with."""
        self._commands.labels(outcome.operation.value, outcome.result).inc()
        if outcome.result in {"accepted", "refused"}:
            self._seconds.labels(outcome.operation.value).observe(outcome.took_ns / 1e9)

    def update(
        self,
        agents: Sequence[tuple[str, AgentState | None]],
        refused: Mapping[str, int],
        *,
        kept: int,
        failed: int,
    ) -> None:
        """Take a snapshot; called by the service's loop."""
        modes: Counter[str] = Counter(
            "unknown" if state is None else state.mode.value for _, state in agents
        )
        active: Counter[str] = Counter()
        for name, state in agents:
            active[name] += 0 if state is None else sum(not one.dry_run for one in state.active)
        self._snapshot = _Snapshot(modes, active, dict(refused), kept, failed)

    def collect(self) -> Iterator[Metric]:
        """The last snapshot as families."""
        snapshot = self._snapshot
        modes = GaugeMetricFamily(f"{PREFIX}_agents", "Agents by mode.", labels=["mode"])
        for mode in (*Mode, "unknown"):
            modes.add_metric([str(mode)], snapshot.modes.get(str(mode), 0))
        yield modes
        active = GaugeMetricFamily(
            f"{PREFIX}_interventions_active", "Commands that intervene now.", labels=["agent"]
        )
        for name, count in snapshot.active.items():
            active.add_metric([name], count)
        yield active
        refused = CounterMetricFamily(
            f"{PREFIX}_refused", "Messages and commands refused here.", labels=["reason"]
        )
        for reason, count in snapshot.refused.items():
            refused.add_metric([reason], count)
        yield refused
        yield CounterMetricFamily(
            f"{PREFIX}_audit_entries", "Entries on the disk.", value=snapshot.kept
        )
        yield CounterMetricFamily(
            f"{PREFIX}_audit_failures", "Entries that the disk did not take.", value=snapshot.failed
        )
