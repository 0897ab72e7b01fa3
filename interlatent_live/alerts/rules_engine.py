"""Rules on the hook points of every run, evaluated on a grid of the agent's own time.

Evaluations fall on multiples of ``every_s`` of the rows' clock, so a replay makes the same
transitions whatever the service's load was.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from interlatent_live.alerts.values import Interval, values_of
from interlatent_live.feed.documents import AlertStatus
from interlatent_live.statistics.rules import AlertState, Phase, Transition

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from interlatent_live.alerts.rulefile import ScopedRule
    from interlatent_live.pipeline.correlator import Stream
    from interlatent_live.stream import FeatureBatch


@dataclass(slots=True)
class _Watched:
    states: list[AlertState]
    interval: Interval = field(default_factory=Interval)
    slot: int = -1
    """Number of the evaluation that the newest row belongs to."""
    values: dict[str, float | None] = field(default_factory=dict)


class RulesEngine:
    """Feed it rows after the correlator had them; it returns transitions worth telling."""

    def __init__(self, rules: Sequence[ScopedRule], every_s: float) -> None:
        self.rules = tuple(rules)
        self._every_ns = int(every_s * 1e9)
        self._watched: dict[tuple[str, str], _Watched] = {}

    def rows(self, stream: Stream, batch: FeatureBatch) -> list[Transition]:
        """Rows of one hook point; evaluates when their time enters the next interval."""
        if not self.rules:
            return []
        key = (stream.run.manifest.run_id, stream.hook_point)
        watched = self._watched.get(key)
        if watched is None:
            watched = self._watched[key] = _Watched(self._states(stream))
        if not watched.states or not len(batch.steps):
            return []
        watched.interval.add(batch.steps, batch.codes[stream.hook_point])
        slot = int(batch.steps.time_ns[-1]) // self._every_ns
        if watched.slot < 0:
            watched.slot = slot
        if slot <= watched.slot:
            return []
        watched.slot = slot
        names = {c.name for state in watched.states for c in state.rule.conditions}
        watched.values = values_of(sorted(names), stream, watched.interval)
        watched.interval = Interval()
        found = [state.step(slot * self._every_ns, watched.values) for state in watched.states]
        return [one for one in found if one is not None and one.notable]

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
            "states": [state.to_dict() for state in watched.states],
        }

    def load(self, stream: Stream, saved: Mapping[str, Any]) -> None:
        """Go on from :meth:`state`; a rule that the file has no more is left out.

        Values since the last evaluation are not kept: the next one speaks of the rows after it.
        """
        if not saved:
            return
        states = self._states(stream)
        known = {one["rule"]: one for one in saved["states"]}
        for state in states:
            if state.rule.name in known:
                state.load(known[state.rule.name])
        values = {str(name): value for name, value in saved["values"].items()}
        key = (stream.run.manifest.run_id, stream.hook_point)
        self._watched[key] = _Watched(states, slot=int(saved["slot"]), values=values)

    def forget(self, alive: set[tuple[str, str]]) -> None:
        """Drop the states of hook points that are no longer kept."""
        self._watched = {key: one for key, one in self._watched.items() if key in alive}

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
                values={c.name: watched.values.get(c.name) for c in state.rule.conditions},
            )
            for (owner, hook_point), watched in self._watched.items()
            if owner == run_id
            for state in watched.states
        ]

    def _states(self, stream: Stream) -> list[AlertState]:
        manifest = stream.run.manifest
        return [
            AlertState(one.rule, manifest.run_id, hook_point=stream.hook_point)
            for one in self.rules
            if one.agent in ("", manifest.agent) and one.hook_point in ("", stream.hook_point)
        ]
