"""Answers with lists of findings: screening, and discoveries under a rate that holds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from interlatent_live.errors import UserError
from interlatent_live.queries import messages as m
from interlatent_live.queries.items import address_of, source
from interlatent_live.queries.paging import page_of_list
from interlatent_live.statistics.screening import discoveries_e, screen_table

if TYPE_CHECKING:
    from interlatent_live.pipeline.correlator import Stream
    from interlatent_live.queries.desk import Desk
    from interlatent_live.statistics.screening import Finding


def screening(desk: Desk, question: m.Screening) -> m.FindingsAnswer:
    """Pairs to look at, without an error rate."""
    stream = desk.core.find(question.run, question.hook_point)
    found = screen_table(
        desk.table(stream, question.window),
        stream.correlator.config.confidence,
        level=question.level,
    )
    items = [_finding(stream, one) for one in found.findings]
    page, cursor = page_of_list(question, items, lambda item: f"{item.feature} {item.metric}")
    return m.FindingsAnswer(
        source=source(stream), title=found.title, procedure=found.procedure, level=found.level,
        pairs=found.pairs, note=found.note, items=page, looks=[], next_look=None,
        next_cursor=cursor, matched=len(items),
    )  # fmt: skip


def discoveries(desk: Desk, question: m.Discoveries) -> m.FindingsAnswer:
    """Pairs found at any time, or at the declared looks."""
    stream = desk.core.find(question.run, question.hook_point)
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
        items = [_finding(stream, one, first[one.feature, one.metric]) for one in log.discoveries()]
        title, procedure = "discoveries", "Benjamini–Yekutieli at declared looks"
        level, pairs = log.level, 0
        if stream.correlator.deep is not None:
            pairs = len(stream.correlator.deep.members) * len(stream.correlator.specs)
    else:
        raise UserError(f"there is no procedure {question.procedure!r}; use e-bh or by")
    page, cursor = page_of_list(question, items, lambda item: f"{item.feature} {item.metric}")
    return m.FindingsAnswer(
        source=source(stream), title=title, procedure=procedure, level=level, pairs=pairs,
        note="the unit of evidence is the episode, or a block of a long one",
        items=page, looks=looks, next_look=log.next_due, next_cursor=cursor,
        matched=len(items),
    )  # fmt: skip


def _finding(stream: Stream, one: Finding, look: int | None = None) -> m.FindingItem:
    return m.FindingItem(
        address=address_of(stream, one.feature),
        feature=one.feature,
        metric=one.metric,
        r=one.r,
        p=one.p,
        log_e=one.log_e,
        look=look,
    )
