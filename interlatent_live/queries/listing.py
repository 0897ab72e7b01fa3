"""Answers about features and pairs: lists of them, one profile, one metric."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from interlatent_live.errors import UserError
from interlatent_live.queries import messages as m
from interlatent_live.queries.items import address_of, metric_items, pair_item, source
from interlatent_live.queries.paging import page_by_key
from interlatent_live.statistics.query import ProfileQuery, page_of

if TYPE_CHECKING:
    from interlatent_live.pipeline.correlator import Stream
    from interlatent_live.queries.desk import Desk
    from interlatent_live.statistics.profile import ProfileTable

FEATURE_SORTS: Final = ("feature", "density", "mean_activation", "episodes", "abs_r", "auroc")


def features(desk: Desk, question: m.Features) -> m.FeaturesAnswer:
    """A page of features."""
    stream = desk.core.find(question.run, question.hook_point)
    table = desk.table(stream, question.window)
    if question.sort not in FEATURE_SORTS:
        raise UserError(f"cannot sort by {question.sort!r}; use one of {', '.join(FEATURE_SORTS)}")
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
    places, cursor = page_by_key(
        question, [(float(key[i]), int(table.features[i]), int(i)) for i in chosen.tolist()]
    )
    items = [_feature(stream, table, i, int(best[i])) for i in places]
    return m.FeaturesAnswer(
        source=source(stream),
        window=question.window,
        items=items,
        next_cursor=cursor,
        matched=len(chosen),
    )


def _feature(stream: Stream, table: ProfileTable, i: int, column: int) -> m.FeatureItem:
    profile = table.profile(i)
    reason = table.why(i, column) or None
    return m.FeatureItem(
        address=address_of(stream, profile.feature),
        feature=profile.feature,
        density=profile.density,
        mean_activation=profile.mean_activation,
        episodes=profile.episodes,
        bouts=profile.bouts,
        strongest=None if reason else profile.metrics[column],
        reason=reason,
    )


def pairs(desk: Desk, question: m.Pairs) -> m.PairsAnswer:
    """A page of pairs."""
    stream = desk.core.find(question.run, question.hook_point)
    if question.features is None:
        table = desk.table(stream, question.window)
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
        items=[pair_item(stream, table, i, column) for i, column in places],
        next_cursor=cursor,
        matched=matched,
    )


def metric(desk: Desk, question: m.MetricView) -> m.MetricAnswer:
    """One metric and the features that go with it most."""
    stream = desk.core.find(question.run, question.hook_point)
    correlator = stream.correlator
    column = correlator.metric_index(question.metric)
    table = desk.table(stream, question.window)
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
        metric=metric_items(correlator.specs)[column],
        window=question.window,
        n=n,
        mean=mean if n else None,
        sd=spread,
        absent=int(correlator.counts.metric_nan[column]),
        infinite=int(correlator.counts.metric_inf[column]),
        by=question.by,
        items=[pair_item(stream, table, int(i), column) for i in order if np.isfinite(score[i])],
        reasons=reasons,
    )
