"""Windows over panes: cumulative, exponentially weighted, and sliding rings.

A *pane* is the rows whose global row number lies in [k·P, (k+1)·P): a fact about the rows, not
about when they arrived, so any sharding and merge order gives the same panes. No window ever
subtracts: a sliding window is re-merged from the panes it holds, and an exponential one scales
weights, pane by pane, by growing the new pane's weight instead of shrinking the whole table.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from interlatent_live.statistics.moments import (
    Layout,
    MetricMoments,
    Moments,
    merge_moments,
    merge_rows,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from interlatent_live.statistics.moments import Floats, Ints

_RESCALE_BITS: Final = 256.0
"""Weights grow to 2^256 before a table is rescaled; float64 reaches 2^1023."""


@dataclass(slots=True)
class WindowView:
    """Moments of chosen features in one window, ready for a profile.

    ``rows_squared``: [groups] Σ w² beside Σ w in ``metrics.rows``, for weighted windows; ``steps``
    is the raw number of rows that entered, unweighted.
    """

    layout: Layout
    features: Ints
    table: Floats
    metrics: MetricMoments
    rows_squared: Floats
    steps: int
    half_life: float | None = None


@dataclass(slots=True)
class Accumulator:
    """A cumulative (``half_life`` None) or exponential window, dense over the dictionary."""

    n_features: int
    layout: Layout
    pane_steps: int
    half_life: float | None = None
    table: Floats = field(init=False)
    metrics: MetricMoments = field(init=False)
    rows_squared: Floats = field(init=False)
    origin: int | None = None
    """Pane whose rows weigh 1 in the stored sums."""
    steps: int = 0

    def __post_init__(self) -> None:
        self.table = np.zeros((self.n_features, self.layout.width))
        self.metrics = MetricMoments.empty(self.layout)
        self.rows_squared = np.zeros(self.layout.groups)

    def widen(self, wider: Layout) -> None:
        """Follow metrics that became partial."""
        if wider == self.layout:
            return
        self.table = self.layout.widen(self.table, wider)
        self.metrics = self.metrics.widen(self.layout, wider)
        self.rows_squared = self.rows_squared[self.layout.source_groups(wider)]
        self.layout = wider

    def absorb(self, pane: Moments, key: int) -> None:
        """Merge a pane: O(features that fired in it)."""
        if pane.layout != self.layout:
            wider = pane.layout.union(self.layout)
            self.widen(wider)
            pane = pane.widen(wider)
        weight = self._weight(key)
        if len(pane.features):
            old = self.table[pane.features]
            self.table[pane.features] = merge_rows(old, pane.table, self.layout, weight)
        self.metrics.absorb(pane.metrics, self.layout.group_of(), weight)
        self.rows_squared += pane.metrics.rows * weight * weight
        self.steps += round(float(pane.metrics.rows[0]))

    def merge(self, other: Accumulator) -> None:
        """Merge another accumulator of the same kind over other rows."""
        layout = self.layout.union(other.layout)
        self.widen(layout)
        table = other.layout.widen(other.table, layout)
        metrics = other.metrics.widen(other.layout, layout)
        squared = other.rows_squared[other.layout.source_groups(layout)]
        weight = 1.0
        if other.origin is not None:
            if self.origin is None:
                self.origin = other.origin
            elif other.origin > self.origin:
                self._rescale(other.origin)
            weight = self._relative(other.origin, self.origin)
        touched = np.flatnonzero(table[:, 0])
        self.table[touched] = merge_rows(self.table[touched], table[touched], layout, weight)
        self.metrics.absorb(metrics, layout.group_of(), weight)
        self.rows_squared += squared * weight * weight
        self.steps += other.steps

    def view(
        self, features: Ints, newest_key: int = 0, extra: tuple[Moments, int] | None = None
    ) -> WindowView:
        """Rows of ``features``, with the open pane ``extra`` (its moments and key) merged in.

        Weights of an exponential window are relative to pane ``newest_key``.
        """
        layout = self.layout if extra is None else self.layout.union(extra[0].layout)
        table = self.layout.widen(self.table[features], layout)
        metrics = self.metrics.widen(self.layout, layout)
        squared = self.rows_squared[self.layout.source_groups(layout)].copy()
        steps = self.steps
        origin = self.origin if self.origin is not None or extra is None else extra[1]
        newest = self._relative(newest_key, origin)
        if extra is not None:
            pane = extra[0].widen(layout)
            weight = self._relative(extra[1], origin)
            table = merge_rows(table, pane.select(features), layout, weight)
            metrics.absorb(pane.metrics, layout.group_of(), weight)
            squared += pane.metrics.rows * weight * weight
            steps += round(float(pane.metrics.rows[0]))
        if self.half_life is not None and newest != 1.0:
            table[:, layout.extensive] /= newest
            metrics = MetricMoments(metrics.rows / newest, metrics.mean, metrics.ss / newest)
            squared /= newest * newest
        return WindowView(layout, features, table, metrics, squared, steps, self.half_life)

    def _relative(self, key: int, origin: int | None) -> float:
        """Weight of pane ``key`` where pane ``origin`` weighs 1."""
        if self.half_life is None or origin is None:
            return 1.0
        exponent = (key - origin) * self.pane_steps / self.half_life
        return float(2.0 ** max(min(exponent, 900.0), -1000.0))

    def _weight(self, key: int) -> float:
        if self.half_life is None:
            return 1.0
        if self.origin is None:
            self.origin = key
        if (key - self.origin) * self.pane_steps / self.half_life > _RESCALE_BITS:
            self._rescale(key)
        return self._relative(key, self.origin)

    def _rescale(self, key: int) -> None:
        factor = 1.0 / self._relative(key, self.origin)
        if (key - (self.origin or 0)) * self.pane_steps / (self.half_life or 1.0) > 1000.0:
            factor = 0.0
        columns = self.layout.extensive
        self.table[:, columns] *= factor
        self.table[self.table[:, 0] == 0.0] = 0.0
        self.metrics.rows *= factor
        self.metrics.ss *= factor
        self.rows_squared *= factor * factor
        self.origin = key

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        return self.table.nbytes

    def arrays(self) -> dict[str, NDArray[Any]]:
        """State as named arrays; the table as the rows that ever fired."""
        active = np.flatnonzero(self.table[:, 0])
        return {
            "partial": np.array(self.layout.partial, np.int64),
            "active": active.astype(np.int64),
            "table": self.table[active],
            "rows": self.metrics.rows,
            "mean": self.metrics.mean,
            "ss": self.metrics.ss,
            "rows_squared": self.rows_squared,
            "origin": np.array([] if self.origin is None else [self.origin], np.int64),
            "steps": np.array(self.steps, np.int64),
        }

    def load(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Inverse of :meth:`arrays`."""
        self.layout = Layout(self.layout.n_metrics, tuple(int(i) for i in arrays["partial"]))
        self.table = np.zeros((self.n_features, self.layout.width))
        self.table[arrays["active"].astype(np.intp)] = arrays["table"]
        self.metrics = MetricMoments(
            np.array(arrays["rows"]), np.array(arrays["mean"]), np.array(arrays["ss"])
        )
        self.rows_squared = np.array(arrays["rows_squared"])
        self.origin = int(arrays["origin"][0]) if len(arrays["origin"]) else None
        self.steps = int(arrays["steps"])


