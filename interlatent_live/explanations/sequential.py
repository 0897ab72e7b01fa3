"""Withdrawal: noticing on the stream that a verified claim has stopped holding.

A claim holds while it meets its bars: balanced accuracy ≥ .85 and precision ≥ .5. So that is the
null, and not "the score is what it was": a claim that was right in 95 % and is now right in 88 %
still holds, and a test of change withdrew a quarter of such claims. :func:`limits_of` turns the
bars into limits on two shares. Among *presences* of the feature the predicate may be missing in
1 − (2 · .85 − specificity). What it says too much is limited among its *firings* by precision
≥ .5, or, where a feature is so common that its specificity gives way first, among the feature's
*absences*. Rows are counted in events: all that one slice of an episode, 8 steps long, has of the
kind. An event fails by the share of its rows that fail, and weighs as much as it has rows, up to
the typical event.

Events go together, so the null says how likely the next failure is given what was seen before it.
Failures of one episode are exchangeable with an intra-class correlation ρ (beta-binomial: after k
failures of n, (μ(1/ρ − 1) + k) / (1/ρ − 1 + n)), over the last four events, so that a bad stretch
is no worse than a bad episode. Copies that were reset together stand at the same point at the same
moment, and a gait keeps them in step; their failures of one moment get a ρ of their own, and the
larger of both probabilities counts. μ is the limit, or what the claim failed at that time in the
episode before, whichever is more. Both ρ come from the episodes that the claim was proposed from
and verified on, drawn to a prior worth ten failures, because a sound claim shows few. And no single
episode may carry more than half of what it takes to withdraw a claim.

Against that null a Shiryaev–Roberts e-detector runs per kind (Shin, Ramdas & Rinaldo,
"E-detectors", *New England Journal of Statistics in Data Science*, 2023, §2): M ← (M + 1) · e with
e the likelihood ratio of a lower success rate, mixed over a few. A failure share x and a weight w
enter as exponents; a mean ≤ 1 is kept, since eˣᵃ⁺⁽¹⁻ˣ⁾ᵇ ≤ x eᵃ + (1 − x) eᵇ and by Jensen. Its mean
run length to a false alarm is at least its threshold, in events; the threshold is set so that a
claim exactly at its limits is withdrawn falsely the stated number of times per 10⁶ steps. A
withdrawn claim comes back only with a fresh ledger (hysteresis): it is judged again on the episodes
that began after the withdrawal.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np

from interlatent_live.explanations.verification import Bars

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from interlatent_live.explanations.scores import Scores

    Unit = tuple[int, ...]
    Recent = tuple[bool, ...]

FALSE_WITHDRAWALS_PER_MILLION: Final = 10.0
"""For a claim exactly at its limits; a simulation of better ones is in the tests."""
SLICE_STEPS: Final = 8
_FALLS: Final = ((0.15, 0.6), (0.45, 0.25), (0.7, 0.15))
"""Success rates of a broken claim as shares of the null's, and what each hypothesis weighs."""
_MEMORY: Final = 4
"""Events that the next one is conditional on."""
_PHASES: Final = np.array([0, 2, 8])
"""First slice of each phase of an episode."""
_EPISODE_SHARE: Final = 0.5
_REMEMBERED: Final = 256
"""Episodes, and moments, that are remembered; older ones have ended."""
_PRIOR_FAILURES: Final = 10.0
_PRIOR_WITHIN: Final = 0.2
_PRIOR_ACROSS: Final = 0.1
_LEAST_WITHIN: Final = 0.05
_LEAST_ACROSS: Final = 0.02
_MOST_CORRELATION: Final = 0.8
_PRIOR_EVENTS: Final = 8.0
"""Weight of the overall failure share in each phase's."""
_LEAST_FAILURE: Final = 0.03
_MOST_FAILURE: Final = 0.97
_UNKNOWN_FAILURE: Final = 0.7
"""A claim that is right in fewer than 3 of 10 events has nothing to lose."""


class Among(StrEnum):
    """The events among which a claim may fail."""

    PRESENCES = "the feature is on and the predicate does not hold"
    FIRINGS = "the predicate holds and the feature is off"
    ABSENCES = "the predicate holds where the feature is off"


@dataclass(frozen=True, slots=True)
class Limits:
    """How much of each kind may fail while the claim meets its bars."""

    missing: float
    """Share of presences without the predicate."""
    excess: float
    """Share of firings without the feature, or of absences with the predicate."""
    excess_among: Among


