"""Events as metrics: how a feature fires on the way to one, in both directions.

"Fires 12 steps before falling" needs P(on | h steps before the event) for each h, beside the
feature's usual rate; "warns of falling" needs P(event within h | on). Both come from one table of
counts by the number of steps left. An event counts from within its own episode only.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from interlatent_live.errors import UserError
from interlatent_live.statistics.episodes import TERMINATED, TRUNCATED
from interlatent_live.statistics.sketches import auroc_from_counts

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from interlatent_live.statistics.config import CorrelatorConfig, EventSpec
    from interlatent_live.statistics.episodes import Chunk
    from interlatent_live.statistics.moments import Floats, Ints
    from interlatent_live.stream import MetricSpec

_FLAGS: Final = ("terminated", "truncated", "end")
_BINS: Final = 64
_LOG_LOW: Final = -10.0
_LOG_STEP: Final = 20.0 / 62


@dataclass(frozen=True, slots=True, eq=False)
class EventProfile:
    """A feature on the way to an event; index h is the number of steps left until it."""

    event: str
    rows_before: NDArray[np.int64]
    """[H + 1] rows that were h steps before an event."""
    fires: Floats
    """[H + 1] P(on | h steps before); NaN where there were no such rows."""
    base: float
    """P(on) over all rows."""
    follows: Floats
    """[H + 1] P(event within h steps | on)."""
    event_base: Floats
    """[H + 1] P(event within h steps) over all rows."""
    auroc: float | None
    """AUROC_e: P(activation within the horizon > outside), zeros one atom, ties ½."""
    auroc_error: float | None
    peak: int | None
    """h at which the feature fires most above its base rate, ``None`` without events."""


@dataclass(slots=True)
class Events:
    """Counts by steps left until each event, per deep feature."""

    specs: tuple[EventSpec, ...]
    columns: tuple[int, ...]
    """Metric column of each event; −1, −2, −3 for terminated, truncated, end."""
    n_features: int
    horizon: int
    on: NDArray[np.int64] = field(init=False)
    """[events, H + 1, features] on-rows h steps before the event."""
    rows: NDArray[np.int64] = field(init=False)
    """[events, H + 1]."""
    inside: NDArray[np.uint32] = field(init=False)
    """[events, features, 64] on-activations within the horizon, in logarithmic bins."""
    overall: NDArray[np.uint32] = field(init=False)
    """[features, 64] on-activations of all rows."""
    total: int = 0
    count: NDArray[np.int64] = field(init=False)
    """[events] events seen."""

    def __post_init__(self) -> None:
        e, f = len(self.specs), self.n_features
        self.on = np.zeros((e, self.horizon + 1, f), np.int64)
        self.rows = np.zeros((e, self.horizon + 1), np.int64)
        self.inside = np.zeros((e, f, _BINS), np.uint32)
        self.overall = np.zeros((f if e else 0, _BINS), np.uint32)
        self.count = np.zeros(e, np.int64)

    @classmethod
    def create(
        cls, specs: Sequence[MetricSpec], config: CorrelatorConfig, n_features: int
    ) -> Events:
        """Events of a configuration.

        Raises:
            UserError: when an event names no metric.
        """
        names = [spec.name for spec in specs]
        columns = []
        for event in config.events:
            if event.metric in _FLAGS:
                columns.append(-1 - _FLAGS.index(event.metric))
            elif event.metric in names:
                columns.append(names.index(event.metric))
            else:
                raise UserError(
                    f"event {event.name!r} watches {event.metric!r}, which is neither a metric nor "
                    f"one of {', '.join(_FLAGS)}"
                )
        return cls(config.events, tuple(columns), n_features, config.event_horizon)

    def absorb(self, chunk: Chunk) -> None:
        """Count a chunk."""
        n = len(chunk)
        if not self.specs or not n:
            return
        self.total += n
        bins = _bins_of(chunk.value)
        np.add.at(
            self.overall.reshape(-1), chunk.index.astype(np.intp) * _BINS + bins, np.uint32(1)
        )
        row = chunk.row_of
        h, f = self.horizon, self.n_features
        for e, column in enumerate(self.columns):
            happens = self._happens(chunk, e, column)
            self.count[e] += int(happens.sum())
            left = steps_until(happens, chunk.part, chunk.t)
            near = left <= h
            self.rows[e] += np.bincount(left[near], minlength=h + 1)
            hit = near[row]
            where = left[row[hit]] * f + chunk.index[hit]
            self.on[e].reshape(-1)[:] += np.bincount(where, minlength=(h + 1) * f)
            flat = chunk.index[hit].astype(np.intp) * _BINS + bins[hit]
            np.add.at(self.inside[e].reshape(-1), flat, np.uint32(1))

    def _happens(self, chunk: Chunk, e: int, column: int) -> NDArray[np.bool_]:
        if column >= 0:
            with np.errstate(invalid="ignore"):
                return np.asarray(chunk.metrics[:, column] > self.specs[e].above, bool)
        outcome = chunk.outcome[chunk.part]
        if column == -1:
            wanted = outcome == TERMINATED
        elif column == -2:
            wanted = outcome == TRUNCATED
        else:
            wanted = np.ones(len(chunk), bool)
        return np.asarray(chunk.terminal & wanted, bool)

    def profile(self, slot: int, event: str) -> EventProfile:
        """A slot on the way to an event.

        Raises:
            UserError: when there is no such event.
        """
        names = [spec.name for spec in self.specs]
        if event not in names:
            raise UserError(f"there is no event {event!r}; there are {', '.join(names) or 'none'}")
        e = names.index(event)
        rows, on = self.rows[e], self.on[e, :, slot]
        total_on = int(self.overall[slot].sum())
        with np.errstate(divide="ignore", invalid="ignore"):
            fires = on / rows
            follows = np.cumsum(on) / total_on
            event_base = np.cumsum(rows) / self.total
        base = total_on / self.total if self.total else float("nan")
        peak = None
        if rows.any():
            # Shrunk towards the base rate, so that one lucky row does not win.
            lift = (on - base * rows) / np.sqrt(np.maximum(base * (1 - base) * rows, 1e-12) + 1.0)
            peak = int(np.argmax(lift))
        value, error = self._auroc(e, slot)
        return EventProfile(event, rows, fires, base, follows, event_base, value, error, peak)

    def _auroc(self, e: int, slot: int) -> tuple[float | None, float | None]:
        on_inside = self.inside[e, slot].astype(np.float64)
        on_all = self.overall[slot].astype(np.float64)
        n_inside = float(self.rows[e].sum())
        inside = np.r_[n_inside - on_inside.sum(), on_inside]
        outside = np.r_[self.total - n_inside - (on_all - on_inside).sum(), on_all - on_inside]
        if not n_inside or n_inside == self.total:
            return None, None
        exact = np.zeros(_BINS + 1, bool)
        exact[0] = True
        value, error = auroc_from_counts(inside, outside, exact)
        return float(value), float(error)

    def lift(self, e: int, within: int, slots: Ints) -> Floats:
        """[slots] P(event within so many steps | on) over its base rate; NaN if undefined."""
        on = self.on[e, : within + 1, slots].sum(axis=-1)
        total_on = self.overall[slots].sum(axis=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(
                (on / total_on) / (self.rows[e, : within + 1].sum() / self.total), np.float64
            )

    def merge(self, other: Events) -> None:
        """Add another's counts."""
        for name in ("on", "rows", "inside", "overall", "count"):
            getattr(self, name)[...] += getattr(other, name)
        self.total += other.total

    @property
    def nbytes(self) -> int:
        """Bytes of the counts."""
        return self.on.nbytes + self.inside.nbytes + self.overall.nbytes + self.rows.nbytes

    def arrays(self) -> dict[str, NDArray[Any]]:
        """State as named arrays."""
        names = ("on", "rows", "inside", "overall", "count")
        out: dict[str, NDArray[Any]] = {name: getattr(self, name) for name in names}
        out["total"] = np.array(self.total, np.int64)
        return out

    def load(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Inverse of :meth:`arrays`."""
        for name in ("on", "rows", "inside", "overall", "count"):
            getattr(self, name)[...] = arrays[name]
        self.total = int(arrays["total"])


def steps_until(happens: NDArray[np.bool_], part: Ints, t: NDArray[np.uint32]) -> NDArray[np.int64]:
    """[n] steps until the next event of the same part (0 at the event); a large number if none.

    ``t`` is the step within the episode, so lost steps in between are counted.
    """
    n = len(happens)
    never = np.int64(1) << 40
    number = np.arange(n)
    at = np.where(happens, number, n)
    following = np.minimum.accumulate(at[::-1])[::-1]
    inside = np.minimum(following, n - 1)
    same = (following < n) & (part[inside] == part)
    return np.where(same, t[inside].astype(np.int64) - t.astype(np.int64), never)


def _bins_of(value: Floats) -> Ints:
    raw = np.floor((np.log2(value) - _LOG_LOW) / _LOG_STEP) + 1
    return np.asarray(np.clip(raw, 0, _BINS - 1), np.intp)
