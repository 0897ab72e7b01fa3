"""The answer about one feature: all that the statistics know of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from interlatent_live.errors import UserError
from interlatent_live.queries import messages as m
from interlatent_live.queries.items import address_of, drift_of, number, numbers, source
from interlatent_live.statistics.partial import partial_associations

if TYPE_CHECKING:
    from interlatent_live.pipeline.correlator import Stream
    from interlatent_live.queries.desk import Desk


def profile(desk: Desk, question: m.Profile) -> m.ProfileAnswer:
    """Everything of one feature in one window."""
    stream = desk.core.find(question.run, question.hook_point)
    correlator, feature = stream.correlator, question.feature
    known = correlator.profile(feature, question.window)
    reasons = dict(known.reasons)
    deep = correlator.deep
    inside = deep is not None and deep.slot[feature] >= 0
    if not inside:
        why = (
            "this correlator keeps no episodes"
            if deep is None
            else "the feature is outside the deep set"
        )
        reasons |= dict.fromkeys(("lags", "partial", "partners", "events", "exemplars"), why)
    total = known.episodes_total
    share = None
    if known.episodes is not None and total:
        share = known.episodes / total
    else:
        reasons["share_of_episodes"] = reasons.get("episodes", "no closed episode yet")
    drifted = [
        one
        for one in drift_of(stream)
        if one.name.split(":")[1:2] == [str(feature)] or one.name == "fvu"
    ]
    return m.ProfileAnswer(
        source=source(stream),
        address=address_of(stream, feature),
        feature=feature,
        window=known.window,
        n=known.n,
        n_on=known.n_on,
        density=known.density,
        mean_activation=known.mean_activation,
        quantiles=None
        if known.quantiles is None
        else {f"{p:g}": value for p, value in known.quantiles.items()},
        histogram=_histogram(stream, feature) if inside and known.quantiles else None,
        episodes=known.episodes,
        episodes_total=total,
        share_of_episodes=share,
        bouts=known.bouts,
        dwell_mean=known.dwell_mean,
        dwell_longest=known.dwell_longest,
        scope=known.scope,
        metrics=list(known.metrics),
        lags=_lags(stream, feature) if inside else [],
        partial=_partial(stream, feature, reasons) if inside and question.partial else None,
        decomposition=_decomposition(stream, feature) if inside else [],
        partners=[
            m.PartnerItem(
                feature=one.feature,
                together=one.together,
                jaccard=one.jaccard,
                lift=number(one.lift),
            )
            for one in (correlator.partners(feature) if inside else ())
        ],
        events=_events(stream, feature) if inside else [],
        exemplars=_exemplars(stream, feature) if inside else [],
        drift=drifted,
        reasons=reasons,
    )


def _histogram(stream: Stream, feature: int) -> m.HistogramItem:
    edges, counts = stream.correlator.activation_histogram(feature)
    return m.HistogramItem(edges=edges.tolist(), counts=counts.tolist())


def _lags(stream: Stream, feature: int) -> list[m.LagItem]:
    return [
        m.LagItem(
            metric=one.metric,
            lags=list(one.lags),
            r=numbers(one.r),
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
            within=number(parts[0][0, i]),
            episodes=number(parts[1][0, i]),
            copies=number(parts[2][0, i]),
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
                fires=numbers(one.fires),
                base=number(one.base),
                follows=numbers(one.follows),
                event_base=numbers(one.event_base),
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
            metrics=dict(zip(names, numbers(one.metrics), strict=True)),
            context=[numbers(row) for row in one.context],
            quantile=one.quantile,
            distance=one.distance,
        )
        for kind, some in stream.correlator.exemplars(feature).items()
        for one in some
    ]
