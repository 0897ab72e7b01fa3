"""From a question to an answer, without I/O: a view of the correlators that is asked.

Tables over all features cost milliseconds, so one is kept for a second and shared by every
question that needs it: pages of one question agree with each other, and a flood of questions costs
one table a second. Everything an answer holds is a copy.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

import msgspec
import numpy as np

from interlatent_live.errors import UserError
from interlatent_live.feed.documents import DriftStatus
from interlatent_live.queries import messages as m
from interlatent_live.statistics.comparison import compare_tables
from interlatent_live.statistics.export import to_arrays
from interlatent_live.statistics.partial import partial_associations
from interlatent_live.statistics.query import ProfileQuery, page_of
from interlatent_live.statistics.screening import discoveries_e, screen_table
from interlatent_live.stream import FeatureAddress

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from interlatent_live.feed.documents import AlertsDocument
    from interlatent_live.pipeline.correlator import CorrelatorCore, Run, Stream
    from interlatent_live.statistics.correlator import CorrelatorState
    from interlatent_live.statistics.profile import MetricAssociation, ProfileTable
    from interlatent_live.statistics.screening import Finding

    Arrays = dict[str, NDArray[Any]]

T = TypeVar("T")

FEATURE_SORTS: Final = ("feature", "density", "mean_activation", "episodes", "abs_r", "auroc")
MOST_TABLES: Final = 8


@dataclass(frozen=True, slots=True)
class _Kept:
    table: ProfileTable
    rows: int
    made: float


class AlertsSource(Protocol):
    """Who knows the alerts of a run."""

    def document(self, run_id: str) -> AlertsDocument:
        """The alerts of a run as its viewers see them."""
        ...


class SnapshotSource(Protocol):
    """Who keeps saved states."""

    def items(self) -> list[m.SnapshotItem]:
        """Every valid one, newest first."""
        ...

    def find(self, name: str, transcoder: str, hook_point: str) -> m.SnapshotItem:
        """One by its id, or ``yesterday``; raises UserError when there is none that fits."""
        ...

    def load(self, snapshot_id: str) -> CorrelatorState:
        """Its state; raises CorruptFileError."""
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
        self._clock = clock
        self._alerts = alerts
        self._snapshots = snapshots
        self._fresh_s = fresh_s
        self._tables: dict[tuple[str, str], _Kept] = {}

    def answer(self, question: m.AnyQuestion) -> tuple[m.AnyAnswer, Arrays]:  # noqa: C901, PLR0911, PLR0912 - one branch per question
        """The answer, and its large arrays.

        Raises:
            UserError: when the question names what there is not.
        """
        match question:
            case m.Runs():
                return self._runs(question), {}
            case m.HookPoints():
                return self._hook_points(question), {}
            case m.Features():
                return self._features(question), {}
            case m.Pairs():
                return self._pairs(question), {}
            case m.Profile():
                return self._profile(question), {}
            case m.MetricView():
                return self._metric(question), {}
            case m.Screening():
                return self._screening(question), {}
            case m.Discoveries():
                return self._discoveries(question), {}
            case m.Alerts():
                run = self._core.find_run(question.run)
                return m.AlertsAnswer(alerts=self._alerts.document(run.manifest.run_id)), {}
            case m.Slices():
                return self._slices(question), {}
            case m.Snapshots():
                return self._snapshots_list(question), {}
            case m.Compare():
                return self._compare(question), {}
            case m.Table():
                return self._table(question)

    # -- tables ----------------------------------------------------------------------------------

    def table(self, stream: Stream, window: str) -> ProfileTable:
        """Profiles of all features, at most ``fresh_s`` old."""
        key = (f"{id(stream.correlator)}", window)
        kept, now = self._tables.get(key), self._clock()
        rows = stream.correlator.last_row
        if kept is not None and kept.rows <= rows and now - kept.made < self._fresh_s:
            return kept.table
        table = stream.correlator.table(None, window)
        self._keep(key, _Kept(table, rows, now))
        return table

    def _keep(self, key: tuple[str, str], kept: _Kept) -> None:
        self._tables.pop(key, None)
        while len(self._tables) >= MOST_TABLES:
            del self._tables[next(iter(self._tables))]
        self._tables[key] = kept

    # -- answers ---------------------------------------------------------------------------------

    def _runs(self, question: m.Runs) -> m.RunsAnswer:
        items = [self._run(run) for run in self._core.runs()]
        page, cursor = _page(question, items, lambda item: item.run_id)
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
            metrics=_metric_items(manifest.metrics),
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
        page, cursor = _page(question, items, lambda item: item.source.hook_point)
        return m.HookPointsAnswer(items=page, next_cursor=cursor, matched=len(items))

    def _features(self, question: m.Features) -> m.FeaturesAnswer:
        stream = self._core.find(question.run, question.hook_point)
        table = self.table(stream, question.window)
        if question.sort not in FEATURE_SORTS:
            raise UserError(
                f"cannot sort by {question.sort!r}; use one of {', '.join(FEATURE_SORTS)}"
            )
        r = np.abs(table.r)
        if question.metric is None:
            best = np.where(np.isfinite(r), r, -1.0).argmax(axis=1)
        else:
            best = np.full(len(table), stream.correlator.metric_index(question.metric))
        rows = np.arange(len(table))
        density = np.nan_to_num(table.density)
        keep = (density >= question.min_density) & (density <= question.max_density)
        keep &= table.episodes >= question.min_episodes if question.min_episodes else True
        if question.live:
            keep &= np.isin(table.features, stream.correlator.live())
        by = {
            "feature": table.features.astype(np.float64),
            "density": density,
            "mean_activation": np.where(table.n_on > 0, table.mean_activation, np.nan),
            "episodes": table.episodes.astype(np.float64),
            "abs_r": r[rows, best],
            "auroc": np.abs(table.auroc[rows, best] - 0.5),
        }[question.sort]
        sign = -1.0 if question.descending else 1.0
        key = np.where(np.isfinite(by), sign * by, np.inf)
        chosen = np.flatnonzero(keep)
        chosen = chosen[np.lexsort((table.features[chosen], key[chosen]))]
        places, cursor = _page_by_key(
            question, [(float(key[i]), int(table.features[i]), int(i)) for i in chosen.tolist()]
        )
        items = [self._feature(stream, table, i, int(best[i])) for i in places]
        return m.FeaturesAnswer(
            source=source(stream),
            window=question.window,
            items=items,
            next_cursor=cursor,
            matched=len(chosen),
        )

    @staticmethod
    def _feature(stream: Stream, table: ProfileTable, i: int, column: int) -> m.FeatureItem:
        profile = table.profile(i)
        reason = table.why(i, column) or None
        return m.FeatureItem(
            address=_address(stream, profile.feature),
            feature=profile.feature,
            density=profile.density,
            mean_activation=profile.mean_activation,
            episodes=profile.episodes,
            bouts=profile.bouts,
            strongest=None if reason else _association(profile.metrics[column]),
            reason=reason,
        )

    def _pairs(self, question: m.Pairs) -> m.PairsAnswer:
        stream = self._core.find(question.run, question.hook_point)
        if question.features is None:
            table = self.table(stream, question.window)
        else:
            table = stream.correlator.table(question.features, question.window)
        query = ProfileQuery(
            window=question.window,
            metric=question.metric,
            features=question.features,
            min_density=question.min_density,
            max_density=question.max_density,
            min_abs_r=question.min_abs_r,
            excludes_zero=question.excludes_zero,
            sort=question.sort,
            descending=question.descending,
            limit=question.limit,
            cursor=question.cursor,
        )
        places, cursor, matched = page_of(table, query)
        return m.PairsAnswer(
            source=source(stream),
            window=question.window,
            items=[_pair(stream, table, i, column) for i, column in places],
            next_cursor=cursor,
            matched=matched,
        )

    def _profile(self, question: m.Profile) -> m.ProfileAnswer:
        stream = self._core.find(question.run, question.hook_point)
        correlator, feature = stream.correlator, question.feature
        profile = correlator.profile(feature, question.window)
        reasons = dict(profile.reasons)
        deep = correlator.deep
        inside = deep is not None and deep.slot[feature] >= 0
        if not inside:
            why = (
                "this correlator keeps no episodes"
                if deep is None
                else "the feature is outside the deep set"
            )
            reasons |= dict.fromkeys(("lags", "partial", "partners", "events", "exemplars"), why)
        total = profile.episodes_total
        share = None
        if profile.episodes is not None and total:
            share = profile.episodes / total
        else:
            reasons["share_of_episodes"] = reasons.get("episodes", "no closed episode yet")
        drifted = [
            one
            for one in drift_of(stream)
            if one.name.split(":")[1:2] == [str(feature)] or one.name == "fvu"
        ]
        return m.ProfileAnswer(
            source=source(stream),
            address=_address(stream, feature),
            feature=feature,
            window=profile.window,
            n=profile.n,
            n_on=profile.n_on,
            density=profile.density,
            mean_activation=profile.mean_activation,
            quantiles=None
            if profile.quantiles is None
            else {f"{p:g}": value for p, value in profile.quantiles.items()},
            episodes=profile.episodes,
            episodes_total=total,
            share_of_episodes=share,
            bouts=profile.bouts,
            dwell_mean=profile.dwell_mean,
            dwell_longest=profile.dwell_longest,
            scope=profile.scope,
            metrics=[_association(one) for one in profile.metrics],
            lags=_lags(stream, feature) if inside else [],
            partial=_partial(stream, feature, reasons) if inside and question.partial else None,
            decomposition=_decomposition(stream, feature) if inside else [],
            partners=[
                m.PartnerItem(
                    feature=one.feature,
                    together=one.together,
                    jaccard=one.jaccard,
                    lift=_number(one.lift),
                )
                for one in (correlator.partners(feature) if inside else ())
            ],
            events=_events(stream, feature) if inside else [],
            exemplars=_exemplars(stream, feature) if inside else [],
            drift=drifted,
            reasons=reasons,
        )

    def _metric(self, question: m.MetricView) -> m.MetricAnswer:
        stream = self._core.find(question.run, question.hook_point)
        correlator = stream.correlator
        column = correlator.metric_index(question.metric)
        table = self.table(stream, question.window)
        if question.by not in ("r", "effect_size", "auroc"):
            raise UserError(f"cannot rank by {question.by!r}; use r, effect_size or auroc")
        values = getattr(table, question.by)[:, column]
        score = np.abs(values - 0.5) if question.by == "auroc" else np.abs(values)
        order = np.argsort(-np.where(np.isfinite(score), score, -1.0), kind="stable")
        order = order[: question.limit]
        view = correlator.view([0], question.window)
        n = float(view.metrics.rows[view.layout.group_of()][column])
        mean = float(view.metrics.mean[column] + correlator.reference_or_zero()[column])
        reasons = {}
        if not n:
            reasons["mean"] = "the metric was never known in this window"
        if n < 2:
            reasons["sd"] = "fewer than two rows in this window"
        spread = float(np.sqrt(view.metrics.ss[column] / (n - 1))) if n > 1 else None
        return m.MetricAnswer(
            source=source(stream),
            metric=_metric_items(correlator.specs)[column],
            window=question.window,
            n=n,
            mean=mean if n else None,
            sd=spread,
            absent=int(correlator.counts.metric_nan[column]),
            infinite=int(correlator.counts.metric_inf[column]),
            by=question.by,
            items=[_pair(stream, table, int(i), column) for i in order if np.isfinite(score[i])],
            reasons=reasons,
        )

    def _screening(self, question: m.Screening) -> m.FindingsAnswer:
        stream = self._core.find(question.run, question.hook_point)
        found = screen_table(
            self.table(stream, question.window),
            stream.correlator.config.confidence,
            level=question.level,
        )
        items = [_finding(stream, one) for one in found.findings]
        page, cursor = _page(question, items, lambda item: f"{item.feature} {item.metric}")
        return m.FindingsAnswer(
            source=source(stream), title=found.title, procedure=found.procedure, level=found.level,
            pairs=found.pairs, note=found.note, items=page, looks=[], next_look=None,
            next_cursor=cursor, matched=len(items),
        )  # fmt: skip

    def _discoveries(self, question: m.Discoveries) -> m.FindingsAnswer:
        stream = self._core.find(question.run, question.hook_point)
        log = stream.watch.log
        looks = [
            m.LookItem(
                number=look.number,
                episodes=look.episodes,
                at_episodes=look.at_episodes,
                level=look.level,
                found=len(look.found),
            )
            for look in log.looks
        ]
        if question.procedure == "e-bh":
            found = discoveries_e(stream.correlator, level=question.level)
            items = [_finding(stream, one) for one in found.findings]
            title, procedure, level, pairs = found.title, found.procedure, found.level, found.pairs
        elif question.procedure == "by":
            first = {
                (one.feature, one.metric): look.number
                for look in reversed(log.looks)
                for one in look.found
            }
            items = [
                _finding(stream, one, first[one.feature, one.metric]) for one in log.discoveries()
            ]
            title, procedure = "discoveries", "Benjamini–Yekutieli at declared looks"
            level, pairs = log.level, 0
            if stream.correlator.deep is not None:
                pairs = len(stream.correlator.deep.members) * len(stream.correlator.specs)
        else:
            raise UserError(f"there is no procedure {question.procedure!r}; use e-bh or by")
        page, cursor = _page(question, items, lambda item: f"{item.feature} {item.metric}")
        return m.FindingsAnswer(
            source=source(stream), title=title, procedure=procedure, level=level, pairs=pairs,
            note="the unit of evidence is the episode, or a block of a long one",
            items=page, looks=looks, next_look=log.next_due, next_cursor=cursor,
            matched=len(items),
        )  # fmt: skip

    def _slices(self, question: m.Slices) -> m.SlicesAnswer:
        stream = self._core.find(question.run, question.hook_point)
        correlator = stream.correlator
        texts = {f"slice:{item.name}": item.predicate for item in self._core.slices}
        items = []
        for name in correlator.windows():
            kind = {"half": "exponential", "last": "sliding", "slice": "outcome"}.get(
                name.partition(":")[0], "cumulative"
            )
            rows = float(correlator.view([0], name).metrics.rows[0])
            text = texts.get(name)
            items.append(
                m.SliceItem(
                    name=name, kind="predicate" if text else kind, rows=rows, predicate=text
                )
            )
        items += [
            m.SliceItem(
                name=f"slice:{name}",
                kind="predicate",
                rows=0.0,
                predicate=texts[f"slice:{name}"],
                reason=reason,
            )
            for name, reason in stream.slices.refused.items()
        ]
        return m.SlicesAnswer(source=source(stream), items=items)

    def _snapshots_list(self, question: m.Snapshots) -> m.SnapshotsAnswer:
        kept = () if self._snapshots is None else self._snapshots.items()
        items = [item for item in kept if not question.run or item.run_id == question.run]
        page, cursor = _page(question, items, lambda item: item.id)
        return m.SnapshotsAnswer(items=page, next_cursor=cursor, matched=len(items))

    def _compare(self, question: m.Compare) -> m.CompareAnswer:
        stream = self._core.find(question.run, question.hook_point)
        after_window = question.after_window or question.window
        before = self._state(stream, question.before, question.window)
        after = self._state(stream, question.after, after_window)
        return comparison(question, stream, before, after)

    def _state(self, stream: Stream, name: str, window: str) -> ProfileTable:
        """The table of a stream now, or of a snapshot of the same features."""
        if name == m.NOW:
            return self.table(stream, window)
        if self._snapshots is None:
            raise UserError("no snapshots are kept here; set correlator.snapshots to a folder")
        item = self._snapshots.find(name, stream.transcoder, stream.hook_point)
        kept = self._tables.get((item.id, window))
        if kept is None:
            table = self._core.table_of(self._snapshots.load(item.id), stream, window)
            kept = _Kept(table, item.rows, self._clock())
            self._keep((item.id, window), kept)
        return kept.table

    def _table(self, question: m.Table) -> tuple[m.TableAnswer, Arrays]:
        stream = self._core.find(question.run, question.hook_point)
        end = min(question.first + question.count, stream.correlator.n_features)
        features = range(question.first, end)
        table = stream.correlator.table(list(features), question.window)
        arrays, reasons = to_arrays(table)
        answer = m.TableAnswer(
            source=source(stream),
            window=question.window,
            first=question.first,
            count=len(features),
            metrics=_metric_items(table.specs),
            reasons=reasons,
        )
        return answer, arrays


def comparison(
    question: m.Compare, stream: Stream, before: ProfileTable, after: ProfileTable
) -> m.CompareAnswer:
    """One page of what changed between two tables of the same features."""
    changes = compare_tables(before, after)
    items = [
        m.ChangeItem(
            address=_address(stream, one.feature),
            feature=one.feature,
            metric=one.metric,
            r_before=one.r_before,
            r_after=one.r_after,
            z_difference=one.z_difference,
            lo=one.lo,
            hi=one.hi,
            density_before=one.density_before,
            density_after=one.density_after,
            reason=None
            if one.lo is not None
            else "no r with an interval before"
            if one.r_before is None
            else "no r with an interval after"
            if one.r_after is None
            else "too few effective observations for an interval",
        )
        for one in changes
    ]
    page, cursor = _page(question, items, lambda item: f"{item.feature} {item.metric}")
    return m.CompareAnswer(
        source=source(stream),
        before=f"{question.before} {before.window}",
        after=f"{question.after} {after.window}",
        rows_before=int(before.n),
        rows_after=int(after.n),
        items=page,
        next_cursor=cursor,
        matched=len(items),
    )


# -------------------------------------------------------------------------------------- parts


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
        missing=run.missing,
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


def _address(stream: Stream, feature: int) -> str:
    return str(FeatureAddress(stream.hook_point, feature, stream.transcoder))


def _metric_items(specs: Sequence[Any]) -> list[m.MetricItem]:
    return [
        m.MetricItem(
            name=spec.name, unit=spec.unit, role=str(spec.role), description=spec.description
        )
        for spec in specs
    ]


def _association(one: MetricAssociation) -> m.Association:
    names = m.Association.__struct_fields__
    fields = {name: getattr(one, name) for name in names if name != "reasons"}
    return m.Association(**fields, reasons=dict(one.reasons))


def _pair(stream: Stream, table: ProfileTable, i: int, column: int) -> m.PairItem:
    profile = table.profile(i)
    return m.PairItem(
        address=_address(stream, profile.feature),
        feature=profile.feature,
        density=profile.density,
        association=_association(profile.metrics[column]),
    )


def _finding(stream: Stream, one: Finding, look: int | None = None) -> m.FindingItem:
    return m.FindingItem(
        address=_address(stream, one.feature),
        feature=one.feature,
        metric=one.metric,
        r=one.r,
        p=one.p,
        log_e=one.log_e,
        look=look,
    )


def _lags(stream: Stream, feature: int) -> list[m.LagItem]:
    return [
        m.LagItem(
            metric=one.metric,
            lags=list(one.lags),
            r=_numbers(one.r),
            pairs=[float(value) for value in one.pairs],
            peak=one.peak,
            peak_r=one.peak_r,
            reasons=dict(one.reasons),
        )
        for one in stream.correlator.lag_profiles(feature)
    ]


def _partial(stream: Stream, feature: int, reasons: dict[str, str]) -> m.PartialAnswer | None:
    try:
        (found,) = partial_associations(stream.correlator, [feature])
    except UserError as error:
        reasons["partial"] = str(error)
        return None
    return m.PartialAnswer(
        ridge=found.ridge,
        condition_number=found.condition_number,
        episodes=found.episodes,
        metrics=[
            m.PartialItem(
                metric=one.metric, beta=one.beta, lo=one.lo, hi=one.hi, vif=one.vif,
                reasons=dict(one.reasons),
            )
            for one in found.metrics
        ],
    )  # fmt: skip


def _decomposition(stream: Stream, feature: int) -> list[m.Parts]:
    parts = list(stream.correlator.decomposition([feature]).values())
    return [
        m.Parts(
            metric=spec.name,
            within=_number(parts[0][0, i]),
            episodes=_number(parts[1][0, i]),
            copies=_number(parts[2][0, i]),
        )
        for i, spec in enumerate(stream.correlator.specs)
    ]


def _events(stream: Stream, feature: int) -> list[m.EventItem]:
    found = []
    for spec in stream.correlator.config.events:
        one = stream.correlator.event_profile(feature, spec.name)
        happened = bool(one.rows_before.any())
        found.append(
            m.EventItem(
                event=one.event,
                fires=_numbers(one.fires),
                base=_number(one.base),
                follows=_numbers(one.follows),
                event_base=_numbers(one.event_base),
                auroc=one.auroc,
                auroc_error=one.auroc_error,
                peak=one.peak,
                reason=None if happened else "the event did not happen in a closed episode",
            )
        )
    return found


def _exemplars(stream: Stream, feature: int) -> list[m.ExemplarItem]:
    names = [spec.name for spec in stream.correlator.specs]
    return [
        m.ExemplarItem(
            kind=str(kind),
            position=one.position,
            env=one.env,
            t=one.t,
            activation=one.activation,
            metrics=dict(zip(names, _numbers(one.metrics), strict=True)),
            context=[_numbers(row) for row in one.context],
            quantile=one.quantile,
            distance=one.distance,
        )
        for kind, some in stream.correlator.exemplars(feature).items()
        for one in some
    ]


def _numbers(values: Any) -> list[float | None]:
    return [_number(value) for value in np.asarray(values, np.float64).tolist()]


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


# -------------------------------------------------------------------------------------- pages


def _digest(question: Any) -> str:
    fields = msgspec.to_builtins(question)
    fields.pop("cursor", None)
    fields.pop("limit", None)
    text = json.dumps(fields, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _page(question: Any, items: list[T], key: Callable[[T], str]) -> tuple[list[T], str | None]:
    """A page of a list whose order may change between pages: it goes on behind the last item.

    When that item is gone from the list, it goes on at its place.
    """
    start = 0
    if question.cursor is not None:
        last, place = _decode(question, 2)
        keys = [key(item) for item in items]
        start = keys.index(str(last)) + 1 if str(last) in keys else int(place)
    page = items[start : start + question.limit]
    cursor = None
    if start + len(page) < len(items) and page:
        cursor = _encode(question, [key(page[-1]), start + len(page)])
    return page, cursor


def _page_by_key(
    question: Any, items: list[tuple[float, int, int]]
) -> tuple[list[int], str | None]:
    """Places of a page of (key, feature, place), ascending by key and feature."""
    if question.cursor is not None:
        last, feature = _decode(question, 2)
        bound = (float(last), int(feature))
        items = [item for item in items if item[:2] > bound]
    page = items[: question.limit]
    cursor = None
    if len(items) > len(page):
        key = page[-1][0]
        cursor = _encode(question, ["inf" if np.isinf(key) else key, page[-1][1]])
    return [item[2] for item in page], cursor


def _encode(question: Any, last: list[Any]) -> str:
    text = json.dumps([_digest(question), *last])
    return base64.urlsafe_b64encode(text.encode()).decode()


def _decode(question: Any, count: int) -> list[Any]:
    try:
        fields: list[Any] = json.loads(base64.urlsafe_b64decode(question.cursor.encode()))
        digest, last = fields[0], fields[1:]
        float(last[-1])
    except (ValueError, TypeError, IndexError, binascii.Error) as error:
        raise UserError("the cursor is not one this service gave out") from error
    if digest != _digest(question) or len(last) != count:
        raise UserError("the cursor belongs to another question")
    return last
