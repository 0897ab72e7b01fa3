"""What announces a failure: alarms from a feature, a metric or a probe, at one false-alarm rate.

A score is read in blocks of one second. A block without a failure in the next seconds whose largest
score passes the threshold is a false alarm; the threshold is the least that gives at most one in
ten minutes on the episodes it is chosen on. A failure counts as announced when the score passes the
threshold in the horizon before it, and its lead is the time from the first passing in the lead
window. Feature, metric and threshold are chosen on half of the episodes and reported on the other
half. Near misses, large tilts that end well, are where a bad alarm cries wolf: how often each does
so stands beside.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from interlatent_live.probes.linear import Logistic, fit_logistic
from interlatent_live.probes.train import dense_features
from interlatent_live.stream import StepFlag
from interlatent_live.transcoders.dataset import concatenate

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from interlatent_live.transcoders.dataset import ActivationDataset
    from interlatent_live.transcoders.transcoder import Transcoder

LEAD_WINDOW_S: Final = 3.0
BLOCK_S: Final = 1.0
FALSE_ALARM_EVERY_S: Final = 600.0
NEAR_MISS_QUANTILE: Final = 0.99
DRAWS: Final = 500
FIT_EVERY: Final = 4
"""A probe is fitted on every so many rows: neighbours in time say little that is new."""
PENALTY: Final = 10.0
"""Ridge of the probes' weights on standardised inputs."""


@dataclass(frozen=True, slots=True, eq=False)
class Course:
    """n steps of whole episodes, sorted by episode and time, and how they ended."""

    episode: NDArray[np.int64]
    """[n] number 0 … E − 1, ascending."""
    to_failure_s: NDArray[np.float64]
    """[n] seconds to the failure that ends the episode; infinite where it does not fail."""
    block: NDArray[np.int64]
    """[n] number of the one-second block, ascending."""
    step_s: float

    @property
    def failed(self) -> NDArray[np.bool_]:
        """[E] whether the episode ended in a failure."""
        last = np.append(np.flatnonzero(np.diff(self.episode)), len(self.episode) - 1)
        return np.asarray(np.isfinite(self.to_failure_s[last]), bool)

    def take(self, episodes: NDArray[np.bool_]) -> tuple[Course, NDArray[np.bool_]]:
        """Only some episodes [E], and the mask [n] of their rows."""
        rows = episodes[self.episode]
        numbers = np.cumsum(episodes) - 1
        _, block = np.unique(self.block[rows], return_inverse=True)
        return (
            Course(numbers[self.episode[rows]], self.to_failure_s[rows], block, self.step_s),
            rows,
        )


def course_of(
    episode: NDArray[np.integer],
    t: NDArray[np.integer],
    terminated: NDArray[np.bool_],
    step_s: float,
) -> Course:
    """The course of rows sorted by episode and time; a failure is a termination."""
    _, number = np.unique(episode, return_inverse=True)
    ends = np.flatnonzero(np.append(np.diff(number) != 0, True))
    end = ends[number]
    to_failure = np.where(terminated[end], (t[end].astype(np.float64) - t + 1) * step_s, np.inf)
    block = (t * step_s / BLOCK_S).astype(np.int64)
    first = np.append(True, (np.diff(number) != 0) | (np.diff(block) != 0))
    return Course(number.astype(np.int64), to_failure, np.cumsum(first) - 1, step_s)


def block_maxima(course: Course, score: NDArray[np.floating]) -> NDArray[np.float64]:
    """[B] largest score of each block, of a score [n]."""
    starts = np.flatnonzero(np.append(True, np.diff(course.block) != 0))
    return np.maximum.reduceat(np.asarray(score, np.float64), starts)


def threshold_of(course: Course, score: NDArray[np.floating]) -> float:
    """The least threshold with at most one false alarm in ten minutes without a failure near."""
    quiet = course.to_failure_s > LEAD_WINDOW_S
    if not quiet.any():
        return float("inf")
    starts = np.append(True, np.diff(course.block[quiet]) != 0)
    maxima = np.sort(np.maximum.reduceat(np.asarray(score)[quiet], np.flatnonzero(starts)))
    allowed = int(quiet.sum() * course.step_s / FALSE_ALARM_EVERY_S)
    return float(maxima[-1 - allowed]) if allowed < len(maxima) else float("-inf")


