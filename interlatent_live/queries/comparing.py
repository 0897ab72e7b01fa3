"""Answers about windows, slices and saved states, and what changed between them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from interlatent_live.queries import messages as m
from interlatent_live.queries.items import address_of, metric_items, source
from interlatent_live.queries.paging import page_of_list
from interlatent_live.statistics.comparison import compare_tables
from interlatent_live.statistics.export import to_arrays

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from interlatent_live.pipeline.correlator import Stream
    from interlatent_live.queries.desk import Desk
    from interlatent_live.statistics.profile import ProfileTable


def slices(desk: Desk, question: m.Slices) -> m.SlicesAnswer:
    """What windows and slices there are, and their rows."""
    stream = desk.core.find(question.run, question.hook_point)
    correlator = stream.correlator
    texts = {f"slice:{item.name}": item.predicate for item in desk.core.slices}
    items = []
    for name in correlator.windows():
        kind = {"half": "exponential", "last": "sliding", "slice": "outcome"}.get(
            name.partition(":")[0], "cumulative"
        )
        rows = float(correlator.view([0], name).metrics.rows[0])
        text = texts.get(name)
        items.append(
            m.SliceItem(name=name, kind="predicate" if text else kind, rows=rows, predicate=text)
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


def snapshots(desk: Desk, question: m.Snapshots) -> m.SnapshotsAnswer:
    """A page of saved states."""
    kept = () if desk.snapshots is None else desk.snapshots.items()
    items = [item for item in kept if not question.run or item.run_id == question.run]
    page, cursor = page_of_list(question, items, lambda item: item.id)
    return m.SnapshotsAnswer(items=page, next_cursor=cursor, matched=len(items))


def compare(desk: Desk, question: m.Compare) -> m.CompareAnswer:
    """A page of what changed between two states or windows."""
    stream = desk.core.find(question.run, question.hook_point)
    after_window = question.after_window or question.window
    before = desk.state(stream, question.before, question.window)
    after = desk.state(stream, question.after, after_window)
    return _comparison(question, stream, before, after)


def table(desk: Desk, question: m.Table) -> tuple[m.TableAnswer, dict[str, NDArray[Any]]]:
    """All numbers of consecutive features, as columns."""
    stream = desk.core.find(question.run, question.hook_point)
    end = min(question.first + question.count, stream.correlator.n_features)
    features = range(question.first, end)
    found = stream.correlator.table(list(features), question.window)
    arrays, reasons = to_arrays(found)
    answer = m.TableAnswer(
        source=source(stream),
        window=question.window,
        first=question.first,
        count=len(features),
        metrics=metric_items(found.specs),
        reasons=reasons,
    )
    return answer, arrays


def _comparison(
    question: m.Compare, stream: Stream, before: ProfileTable, after: ProfileTable
) -> m.CompareAnswer:
    """One page of what changed between two tables of the same features."""
    changes = compare_tables(before, after)
    items = [
        m.ChangeItem(
            address=address_of(stream, one.feature),
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
    page, cursor = page_of_list(question, items, lambda item: f"{item.feature} {item.metric}")
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