@dataclass(slots=True)
class Ring:
    """The closed panes that sliding windows still need, by key."""

    n_metrics: int
    depth: int
    """Panes kept, the open one included."""
    panes: dict[int, Moments] = field(default_factory=dict)

    def absorb(self, pane: Moments, key: int, newest: int) -> None:
        """Keep a pane, merging it with rows of the same pane that came before; drop what is old."""
        if key > newest - self.depth:
            known = self.panes.get(key)
            self.panes[key] = pane if known is None else merge_moments(known, pane)
        self.expire(newest)

    def expire(self, newest: int) -> None:
        """Drop panes that no window can see any more."""
        for key in [k for k in self.panes if k <= newest - self.depth]:
            del self.panes[key]

    def merge(self, other: Ring, newest: int) -> None:
        """Take over another ring's panes."""
        for key, pane in other.panes.items():
            self.absorb(pane, key, newest)
        self.expire(newest)

    def view(
        self,
        features: Ints,
        panes: int,
        newest: int,
        layout: Layout,
        extra: tuple[Moments, int] | None,
    ) -> WindowView:
        """Moments of ``features`` over the last ``panes`` panes, the open one included."""
        parts = [self.panes[k] for k in sorted(self.panes) if k > newest - panes]
        if extra is not None and extra[1] > newest - panes:
            parts.append(extra[0])
        for part in parts:
            layout = layout.union(part.layout)
        table = np.zeros((len(features), layout.width))
        metrics = MetricMoments.empty(layout)
        of = layout.group_of()
        for part in parts:
            wide = part.widen(layout)
            table = merge_rows(table, wide.select(features), layout)
            metrics.absorb(wide.metrics, of)
        steps = round(float(metrics.rows[0]))
        return WindowView(layout, features, table, metrics, metrics.rows.copy(), steps)

    @property
    def nbytes(self) -> int:
        """Bytes of the panes."""
        return sum(pane.nbytes for pane in self.panes.values())

    def arrays(self) -> dict[str, NDArray[Any]]:
        """State as named arrays, pane by pane."""
        out: dict[str, NDArray[Any]] = {"keys": np.array(sorted(self.panes), np.int64)}
        for key in sorted(self.panes):
            pane = self.panes[key]
            out |= {
                f"{key}/partial": np.array(pane.layout.partial, np.int64),
                f"{key}/features": pane.features.astype(np.int64),
                f"{key}/table": pane.table,
                f"{key}/rows": pane.metrics.rows,
                f"{key}/mean": pane.metrics.mean,
                f"{key}/ss": pane.metrics.ss,
            }
        return out

    def load(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Inverse of :meth:`arrays`."""
        self.panes = {}
        for key in arrays["keys"].tolist():
            layout = Layout(self.n_metrics, tuple(int(i) for i in arrays[f"{key}/partial"]))
            metrics = MetricMoments(
                *(np.array(arrays[f"{key}/{name}"]) for name in ("rows", "mean", "ss"))
            )
            self.panes[int(key)] = Moments(
                layout,
                arrays[f"{key}/features"].astype(np.intp),
                np.array(arrays[f"{key}/table"]),
                metrics,
            )
