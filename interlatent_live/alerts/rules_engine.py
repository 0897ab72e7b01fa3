"""Rules on the hook points of every run, evaluated on a grid of the agent's own time.

Evaluations fall between the last row before and the first row at or after a multiple of ``every_s``
of the rows' clock, and speak of the rows before it: whatever came in one message with which, and
whatever the service's load was, a replay makes the same transitions.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from interlatent_live.alerts.values import Interval, values_of
from interlatent_live.errors import UserError
from interlatent_live.feed.documents import AlertStatus
from interlatent_live.logs import get_logger
from interlatent_live.statistics.rules import AlertRule, AlertState, Phase, Transition
from interlatent_live.wire.slices import slice_features

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from interlatent_live.alerts.rulefile import ScopedRule
    from interlatent_live.pipeline.correlator import Stream
    from interlatent_live.stream import FeatureBatch


@dataclass(slots=True)
class _Watched:
    states: list[AlertState]
    interval: Interval = field(default_factory=Interval)
    slot: int = -1
    """Number of the evaluation that the newest row comes before."""
    values: dict[str, float | None] = field(default_factory=dict)


class RulesEngine:
    """Give rows to :meth:`before`, then to the correlator, then to :meth:`rows`."""

    def __init__(self, rules: Sequence[ScopedRule], every_s: float) -> None:
        self.rules = tuple(rules)
        self._every_ns = int(every_s * 1e9)
        self._watched: dict[tuple[str, str], _Watched] = {}
        self._log = get_logger("alerts.rules")

    def parts(self, batch: FeatureBatch) -> Iterator[FeatureBatch]:
        """A batch cut where an evaluation falls into it."""
        if not self.rules or not len(batch.steps):
            yield batch
            return
        slots = np.maximum.accumulate(batch.steps.time_ns // self._every_ns)
        cuts = [0, *(np.flatnonzero(slots[1:] != slots[:-1]) + 1).tolist(), len(slots)]
        if len(cuts) == 2:
            yield batch
            return
        for low, high in pairwise(cuts):
            yield slice_features(batch, low, high - low)

    def before(self, stream: Stream, batch: FeatureBatch) -> list[Transition]:
        """Evaluate when these rows, which are not in the statistics yet, begin a new interval."""
        watched = self._of(stream)
        if not watched.states or not len(batch.steps):
            return []
        slot = int(batch.steps.time_ns[0]) // self._every_ns
        if watched.slot < 0:
            watched.slot = slot
        if slot <= watched.slot:
            return []
        watched.slot = slot
        names = {name for state in watched.states for name in state.rule.names}
        watched.values = values_of(sorted(names), stream, watched.interval)
        watched.interval = Interval()
        found = [state.step(slot * self._every_ns, watched.values) for state in watched.states]
        return [one for one in found if one is not None and one.notable]

    def rows(self, stream: Stream, batch: FeatureBatch) -> None:
        """Rows of one hook point that the statistics have taken in."""
        watched = self._of(stream)
        if watched.states:
            watched.interval.add(batch.steps, batch.codes[stream.hook_point])

    def firing(self, run_ids: set[str]) -> list[Transition]:
        """Alerts of these runs that fire now, for receivers that must be told again."""
        found = [
            state.active(watched.slot * self._every_ns, watched.values)
            for (owner, _), watched in self._watched.items()
            if owner in run_ids
            for state in watched.states
        ]
        return [one for one in found if one is not None]

    def state(self, stream: Stream) -> dict[str, Any]:
        """JSON-able state of the rules on a hook point, for a snapshot; empty before its rows."""
        watched = self._watched.get((stream.run.manifest.run_id, stream.hook_point))
        if watched is None:
            return {}
        return {
            "slot": watched.slot,
            "values": dict(watched.values),
            "interval": watched.interval.state(),
            "states": [state.to_dict() for state in watched.states],
        }

    def load(self, stream: Stream, saved: Mapping[str, Any]) -> None:
        """Go on from :meth:`state`; a rule that the file has no more is left out."""
        if not saved:
            return
        states = self._states(stream)
        known = {one["rule"]: one for one in saved["states"]}
        for state in states:
            if state.rule.name in known:
                state.load(known[state.rule.name])
        self._watched[stream.run.manifest.run_id, stream.hook_point] = _Watched(
            states,
            Interval.load(saved["interval"]),
            int(saved["slot"]),
            {str(name): value for name, value in saved["values"].items()},
        )

    def forget(self, alive: set[tuple[str, str]]) -> None:
        """Drop the states of hook points that are no longer kept."""
        self._watched = {key: one for key, one in self._watched.items() if key in alive}

    def values(self, run_ids: Sequence[str]) -> dict[tuple[str, str, str], float]:
        """What was known at the last evaluation, by run, hook point and name."""
        return {
            (owner, hook_point, name): value
            for (owner, hook_point), watched in self._watched.items()
            if owner in run_ids
            for name, value in watched.values.items()
            if value is not None
        }

    def statuses(self, run_id: str) -> list[AlertStatus]:
        """Every rule on every hook point of a run."""
        return [
            AlertStatus(
                rule=state.rule.name,
                hook_point=hook_point,
                phase=str(state.phase),
                severity=state.rule.severity,
                summary=state.rule.summary,
                since_ns=None if state.phase is Phase.INACTIVE else state.started_ns,
                values={name: watched.values.get(name) for name in state.rule.names},
            )
            for (owner, hook_point), watched in self._watched.items()
            if owner == run_id
            for state in watched.states
        ]

    def _of(self, stream: Stream) -> _Watched:
        key = (stream.run.manifest.run_id, stream.hook_point)
        watched = self._watched.get(key)
        if watched is None:
            watched = self._watched[key] = _Watched(self._states(stream))
        return watched

    def _states(self, stream: Stream) -> list[AlertState]:
        manifest = stream.run.manifest
        return [
            AlertState(self._rule(one, stream), manifest.run_id, hook_point=stream.hook_point)
            for one in self.rules
            if one.agent in ("", manifest.agent) and one.hook_point in ("", stream.hook_point)
        ]

    def _rule(self, one: ScopedRule, stream: Stream) -> AlertRule:
        """The rule in the units of a run; one that does not fit stays unknown there for ever."""
        manifest = stream.run.manifest
        try:
            return one.for_metrics(manifest.metrics)
        except UserError as error:
            self._log.warning("rule not used", run=manifest.run_id, why=str(error))
            return replace(one.rule, predicate=lambda _: None, cleared=None)
