"""The rolling correlator of one (run, hook point): rows in, profiles out, no I/O.

Three depths, by what they cost. Moments are added per flush of rows, for every feature, at a cost
that depends on how many fired. Panes close every ``pane_steps`` rows and merge into windows. The
episodic part waits for whole episodes and runs over many of them at once: jackknife units,
autocovariances, lead and lag, bouts, sketches, exemplars.

Everything kept is a function of the set of rows (each known by its global number), not of batches,
shards or merge order; ``merge``, ``state`` and ``restore`` rely on it.
"""

# ruff: noqa: SLF001 - merge and restore read the private state of another Correlator
from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from interlatent_live.errors import UserError
from interlatent_live.statistics.config import ALL, CorrelatorConfig
from interlatent_live.statistics.deep import Deep
from interlatent_live.statistics.drift import PaneSummary
from interlatent_live.statistics.episodes import EpisodeLog, LogRows
from interlatent_live.statistics.exemplars import ExemplarRows
from interlatent_live.statistics.lead_lag import lag_profile
from interlatent_live.statistics.moments import Layout, PaneSums, Rows
from interlatent_live.statistics.profile import QUANTILES, ProfileTable, associations
from interlatent_live.statistics.windows import Accumulator, Ring, WindowView
from interlatent_live.stream import Controller, StepFlag

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from interlatent_live.statistics.cofiring import Partner
    from interlatent_live.statistics.config import SliceSpec
    from interlatent_live.statistics.events import EventProfile
    from interlatent_live.statistics.exemplars import Exemplar, ExemplarKind
    from interlatent_live.statistics.lead_lag import LagProfile
    from interlatent_live.statistics.moments import Floats, Ints, Moments
    from interlatent_live.statistics.profile import FeatureProfile
    from interlatent_live.statistics.screening import DiscoveryLog
    from interlatent_live.statistics.sketches import Grid
    from interlatent_live.stream import MetricSpec, SparseCodes, Steps

_ENVS = 1 << 16
_POLICY = int(Controller.POLICY)
_NO_ACTIVATION = int(StepFlag.NO_ACTIVATION)


@dataclass(frozen=True, slots=True)
class CorrelatorState:
    """A snapshot: JSON-able ``meta`` and named arrays; :mod:`snapshot` writes it to a file."""

    meta: dict[str, Any]
    arrays: dict[str, NDArray[Any]]


@dataclass(slots=True)
class Counts:
    """What came in and what was left out, and why."""

    rows: int = 0
    """Rows that entered the default statistics."""
    steered: int = 0
    """Rows whose controller was not the policy."""
    no_activation: int = 0
    duplicates: int = 0
    """Rows at or before the copy's last known row: a replay's overlap."""
    bad_activations: int = 0
    """Rows with a non-finite or non-positive activation."""
    metric_nan: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    """[M] counted rows where the metric was absent."""
    metric_inf: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    """[M] counted rows where the metric was infinite; treated as absent."""

    def scalars(self) -> NDArray[np.int64]:
        """The five scalar counts."""
        return np.array([getattr(self, name) for name in _SCALARS], np.int64)

    def add(self, other: Counts) -> None:
        """Add another correlator's counts."""
        for name in _SCALARS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.metric_nan = self.metric_nan + other.metric_nan
        self.metric_inf = self.metric_inf + other.metric_inf

    @classmethod
    def load(
        cls, scalars: NDArray[np.int64], metric_nan: NDArray[Any], metric_inf: NDArray[Any]
    ) -> Counts:
        """Inverse of :meth:`scalars` beside the two arrays."""
        out = cls(metric_nan=metric_nan, metric_inf=metric_inf)
        for name, value in zip(_SCALARS, scalars.tolist(), strict=True):
            setattr(out, name, int(value))
        return out


_SCALARS = ("rows", "steered", "no_activation", "duplicates", "bad_activations")


@dataclass(slots=True)
class _Batch:
    """Eligible rows waiting to be summed."""

    position: NDArray[np.uint64]
    metrics: Floats
    indptr: NDArray[np.int32]
    index: NDArray[np.int32]
    value: NDArray[np.float32]

    def rows(self, low: int, high: int) -> _Batch:
        """Rows low … high − 1."""
        a, b = self.indptr[low], self.indptr[high]
        return _Batch(
            self.position[low:high],
            self.metrics[low:high],
            self.indptr[low : high + 1] - a,
            self.index[a:b],
            self.value[a:b],
        )

    def take(self, mask: NDArray[np.bool_]) -> _Batch:
        """Rows where ``mask`` holds."""
        counts = np.diff(self.indptr)
        indptr = np.zeros(int(mask.sum()) + 1, np.int32)
        np.cumsum(counts[mask], out=indptr[1:])
        entries = np.repeat(mask, counts)
        return _Batch(
            self.position[mask],
            self.metrics[mask],
            indptr,
            self.index[entries],
            self.value[entries],
        )


