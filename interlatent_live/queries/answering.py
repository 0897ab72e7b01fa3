"""From a question to an answer, without I/O: which function answers what.

Everything an answer holds is a copy, so it can be sent while rows come in.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from interlatent_live.queries import comparing, finding, listing, profiling
from interlatent_live.queries import messages as m
from interlatent_live.queries.desk import Desk
from interlatent_live.queries.items import metric_items, source
from interlatent_live.queries.paging import page_of_list
from interlatent_live.statistics.exemplars import ExemplarRows

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from interlatent_live.feed.documents import AlertsDocument
    from interlatent_live.pipeline.correlator import CorrelatorCore, Run
    from interlatent_live.queries.desk import SnapshotSource

    Arrays = dict[str, NDArray[Any]]


class AlertsSource(Protocol):
    """Who knows the alerts of a run."""

    def document(self, run_id: str) -> AlertsDocument:
        """The alerts of a run as its viewers see them."""
        ...


class Answerer:
    """Answers questions about the correlators of one core.

    Args:
        core: who holds the statistics.
        clock: seconds, for the age of tables.
        alerts: who knows the alerts.
        snapshots: saved states; none: comparisons are of windows only.
        fresh_s: how long a table over all features is used again.
    """

    def __init__(
        self,
        core: CorrelatorCore,
        *,
        clock: Callable[[], float],
        alerts: AlertsSource,
        snapshots: SnapshotSource | None = None,
        fresh_s: float = 1.0,
    ) -> None:
        self._core = core
        self._alerts = alerts
        self._desk = Desk(core, clock, snapshots, fresh_s)

    def answer(self, question: m.AnyQuestion) -> tuple[m.AnyAnswer, Arrays]:  # noqa: C901, PLR0911, PLR0912 - one branch per question
        """The answer, and its large arrays.

        Raises:
            UserError: when the question names what there is not.
        """
        desk = self._desk
        match question:
            case m.Runs():
                return self._runs(question), {}
            case m.HookPoints():
                return self._hook_points(question), {}
            case m.Features():
                return listing.features(desk, question), {}
            case m.Pairs():
                return listing.pairs(desk, question), {}
            case m.Profile():
                return profiling.profile(desk, question), {}
            case m.MetricView():
                return listing.metric(desk, question), {}
            case m.Screening():
                return finding.screening(desk, question), {}
            case m.Discoveries():
                return finding.discoveries(desk, question), {}
            case m.Alerts():
                run = self._core.find_run(question.run)
                return m.AlertsAnswer(alerts=self._alerts.document(run.manifest.run_id)), {}
            case m.Slices():
                return comparing.slices(desk, question), {}
            case m.Snapshots():
                return comparing.snapshots(desk, question), {}
            case m.Compare():
                return comparing.compare(desk, question), {}
            case m.Table():
                return comparing.table(desk, question)
            case m.Exemplars():
                return self._exemplars(question)

    def _runs(self, question: m.Runs) -> m.RunsAnswer:
        items = [self._run(run) for run in self._core.runs()]
        page, cursor = page_of_list(question, items, lambda item: item.run_id)
        return m.RunsAnswer(items=page, next_cursor=cursor, matched=len(items))

    def _run(self, run: Run) -> m.RunItem:
        manifest = run.manifest
        return m.RunItem(
            run_id=manifest.run_id,
            agent=manifest.agent,
            environment=manifest.environment,
            policy_hash=manifest.policy_hash,
            boots=len(run.bases),
            rows=run.rows,
            ended=run.ended,
            hook_points=[one.hook_point for one in self._core.streams(manifest.run_id)],
            metrics=metric_items(manifest.metrics),
        )

    def _hook_points(self, question: m.HookPoints) -> m.HookPointsAnswer:
        run = self._core.find_run(question.run)
        items = []
        for stream in self._core.streams(run.manifest.run_id):
            correlator = stream.correlator
            live = correlator.live()
            items.append(
                m.HookPointItem(
                    source=source(stream),
                    live_features=len(live),
                    episodes=None if correlator.deep is None else correlator.deep.units.episodes,
                    windows=list(correlator.windows()),
                    bytes=correlator.nbytes + stream.watch.nbytes,
                )
            )
        page, cursor = page_of_list(question, items, lambda item: item.source.hook_point)
        return m.HookPointsAnswer(items=page, next_cursor=cursor, matched=len(items))

    def _exemplars(self, question: m.Exemplars) -> tuple[m.ExemplarsAnswer, Arrays]:
        run = self._core.find_run(question.run)
        manifest = run.manifest
        found = [one.correlator.exemplar_rows() for one in self._core.streams(manifest.run_id)]
        rows = ExemplarRows.joined(found)
        answer = m.ExemplarsAnswer(
            run_id=manifest.run_id, copies=manifest.env_count, boots=dict(run.bases)
        )
        return answer, {
            "position": rows.position, "env": rows.env, "t": rows.t, "after": rows.after
        }  # fmt: skip
