"""What happens in a stream that is worth a sentence at once, and not at the next interval.

Rows come in, :class:`Trigger` values come out: an episode ended, somebody stepped in, or a verified
feature began or stopped firing after it had been steady. Alerts are judged elsewhere and become
triggers by :func:`alert_trigger`. Nothing here says what the agent does: a trigger names the moment
of which the narrator then says what holds. When it may speak is :mod:`pacing`'s business.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import TYPE_CHECKING, Final

import numpy as np

from interlatent_live.stream import Controller, StepFlag

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from numpy.typing import NDArray

    from interlatent_live.stream import SparseCodes, Steps

STEADY_STEPS: Final = 50
"""A feature is steady when it was off (or on) in nearly all of so many steps."""
STEADY_SHARE: Final = 0.9
NEW_STEPS: Final = 12
"""It began (or stopped) when it is otherwise in most of so many: the narrator's shortest window."""
NEW_SHARE: Final = 0.8
COPIES_WATCHED: Final = 16
"""Agent copies whose features are watched; what else happens is noticed of all."""
_WHO: Final = {
    Controller.HUMAN: "a person took over",
    Controller.HOLD: "the agent was put on hold",
    Controller.INTERVENTION: "an intervention took effect",
}


class TriggerKind(StrEnum):
    """What had the narrator speak."""

    ALERT = "alert"
    INTERVENTION = "intervention"
    TERMINATED = "terminated"
    """The environment ended the episode: a failure, where it is one that can fail."""
    BEGAN = "began"
    STOPPED = "stopped"
    TRUNCATED = "truncated"
    """The episode was cut off, mostly by a time limit."""


class Urgency(IntEnum):
    """Which of two triggers is spoken of, where only one can be."""

    LITTLE = 0
    SOME = 1
    MUCH = 2
    MOST = 3


_URGENCY: Final = {
    TriggerKind.ALERT: Urgency.MOST,
    TriggerKind.INTERVENTION: Urgency.MOST,
    TriggerKind.TERMINATED: Urgency.MUCH,
    TriggerKind.BEGAN: Urgency.SOME,
    TriggerKind.STOPPED: Urgency.SOME,
    TriggerKind.TRUNCATED: Urgency.LITTLE,
}


@dataclass(frozen=True, slots=True)
class Moment:
    """A step of one copy of a run's newest boot."""

    env: int
    episode: int
    t: int


@dataclass(frozen=True, slots=True)
class Trigger:
    """One thing that happened."""

    kind: TriggerKind
    text: str
    """What happened, in words, without a full stop."""
    subject: str = ""
    """Which alert rule or feature; with the kind it tells a repetition."""
    at: Moment | None = None
    """The last step to be narrated; None: the newest of all copies."""

    @property
    def urgency(self) -> Urgency:
        """How much it matters."""
        return _URGENCY[self.kind]


def alert_trigger(rule: str, summary: str) -> Trigger:
    """An alert rule that fires now; it speaks of a run, so any copy may be narrated."""
    said = f": {summary}" if summary else ""
    return Trigger(TriggerKind.ALERT, f"the alert {rule} fires{said}", rule)


@dataclass(frozen=True, slots=True, eq=False)
class _Tail:
    """The last steps of one copy, as far as they are unbroken."""

    episode: int
    t: int
    on: NDArray[np.bool_]
    """[k, W] which watched features were on, k < STEADY_STEPS + NEW_STEPS."""


