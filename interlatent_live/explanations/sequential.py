"""Withdrawal: noticing on the stream that a verified claim has stopped holding.

Two kinds of events speak of a claim: a *presence* of the feature (did the predicate hold in it?)
and a *firing* of the predicate (was the feature on in it?). A presence is all the on-steps of one
slice of an episode, 8 steps long: where a feature flickers at a threshold its bouts are one step
long and there are a hundred in an episode, which say one thing a hundred times. Each event succeeds
or fails, and weighs as much as it has steps, up to the typical event.

Events of one episode go together. Taken as independent they withdrew half of the sound claims of a
policy within 200 episodes in which nothing had changed, so three things are done. What a claim
promises is conditional: the probability of a failure given how many of the last four events of the
same episode failed, from the episodes it was proposed from and verified on, each at its upper 95 %
bound with the number of episodes as n. So a failure after failures says little, and the first
failures of several episodes say much. Weights are exponents of likelihood ratios, which keeps their
mean at most one (Jensen).
And no single episode may carry more than half of what it takes to withdraw a claim.

Against that promise a Shiryaev–Roberts e-detector is run per kind (Shin, Ramdas & Rinaldo,
"E-detectors", *New England Journal of Statistics in Data Science*, 2023, §2): M ← (M + 1) · e with
e the likelihood ratio of a lower success rate, averaged over a few such rates. Its mean run length
to a false alarm is at least its threshold, in events, if the promise is kept; the threshold is set
so that this is the stated number of false withdrawals per 10⁶ steps. A withdrawn claim comes back
only with a fresh ledger (hysteresis): it is judged again on the episodes that began after the
withdrawal.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    Unit = tuple[int, ...]
    Recent = tuple[bool, ...]

FALSE_WITHDRAWALS_PER_MILLION: Final = 1.0
SLICE_STEPS: Final = 8
_FALLS: Final = (0.15, 0.4, 0.7)
"""Success rates of a broken claim, as shares of the rate that was promised."""
_MEMORY: Final = 4
"""Events of the same episode that the next one is conditional on."""
_STATES: Final = (_MEMORY + 1) * (_MEMORY + 2) // 2
_EPISODE_SHARE: Final = 0.5
_OPEN_UNITS: Final = 256
"""Episodes that are remembered; older ones have ended."""
_PRIOR: Final = 4.0
"""Weight of the overall failure rate in each state's."""
_REACH: Final = 1.645
"""Standard errors of the upper 95 % bound."""
_LEAST_FAILURE: Final = 0.03
_MOST_FAILURE: Final = 0.97
_UNKNOWN_FAILURE: Final = 0.7
"""A claim that is right in fewer than 3 of 10 events has nothing to lose."""