def limits_of(scores: Scores, bars: Bars | None = None) -> Limits:
    """The limits of a claim with these held-out scores; see the module."""
    bars = bars or Bars()
    recall = scores.recall or 0.0
    off = scores.rows - scores.on_rows
    density = scores.on_rows / scores.rows if scores.rows else 0.0
    false = (scores.firings - recall * scores.on_rows) / off if off else 0.0
    # What recall and specificity may lack together. A claim near its bar would allow no failure at
    # all, so a third of it is left to each.
    slack = 2 * (1 - bars.balanced_accuracy)
    missing = min(max(slack - false, slack / 3), slack)
    most_false = min(max(slack - (1 - recall), slack / 3), slack)
    said = recall * density + most_false * (1 - density)
    if said > 0 and recall * density / said > bars.precision:
        return Limits(missing, most_false, Among.ABSENCES)
    return Limits(missing, 1 - bars.precision, Among.FIRINGS)


@dataclass(frozen=True, slots=True, eq=False)
class Events:
    """What happened in E slices of episodes, in the order in which it was known."""

    end_ns: NDArray[np.int64]
    """[E] time of the row after the slice."""
    failure: NDArray[np.float64]
    """[E] share of the event's rows that failed."""
    steps: NDArray[np.float64]
    """[E] rows of each event, 1 to the slice's length."""
    slot: NDArray[np.int64]
    """[E] number of the slice within its episode."""
    episode: NDArray[np.int64]
    """[E, 3] boot number, env, episode."""

    def __len__(self) -> int:
        return len(self.failure)

    def between(self, after_ns: int, until_ns: int) -> Events:
        """Events that ended in (after, until]."""
        return self.take((self.end_ns > after_ns) & (self.end_ns <= until_ns))

    def take(self, which: NDArray[np.bool_] | NDArray[np.int64]) -> Events:
        """Some of the events, by mask or place."""
        return Events(
            self.end_ns[which],
            self.failure[which],
            self.steps[which],
            self.slot[which],
            self.episode[which],
        )


class Layout(Protocol):
    """Where n rows lie, sorted by unit and time; evidence is one."""

    @property
    def unit(self) -> NDArray[np.int32]:
        """[n] number of the unit."""
        ...

    @property
    def t(self) -> NDArray[np.int64]:
        """[n] step within the episode."""
        ...

    @property
    def time_ns(self) -> NDArray[np.int64]:
        """[n] wall clock of the agent."""
        ...

    @property
    def unit_key(self) -> NDArray[np.int64]:
        """[U, 4] boot number, env, episode, block."""
        ...


def events_of(
    inside: NDArray[np.bool_],
    matches: NDArray[np.bool_],
    layout: Layout,
) -> Events:
    """The ``inside`` rows of each slice; those fail that do not match.

    ``inside`` and ``matches`` are [n]. An event is known once its copy has a row beyond the slice;
    what may still grow is left out.
    """
    count = len(inside)
    key = layout.unit_key[:, :3]
    _, number = np.unique(key, axis=0, return_inverse=True)
    episode, slot = number.ravel()[layout.unit], layout.t // SLICE_STEPS
    edges = np.ones(count, bool)
    edges[1:] = (episode[1:] != episode[:-1]) | (slot[1:] != slot[:-1])
    piece = np.cumsum(edges) - 1
    first_row = np.flatnonzero(edges)
    rows = np.flatnonzero(inside)
    starts = np.ones(len(rows), bool)
    starts[1:] = piece[rows[1:]] != piece[rows[:-1]]
    first = np.flatnonzero(starts)
    if len(first) == 0:
        none = np.zeros(0)
        return Events(none.astype(np.int64), none, none, none.astype(np.int64), key[:0])
    length = np.diff(np.append(first, len(rows))).astype(np.float64)
    failed = np.add.reduceat((~matches[rows]).astype(np.float64), first)
    beyond = np.append(first_row[1:], count)[piece[rows[first]]]
    after = np.minimum(beyond, count - 1)
    mine = layout.unit[rows[first]]
    known = (beyond < count) & (key[layout.unit[after], :2] == key[mine, :2]).all(1)
    time_ns = layout.time_ns[after]
    found = Events(time_ns, failed / length, length, slot[rows[first]], key[mine])
    order = np.flatnonzero(known)
    return found.take(order[np.argsort(time_ns[order], kind="stable")])


def joined(first: Events, second: Events) -> Events:
    """Events of two stretches that share no episode, such as a proposal and a ledger."""
    apart = first.episode.copy()
    apart[:, 0] = -1 - apart[:, 0]
    return Events(
        np.concatenate([first.end_ns, second.end_ns]),
        np.concatenate([first.failure, second.failure]),
        np.concatenate([first.steps, second.steps]),
        np.concatenate([first.slot, second.slot]),
        np.concatenate([apart, second.episode]),
    )