def announced(
    course: Course, score: NDArray[np.floating], threshold: float, horizon_s: float
) -> NDArray[np.bool_]:
    """[failures] whether the score passes the threshold within the horizon before each."""
    hit = (score > threshold) & (course.to_failure_s <= horizon_s)
    by_episode = np.bincount(course.episode, hit, minlength=len(course.failed)) > 0
    return by_episode[course.failed]


def alarm_report(
    course: Course,
    score: NDArray[np.floating],
    threshold: float,
    *,
    horizon_s: float,
    near_miss: NDArray[np.bool_],
) -> dict[str, Any]:
    """What an alarm at a threshold is worth on these episodes.

    ``near_miss`` [n] marks the peaks of near misses.
    """
    failed = course.failed
    hits = announced(course, score, threshold, horizon_s)
    over = score > threshold
    passing = over & (course.to_failure_s <= LEAD_WINDOW_S)
    leads = np.zeros(len(failed))
    np.maximum.at(leads, course.episode[passing], course.to_failure_s[passing])
    alarm = block_maxima(course, score) > threshold
    first_alarm = np.full(len(alarm), np.inf)
    np.minimum.at(first_alarm, course.block[over], course.to_failure_s[over])
    quiet = course.to_failure_s > LEAD_WINDOW_S
    quiet_blocks = np.bincount(course.block[quiet & over], minlength=len(alarm)) > 0
    hours = len(score) * course.step_s / 3600
    quiet_s = float(quiet.sum() * course.step_s)
    peaks = np.flatnonzero(near_miss)
    before = round(BLOCK_S / course.step_s)
    cried = [
        bool(
            over[max(peak - before, 0) : peak + 1][
                course.episode[max(peak - before, 0) : peak + 1] == course.episode[peak]
            ].any()
        )
        for peak in peaks
    ]
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, max(len(hits), 1), (DRAWS, max(len(hits), 1)))
    low, high = np.percentile(hits[drawn].mean(1), [2.5, 97.5]) if len(hits) else (np.nan, np.nan)
    return {
        "threshold": threshold if np.isfinite(threshold) else None,
        "failures": int(failed.sum()),
        "announced": int(hits.sum()),
        "recall": {"value": float(hits.mean()), "low": float(low), "high": float(high)}
        if len(hits)
        else None,
        "failure_given_alarm": float((first_alarm[alarm] <= horizon_s).mean())
        if alarm.any()
        else None,
        "alarms_per_hour": float(alarm.sum() / hours),
        "false_alarms_per_10_min": float(quiet_blocks.sum() * FALSE_ALARM_EVERY_S / quiet_s)
        if quiet_s
        else None,
        "median_lead_s": float(np.median(leads[failed][hits])) if hits.any() else None,
        "near_misses": len(cried),
        "near_misses_alarmed": float(np.mean(cried)) if cried else None,
    }


def near_misses(course: Course, danger: NDArray[np.floating]) -> NDArray[np.bool_]:
    """[n] peaks of ``danger`` above its 99 % quantile with no failure in the next seconds.

    One peak per second at most, the highest of its block.
    """
    quiet = course.to_failure_s > LEAD_WINDOW_S
    out = np.zeros(len(danger), bool)
    if not quiet.any():
        return out
    bar = float(np.quantile(danger[quiet], NEAR_MISS_QUANTILE))
    maxima = block_maxima(course, np.where(quiet, danger, -np.inf))
    peak = quiet & (danger > bar) & (danger >= maxima[course.block])
    # Ties within a block are one peak.
    rows = np.flatnonzero(peak)
    _, firsts = np.unique(course.block[rows], return_index=True)
    out[rows[firsts]] = True
    return out


