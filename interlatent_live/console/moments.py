"""Moments like one: stretches of a recorded stream in which a predicate holds or a feature is on.

Rows come in the order of recording, copies mixed; each copy is judged by itself, with as much of
its past as the predicate looks back on. Stretches of one episode that lie closer than ``GAP`` steps
are one moment: what flickers is one thing to look at, not twenty.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec
import numpy as np

from interlatent_live.errors import UserError
from interlatent_live.explanations.predicates.evaluate import Columns, evaluate, past_of
from interlatent_live.explanations.predicates.parser import parse
from interlatent_live.explanations.predicates.tree import history, terms_of
from interlatent_live.stream import Role

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from interlatent_live.stream import FeatureBatch, Manifest

GAP: Final = 5
"""Steps between two stretches of one moment, at most."""
ROUND: Final = 32_768
"""Rows that are judged together."""


@dataclass(frozen=True, slots=True)
class Query:
    """What is looked for; at least one of ``predicate`` and ``feature``.

    Raises:
        UserError: when there is neither.
    """

    run_id: str
    hook_point: str = ""
    env: int | None = None
    """One copy; None: all."""
    predicate: str = ""
    feature: int | None = None
    above: float = 0.0
    """Activation that the feature must exceed."""

    def __post_init__(self) -> None:
        if not self.predicate.strip() and self.feature is None:
            raise UserError("say what to look for: a predicate over metrics, or a feature")


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """One moment: where it begins, how long it is, and how strong the feature became in it."""

    agent: str
    run_id: str
    boot_id: str
    env: int
    episode: int
    t: int
    """Step within the episode at which it begins."""
    steps: int
    time_ns: int
    """Of its first row, on the clock that rows came with."""
    peak: float | None
    """Largest activation; None without a feature."""
    goes_on: bool = False
    """Whether reading ended before the moment did."""


@dataclass(slots=True)
class _Rows:
    """Columns of one copy that wait to be judged; the first ``past`` of them were judged before."""

    past: int
    episode: NDArray[np.int64]
    t: NDArray[np.int64]
    time_ns: NDArray[np.int64]
    metrics: NDArray[np.float64]
    activation: NDArray[np.float64]


class Seeker:
    """Judges the rows of one boot.

    Raises:
        PredicateError: when the predicate is none, or speaks of metrics that the boot lacks.
    """

    def __init__(self, query: Query, manifest: Manifest) -> None:
        self._query, self._manifest = query, manifest
        text = query.predicate.strip()
        self._predicate = parse(text, manifest.metrics, roles=frozenset(Role)) if text else None
        terms = () if self._predicate is None else terms_of(self._predicate)
        self._history = max((history(term) for term in terms), default=0)
        self._parts: list[tuple[FeatureBatch, NDArray[np.intp]]] = []
        self._waiting = 0
        self._kept: dict[int, _Rows] = {}
        self._open: dict[int, Found] = {}
        """By copy, the newest moment, which may go on."""

    def take(self, batch: FeatureBatch) -> list[Found]:
        """Rows came; returns moments that are over."""
        steps = batch.steps
        query = self._query
        rows = np.flatnonzero(
            np.ones(len(steps), np.bool_) if query.env is None else steps.env == query.env
        )
        if len(rows):
            self._parts.append((batch, rows))
            self._waiting += len(rows)
        return self._judge() if self._waiting >= ROUND else []

    def finish(self, *, early: bool) -> list[Found]:
        """No more rows come; returns the moments that are left.

        Args:
            early: whether the recording has more rows than were taken.
        """
        found = self._judge()
        for env, one in self._open.items():
            kept = self._kept[env]
            near = one.episode == kept.episode[-1] and kept.t[-1] - (one.t + one.steps - 1) <= GAP
            found.append(msgspec.structs.replace(one, goes_on=bool(early and near)))
        self._open.clear()
        return found

    def _judge(self) -> list[Found]:
        if not self._parts:
            return []

        def column(name: str) -> NDArray[np.int64]:
            return np.concatenate(
                [getattr(one.steps, name)[rows].astype(np.int64) for one, rows in self._parts]
            )

        env = column("env")
        columns = {name: column(name) for name in ("episode", "t", "time_ns")}
        metrics = np.concatenate([one.steps.metrics[rows] for one, rows in self._parts])
        activation = np.concatenate([self._activations(*part) for part in self._parts])
        self._parts, self._waiting = [], 0
        done: list[Found] = []
        for copy in np.unique(env):
            own = np.flatnonzero(env == copy)
            fresh = _Rows(
                0, columns["episode"][own], columns["t"][own], columns["time_ns"][own],
                metrics[own], activation[own],
            )  # fmt: skip
            rows = _joined(self._kept.get(int(copy)), fresh)
            done += self._stretches(int(copy), rows)
            self._kept[int(copy)] = _tail(rows, max(1, self._history))
        return done

    def _activations(self, batch: FeatureBatch, rows: NDArray[np.intp]) -> NDArray[np.float64]:
        """[len(rows)] of the asked feature; 0 without one, or where the hook point is not there."""
        out = np.zeros(len(batch.steps))
        codes = batch.codes.get(self._query.hook_point)
        if self._query.feature is not None and codes is not None:
            hits = np.flatnonzero(codes.index == self._query.feature)
            out[np.searchsorted(codes.indptr, hits, side="right") - 1] = codes.value[hits]
        return out[rows]

    def _stretches(self, env: int, rows: _Rows) -> list[Found]:
        holds = np.ones(len(rows.t), np.bool_)
        if self._predicate is not None:
            names = self._manifest.metric_names()
            past = past_of(rows.episode, rows.t)
            holds &= evaluate(self._predicate, Columns(names, rows.metrics, past)).holds
        if self._query.feature is not None:
            holds &= rows.activation > self._query.above
        holds[: rows.past] = False
        at = np.flatnonzero(holds)
        if len(at) == 0:
            return []
        breaks = np.flatnonzero(
            (np.diff(rows.episode[at]) != 0)
            | (np.diff(rows.t[at]) > GAP)
            | (np.diff(rows.t[at]) < 0)
        )
        done = []
        for first, last in zip(
            np.concatenate([[0], breaks + 1]), np.concatenate([breaks, [len(at) - 1]]), strict=True
        ):
            low, high = int(at[first]), int(at[last])
            moment = Found(
                agent=self._manifest.agent,
                run_id=self._manifest.run_id,
                boot_id=self._manifest.boot_id,
                env=env,
                episode=int(rows.episode[low]),
                t=int(rows.t[low]),
                steps=int(rows.t[high] - rows.t[low]) + 1,
                time_ns=int(rows.time_ns[low]),
                peak=None
                if self._query.feature is None
                else float(rows.activation[low : high + 1].max()),
            )
            before = self._open.get(env)
            if before is not None and _goes_on(before, moment):
                moment = _together(before, moment)
            elif before is not None:
                done.append(before)
            self._open[env] = moment
        return done


def _goes_on(before: Found, after: Found) -> bool:
    gap = after.t - (before.t + before.steps - 1)
    return before.episode == after.episode and 0 < gap <= GAP


def _together(before: Found, after: Found) -> Found:
    peaks = [one.peak for one in (before, after) if one.peak is not None]
    return msgspec.structs.replace(
        before,
        steps=after.t + after.steps - before.t,
        peak=max(peaks) if peaks else None,
    )


def _joined(kept: _Rows | None, fresh: _Rows) -> _Rows:
    if kept is None:
        return fresh
    return _Rows(
        len(kept.t),
        np.concatenate([kept.episode, fresh.episode]),
        np.concatenate([kept.t, fresh.t]),
        np.concatenate([kept.time_ns, fresh.time_ns]),
        np.concatenate([kept.metrics, fresh.metrics]),
        np.concatenate([kept.activation, fresh.activation]),
    )


def _tail(rows: _Rows, length: int) -> _Rows:
    low = len(rows.t) - min(length, len(rows.t))
    return _Rows(
        0, rows.episode[low:], rows.t[low:], rows.time_ns[low:], rows.metrics[low:],
        rows.activation[low:],
    )  # fmt: skip