@dataclass(frozen=True, slots=True)
class Promise:
    """How likely events fail while the claim just holds."""

    by_phase: tuple[float, ...]
    """Probability of a failure before anything else was seen, by phase of the episode."""
    within: float
    """Correlation of failures within an episode."""
    across: float
    """Correlation of failures of different episodes at the same moment after their resets."""
    typical_steps: float
    """Steps of a median event; longer ones weigh no more."""
    moment_ns: float
    """Events of one slot that end within this time of one another are of one moment."""


def promise_of(past: Events, limit: float) -> Promise:
    """The null of a claim that may fail in ``limit`` of the events, given its past ones."""
    if len(past) == 0:
        least = max(limit, _UNKNOWN_FAILURE)
        return Promise((least,) * len(_PHASES), _PRIOR_WITHIN, _PRIOR_ACROSS, 1.0, 0.0)
    typical = max(float(np.median(past.steps)), 1.0)
    weight = np.minimum(past.steps / typical, 1.0)
    mean = float((weight * past.failure).sum() / weight.sum())
    level = max(limit, mean)
    _, number = np.unique(past.episode, axis=0, return_inverse=True)
    episode = number.ravel()
    phase = np.searchsorted(_PHASES, past.slot, side="right") - 1
    found = []
    for one in range(len(_PHASES)):
        here = phase == one
        total = float(weight[here].sum())
        failed = float((weight * past.failure)[here].sum())
        share = (failed + _PRIOR_EVENTS * mean) / (total + _PRIOR_EVENTS)
        error = math.sqrt(share * (1 - share) / (len(np.unique(episode[here])) + 1))
        found.append(min(max(share + error, level), _MOST_FAILURE))
    centred = past.failure - mean
    failures = len(past) * mean
    return Promise(
        tuple(found),
        _shrunk(_pairs(centred, episode), failures, _PRIOR_WITHIN, _LEAST_WITHIN),
        _shrunk(_pairs(centred, past.slot, episode), failures, _PRIOR_ACROSS, _LEAST_ACROSS),
        typical,
        _moment_ns(past, episode),
    )


def _pairs(
    centred: NDArray[np.float64],
    group: NDArray[np.int64],
    apart: NDArray[np.int64] | None = None,
) -> float:
    """Correlation of near neighbours of one group, where ``apart`` differs if it is given."""
    variance = float((centred**2).mean())
    if variance < 1e-9:
        return 0.0
    order = np.argsort(group, kind="stable") if apart is None else np.lexsort((apart, group))
    value, key = centred[order], group[order]
    other = None if apart is None else apart[order]
    product = pairs = 0.0
    for distance in range(1, _MEMORY * (1 if apart is None else 2) + 1):
        same = key[distance:] == key[:-distance]
        if other is not None:
            same &= other[distance:] != other[:-distance]
        product += float((value[distance:] * value[:-distance])[same].sum())
        pairs += float(same.sum())
    return product / pairs / variance if pairs else 0.0


def _shrunk(correlation: float, failures: float, prior: float, least: float) -> float:
    drawn = (correlation * failures + prior * _PRIOR_FAILURES) / (failures + _PRIOR_FAILURES)
    return min(max(drawn, least), _MOST_CORRELATION)


def _moment_ns(past: Events, episode: NDArray[np.int64]) -> float:
    """How long two slices last."""
    order = np.lexsort((past.slot, episode))
    same = np.diff(episode[order]) == 0
    slots, lasted = np.diff(past.slot[order])[same], np.diff(past.end_ns[order])[same]
    later = slots > 0
    return 2 * float(np.median(lasted[later] / slots[later])) if later.any() else 0.0


