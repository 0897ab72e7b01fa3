"""Does a feature warn of failures? Judged as an alarm would be judged, by episode.

A score rises above a threshold: that onset is an alarm, and what counts is how often an event
follows within the horizon, how many events were announced, how long before, and how often per hour
it cried wolf. Thresholds are chosen on calibration episodes for at most so many false alarms, and
judged on others, beside thresholds on the obvious metrics and any probe scores: a precursor is
worth its name only if it beats those.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from interlatent_live.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from interlatent_live.statistics.moments import Floats, Ints


@dataclass(frozen=True, slots=True)
class PrecursorReport:
    """One score as a warning of one event on held-out episodes."""

    name: str
    threshold: float
    sign: int
    """+1: alarms when the score is high; −1: when it is low."""
    alarms: int
    precision: float | None
    """P(event within the horizon | alarm)."""
    recall: float | None
    """Share of events announced by an alarm within the horizon before them."""
    alarms_per_hour: float
    false_alarms_per_hour: float
    median_lead_s: float | None
    """Median time from an event's first alarm to the event."""
    events: int
    episodes: int
    p_fires_before: float | None
    """P(score above threshold | within the horizon before an event), per step."""
    p_event_after: float | None
    """P(event within the horizon | score above threshold), per step."""
    base_rate: float
    """P(event within the horizon), per step."""


@dataclass(frozen=True, slots=True, eq=False)
class Episodes:
    """Rows sorted by episode and time: what scores are judged on."""

    part: Ints
    """[n] episode number, ascending."""
    t: NDArray[np.uint32]
    """[n] step within the episode."""
    event: NDArray[np.bool_]
    """[n]."""
    step_s: float
    """Seconds per step."""

    def left(self) -> NDArray[np.int64]:
        """[n] steps until the next event of the same episode; huge where none follows."""
        from interlatent_live.statistics.events import steps_until  # noqa: PLC0415 - shared helper

        return steps_until(self.event, self.part, self.t)

    def take(self, episodes: NDArray[np.integer]) -> tuple[Episodes, NDArray[np.bool_]]:
        """The rows of chosen episodes, and their mask."""
        mask = np.isin(self.part, episodes)
        return Episodes(self.part[mask], self.t[mask], self.event[mask], self.step_s), mask


def onsets(above: NDArray[np.bool_], rows: Episodes, refractory: int) -> Ints:
    """Rows where an alarm starts: above now, not on the row before, and not within ``refractory``
    steps after another alarm of the episode.
    """  # noqa: D205 - one sentence
    before = np.r_[False, above[:-1] & (rows.part[1:] == rows.part[:-1])]
    starts = np.flatnonzero(above & ~before)
    kept: list[int] = []
    last_part, last_t = -1, 0
    for row in starts.tolist():
        part, t = int(rows.part[row]), int(rows.t[row])
        if part != last_part or t - last_t > refractory:
            kept.append(row)
            last_part, last_t = part, t
    return np.array(kept, np.intp)


