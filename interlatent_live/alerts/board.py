"""The alerts of a run as viewers see them: rules, drift and conformal alarms of its hook points."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from interlatent_live.feed.documents import AlertsDocument, ConformalStatus
from interlatent_live.queries.items import drift_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from interlatent_live.alerts.delivery import Delivery
    from interlatent_live.alerts.rules_engine import RulesEngine
    from interlatent_live.pipeline.correlator import CorrelatorCore, Stream


@dataclass(frozen=True, slots=True)
class AlertBoard:
    """Reads the watches of one core; ``clock`` is the wall clock in ns."""

    core: CorrelatorCore
    clock: Callable[[], int]
    rules: RulesEngine
    deliveries: tuple[Delivery, ...] = ()

    def document(self, run_id: str) -> AlertsDocument:
        """The document of a run.

        Raises:
            UserError: when there is no such run.
        """
        run = self.core.find_run(run_id)
        statuses = self.rules.statuses(run.manifest.run_id)
        streams = self.core.streams(run.manifest.run_id)
        return AlertsDocument(
            run_id=run.manifest.run_id,
            agent=run.manifest.agent,
            rules=len(statuses),
            alerts=statuses,
            drift=[one for stream in streams for one in drift_of(stream)],
            conformal=[one for stream in streams for one in conformal_of(stream)],
            deliveries={one.receiver.name: one.counts() for one in self.deliveries},
            published_ns=self.clock(),
        )


def conformal_of(stream: Stream) -> list[ConformalStatus]:
    """The scores with an alarm of stated rate of one hook point."""
    stream.watch.settle()
    return [
        ConformalStatus(
            hook_point=stream.hook_point,
            score=score.name,
            phase=score.phase,
            blocks=0 if score.alarm is None else score.alarm.units,
            alarms=0 if score.alarm is None else score.alarm.alarms,
            rate=score.rate,
            threshold=None if score.alarm is None else score.alarm.threshold,
            newest=score.newest,
            reason=score.reason,
        )
        for score in stream.watch.scores
    ]