@dataclass(slots=True)
class TriggerWatch:
    """Watches the rows of one hook point of one run; rows of a copy come in order."""

    _watched: tuple[int, ...] = ()
    _tails: dict[int, _Tail] = field(default_factory=dict)
    _controllers: dict[int, int] = field(default_factory=dict)
    _fired: dict[tuple[int, int], tuple[int, int]] = field(default_factory=dict)
    """By (copy, feature), (episode, t) of the newest begin or stop."""

    def watch(self, features: Collection[int]) -> None:
        """Watch these features from now on; what was steady of others is kept for none."""
        wanted = tuple(sorted(features))
        if wanted != self._watched:
            self._watched = wanted
            self._tails.clear()
            self._fired.clear()

    def take(self, steps: Steps, codes: SparseCodes) -> list[Trigger]:
        """What happened in these rows, in no particular order."""
        found = [*self._ends(steps), *self._interventions(steps)]
        if self._watched:
            found += self._changes(steps, codes)
        return found

    @staticmethod
    def _ends(steps: Steps) -> Iterator[Trigger]:
        over = steps.flags & (StepFlag.TERMINATED | StepFlag.TRUNCATED)
        # The newest end of a batch is the one that is still worth a sentence.
        for flag, kind, words in (
            (StepFlag.TERMINATED, TriggerKind.TERMINATED, "terminated"),
            (StepFlag.TRUNCATED, TriggerKind.TRUNCATED, "was cut off"),
        ):
            rows = np.flatnonzero(over & flag)
            if len(rows):
                at = _moment(steps, int(rows[-1]))
                yield Trigger(kind, f"episode {at.episode} {words} at step {at.t}", at=at)

    def _interventions(self, steps: Steps) -> Iterator[Trigger]:
        for env, rows in _copies(steps):
            before = self._controllers.get(env, int(Controller.POLICY))
            now = steps.controller[rows]
            previous = np.concatenate([[before], now[:-1]])
            self._controllers[env] = int(now[-1])
            changed = np.flatnonzero((now != previous) & (now != Controller.POLICY))
            for place in changed[-1:]:
                at = _moment(steps, int(rows[place]))
                who = Controller(int(now[place]))
                yield Trigger(
                    TriggerKind.INTERVENTION,
                    f"{_WHO[who]} at step {at.t}",
                    who.name.lower(),
                    # What the agent itself did until then: no later row is the policy's.
                    Moment(at.env, at.episode, max(at.t - 1, 0)),
                )

    def _changes(self, steps: Steps, codes: SparseCodes) -> Iterator[Trigger]:
        on = _dense(codes, self._watched)
        own = (steps.controller == Controller.POLICY) & (
            (steps.flags & StepFlag.NO_ACTIVATION) == 0
        )
        for env, rows in _copies(steps):
            if env in self._tails or len(self._tails) < COPIES_WATCHED:
                mine = rows[own[rows]]
                for piece in _unbroken(steps, mine):
                    yield from self._piece(steps, env, piece, on[piece])

    def _piece(
        self, steps: Steps, env: int, rows: NDArray[np.intp], on: NDArray[np.bool_]
    ) -> Iterator[Trigger]:
        """Begins and stops in unbroken rows of one episode of one copy."""
        episode, first_t = int(steps.episode[rows[0]]), int(steps.t[rows[0]])
        tail = self._tails.get(env)
        before = on[:0]
        if tail is not None and (tail.episode, tail.t + 1) == (episode, first_t):
            before = tail.on
        whole = np.concatenate([before, on])
        span = STEADY_STEPS + NEW_STEPS
        self._tails[env] = _Tail(episode, int(steps.t[rows[-1]]), whole[-(span - 1) :])
        if len(whole) < span:
            return
        total = np.concatenate([np.zeros((1, whole.shape[1])), np.cumsum(whole, axis=0)])
        new = (total[span:] - total[STEADY_STEPS:-NEW_STEPS]) / NEW_STEPS
        old = (total[STEADY_STEPS:-NEW_STEPS] - total[:-span]) / STEADY_STEPS
        began = (new >= NEW_SHARE) & (old <= 1 - STEADY_SHARE)
        stopped = (new <= 1 - NEW_SHARE) & (old >= STEADY_SHARE)
        for place, column in np.argwhere(began | stopped).tolist():
            feature, t = self._watched[column], first_t - len(before) + place + span - 1
            fired = self._fired.get((env, feature))
            if fired is not None and fired[0] == episode and t - fired[1] < span:
                continue
            self._fired[env, feature] = (episode, t)
            kind = TriggerKind.BEGAN if began[place, column] else TriggerKind.STOPPED
            words = "begins to fire" if kind is TriggerKind.BEGAN else "stops firing"
            yield Trigger(
                kind,
                f"feature {feature} {words} after {STEADY_STEPS} steady steps",
                str(feature),
                Moment(env, episode, t),
            )


def _moment(steps: Steps, row: int) -> Moment:
    return Moment(int(steps.env[row]), int(steps.episode[row]), int(steps.t[row]))


def _copies(steps: Steps) -> Iterator[tuple[int, NDArray[np.intp]]]:
    """Each copy's rows, in order."""
    for env in np.unique(steps.env).tolist():
        yield env, np.flatnonzero(steps.env == env)


def _unbroken(steps: Steps, rows: NDArray[np.intp]) -> Iterator[NDArray[np.intp]]:
    """Pieces of a copy's rows without a hole or the end of an episode inside."""
    if len(rows) == 0:
        return
    breaks = (np.diff(steps.episode[rows].astype(np.int64)) != 0) | (
        np.diff(steps.t[rows].astype(np.int64)) != 1
    )
    yield from np.split(rows, np.flatnonzero(breaks) + 1)


def _dense(codes: SparseCodes, features: tuple[int, ...]) -> NDArray[np.bool_]:
    """[n, W] which of some features are on."""
    column = np.full(max(codes.n_features, features[-1] + 1), -1, np.int64)
    column[list(features)] = np.arange(len(features))
    counts = np.diff(codes.indptr).astype(np.intp)
    rows = np.repeat(np.arange(len(codes)), counts)
    place = column[codes.index]
    on = np.zeros((len(codes), len(features)), bool)
    on[rows[place >= 0], place[place >= 0]] = True
    return on