@dataclass(frozen=True, slots=True, eq=False)
class Events:
    """What happened in E slices of episodes, in the order in which it was known."""

    end_ns: NDArray[np.int64]
    """[E] time of the row after the slice."""
    success: NDArray[np.bool_]
    steps: NDArray[np.float64]
    """[E] rows of each event, 1 to the slice's length."""
    unit: NDArray[np.int64]
    """[E, 4] key of the unit (episode or block) that each lies in."""

    def __len__(self) -> int:
        return len(self.success)

    def between(self, after_ns: int, until_ns: int) -> Events:
        """Events that ended in (after, until]."""
        kept = (self.end_ns > after_ns) & (self.end_ns <= until_ns)
        return Events(self.end_ns[kept], self.success[kept], self.steps[kept], self.unit[kept])


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
    """The ``inside`` rows of each slice; an event succeeds where ``matches`` in at least half.

    ``inside`` and ``matches`` are [n]. An event is known once its copy has a row beyond the slice;
    what may still grow is left out.
    """
    unit, t, unit_key = layout.unit, layout.t, layout.unit_key
    count = len(inside)
    edges = np.ones(count, bool)
    edges[1:] = (unit[1:] != unit[:-1]) | (t[1:] // SLICE_STEPS != t[:-1] // SLICE_STEPS)
    piece = np.cumsum(edges) - 1
    first_row = np.flatnonzero(edges)
    rows = np.flatnonzero(inside)
    starts = np.ones(len(rows), bool)
    starts[1:] = piece[rows[1:]] != piece[rows[:-1]]
    first = np.flatnonzero(starts)
    if len(first) == 0:
        none = np.zeros(0)
        return Events(none.astype(np.int64), none.astype(bool), none, unit_key[:0])
    length = np.diff(np.append(first, len(rows))).astype(np.float64)
    share = np.add.reduceat(matches[rows].astype(np.float64), first) / length
    here = piece[rows[first]]
    beyond = np.append(first_row[1:], count)[here]
    after = np.minimum(beyond, count - 1)
    copy = unit_key[:, :2]
    mine = unit[rows[first]]
    known = (beyond < count) & (copy[unit[after]] == copy[mine]).all(1)
    order = np.flatnonzero(known)
    time_ns = layout.time_ns[after]
    order = order[np.argsort(time_ns[order], kind="stable")]
    return Events(time_ns[order], (share >= 0.5)[order], length[order], unit_key[mine[order]])


def joined(first: Events, second: Events) -> Events:
    """Events of two stretches that share no episode, such as a proposal and a ledger."""
    apart = first.unit.copy()
    apart[:, 0] = -1 - apart[:, 0]
    return Events(
        np.concatenate([first.end_ns, second.end_ns]),
        np.concatenate([first.success, second.success]),
        np.concatenate([first.steps, second.steps]),
        np.concatenate([apart, second.unit]),
    )


@dataclass(frozen=True, slots=True)
class Promise:
    """How rarely events fail while the claim holds."""

    failure: tuple[float, ...]
    """Largest plausible probability of a failure, by state (:func:`_state`)."""
    typical_steps: float
    """Steps of a median event; longer ones weigh no more."""


def promise_of(events: Events) -> Promise:
    """The least that past events speak for (see the module); without any, nothing."""
    if len(events) == 0:
        return Promise((_UNKNOWN_FAILURE,) * _STATES, 1.0)
    typical = max(float(np.median(events.steps)), 1.0)
    weight = np.minimum(events.steps / typical, 1.0)
    state = np.empty(len(events), np.int64)
    recent: dict[Unit, Recent] = {}
    units = [tuple(key) for key in events.unit.tolist()]
    for place, (unit, success) in enumerate(zip(units, events.success.tolist(), strict=True)):
        before = recent.get(unit, ())
        state[place] = _state(before)
        recent[unit] = (*before, success)[-_MEMORY:]
    _, episode = np.unique(events.unit, axis=0, return_inverse=True)
    failed = weight * ~events.success
    overall = (failed.sum() + 1.0) / (weight.sum() + 2.0)
    found = []
    for one in range(_STATES):
        here = state == one
        total = float(weight[here].sum())
        rate = (float(failed[here].sum()) + _PRIOR * overall) / (total + _PRIOR)
        episodes = len(np.unique(episode.ravel()[here]))
        upper = rate + _REACH * math.sqrt(rate * (1 - rate) / (episodes + 1))
        found.append(min(max(upper, _LEAST_FAILURE), _MOST_FAILURE))
    # More failures cannot make the next one less likely.
    for seen in range(1, _MEMORY + 1):
        base = seen * (seen + 1) // 2
        for failures in range(1, seen + 1):
            found[base + failures] = max(found[base + failures], found[base + failures - 1])
    return Promise(tuple(found), typical)


def _state(recent: Recent) -> int:
    """A number for (events seen, failures among them), of the last few in the episode."""
    seen = len(recent)
    return seen * (seen + 1) // 2 + seen - sum(recent)


@dataclass(frozen=True, slots=True)
class Detector:
    """State of one e-detector; ``log_m`` has one entry per alternative."""

    promise: Promise
    threshold: float
    """Mean events to a false alarm."""
    log_m: tuple[float, ...] = (-math.inf,) * len(_FALLS)
    episodes: Mapping[Unit, tuple[Recent, tuple[float, ...]]] = field(default_factory=dict)
    """(last events, evidence spent per alternative) of the newest episodes."""
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
        failure = np.array(self.promise.failure)
        rates = np.array(_FALLS) * (1 - failure)[:, None]
        by_failure = np.log1p(-rates) - np.log(failure)[:, None]
        by_success = np.log(np.array(_FALLS))
        limit = _EPISODE_SHARE * math.log(self.threshold)
        bar = math.log(self.threshold * len(_FALLS))
        log_m, episodes = np.array(self.log_m), dict(self.episodes)
        seen, alarm_after, alarm_ns = self.events, None, None
        weights = np.minimum(events.steps / self.promise.typical_steps, 1.0)
        for place, key in enumerate(events.unit.tolist()):
            unit, success = tuple(key), bool(events.success[place])
            recent, spent = episodes.pop(unit, ((), (0.0,) * len(_FALLS)))
            gain = weights[place] * (by_success if success else by_failure[_state(recent)])
            used = np.array(spent)
            gain = np.minimum(gain, limit - used)
            log_m = np.logaddexp(log_m, 0.0) + gain
            left = np.maximum(used + gain, 0.0)
            episodes[unit] = ((*recent, success)[-_MEMORY:], tuple(left.tolist()))
            seen += 1
            if np.logaddexp.reduce(log_m) >= bar:
                alarm_after, alarm_ns = seen, int(events.end_ns[place])
                break
        return replace(
            self,
            log_m=tuple(log_m.tolist()),
            episodes=dict([*episodes.items()][-_OPEN_UNITS:]),
            events=seen,
            alarm_after=alarm_after,
            alarm_ns=alarm_ns,
        )


def detector(promise: Promise, events_per_step: float, rate: float) -> Detector:
    """A detector with at most ``rate`` false alarms per 10⁶ steps."""
    events_per_million = max(events_per_step, 1e-5) * 1e6
    return Detector(promise, max(events_per_million / rate, 20.0))


@dataclass(frozen=True, slots=True)
class Watch:
    """Both detectors of one claim; false alarms are shared out equally."""

    presences: Detector
    firings: Detector
    since_ns: int
    """Events that ended later count."""

    @property
    def alarm_ns(self) -> int | None:
        """When the first of the alarms was raised."""
        raised = [d.alarm_ns for d in (self.presences, self.firings) if d.alarm_ns is not None]
        return min(raised, default=None)

    @property
    def broken(self) -> str:
        """What gave way; empty while the claim stands."""
        if self.presences.alarm:
            after = f"after {self.presences.alarm_after} presences"
            return f"the feature fires without the predicate ({after})"
        if self.firings.alarm:
            after = f"after {self.firings.alarm_after} firings"
            return f"the predicate holds without the feature ({after})"
        return ""


def start_watch(
    presences: Events,
    firings: Events,
    steps: int,
    since_ns: int,
    rate: float = FALSE_WITHDRAWALS_PER_MILLION,
) -> Watch:
    """A watch that promises what past events in ``steps`` steps speak for."""
    count = max(steps, 1)
    return Watch(
        detector(promise_of(presences), len(presences) / count, rate / 2),
        detector(promise_of(firings), len(firings) / count, rate / 2),
        since_ns,
    )


def update_watch(watch: Watch, presences: Events, firings: Events, until_ns: int) -> Watch:
    """Feed the events that ended in (watch.since_ns, until_ns]."""
    return Watch(
        watch.presences.after(presences.between(watch.since_ns, until_ns)),
        watch.firings.after(firings.between(watch.since_ns, until_ns)),
        until_ns,
    )