def judge(
    name: str,
    score: Floats,
    rows: Episodes,
    *,
    threshold: float,
    sign: int = 1,
    horizon: int = 100,
    refractory: int | None = None,
) -> PrecursorReport:
    """Judge a fixed threshold; ``horizon`` and ``refractory`` (default: the horizon) in steps.

    Raises:
        UserError: when the score does not fit the rows.
    """
    if len(score) != len(rows.part):
        raise UserError(f"{len(score)} scores do not fit {len(rows.part)} rows")
    with np.errstate(invalid="ignore"):
        above = np.asarray(sign * score >= sign * threshold, bool)
    left = rows.left()
    near = (left <= horizon) & (left > 0)
    alarms = onsets(above, rows, horizon if refractory is None else refractory)
    good = near[alarms]
    hours = len(score) * rows.step_s / 3600.0
    events = np.flatnonzero(rows.event)
    leads: list[float] = []
    # An event's first alarm within the horizon, by walking alarms and events of each episode once.
    targets = alarms[good]
    event_row = np.searchsorted(events, targets, side="left")
    first_seen: set[int] = set()
    for alarm, number in zip(targets.tolist(), event_row.tolist(), strict=True):
        if number not in first_seen:
            first_seen.add(number)
            leads.append(float(left[alarm]) * rows.step_s)
    # The step of the event itself announces nothing, so per-step rates leave it out.
    before = above & ~rows.event
    return PrecursorReport(
        name=name,
        threshold=float(threshold),
        sign=sign,
        alarms=len(alarms),
        precision=float(good.mean()) if len(alarms) else None,
        recall=len(first_seen) / len(events) if len(events) else None,
        alarms_per_hour=len(alarms) / hours if hours else 0.0,
        false_alarms_per_hour=float((~good).sum()) / hours if hours else 0.0,
        median_lead_s=float(np.median(leads)) if leads else None,
        events=len(events),
        episodes=len(np.unique(rows.part)),
        p_fires_before=float(above[near].mean()) if near.any() else None,
        p_event_after=float(near[before].mean()) if before.any() else None,
        base_rate=float(near.mean()) if len(near) else 0.0,
    )


def choose_threshold(
    score: Floats,
    rows: Episodes,
    *,
    sign: int = 1,
    horizon: int = 100,
    false_alarms_per_hour: float = 6.0,
    candidates: int = 64,
) -> float | None:
    """Threshold with the highest recall among those with few enough false alarms.

    The default limit is one false alarm per ten minutes. ``None`` when no threshold keeps it.
    """
    finite = score[np.isfinite(score)]
    if not len(finite):
        return None
    grid = np.unique(np.quantile(sign * finite, np.linspace(0.5, 1.0, candidates)))
    best: tuple[float, float] | None = None
    for level in grid.tolist():
        report = judge("", score, rows, threshold=sign * level, sign=sign, horizon=horizon)
        if report.false_alarms_per_hour > false_alarms_per_hour or not report.alarms:
            continue
        rank = (report.recall or 0.0, level)
        if best is None or rank > best:
            best = rank
    return None if best is None else sign * best[1]


def compare(
    scores: Mapping[str, Floats],
    rows: Episodes,
    *,
    horizon: int = 100,
    false_alarms_per_hour: float = 6.0,
    calibration_share: float = 0.5,
    seed: int = 0,
) -> tuple[PrecursorReport, ...]:
    """Each score's better sign and threshold from calibration episodes, judged on the others.

    Best recall first; scores without a threshold that keeps the limit are left out.

    Raises:
        UserError: when there are fewer than 4 episodes.
    """
    episodes = np.unique(rows.part)
    if len(episodes) < 4:
        raise UserError("precursors are judged by episode and need at least 4 of them")
    shuffled = np.random.default_rng(seed).permutation(episodes)
    cut = max(2, round(calibration_share * len(episodes)))
    learn, learn_mask = rows.take(shuffled[:cut])
    test, test_mask = rows.take(shuffled[cut:])
    reports = []
    for name, score in scores.items():
        best: tuple[float, int, float] | None = None
        for sign in (1, -1):
            threshold = choose_threshold(
                score[learn_mask], learn, sign=sign, horizon=horizon,
                false_alarms_per_hour=false_alarms_per_hour,
            )  # fmt: skip
            if threshold is None:
                continue
            known = judge(
                name, score[learn_mask], learn, threshold=threshold, sign=sign, horizon=horizon
            )
            if best is None or (known.recall or 0.0) > best[0]:
                best = (known.recall or 0.0, sign, threshold)
        if best is not None:
            reports.append(
                judge(
                    name, score[test_mask], test, threshold=best[2], sign=best[1], horizon=horizon
                )
            )
    return tuple(sorted(reports, key=lambda r: (-(r.recall or 0.0), -(r.precision or 0.0), r.name)))