def _join(batches: list[_Batch]) -> _Batch:
    if len(batches) == 1:
        return batches[0]
    counts = np.concatenate([np.diff(batch.indptr) for batch in batches])
    indptr = np.zeros(len(counts) + 1, np.int32)
    np.cumsum(counts, out=indptr[1:])
    return _Batch(
        np.concatenate([batch.position for batch in batches]),
        np.concatenate([batch.metrics for batch in batches]),
        indptr,
        np.concatenate([batch.index for batch in batches]),
        np.concatenate([batch.value for batch in batches]),
    )


@dataclass(slots=True)
class _Slice:
    """Moments of a subset of rows: an open pane that closes rarely, and what is closed."""

    sums: PaneSums
    closed: Accumulator
    rows: int = 0


class Correlator:
    """Rolling statistics of every feature of one hook point against every metric.

    Rows are known by a global number, ``base + seq``: ``seq`` numbers the rows of a boot and
    ``base`` is the number of rows that earlier boots may have had (chosen once per boot and
    recorded by the caller). Rows of one agent copy must come in ascending order; a row at or
    before the copy's last one is a duplicate, counted and ignored, so a replay may overlap.

    Raises:
        UserError: for a dictionary or metric table of another shape than declared.
    """

    def __init__(
        self,
        metric_specs: Sequence[MetricSpec],
        n_features: int,
        config: CorrelatorConfig | None = None,
    ) -> None:
        self.specs = tuple(metric_specs)
        self.n_features = int(n_features)
        self.config = config or CorrelatorConfig()
        if self.n_features < 1:
            raise UserError("a correlator needs at least one feature")
        names = [spec.name for spec in self.specs]
        if len(set(names)) != len(names):
            raise UserError("metric names must be unique within a correlator")
        m = len(self.specs)
        cfg = self.config
        self.counts = Counts(metric_nan=np.zeros(m, np.int64), metric_inf=np.zeros(m, np.int64))
        self.layout = Layout(m)
        self.reference: Floats = np.full(m, np.nan)
        self.newest = -1
        self._last = np.full(_ENVS, -1, np.int64)
        self._pivot_a: Floats = np.full(self.n_features, np.nan)
        self._pending: list[_Batch] = []
        self._pending_rows = 0
        self._flush_rows = cfg.flush_rows(self.n_features)
        self._open = PaneSums(self.n_features, self.layout, np.full(m, np.nan))
        self._open_key: int | None = None
        self._closed: deque[PaneSummary] = deque(maxlen=256)
        self.monitored: Ints | None = None
        """Features whose correlations a pane's summary holds, ascending; ``None``: all."""
        self._error: dict[int, tuple[float, float]] = {}
        self._accumulators: dict[str, Accumulator] = {
            ALL: Accumulator(self.n_features, self.layout, cfg.pane_steps)
        }
        for half in cfg.half_lives:
            self._accumulators[f"half:{half:g}"] = Accumulator(
                self.n_features, self.layout, cfg.pane_steps, half
            )
        self._sliding = {f"last:{n}": -(-n // cfg.pane_steps) for n in cfg.sliding}
        self._ring = Ring(m, max(self._sliding.values(), default=0))
        self._slices = {f"slice:{item.name}": self._new_slice() for item in cfg.slices}
        self._predicates: dict[str, SliceSpec] = {f"slice:{s.name}": s for s in cfg.slices}
        self._log = EpisodeLog(m, cfg.block_steps, cfg.seed, cfg.max_log_rows)
        self.deep = Deep.create(self.specs, self.n_features, cfg) if cfg.episodic else None
        self.looks: DiscoveryLog | None = None
        """Makes its declared looks when the episodes that they wait for have been taken in."""

    # -- rows in ---------------------------------------------------------------------------------

    def update(  # noqa: C901 - the gate of the stream: each branch is one check
        self,
        steps: Steps,
        codes: SparseCodes,
        *,
        base: int = 0,
        seq: NDArray[np.uint64] | None = None,
    ) -> None:
        """Add a batch of n rows.

        Args:
            steps: the rows' columns, metrics in the order of the correlator's specs.
            codes: the rows' features.
            base: global row number of the boot's row 0.
            seq: [n] sequence numbers where they are not ``first_seq + i`` (a shard's subset).

        Raises:
            UserError: when the shapes are not those of this correlator.
        """
        n = len(steps)
        if codes.n_features != self.n_features or len(codes) != n:
            raise UserError(
                f"features [{len(codes)}, {codes.n_features}] do not fit {n} steps of a correlator "
                f"of {self.n_features} features"
            )
        if steps.metrics.shape != (n, len(self.specs)):
            raise UserError(
                f"metrics {steps.metrics.shape} do not fit {n} steps of {len(self.specs)} metrics"
            )
        if not n:
            return
        if seq is None:
            position = np.arange(
                base + steps.first_seq, base + steps.first_seq + n, dtype=np.uint64
            )
        else:
            position = np.asarray(seq, np.uint64) + np.uint64(base)
        index = codes.index.astype(np.int32, copy=False)
        if len(index) and index.max() >= self.n_features:
            raise UserError("a feature's index lies beyond the dictionary")
        batch = _Batch(
            position,
            np.array(steps.metrics, np.float64),
            codes.indptr.astype(np.int32),
            index,
            codes.value,
        )
        fresh = self._fresh(steps.env, position)
        eligible = self._eligible(steps, batch, fresh)
        kept = batch if eligible.all() else batch.take(eligible)
        if self.config.drift:
            self._note_error(position, codes.error, eligible)
        if self.deep is not None and fresh.any():
            self._remember(steps, batch, fresh, eligible, base)
        if len(kept.position):
            # The caller's buffers may be reused after this call; what waits must be our own.
            kept.index, kept.value = kept.index.copy(), kept.value.copy()
            if self.deep is not None and not self.deep.ready:
                self.deep.learn(kept.metrics)
            self._pending.append(kept)
            self._pending_rows += len(kept.position)
            if self._pending_rows >= self._flush_rows:
                self._flush()
        if self.deep is not None and self._log.due(self.config.pass_rows):
            self._pass()

    def _note_error(
        self,
        position: NDArray[np.uint64],
        error: NDArray[np.float32],
        eligible: NDArray[np.bool_],
    ) -> None:
        """Sum the reconstruction error of the rows by pane."""
        known = eligible & np.isfinite(error)
        if not known.any():
            return
        first, last = int(position[0]), int(position[-1])
        pane = self.config.pane_steps
        if len(position) == last - first + 1 and first // pane == last // pane:
            total, count = self._error.get(first // pane, (0.0, 0.0))
            chosen = error if known.all() else error[known]
            self._error[first // pane] = (
                total + float(chosen.sum(dtype=np.float64)),
                count + len(chosen),
            )
            return
        keys = (position[known] // np.uint64(self.config.pane_steps)).astype(np.int64)
        for key in np.unique(keys).tolist():
            mine = keys == key
            total, count = self._error.get(key, (0.0, 0.0))
            values = error[known][mine].astype(np.float64)
            self._error[key] = (total + float(values.sum()), count + float(mine.sum()))
        if len(self._error) > 256:
            del self._error[min(self._error)]

    def _eligible(self, steps: Steps, batch: _Batch, fresh: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """[n] rows of the default statistics; counts the others by their reason."""
        policy = steps.controller == _POLICY
        hooked = (steps.flags & _NO_ACTIVATION) == 0
        eligible = fresh & policy & hooked
        if not eligible.all():
            self.counts.duplicates += int(np.count_nonzero(~fresh))
            self.counts.steered += int(np.count_nonzero(fresh & ~policy))
            self.counts.no_activation += int(np.count_nonzero(fresh & policy & ~hooked))
        value = batch.value
        if len(value) and not (value.min() > 0 and value.max() < np.inf):
            bad_entry = ~((value > 0) & np.isfinite(value))
            rows = np.repeat(np.arange(len(steps)), np.diff(batch.indptr))
            bad = np.zeros(len(steps), bool)
            bad[rows[bad_entry]] = True
            self.counts.bad_activations += int(np.count_nonzero(bad & eligible))
            eligible &= ~bad
        return np.asarray(eligible, bool)

    def _fresh(self, env: NDArray[np.uint16], position: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """[n] rows after their copy's last known row; moves the last known rows."""
        place = position.astype(np.int64)
        fresh = place > self._last[env]
        np.maximum.at(self._last, env, place)
        return fresh

    def _remember(
        self,
        steps: Steps,
        batch: _Batch,
        fresh: NDArray[np.bool_],
        eligible: NDArray[np.bool_],
        base: int,
    ) -> None:
        rows = LogRows(
            position=batch.position,
            base=np.full(len(steps), base, np.uint64),
            env=np.array(steps.env),
            episode=np.array(steps.episode),
            t=np.array(steps.t),
            flags=np.array(steps.flags),
            eligible=eligible,
            metrics=batch.metrics,
            indptr=batch.indptr.astype(np.int64),
            index=batch.index.copy(),
            value=batch.value.astype(np.float32),
        )
        if not fresh.all():
            rows = rows.take(np.flatnonzero(fresh))
        self._log.append(rows)

    def _flush(self) -> None:
        """Sum the waiting rows into their panes."""
        if not self._pending_rows:
            return
        batch = _join(self._pending)
        self._pending, self._pending_rows = [], 0
        self.counts.rows += len(batch.position)
        keys = (batch.position // np.uint64(self.config.pane_steps)).astype(np.int64)
        finite = np.isfinite(batch.metrics)
        if not finite.all():
            self._note_missing(batch.metrics, finite)
        self._note_reference(batch.metrics, finite)
        if keys[0] == keys[-1] and (keys == keys[0]).all():
            self._apply(int(keys[0]), batch, finite)
        else:
            for key in np.unique(keys).tolist():
                mask = keys == key
                self._apply(key, batch.take(mask), finite[mask])
        for name, spec in self._predicates.items():
            columns = {s.name: batch.metrics[:, i] for i, s in enumerate(self.specs)}
            mask = np.asarray(spec.predicate(columns), bool)
            if mask.any():
                self._add_to_slice(self._slices[name], batch.take(mask), finite[mask])

    def _note_missing(self, metrics: Floats, finite: NDArray[np.bool_]) -> None:
        nan = np.isnan(metrics)
        self.counts.metric_nan += nan.sum(axis=0)
        self.counts.metric_inf += (~finite & ~nan).sum(axis=0)
        partial = np.flatnonzero(~finite.all(axis=0)).tolist()
        wider = self.layout.union(Layout(len(self.specs), tuple(partial)))
        if wider != self.layout:
            self.layout = wider
            self._open.widen(wider)
            for item in self._slices.values():
                item.sums.widen(wider)

    def _note_reference(self, metrics: Floats, finite: NDArray[np.bool_]) -> None:
        """Fix the reference value of metrics seen for the first time: a robust middle."""
        unknown = np.isnan(self.reference)
        if unknown.any():
            self.reference[unknown] = _middle(metrics[:, unknown], finite[:, unknown])
            if self.deep is not None:
                self.deep.reference = self.reference_or_zero()

    def reference_or_zero(self) -> Floats:
        """[M] the values means are kept about; 0 for metrics never seen."""
        return np.where(np.isnan(self.reference), 0.0, self.reference)

    def _apply(self, key: int, batch: _Batch, finite: NDArray[np.bool_]) -> None:
        if self._open_key is None:
            self._open_key = key
        if key > self._open_key:
            self._close()
            self._open_key = key
        self.newest = max(self.newest, key)
        if key == self._open_key:
            self._add(self._open, batch, finite)
            return
        late = PaneSums(self.n_features, self.layout, np.full(len(self.specs), np.nan))
        self._add(late, batch, finite)
        self._absorb(late.moments(None, self.reference_or_zero(), self._pivots()), key)

    def _add(self, pane: PaneSums, batch: _Batch, finite: NDArray[np.bool_]) -> None:
        unknown = np.isnan(pane.pivot)
        if unknown.any():
            pane.pivot = np.where(unknown, _middle(batch.metrics, finite), pane.pivot)
        pivots = self._pivot_a[batch.index]
        fresh = np.isnan(pivots)
        if fresh.any():
            # Any on-value near the feature's typical one will do; the last one of the batch is
            # kept.
            self._pivot_a[batch.index[fresh]] = batch.value[fresh]
            pivots = self._pivot_a[batch.index]
        layout, n = self.layout, len(batch.position)
        g = layout.groups
        design = np.empty((n, g + layout.n_metrics))
        design[:, 0] = 1.0
        d = design[:, g:]
        np.subtract(batch.metrics, np.where(np.isnan(pane.pivot), 0.0, pane.pivot), out=d)
        if layout.partial:
            columns = list(layout.partial)
            d[~finite] = 0.0
            design[:, 1:g] = finite[:, columns]
        squares = np.einsum("ij,ij->j", d, d)
        pane.add(Rows(batch.indptr, batch.index, batch.value - pivots, design, squares))

    def _pivots(self) -> Floats:
        return np.where(np.isnan(self._pivot_a), 0.0, self._pivot_a)

    def _close(self) -> None:
        """Turn the open pane into moments and merge them into every window."""
        if self._open_key is None:
            return
        active = self._open.active()
        pane = self._open.moments(active, self.reference_or_zero(), self._pivot_a)
        self._absorb(pane, self._open_key)
        if self.config.drift:
            self._closed.append(self._summary(pane, self._open_key))
        self._open.clear(active, np.full(len(self.specs), np.nan))
        self._open_key = None

    def _absorb(self, pane: Moments, key: int) -> None:
        for window in self._accumulators.values():
            window.absorb(pane, key)
        if self._ring.depth:
            self._ring.absorb(pane, key, max(self.newest, key))

    def _summary(self, pane: Moments, key: int) -> PaneSummary:
        """What a closed pane says of every feature, for the drift monitors."""
        kept = slice(None) if self.monitored is None else np.isin(pane.features, self.monitored)
        columns = associations(
            pane.table[kept],
            pane.layout.group_of(),
            pane.metrics.rows,
            pane.metrics.mean,
            pane.metrics.ss,
            self.reference_or_zero(),
        )
        rows = float(pane.metrics.rows[0])
        density = np.zeros(self.n_features)
        density[pane.features] = pane.table[:, 0] / rows
        activation = np.full(self.n_features, np.nan)
        activation[pane.features] = pane.table[:, pane.layout.groups]
        r = np.full((self.n_features, len(self.specs)), np.nan)
        r[pane.features[kept]] = columns["r"]
        total, count = self._error.pop(key, (0.0, 0.0))
        names = tuple(spec.name for spec in self.specs)
        fvu = total / count if count else float("nan")
        return PaneSummary(key, density, activation, r, names, fvu)

    def _new_slice(self) -> _Slice:
        m = len(self.specs)
        return _Slice(
            PaneSums(self.n_features, self.layout, np.full(m, np.nan)),
            Accumulator(self.n_features, self.layout, self.config.pane_steps),
        )

    def _add_to_slice(self, item: _Slice, batch: _Batch, finite: NDArray[np.bool_]) -> None:
        item.sums.widen(self.layout)
        self._add(item.sums, batch, finite)
        item.rows += len(batch.position)
        if item.rows >= 1 << 17:
            self._close_slice(item)

    def _close_slice(self, item: _Slice) -> None:
        active = item.sums.active()
        item.closed.absorb(item.sums.moments(active, self.reference_or_zero(), self._pivot_a), 0)
        item.sums.clear(active, np.full(len(self.specs), np.nan))
        item.rows = 0

    def _pass(self) -> None:
        """Hand the closed episodes to everything that needs them whole."""
        if self.deep is None or not self.deep.ready:
            return
        if np.isnan(self.reference).any():
            # Episodes may hold the first values of a metric whose reference is still to be chosen.
            self._flush()
        chunk = self._log.take_closed(self.n_features)
        if chunk is not None:
            self.deep.reference = self.reference_or_zero()
            log, units = self.looks, self.deep.units
            # Declared looks fall between two episodes, whatever came in one batch with which.
            while log is not None and units.blocks + len(chunk.key) >= log.next_due:
                if (count := log.next_due - units.blocks) > 0:
                    first, chunk = chunk.split(count)
                    self.deep.absorb(first)
                log.look(self)
            self.deep.absorb(chunk)

    def finish(self) -> None:
        """Sum everything that waits, and every closed episode; called before any query."""
        self._flush()
        if self.deep is not None and self._log.rows > self._log.carried:
            self._pass()

    # -- profiles out ----------------------------------------------------------------------------

    def windows(self) -> tuple[str, ...]:
        """Names a profile can be asked for."""
        names = (*self._accumulators, *self._sliding, *self._slices)
        return names if self.deep is None else (*names, *self.deep.slice_names())

    def view(self, features: Sequence[int] | Ints | None = None, window: str = ALL) -> WindowView:
        """Moments of ``features`` (default: all) in a window.

        Raises:
            UserError: for an unknown window.
        """
        self._flush()
        chosen = self._features(features)
        open_pane = None
        if self._open_key is not None:
            moments = self._open.moments(chosen, self.reference_or_zero(), self._pivots())
            open_pane = (moments, self._open_key)
        if window in self._accumulators:
            return self._accumulators[window].view(chosen, self.newest, open_pane)
        if window in self._sliding:
            panes = self._sliding[window]
            return self._ring.view(chosen, panes, self.newest, self.layout, open_pane)
        if window in self._slices:
            item = self._slices[window]
            moments = item.sums.moments(chosen, self.reference_or_zero(), self._pivots())
            return item.closed.view(chosen, 0, (moments, 0))
        if self.deep is not None and window in self.deep.slice_names():
            self.finish()
            return self.deep.slice_view(window, chosen)
        raise UserError(f"there is no window {window!r}; there are {', '.join(self.windows())}")

    def table(
        self, features: Sequence[int] | Ints | None = None, window: str = ALL
    ) -> ProfileTable:
        """Profiles of ``features`` (default: all) as columns, vectorised."""
        self.finish()
        view = self.view(features, window)
        chosen = view.features
        of = view.layout.group_of()
        columns = associations(
            view.table,
            of,
            view.metrics.rows,
            view.metrics.mean,
            view.metrics.ss,
            self.reference_or_zero(),
        )
        shape = columns["r"].shape
        nothing = np.full(shape, np.nan)
        empty: dict[str, Any] = {
            "lo": nothing, "hi": nothing, "n_eff": nothing, "auroc": nothing,
            "auroc_error": nothing, "auroc_lo": nothing, "auroc_hi": nothing,
            "by_jackknife": np.zeros(shape, bool),
            "quantiles": np.full((shape[0], len(QUANTILES)), np.nan),
            "episodes": np.full(shape[0], -1, np.int64),
            "bouts": np.full(shape[0], -1, np.int64),
            "on_steps": np.zeros(shape[0], np.int64),
            "longest": np.zeros(shape[0], np.int64),
            "episodes_total": 0, "scope": "rows only",
            "interval_reason": "intervals need the episodic part, which is off",
            "sketch_reason": "sketches need the episodic part, which is off",
        }  # fmt: skip
        if self.deep is not None:
            empty |= self.deep.evidence(
                chosen, columns["r"], view, of, int(np.count_nonzero(self._last >= 0))
            )
        n = float(view.metrics.rows[0])
        return ProfileTable(
            window=window,
            specs=self.specs,
            features=chosen,
            n=n,
            n_on=view.table[:, 0].copy(),
            mean_activation=view.table[:, view.layout.groups].copy(),
            rows=view.metrics.rows[of],
            r=columns["r"],
            mean_on=columns["mean_on"],
            mean_off=columns["mean_off"],
            effect_size=columns["effect_size"],
            constant=columns["constant"].astype(bool),
            still=columns["still"].astype(bool),
            **empty,
        )

    def profile(self, feature: int, window: str = ALL) -> FeatureProfile:
        """All that is known of one feature in a window."""
        return self.table([feature], window).profile(0)

    def profiles(
        self, features: Sequence[int] | Ints | None = None, window: str = ALL
    ) -> tuple[FeatureProfile, ...]:
        """Profiles of many features at once."""
        return self.table(features, window).profiles()

    def top(
        self, metric: str, *, count: int = 20, window: str = ALL, by: str = "r"
    ) -> tuple[FeatureProfile, ...]:
        """Profiles of the features with the largest |``by``| (``r``, ``effect_size``, ``auroc``)
        for a metric, ties by index; features where it is undefined are left out.

        Raises:
            UserError: for an unknown metric or measure.
        """  # noqa: D205 - one sentence, too long for a line
        if by not in ("r", "effect_size", "auroc"):
            raise UserError(f"cannot rank by {by!r}; use r, effect_size or auroc")
        m = self.metric_index(metric)
        table = self.table(None, window)
        values = getattr(table, by)[:, m]
        score = np.abs(values - 0.5) if by == "auroc" else np.abs(values)
        order = np.argsort(-np.where(np.isfinite(score), score, -1.0), kind="stable")[:count]
        return tuple(table.profile(int(i)) for i in order if np.isfinite(score[i]))

    def metric_index(self, name: str) -> int:
        """Column of a metric.

        Raises:
            UserError: when there is no such metric.
        """
        for i, spec in enumerate(self.specs):
            if spec.name == name:
                return i
        raise UserError(
            f"there is no metric {name!r}; there are {', '.join(s.name for s in self.specs)}"
        )

    def live(self, *, min_density: float = 0.001, min_episodes: int = 3) -> Ints:
        """Features on in ≥ 0.1 % of rows and in ≥ 3 episodes (definitions, "Live feature")."""
        self.finish()
        view = self.view()
        dense = view.table[:, 0] >= max(min_density * float(view.metrics.rows[0]), 1)
        if self.deep is None:
            return np.flatnonzero(dense)
        return np.flatnonzero(dense & (self.deep.episode_counts() >= min_episodes))

    def exemplars(self, feature: int) -> dict[ExemplarKind, tuple[Exemplar, ...]]:
        """Steps to look at, by kind; empty without the episodic part or a deep feature."""
        self.finish()
        if self.deep is None:
            return {}
        profile_view = self.view([feature])
        on_mean = profile_view.table[0, 3 * profile_view.layout.groups :][: len(self.specs)]
        rows = profile_view.metrics.rows[profile_view.layout.group_of()]
        with np.errstate(divide="ignore", invalid="ignore"):
            spread = np.sqrt(profile_view.metrics.ss / rows)
        return self.deep.exemplars(feature, on_mean + self.reference_or_zero(), spread)

    def lag_profiles(self, feature: int) -> tuple[LagProfile, ...]:
        """Lead/lag profile of a feature with every metric, −L … L within closed episodes.

        Raises:
            UserError: when no episodes are kept or the feature is not deep.
        """
        deep, slot = self._deep_slot(feature)
        lags = tuple(range(-deep.lags.lags, deep.lags.lags + 1))
        r = deep.lags.correlations(np.array([slot]))[0]
        return tuple(
            lag_profile(feature, spec.name, lags, r[:, m], deep.lags.pairs.copy())
            for m, spec in enumerate(self.specs)
        )

    def activation_histogram(self, feature: int, bars: int = 24) -> tuple[Floats, Floats]:
        """Edges [bars + 1] and counts [bars] of a feature's on-activations in closed episodes.

        Raises:
            UserError: when no episodes are kept or the feature is not deep.
        """
        deep, slot = self._deep_slot(feature)
        return deep.activations.histogram(slot, bars)

    def event_profile(self, feature: int, event: str) -> EventProfile:
        """How a feature fires on the way to an event, and what its firing says of it.

        Raises:
            UserError: when no episodes are kept, or there is no such deep feature or event.
        """
        deep, slot = self._deep_slot(feature)
        return deep.events.profile(slot, event)

    def partners(self, feature: int, count: int = 10) -> tuple[Partner, ...]:
        """Features that fire together with one; empty where pairs are not counted.

        Raises:
            UserError: when no episodes are kept or the feature is not deep.
        """
        deep, slot = self._deep_slot(feature)
        return tuple(
            replace(partner, feature=int(deep.members[partner.feature]))
            for partner in deep.cofiring.partners(slot, count)
        )

    def decomposition(
        self, features: Sequence[int] | Ints | None = None
    ) -> dict[str, NDArray[np.float64]]:
        """Correlations within episodes, between episodes of a copy, and between copies.

        Each [features, M], over closed episodes; NaN where a part has no variance or the feature is
        not deep.

        Raises:
            UserError: when no episodes are kept.
        """
        self.finish()
        if self.deep is None:
            raise UserError("this correlator keeps no episodes (episodic=False)")
        slots = self.deep.slot[self._features(features)]
        parts = self.deep.within.correlations(np.maximum(slots, 0).astype(np.intp))
        return {name: np.where(slots[:, None] >= 0, r, np.nan) for name, r in parts.items()}

    @property
    def panes_waiting(self) -> int:
        """Closed panes that :meth:`drain_panes` would return, without summing what waits."""
        return len(self._closed)

    def drain_panes(self) -> tuple[PaneSummary, ...]:
        """Summaries of the panes that closed since the last call, oldest first (at most 256)."""
        self._flush()
        out = tuple(self._closed)
        self._closed.clear()
        return out

    def _deep_slot(self, feature: int) -> tuple[Deep, int]:
        self.finish()
        if self.deep is None:
            raise UserError("this correlator keeps no episodes (episodic=False)")
        slot = int(self.deep.slot[self._features([feature])[0]])
        if slot < 0:
            raise UserError(f"feature {feature} is outside the deep set; name it in deep_set")
        return self.deep, slot

    def exemplar_rows(self) -> ExemplarRows:
        """Every row that is an exemplar now or may be shown as one, of any feature."""
        self.finish()
        deep = self.deep
        tables = () if deep is None else (deep.best, deep.random, deep.sample)
        return ExemplarRows.of([one.chosen() for one in tables])

    @property
    def grid(self) -> Grid | None:
        """Bin edges of the AUROC sketches, once known; a recorded event that shards share."""
        return None if self.deep is None else self.deep.grid

    @property
    def last_seq(self) -> dict[int, int]:
        """Last global row number seen, by agent copy: where a replay may start."""
        known = np.flatnonzero(self._last >= 0)
        return {int(env): int(self._last[env]) for env in known}

    @property
    def last_row(self) -> int:
        """Global number of the last row seen, −1 before the first."""
        return int(self._last.max())

    # -- state -----------------------------------------------------------------------------------

    def merge(self, other: Correlator) -> None:
        """Take in the rows of another correlator of the same stream (other copies, or other rows).

        Raises:
            UserError: when features, metrics or configuration differ.
        """
        if other.specs != self.specs or other.n_features != self.n_features:
            raise UserError("only correlators of the same features and metrics can be merged")
        if replace(other.config, grid=None, slices=()) != replace(
            self.config, grid=None, slices=()
        ) or [s.name for s in other.config.slices] != [s.name for s in self.config.slices]:
            raise UserError("only correlators of the same configuration can be merged")
        other = other.copy()
        self._flush()
        other._flush()
        self._close()
        other._rebase(self.reference)
        self._rebase(other.reference)
        other._close()
        self.layout = self.layout.union(other.layout)
        self._open.widen(self.layout)
        self.newest = max(self.newest, other.newest)
        for name, window in self._accumulators.items():
            window.merge(other._accumulators[name])
        self._ring.merge(other._ring, self.newest)
        for name, item in self._slices.items():
            theirs = other._slices[name]
            self._close_slice(item)
            other._close_slice(theirs)
            item.closed.merge(theirs.closed)
            item.sums.widen(self.layout)
        unknown = np.isnan(self._pivot_a)
        self._pivot_a[unknown] = other._pivot_a[unknown]
        np.maximum(self._last, other._last, out=self._last)
        self.counts.add(other.counts)
        for key, (total, count) in other._error.items():
            mine = self._error.get(key, (0.0, 0.0))
            self._error[key] = (mine[0] + total, mine[1] + count)
        self._log.merge(other._log)
        if self.deep is not None and other.deep is not None:
            self.deep.merge(other.deep)

    def _rebase(self, reference: Floats) -> None:
        """Express every stored mean about another reference value, where that one is known."""
        target = np.where(np.isnan(reference), self.reference, reference)
        shift = np.where(np.isnan(target) | np.isnan(self.reference), 0.0, self.reference - target)
        self.reference = target
        if shift.any():
            accumulators = [*self._accumulators.values()]
            accumulators += [item.closed for item in self._slices.values()]
            if self.deep is not None:
                accumulators += self.deep.rebase(shift, self.reference_or_zero())
            m = len(self.specs)
            for window in accumulators:
                g = window.layout.groups
                of = window.layout.group_of()
                fired = window.table[:, of] > 0
                window.table[:, 3 * g : 3 * g + m] += np.where(fired, shift, 0.0)
                window.metrics.mean += np.where(window.metrics.rows[of] > 0, shift, 0.0)
            for pane in self._ring.panes.values():
                g = pane.layout.groups
                of = pane.layout.group_of()
                fired = pane.table[:, of] > 0
                pane.table[:, 3 * g : 3 * g + m] += np.where(fired, shift, 0.0)
                pane.metrics.mean += np.where(pane.metrics.rows[of] > 0, shift, 0.0)
        elif self.deep is not None:
            self.deep.reference = self.reference_or_zero()

    def copy(self) -> Correlator:
        """An independent copy."""
        return Correlator.restore(self.state(), self.specs, self.config)

    def state(self) -> CorrelatorState:
        """Everything needed to go on from here."""
        self._flush()
        arrays: dict[str, NDArray[Any]] = {
            "reference": self.reference,
            "pivot_a": self._pivot_a,
            "last": self._last[: int(np.flatnonzero(self._last >= 0).max(initial=-1)) + 1],
            "counts": self.counts.scalars(),
            "metric_nan": self.counts.metric_nan,
            "metric_inf": self.counts.metric_inf,
            "partial": np.array(self.layout.partial, np.int64),
            "open_key": np.array([] if self._open_key is None else [self._open_key], np.int64),
            "newest": np.array(self.newest, np.int64),
            "error_keys": np.array(sorted(self._error), np.int64),
            "error_sums": np.array([self._error[k] for k in sorted(self._error)]).reshape(-1, 2),
        }
        arrays |= _prefixed("open", self._open.arrays())
        for name, window in self._accumulators.items():
            arrays |= _prefixed(f"window/{name}", window.arrays())
        arrays |= _prefixed("ring", self._ring.arrays())
        for name, item in self._slices.items():
            arrays |= _prefixed(f"{name}/sums", item.sums.arrays())
            arrays |= _prefixed(f"{name}/closed", item.closed.arrays())
            arrays[f"{name}/rows"] = np.array(item.rows, np.int64)
        arrays |= _prefixed("log", self._log.arrays())
        if self.deep is not None:
            arrays |= _prefixed("deep", self.deep.arrays())
        meta = {
            "schema": 1,
            "n_features": self.n_features,
            "metrics": [spec.name for spec in self.specs],
            "windows": list(self.windows()),
            "last_seq": {str(k): v for k, v in self.last_seq.items()},
            "rows": self.counts.rows,
        }
        return CorrelatorState(meta, {name: np.array(a) for name, a in arrays.items()})

    @classmethod
    def restore(
        cls,
        state: CorrelatorState,
        metric_specs: Sequence[MetricSpec],
        config: CorrelatorConfig | None = None,
    ) -> Correlator:
        """A correlator that goes on from a state.

        Raises:
            UserError: when the state belongs to other metrics, windows or another schema.
        """
        meta, arrays = state.meta, state.arrays
        if meta.get("schema") != 1:
            raise UserError(
                f"a snapshot of schema {meta.get('schema')!r} was written by another version; "
                "delete it and replay the recording, or start that version again"
            )
        names = [spec.name for spec in metric_specs]
        if list(meta["metrics"]) != names:
            raise UserError(f"the snapshot's metrics {meta['metrics']} are not {names}")
        out = cls(metric_specs, int(meta["n_features"]), config)
        if list(meta["windows"]) != list(out.windows()):
            raise UserError(
                f"the snapshot's windows {meta['windows']} are not {list(out.windows())}"
            )
        m = len(out.specs)
        out.layout = Layout(m, tuple(int(i) for i in arrays["partial"]))
        out.reference = np.array(arrays["reference"])
        out._pivot_a = np.array(arrays["pivot_a"])
        out._last[: len(arrays["last"])] = arrays["last"]
        out.counts = Counts.load(
            arrays["counts"], np.array(arrays["metric_nan"]), np.array(arrays["metric_inf"])
        )
        out._open = PaneSums.from_arrays(out.n_features, m, _part(arrays, "open"))
        out._open_key = int(arrays["open_key"][0]) if len(arrays["open_key"]) else None
        out.newest = int(arrays["newest"])
        sums = arrays["error_sums"].tolist()
        for key, (total, count) in zip(arrays["error_keys"].tolist(), sums, strict=True):
            out._error[int(key)] = (total, count)
        for name, window in out._accumulators.items():
            window.load(_part(arrays, f"window/{name}"))
        out._ring.load(_part(arrays, "ring"))
        for name, item in out._slices.items():
            item.sums = PaneSums.from_arrays(out.n_features, m, _part(arrays, f"{name}/sums"))
            item.closed.load(_part(arrays, f"{name}/closed"))
            item.rows = int(arrays[f"{name}/rows"])
        out._log.load(_part(arrays, "log"))
        if out.deep is not None:
            out.deep.load(_part(arrays, "deep"))
            out.deep.reference = out.reference_or_zero()
        return out

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays held."""
        total = self._open.nbytes + self._pivot_a.nbytes + self._last.nbytes + self._ring.nbytes
        total += sum(window.nbytes for window in self._accumulators.values())
        total += sum(s.sums.nbytes + s.closed.nbytes for s in self._slices.values())
        total += self._log.nbytes
        return total + (self.deep.nbytes if self.deep is not None else 0)

    @property
    def waiting_bytes(self) -> int:
        """Bytes of rows whose episode has not ended, which come and go."""
        return self._log.nbytes

    def _features(self, features: Sequence[int] | Ints | None) -> Ints:
        if features is None:
            return np.arange(self.n_features)
        chosen = np.asarray(features, np.intp)
        if len(chosen) and (chosen.min() < 0 or chosen.max() >= self.n_features):
            raise UserError(f"features must lie in 0 … {self.n_features - 1}")
        return chosen


def _middle(metrics: Floats, finite: NDArray[np.bool_]) -> Floats:
    """[M] median of the finite values, an actual value; NaN where there is none."""
    if finite.all():
        middle = len(metrics) // 2
        return np.asarray(np.partition(metrics, middle, axis=0)[middle], np.float64)
    out = np.full(metrics.shape[1], np.nan)
    for m in range(metrics.shape[1]):
        values = metrics[finite[:, m], m]
        if len(values):
            out[m] = np.partition(values, len(values) // 2)[len(values) // 2]
    return out


def _prefixed(prefix: str, arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    return {f"{prefix}/{name}": value for name, value in arrays.items()}


def _part(arrays: Mapping[str, NDArray[Any]], prefix: str) -> dict[str, NDArray[Any]]:
    start = len(prefix) + 1
    return {name[start:]: value for name, value in arrays.items() if name.startswith(prefix + "/")}