@dataclass(frozen=True, slots=True)
class Detector:
    """State of one e-detector; ``m`` has one entry per alternative."""

    promise: Promise
    threshold: float
    """Mean events to a false alarm."""
    m: tuple[float, ...] = (0.0,) * len(_FALLS)
    episodes: Mapping[Unit, tuple[Recent, tuple[float, ...]]] = field(default_factory=dict)
    """(last failures, evidence spent per alternative) of the newest episodes."""
    moments: Mapping[int, tuple[Recent, int]] = field(default_factory=dict)
    """(last failures, when the newest ended) of the newest moments, by slot."""
    events: int = 0
    alarm_after: int | None = None
    """Events until the alarm, which latches."""
    alarm_ns: int | None = None
    """When the event that raised it ended."""

    @property
    def alarm(self) -> bool:
        """Whether the promise was broken."""
        return self.alarm_after is not None

    def after(self, events: Events) -> Detector:
        """The state after some more events, in order."""
        if len(events) == 0 or self.alarm:
            return self
        promise = self.promise
        limit = _EPISODE_SHARE * math.log(self.threshold)
        weights = np.minimum(events.steps / promise.typical_steps, 1.0).tolist()
        phases = (np.searchsorted(_PHASES, events.slot, side="right") - 1).tolist()
        slots, ends = events.slot.tolist(), events.end_ns.tolist()
        failures, keys = events.failure.tolist(), events.episode.tolist()
        m, episodes, moments = list(self.m), dict(self.episodes), dict(self.moments)
        seen, alarm_after, alarm_ns = self.events, None, None
        for place, failure in enumerate(failures):
            unit, slot, end_ns = tuple(keys[place]), slots[place], ends[place]
            recent, used = episodes.pop(unit, ((), (0.0,) * len(_FALLS)))
            beside, newest = moments.pop(slot, ((), end_ns))
            if end_ns - newest > promise.moment_ns:
                beside = ()
            level = promise.by_phase[phases[place]]
            null = max(_next(level, promise.within, recent), _next(level, promise.across, beside))
            null = min(max(null, _LEAST_FAILURE), _MOST_FAILURE)
            total, spent = 0.0, []
            for which, (fall, share) in enumerate(_FALLS):
                by_failure = math.log((1 - fall * (1 - null)) / null)
                gain = weights[place] * (failure * by_failure + (1 - failure) * math.log(fall))
                gain = min(gain, limit - used[which])
                spent.append(max(used[which] + gain, 0.0))
                m[which] = (m[which] + 1) * math.exp(gain)
                total += share * m[which]
            failed = failure > 0.5
            episodes[unit] = ((*recent, failed)[-_MEMORY:], tuple(spent))
            moments[slot] = ((*beside, failed)[-_MEMORY:], end_ns)
            seen += 1
            if total >= self.threshold:
                alarm_after, alarm_ns = seen, int(end_ns)
                break
        return replace(
            self,
            m=tuple(m),
            episodes=dict([*episodes.items()][-_REMEMBERED:]),
            moments=dict([*moments.items()][-_REMEMBERED:]),
            events=seen,
            alarm_after=alarm_after,
            alarm_ns=alarm_ns,
        )


def _next(level: float, correlation: float, recent: Recent) -> float:
    """Probability of a failure after some, exchangeable ones (beta-binomial)."""
    worth = 1 / correlation - 1
    return (level * worth + sum(recent)) / (worth + len(recent))


def detector(promise: Promise, events_per_step: float, rate: float) -> Detector:
    """A detector with at most ``rate`` false alarms per 10⁶ steps."""
    events_per_million = max(events_per_step, 1e-5) * 1e6
    return Detector(promise, max(events_per_million / rate, 20.0))


@dataclass(frozen=True, slots=True)
class Watch:
    """Both detectors of one claim; false alarms are shared out equally."""

    limits: Limits
    missing: Detector
    excess: Detector
    since_ns: int
    """Events that ended later count."""

    @property
    def alarm_ns(self) -> int | None:
        """When the first of the alarms was raised."""
        raised = [d.alarm_ns for d in (self.missing, self.excess) if d.alarm_ns is not None]
        return min(raised, default=None)

    @property
    def broken(self) -> str:
        """What gave way; empty while the claim stands."""
        for one, among in (
            (self.missing, Among.PRESENCES),
            (self.excess, self.limits.excess_among),
        ):
            if one.alarm:
                return f"{among} (after {one.alarm_after} {among.name.lower()})"
        return ""


def start_watch(
    missing: Events,
    excess: Events,
    steps: int,
    since_ns: int,
    limits: Limits,
    *,
    rate: float = FALSE_WITHDRAWALS_PER_MILLION,
) -> Watch:
    """A watch over a claim with these events in ``steps`` past steps.

    ``missing`` are its presences, ``excess`` the events of the kind ``limits.excess_among``.
    """
    count = max(steps, 1)
    return Watch(
        limits,
        detector(promise_of(missing, limits.missing), len(missing) / count, rate / 2),
        detector(promise_of(excess, limits.excess), len(excess) / count, rate / 2),
        since_ns,
    )


def update_watch(watch: Watch, missing: Events, excess: Events, until_ns: int) -> Watch:
    """Feed the events that ended in (watch.since_ns, until_ns]."""
    return replace(
        watch,
        missing=watch.missing.after(missing.between(watch.since_ns, until_ns)),
        excess=watch.excess.after(excess.between(watch.since_ns, until_ns)),
        since_ns=until_ns,
    )


def claim_events(
    on: NDArray[np.bool_],
    holds: NDArray[np.bool_],
    scored: NDArray[np.bool_],
    layout: Layout,
    limits: Limits,
) -> tuple[Events, Events]:
    """Presences, and the events of the other kind, among the ``scored`` rows.

    ``on`` and ``holds``, [n] like ``scored``, say where the feature is on and the predicate holds.
    """
    missing = events_of(on & scored, holds, layout)
    if limits.excess_among is Among.FIRINGS:
        return missing, events_of(holds & scored, on, layout)
    return missing, events_of(scored & ~on, ~holds, layout)