def compare_alarms(
    course: Course,
    scores: Mapping[str, Mapping[str, NDArray[np.floating]]],
    probes: Mapping[str, NDArray[np.floating]],
    danger: NDArray[np.floating],
    *,
    horizon_s: float,
    seed: int = 0,
) -> dict[str, Any]:
    """The best score of each kind, chosen on half of the episodes, on the other half.

    Args:
        course: all episodes.
        scores: kind → name → score [n]; of each kind the one that announces most failures on the
            first half is reported on the second.
        probes: name → what a logistic probe of "fails within the horizon" reads, [n, d].
        danger: [n] what near misses are peaks of.
        horizon_s: how long before a failure an alarm must come.
        seed: of the split of episodes.
    """
    episodes = len(course.failed)
    first = np.zeros(episodes, bool)
    # By turns among failed and others, so that both halves have as many of each.
    order = np.random.default_rng(seed).permutation(episodes)
    ranked = order[np.argsort(course.failed[order], kind="stable")]
    first[ranked[::2]] = True
    chosen_on, rows = course.take(first)
    reported_on, later = course.take(~first)
    peaks = near_misses(reported_on, danger[later])
    out: dict[str, Any] = {
        "horizon_s": horizon_s,
        "episodes": episodes,
        "failures": int(course.failed.sum()),
        "chosen_on": int(first.sum()),
        "alarms": [],
    }

    def add(kind: str, name: str, before: Any, after: Any) -> None:
        threshold = threshold_of(chosen_on, before)
        report = alarm_report(reported_on, after, threshold, horizon_s=horizon_s, near_miss=peaks)
        out["alarms"].append({"kind": kind, "name": name, **report})

    for kind, named in scores.items():
        name = _most_announced(chosen_on, {n: s[rows] for n, s in named.items()}, horizon_s)
        add(kind, name, named[name][rows], named[name][later])
    for name, x in probes.items():
        before, after = _probe(chosen_on, x[rows], x[later], horizon_s)
        add("probe", name, before, after)
    return out


def _most_announced(
    course: Course, named: Mapping[str, NDArray[np.floating]], horizon_s: float
) -> str:
    """The name whose score announces most failures; ties go to the first."""
    reached = {
        name: int(announced(course, score, threshold_of(course, score), horizon_s).sum())
        for name, score in named.items()
    }
    return max(reached, key=lambda name: reached[name])


def _probe(
    course: Course, x: NDArray[np.floating], later: NDArray[np.floating], horizon_s: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Scores of x out of fold, and of later rows, by a logistic probe of "fails within horizon".

    The threshold must not be chosen on scores of rows that the probe was fitted on.
    """
    positive = course.to_failure_s <= horizon_s
    fold = course.episode % 2 == 0

    def fitted(rows: NDArray[np.bool_]) -> Logistic:
        some = np.flatnonzero(rows)[::FIT_EVERY]
        return fit_logistic(x[some], positive[some], l2=PENALTY)

    before = np.empty(len(x))
    for part in (fold, ~fold):
        before[~part] = fitted(part).margin(x[~part])
    return before, fitted(np.ones(len(x), bool)).margin(later)


def precursors_of(
    dataset: ActivationDataset,
    hook: str,
    transcoder: Transcoder,
    *,
    step_s: float,
    horizon_s: float,
    metrics: Sequence[str],
    danger: str,
    first_module: str,
) -> dict[str, Any]:
    """Alarms of features, units, obvious metrics and probes on episodes that end by termination.

    Args:
        dataset: with ``hook`` and ``first_module``, whose x is what the network sees.
        hook: hook point of the transcoder.
        transcoder: whose features are looked at.
        step_s: simulated seconds per step.
        horizon_s: how long before a failure an alarm must come.
        metrics: the obvious ones.
        danger: metric whose high peaks are near misses where no failure follows.
        first_module: where the network begins.
    """
    rows = concatenate([*dataset.shards()])
    order = np.lexsort((rows.t, rows.episode))
    terminated = (rows.flags[order] & int(StepFlag.TERMINATED)) != 0
    course = course_of(rows.episode[order], rows.t[order], terminated, step_s)
    columns = {column.name: place for place, column in enumerate(dataset.header.metrics)}
    x, y = (values[order] for values in rows.activations[hook])
    named = rows.metrics[order]
    active = dense_features(transcoder, x)
    obvious = named[:, [columns[name] for name in metrics]]
    return compare_alarms(
        course,
        {
            "feature": dense_columns(active, [*map(str, range(active.shape[1]))], signed=False),
            "unit": dense_columns(y, [*map(str, range(y.shape[1]))], signed=True),
            "metric": dense_columns(obvious, metrics, signed=True),
        },
        {"the network's input": rows.activations[first_module][0][order], "the layer": y},
        named[:, columns[danger]],
        horizon_s=horizon_s,
    )


def dense_columns(
    values: NDArray[np.floating], names: Sequence[str], *, signed: bool
) -> dict[str, NDArray[np.floating]]:
    """Columns [n, d] as named scores; ``signed`` ones also turned round, named with a minus."""
    out: dict[str, NDArray[np.floating]] = {}
    for place, name in enumerate(names):
        out[name] = values[:, place]
        if signed:
            out[f"-{name}"] = -values[:, place]
    return out
