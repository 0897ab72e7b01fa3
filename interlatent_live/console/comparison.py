"""Metrics before an intervention and while it was in force, with an interval that can be believed.

Steps follow one another, so they are no sample: with eight copies or more, each copy is compared
with itself and the differences of copies make a paired Student interval. With fewer, the units are
episodes, or else stretches of at least 20 autocorrelation times (estimated on the blocks before, by
Geyer's initial positive sequence, Statistical Science 1992), resampled within each side; the
bootstrap's standard error (Künsch, Annals of Statistics 1989, for blocks) stands in a Student
interval with the smaller side's degrees of freedom. Fewer than eight units on a side: no interval.

This is what happened before and after, not what the intervention caused: an experiment with
controls is another thing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec
import numpy as np
from fastapi import APIRouter, HTTPException, Response

from interlatent_live.statistics.effective_n import t_quantile
from interlatent_live.stream import Controller

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from interlatent_live.console.history import Block, MetricName, Span, StepHistory

CONFIDENCE: Final = 0.95
FEWEST: Final = 8
DRAWS: Final = 2000
TIMES: Final = 20
"""Autocorrelation times that a stretch is long at least."""
LEAST_STEPS: Final = 4096
"""Rows that are looked back at least, over all copies."""


@dataclass(frozen=True, slots=True)
class Side:
    """One side of a comparison: mean, steps, and independent units."""

    mean: float | None
    n: int
    units: int


@dataclass(frozen=True, slots=True)
class Compared:
    """One metric. ``difference`` is after − before; the interval is null where ``reason`` says."""

    name: str
    unit: str
    role: str
    before: Side
    after: Side
    difference: float | None
    low: float | None
    high: float | None
    paired: bool
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Comparison:
    """All metrics around one intervention."""

    command_id: str
    agent: str
    first_row: int
    end_row: int | None
    metrics: tuple[Compared, ...]
    note: str
    reason: str = ""


def compare(
    command_id: str, span: Span, blocks: Sequence[Block], names: Sequence[MetricName]
) -> Comparison:
    """The comparison, as far as the kept blocks go.

    Blocks in which anybody but the policy acted are left out before; blocks in which it was held or
    a person acted are left out after. A block that lies on both sides of the beginning is left out.
    """
    end = span.end if span.end is not None else 2**62
    after = [
        one
        for one in blocks
        if one.first >= span.first
        and one.last < end
        and one.controller in {Controller.POLICY, Controller.INTERVENTION}
    ]
    reach = max(LEAST_STEPS, sum(one.steps for one in after))
    before = [
        one
        for one in blocks
        if one.last < span.first
        and one.first >= span.first - reach
        and one.controller == Controller.POLICY
    ]
    width = len(names)
    usable = [all(len(one.sums) == width for one in side) for side in (before, after)]
    reason = ""
    if not before or not after or not width or not all(usable):
        reason = "too few steps were kept: the page must show the agent before and meanwhile"
        before, after = [], []
    metrics = tuple(_one(name, m, before, after) for m, name in enumerate(names))
    note = _note(metrics)
    return Comparison(command_id, span.agent, span.first, span.end, metrics, note, reason)


def _one(name: MetricName, m: int, before: Sequence[Block], after: Sequence[Block]) -> Compared:
    sides = [[one for one in side if one.counts[m]] for side in (before, after)]
    means = [_mean(side, m) for side in sides]
    steps = [int(sum(one.counts[m] for one in side)) for side in sides]
    pairs = _pairs(sides[0], sides[1], m)
    if len(pairs) >= FEWEST:
        difference = float(pairs.mean())
        half = _student(pairs.std(ddof=1) / np.sqrt(len(pairs)), len(pairs))
        units, paired, reason = [len(pairs)] * 2, True, ""
    else:
        grouped = [_units(side, m, sides[0]) for side in sides]
        units, paired = [len(one) for one in grouped], False
        difference = means[1] - means[0] if None not in means else float("nan")  # type: ignore[operator]  # neither is None
        fewest = min(units)
        reason = "" if fewest >= FEWEST else f"too little: {fewest} independent stretches of 8"
        half = _student(_spread(grouped, m), fewest) if not reason else float("nan")
    known = bool(np.isfinite(difference))
    shown = known and bool(np.isfinite(half))
    return Compared(
        name.name, name.unit, name.role,
        Side(means[0], steps[0], units[0]), Side(means[1], steps[1], units[1]),
        difference if known else None,
        difference - half if shown else None, difference + half if shown else None,
        paired, reason,
    )  # fmt: skip


def _mean(side: Sequence[Block], m: int) -> float | None:
    n = sum(int(one.counts[m]) for one in side)
    return float(sum(one.sums[m] for one in side) / n) if n else None


def _pairs(before: Sequence[Block], after: Sequence[Block], m: int) -> NDArray[np.float64]:
    """After − before for each copy that was seen on both sides."""
    sides = []
    for side in (before, after):
        copies: dict[int, list[Block]] = {}
        for one in side:
            copies.setdefault(one.env, []).append(one)
        sides.append({env: _mean(own, m) for env, own in copies.items()})
    both = sorted(sides[0].keys() & sides[1].keys())
    return np.array([(sides[1][env] or 0.0) - (sides[0][env] or 0.0) for env in both])


def _units(side: Sequence[Block], m: int, reference: Sequence[Block]) -> list[list[Block]]:
    """Stretches that may pass for independent: episodes, or long pieces of few episodes."""
    episodes: dict[tuple[int, int], list[Block]] = {}
    for one in side:
        episodes.setdefault((one.env, one.episode), []).append(one)
    if len(episodes) >= FEWEST:
        return list(episodes.values())
    length = int(np.ceil(TIMES * _correlation_time([_value(one, m) for one in reference])))
    pieces = []
    for own in episodes.values():
        whole = len(own) // length
        pieces += [own[i * length : (i + 1) * length] for i in range(whole)]
    return pieces


def _value(block: Block, m: int) -> float:
    return float(block.sums[m] / block.counts[m])


def _correlation_time(values: Sequence[float]) -> float:
    """Integrated autocorrelation time in blocks, at least one."""
    x = np.asarray(values) - np.mean(values) if values else np.zeros(0)
    variance = float(x @ x)
    if len(x) < 4 or variance == 0.0:
        return 1.0
    time, lag = 1.0, 1
    while lag + 1 < len(x) // 2:
        pair = float(x[lag:] @ x[:-lag] + x[lag + 1 :] @ x[: -lag - 1]) / variance
        if pair <= 0.0:
            break
        time += 2.0 * pair
        lag += 2
    return max(1.0, time)


def _spread(sides: Sequence[Sequence[Sequence[Block]]], m: int) -> float:
    """Bootstrap standard error of the difference of means, units drawn with replacement."""
    random = np.random.default_rng(0)
    drawn = []
    for side in sides:
        sums = np.array([sum(one.sums[m] for one in unit) for unit in side])
        counts = np.array([sum(one.counts[m] for one in unit) for unit in side])
        which = random.integers(0, len(side), (DRAWS, len(side)))
        drawn.append(sums[which].sum(axis=1) / counts[which].sum(axis=1))
    return float((drawn[1] - drawn[0]).std(ddof=1))


def _student(error: float, units: int) -> float:
    return float(t_quantile(CONFIDENCE, float(units - 1))) * float(error)


def _note(metrics: Sequence[Compared]) -> str:
    ways = {one.paired for one in metrics if one.low is not None}
    words = {
        True: "each copy against itself, Student's interval over copies",
        False: "episodes or long stretches resampled within each side (block bootstrap)",
    }
    method = "; ".join(words[way] for way in sorted(ways, reverse=True))
    return (
        f"{method or 'no interval: too little'}. 95 % for each metric by itself, not for all "
        f"{len(metrics)} together. Before and after: what else changed meanwhile is in it too"
    )


def router(history: StepHistory) -> APIRouter:
    """``GET /control/comparison/{command_id}``."""
    out = APIRouter(tags=["control"], default_response_class=Response)

    @out.get(
        "/control/comparison/{command_id}", summary="Metrics before an intervention and during it"
    )
    def comparison(command_id: str) -> Response:
        span = history.span(command_id)
        if span is None:
            raise HTTPException(404, "no such intervention took effect since the console started")
        found = compare(command_id, span, history.blocks(span.boot_id), history.names(span.boot_id))
        return Response(msgspec.json.encode(found), media_type="application/json")

    return out
