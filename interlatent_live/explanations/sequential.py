"""Withdrawal: noticing on the stream that a verified claim has stopped holding.

Two kinds of events speak of a claim: a bout of the feature (did the predicate hold in it?) and a
firing of the predicate (was the feature on in it?). Each event succeeds or fails. While the claim
holds, an event succeeds with at least the probability that the verification showed (its clustered
lower bound). Against that a Shiryaev–Roberts e-detector is run per kind (Shin, Ramdas & Rinaldo,
"E-detectors", *New England Journal of Statistics in Data Science*, 2023, §2): M ← (M + 1) · e with
e the likelihood ratio of a lower success rate, averaged over a few such rates. Its mean run length
to a false alarm is at least its threshold, in events; the threshold is set so that this is the
stated number of false withdrawals per 10⁶ steps. A withdrawn claim comes back only with a fresh
ledger (hysteresis): it is judged again on the episodes that began after the withdrawal.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

FALSE_WITHDRAWALS_PER_MILLION: Final = 0.1
_FALLS: Final = (0.15, 0.4, 0.7)
"""Success rates of a broken claim, as shares of the rate that was promised."""


@dataclass(frozen=True, slots=True)
class Detector:
    """State of one e-detector; ``log_m`` has one entry per alternative."""

    promised: float
    """Success probability while the claim holds."""
    threshold: float
    """Mean events to a false alarm."""
    log_m: tuple[float, ...] = (-math.inf,) * len(_FALLS)
    events: int = 0
    alarm: bool = False
    alarm_after: int | None = None
    """Events until the alarm."""

    def after(self, success: bool) -> Detector:  # noqa: FBT001 - an event is a bare success or not
        """The state after one event; an alarm latches."""
        updated = []
        for fall, log_m in zip(_FALLS, self.log_m, strict=True):
            lower = fall * self.promised
            ratio = lower / self.promised if success else (1 - lower) / (1 - self.promised)
            # log(M + 1), from whichever of M and 1 is larger.
            grown = max(log_m, 0.0) + math.log1p(math.exp(-abs(log_m)))
            updated.append(grown + math.log(ratio))
        top = max(updated)
        average = top + math.log(sum(math.exp(x - top) for x in updated) / len(updated))
        alarm = self.alarm or average >= math.log(self.threshold)
        events = self.events + 1
        after = events if alarm and self.alarm_after is None else self.alarm_after
        return replace(self, log_m=tuple(updated), events=events, alarm=alarm, alarm_after=after)


def detector(promised: float, events_per_step: float, rate: float) -> Detector:
    """A detector with at most ``rate`` false alarms per 10⁶ steps.

    ``promised`` is clipped to [.3, .97]: a perfect record must survive a rare failure, and a claim
    that is right in fewer than 3 of 10 events has nothing to lose.
    """
    events_per_million = max(events_per_step, 1e-5) * 1e6
    return Detector(min(max(promised, 0.3), 0.97), max(events_per_million / rate, 20.0))


@dataclass(frozen=True, slots=True)
class Watch:
    """Both detectors of one claim; false alarms are shared out equally."""

    bouts: Detector
    firings: Detector
    since_ns: int
    """Events that began later count."""

    @property
    def broken(self) -> str:
        """What gave way; empty while the claim stands."""
        if self.bouts.alarm:
            after = f"after {self.bouts.alarm_after} bouts"
            return f"the feature fires without the predicate ({after})"
        if self.firings.alarm:
            after = f"after {self.firings.alarm_after} firings"
            return f"the predicate holds without the feature ({after})"
        return ""


@dataclass(frozen=True, slots=True, eq=False)
class Events:
    """Runs of rows with whether each was a success, in the order of their last row's time."""

    end_ns: NDArray[np.int64]
    success: NDArray[np.bool_]


def runs(
    inside: NDArray[np.bool_],
    matches: NDArray[np.bool_],
    past: NDArray[np.integer],
    time_ns: NDArray[np.int64],
) -> Events:
    """Complete runs of ``inside`` rows; a run succeeds where ``matches`` in at least half of it.

    All arrays are [n]; a run ends with its episode, and one that touches the last row of the
    newest data may still grow and is left out by the caller's ``since``.
    """
    rows = np.flatnonzero(inside)
    if len(rows) == 0:
        return Events(np.zeros(0, np.int64), np.zeros(0, bool))
    starts = np.ones(len(rows), bool)
    starts[1:] = (np.diff(rows) != 1) | (past[rows[1:]] == 0)
    first = np.flatnonzero(starts)
    length = np.diff(np.append(first, len(rows)))
    share = np.add.reduceat(matches[rows].astype(np.float64), first) / length
    end = time_ns[rows[np.append(first[1:], len(rows)) - 1]]
    order = np.argsort(end, kind="stable")
    return Events(end[order], (share >= 0.5)[order])


def start_watch(
    bouts: Events,
    firings: Events,
    steps: int,
    since_ns: int,
    rate: float = FALSE_WITHDRAWALS_PER_MILLION,
) -> Watch:
    """A watch whose promises are the lower 95 % bounds (Wilson, 1927) of past events."""
    count = max(steps, 1)
    return Watch(
        detector(_wilson(bouts.success), len(bouts.success) / count, rate / 2),
        detector(_wilson(firings.success), len(firings.success) / count, rate / 2),
        since_ns,
    )


def update_watch(watch: Watch, bouts: Events, firings: Events, until_ns: int) -> Watch:
    """Feed the events that ended in (watch.since_ns, until_ns]."""
    first, second = watch.bouts, watch.firings
    for success in _new(bouts, watch.since_ns, until_ns):
        first = first.after(bool(success))
    for success in _new(firings, watch.since_ns, until_ns):
        second = second.after(bool(success))
    return Watch(first, second, until_ns)


def _new(events: Events, since_ns: int, until_ns: int) -> NDArray[np.bool_]:
    return events.success[(events.end_ns > since_ns) & (events.end_ns <= until_ns)]


def _wilson(success: NDArray[np.bool_], z: float = 1.96) -> float:
    n = len(success)
    if n == 0:
        return 0.0
    share = float(success.mean())
    middle = share + z * z / (2 * n)
    reach = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return (middle - reach) / (1 + z * z / n)
