"""The episodic part of a correlator: everything that is computed once whole episodes are known.

It works on *deep* features: all of a small dictionary, a fixed subset of a large one (given, or the
features with the smallest hash), so that its memory is a choice and not a consequence of the
dictionary's width.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from interlatent_live.errors import UserError
from interlatent_live.statistics import effective_n as en
from interlatent_live.statistics.betting import Betting
from interlatent_live.statistics.cofiring import CoFiring
from interlatent_live.statistics.episodes import TERMINATED, TRUNCATED, Chunk
from interlatent_live.statistics.events import Events
from interlatent_live.statistics.exemplars import (
    BestRows,
    Exemplar,
    ExemplarKind,
    RowSample,
    row_priority,
    unit_interval,
)
from interlatent_live.statistics.hashing import mix
from interlatent_live.statistics.moments import Layout, PaneSums, Rows
from interlatent_live.statistics.profile import QUANTILES
from interlatent_live.statistics.serial import Autocovariances, Bouts, LagSums
from interlatent_live.statistics.sketches import ActivationSketch, Grid, MetricSketch
from interlatent_live.statistics.units import UnitSums
from interlatent_live.statistics.windows import Accumulator
from interlatent_live.statistics.within import PartSums, WithinBetween

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from interlatent_live.statistics.config import CorrelatorConfig
    from interlatent_live.statistics.moments import Floats, Ints
    from interlatent_live.statistics.windows import WindowView
    from interlatent_live.stream import MetricSpec

_NEAR_MISSES = 4


def deep_set(n_features: int, config: CorrelatorConfig) -> Ints:
    """Features that get the episodic part, ascending.

    Raises:
        UserError: when a chosen feature lies beyond the dictionary.
    """
    if config.deep_set is not None:
        chosen = np.unique(np.asarray(config.deep_set, np.intp))
        if len(chosen) and (chosen[0] < 0 or chosen[-1] >= n_features):
            raise UserError(f"deep_set must lie in 0 … {n_features - 1}")
        return chosen
    if n_features <= config.deep_features:
        return np.arange(n_features)
    order = np.argsort(mix(np.arange(n_features, dtype=np.uint64), config.seed))
    return np.sort(order[: config.deep_features])


@dataclass(slots=True)
class Deep:
    """All episodic components over the deep features."""

    config: CorrelatorConfig
    n_features: int
    n_metrics: int
    members: Ints
    """[D] dictionary index of each slot."""
    slot: NDArray[np.int32]
    """[F] slot of each feature, −1 for none."""
    reference: Floats
    units: UnitSums
    betting: Betting
    events: Events
    cofiring: CoFiring
    acf: Autocovariances
    lags: LagSums
    bouts: Bouts
    within: WithinBetween
    activations: ActivationSketch
    metrics: MetricSketch
    best: BestRows
    random: BestRows
    sample: RowSample
    outcomes: dict[str, Accumulator]
    grid: Grid | None = None
    grid_rows: list[Floats] = field(default_factory=list)
    grid_count: int = 0
    grids_differ: bool = False

    @classmethod
    def create(cls, specs: Sequence[MetricSpec], n_features: int, config: CorrelatorConfig) -> Deep:
        """An empty part for these metrics."""
        m = len(specs)
        members = deep_set(n_features, config)
        d = len(members)
        slot = np.full(n_features, -1, np.int32)
        slot[members] = np.arange(d, dtype=np.int32)
        outcomes = {}
        if config.outcome_slices:
            for name in ("slice:terminated", "slice:truncated"):
                outcomes[name] = Accumulator(n_features, Layout(m), config.pane_steps)
        return cls(
            config=config,
            n_features=n_features,
            n_metrics=m,
            members=members,
            slot=slot,
            reference=np.zeros(m),
            units=UnitSums(config.units, d, m),
            betting=Betting(d, m),
            events=Events.create(specs, config, d),
            cofiring=CoFiring(d if d <= config.cofiring_features else 0, config.seed),
            acf=Autocovariances(config.acf_lags, d, m),
            lags=LagSums(config.lags, d, m),
            bouts=Bouts(d),
            within=WithinBetween(d, m, config.max_envs),
            activations=ActivationSketch(d, config.sketch_error),
            metrics=MetricSketch(d, m, config.auroc_bins),
            best=BestRows(d, m, config.exemplars_top, config.context),
            random=BestRows(d, m, config.exemplars_random, config.context),
            sample=RowSample(m, config.row_sample, config.seed),
            outcomes=outcomes,
            grid=config.grid,
        )

    @property
    def ready(self) -> bool:
        """Whether the grid is fixed, so that episodes can be taken in."""
        return self.grid is not None

    def learn(self, metrics: Floats) -> None:
        """Gather the first rows; fix the grid from exactly the first ``grid_rows`` of them."""
        if self.grid is not None:
            return
        need = self.config.grid_rows - self.grid_count
        self.grid_rows.append(metrics[:need].copy())
        self.grid_count += min(len(metrics), need)
        if self.grid_count >= self.config.grid_rows:
            self.grid = Grid.learn(np.concatenate(self.grid_rows), self.config.auroc_bins)
            self.grid_rows = []

    def absorb(self, chunk: Chunk) -> None:
        """Take in closed episodes."""
        if self.grid is None:
            raise ValueError("episodes cannot be taken in before the grid is known")
        valid = np.isfinite(chunk.metrics)
        d = np.where(valid, chunk.metrics - self.reference, 0.0)
        bins = self.grid.bins_of(chunk.metrics)
        u = self.grid.ranks_of(bins)
        self.sample.absorb(chunk)
        self._outcomes(chunk, valid)
        own = self._restrict(chunk)
        parts = PartSums.of(own, d, len(self.members))
        self.units.absorb(own, d, valid, u, parts.activation)
        self.betting.absorb(own, d, valid, parts)
        self.acf.absorb(own, d, valid)
        self.lags.absorb(own, d, valid)
        self.bouts.absorb(own)
        self.within.absorb(own, d, parts)
        self.events.absorb(own)
        self.cofiring.absorb(own)
        self.activations.absorb(own)
        self.metrics.absorb(own, bins)
        counts = np.diff(own.indptr)
        tie = np.repeat(row_priority(own.position, self.config.seed), counts)
        self.best.absorb(own, own.value, tie)
        draw = np.repeat(row_priority(own.position, self.config.seed + 3), counts)
        self.random.absorb(own, unit_interval(draw), draw)

    def _restrict(self, chunk: Chunk) -> Chunk:
        """The chunk in slot coordinates, entries of other features dropped."""
        if len(self.members) == self.n_features:
            return chunk
        index = self.slot[chunk.index]
        keep = index >= 0
        counts = np.bincount(chunk.row_of[keep], minlength=len(chunk))
        indptr = np.zeros(len(chunk) + 1, np.int32)
        np.cumsum(counts, out=indptr[1:])
        return Chunk(
            n_features=len(self.members),
            position=chunk.position, env=chunk.env, t=chunk.t, metrics=chunk.metrics,
            indptr=indptr, index=index[keep], value=chunk.value[keep],
            run=chunk.run, part=chunk.part, key=chunk.key, outcome=chunk.outcome,
            block=chunk.block, terminal=chunk.terminal, end=chunk.end,
        )  # fmt: skip

    def _outcomes(self, chunk: Chunk, valid: NDArray[np.bool_]) -> None:
        """Moments of episodes by how they ended."""
        partial = tuple(np.flatnonzero(~valid.all(axis=0)).tolist())
        for name, outcome in (("slice:terminated", TERMINATED), ("slice:truncated", TRUNCATED)):
            window = self.outcomes.get(name)
            if window is None:
                return
            rows = chunk.outcome[chunk.part] == outcome
            if not rows.any():
                continue
            layout = window.layout.union(Layout(self.n_metrics, partial))
            counts = np.diff(chunk.indptr)
            entries = np.repeat(rows, counts)
            indptr = np.zeros(int(rows.sum()) + 1, np.int32)
            np.cumsum(counts[rows], out=indptr[1:])
            features, index = np.unique(chunk.index[entries], return_inverse=True)
            value = chunk.value[entries]
            pivot = np.zeros(len(features))
            pivot[index] = value
            design = np.empty((len(indptr) - 1, layout.groups + self.n_metrics))
            design[:, 0] = 1.0
            design[:, 1 : layout.groups] = valid[rows][:, list(layout.partial)]
            start = self._middle(chunk.metrics[rows], valid[rows])
            d = np.where(valid[rows], chunk.metrics[rows] - start, 0.0)
            design[:, layout.groups :] = d
            sums = PaneSums(len(features), layout, start)
            squares = np.einsum("ij,ij->j", d, d)
            local = index.astype(np.int32)
            sums.add(Rows(indptr, local, value - pivot[index], design, squares))
            moments = sums.moments(None, self.reference, pivot)
            moments.features = features[moments.features].astype(np.intp)
            window.absorb(moments, 0)

    def _middle(self, metrics: Floats, valid: NDArray[np.bool_]) -> Floats:
        """[M] a typical value of each metric; the reference where it is unknown."""
        row = metrics[len(metrics) // 2]
        known = valid[len(metrics) // 2]
        return np.where(known, row, self.reference)

    # -- out -------------------------------------------------------------------------------------

    def slice_names(self) -> tuple[str, ...]:
        """Outcome slices kept here."""
        return tuple(self.outcomes)

    def slice_view(self, window: str, features: Ints) -> WindowView:
        """Moments of an outcome slice."""
        return self.outcomes[window].view(features)

    def episode_counts(self) -> NDArray[np.int64]:
        """[F] episodes (or blocks) each feature fired in; 0 for features that are not deep."""
        out = np.zeros(self.n_features, np.int64)
        out[self.members] = self.bouts.parts
        return out

    def evidence(
        self, features: Ints, r: Floats, view: WindowView, group_of: Ints, copies: int
    ) -> dict[str, Any]:
        """Columns of a profile table that need episodes; see :class:`ProfileTable`."""
        slots = self.slot[features]
        known = np.flatnonzero(slots >= 0)
        own = slots[known].astype(np.intp)
        shape = r.shape
        columns: dict[str, Any] = {
            name: np.full(shape, np.nan)
            for name in ("lo", "hi", "n_eff", "auroc", "auroc_error", "auroc_lo", "auroc_hi")
        }
        columns["by_jackknife"] = np.zeros(shape, bool)
        columns["quantiles"] = np.full((len(features), len(QUANTILES)), np.nan)
        for name in ("episodes", "bouts"):
            columns[name] = np.full(len(features), -1, np.int64)
        for name in ("on_steps", "longest"):
            columns[name] = np.zeros(len(features), np.int64)
        columns["episodes_total"] = self.bouts.total_parts
        columns["scope"] = self.scope()
        partial = "" if len(known) == len(features) else "this feature is outside the deep set"
        columns["sketch_reason"] = partial or (
            "" if self.units.blocks else "no episode has ended yet"
        )
        columns["interval_reason"] = columns["sketch_reason"] or "too few rows for an interval"
        if not len(known) or not self.units.blocks:
            return columns
        columns["quantiles"][known] = self.activations.quantiles(own, QUANTILES)
        columns["episodes"][known] = self.bouts.parts[own]
        columns["bouts"][known] = self.bouts.bouts[own]
        columns["on_steps"][known] = self.bouts.steps[own]
        columns["longest"][known] = self.bouts.longest[own]
        self._intervals(columns, known, own, r, view, group_of, copies)
        self._auroc(columns, known, own)
        return columns

    def scope(self) -> str:
        """What intervals may be read as."""
        return "episodes" if self.units.episodes >= en.MIN_EPISODES else "within-episode only"

    def _intervals(  # noqa: PLR0917 - one caller, and the order is that of the table
        self,
        columns: dict[str, Any],
        known: Ints,
        own: Ints,
        r: Floats,
        view: WindowView,
        group_of: Ints,
        copies: int,
    ) -> None:
        """The wider of jackknife and ACF, carried from the closed rows to the window."""
        se_jack, r_units, freedom, groups = en.jackknife_se(self.units, own)
        rho_a, rho_d = en.autocorrelations(self.acf, self.units, own)
        total = float(self.units.rows.sum())
        factor = en.bartlett_factor(self.config.acf_lags, rho_a, rho_d, self.acf.pairs)
        weight = view.metrics.rows[group_of]
        kish = weight**2 / np.maximum(view.rows_squared[group_of], 1e-300)
        decayed = factor
        if view.half_life is not None:
            decay = 2.0 ** (-max(copies, 1) / view.half_life)
            decayed = en.bartlett_factor(self.config.acf_lags, rho_a, rho_d, self.acf.pairs, decay)
        n_acf = np.maximum(kish / decayed, 2.0)
        # The jackknife speaks of the closed rows; its design effect carries over to other windows.
        with np.errstate(divide="ignore", invalid="ignore"):
            n_jack_all = 1.0 / se_jack**2 + 3.0
            design = np.maximum(total / n_jack_all, 1.0)
            n_jack = kish / design
        trusted = np.isfinite(n_jack) & np.isfinite(r_units)
        t_jack = en.t_quantile(self.config.confidence, freedom)[:, None]
        t_acf = en.t_quantile(self.config.confidence, np.maximum(n_acf - 2, 1.0))
        half_acf = np.where(n_acf > 3.5, t_acf / np.sqrt(np.maximum(n_acf - 3, 0.5)), np.inf)
        with np.errstate(invalid="ignore"):
            half_jack = np.where(
                trusted & (n_jack > 3.5), t_jack / np.sqrt(np.maximum(n_jack - 3, 0.5)), np.inf
            )
        usable = groups >= en.MIN_EPISODES
        half_jack = np.where(trusted, half_jack, 0.0) if usable else np.zeros_like(half_acf)
        by_jack = half_jack >= half_acf
        half = np.where(by_jack, half_jack, half_acf)
        n_eff = np.where(by_jack, np.minimum(n_jack, kish), np.minimum(n_acf, kish))
        z = en.safe_atanh(r[known])
        defined = np.isfinite(z)
        columns["lo"][known] = np.where(defined, np.tanh(z - half), np.nan)
        columns["hi"][known] = np.where(defined, np.tanh(z + half), np.nan)
        columns["n_eff"][known] = np.where(defined, n_eff, np.nan)
        columns["by_jackknife"][known] = by_jack

    def _auroc(self, columns: dict[str, Any], known: Ints, own: Ints) -> None:
        if self.grid is None:
            return
        value, error = self.metrics.auroc(own, self.grid.exact(self.config.auroc_bins))
        columns["auroc"][known] = value
        columns["auroc_error"][known] = error
        se, groups = en.rank_difference_se(self.units, own)
        if groups >= en.MIN_EPISODES:
            half = en.t_quantile(self.config.confidence, float(groups - 1)) * se + error
            columns["auroc_lo"][known] = np.clip(value - half, 0.0, 1.0)
            columns["auroc_hi"][known] = np.clip(value + half, 0.0, 1.0)

    def exemplars(
        self, feature: int, on_mean: Floats, spread: Floats
    ) -> dict[ExemplarKind, tuple[Exemplar, ...]]:
        """Steps to look at, by kind."""
        slot = int(self.slot[feature])
        if slot < 0:
            return {}
        top = tuple(
            self.best.exemplar(slot, i, ExemplarKind.TOP) for i in self.best.rows(slot).tolist()
        )
        drawn = [
            self.random.exemplar(slot, i, ExemplarKind.RANDOM)
            for i in self.random.rows(slot).tolist()
        ]
        spread_out = sorted(drawn, key=lambda item: (item.activation, item.position))
        chosen = []
        for fraction in QUANTILES:
            if spread_out:
                at = round(fraction * (len(spread_out) - 1))
                item = spread_out[at]
                chosen.append(_as_quantile(item, fraction))
        near, off = self._off_rows(feature, on_mean, spread)
        return {
            ExemplarKind.TOP: top,
            ExemplarKind.QUANTILE: tuple(chosen),
            ExemplarKind.RANDOM: tuple(drawn[: self.config.exemplars_top]),
            ExemplarKind.NEAR_MISS: near,
            ExemplarKind.OFF: off,
        }

    def _off_rows(
        self, feature: int, on_mean: Floats, spread: Floats
    ) -> tuple[tuple[Exemplar, ...], tuple[Exemplar, ...]]:
        """Off-rows nearest to where the feature usually is on, and random off-rows."""
        sample = self.sample
        if not len(sample):
            return (), ()
        off = np.flatnonzero(sample.activation(feature) == 0)
        usable = (spread > 0) & np.isfinite(on_mean)
        scaled = (sample.metrics[off][:, usable] - on_mean[usable]) / spread[usable]
        count = np.isfinite(scaled).sum(axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            distance = np.sqrt(np.nansum(scaled**2, axis=1) / count)
        distance[count == 0] = np.inf
        order = np.lexsort((sample.priority[off], distance))[:_NEAR_MISSES]

        def make(i: int, kind: ExemplarKind, gap: float | None) -> Exemplar:
            row = int(off[i])
            return Exemplar(
                kind=kind, position=int(sample.position[row]), env=int(sample.env[row]),
                t=int(sample.t[row]), activation=0.0, metrics=sample.metrics[row].copy(),
                context=sample.metrics[row : row + 1].copy(), distance=gap,
            )  # fmt: skip

        near = tuple(
            make(int(i), ExemplarKind.NEAR_MISS, float(distance[i]))
            for i in order
            if np.isfinite(distance[i])
        )
        plain = tuple(make(i, ExemplarKind.OFF, None) for i in range(min(len(off), _NEAR_MISSES)))
        return near, plain

    # -- state -----------------------------------------------------------------------------------

    def _components(self) -> dict[str, Any]:
        return {
            "units": self.units, "betting": self.betting, "events": self.events,
            "cofiring": self.cofiring, "acf": self.acf, "lags": self.lags, "bouts": self.bouts,
            "within": self.within, "activations": self.activations, "metrics": self.metrics,
            "best": self.best, "random": self.random, "sample": self.sample, **self.outcomes,
        }  # fmt: skip

    def merge(self, other: Deep) -> None:
        """Take in another part's episodes; its reference has been made the same."""
        if self.grid is None:
            self.grid = other.grid
        elif other.grid is not None and not self.grid.same(other.grid):
            raise UserError(
                "these correlators learned different bin edges; give both the same `grid` "
                "(Correlator.grid of the first) to merge them"
            )
        if self.grid is None:
            self.grid_rows += other.grid_rows
            self.grid_count += other.grid_count
        mine, theirs = self._components(), other._components()
        for name, component in mine.items():
            component.merge(theirs[name])

    def rebase(self, shift: Floats, reference: Floats) -> list[Accumulator]:
        """Move the reference of every sum; returns the windows the caller moves with its own."""
        self.units.rebase(shift)
        self.acf.rebase(shift)
        self.lags.rebase(shift)
        self.within.rebase(shift)
        self.reference = reference
        return list(self.outcomes.values())

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(int(part.nbytes) for part in self._components().values())

    def arrays(self) -> dict[str, NDArray[Any]]:
        """State as named arrays."""
        out: dict[str, NDArray[Any]] = {}
        for name, part in self._components().items():
            out |= {f"{name}/{key}": value for key, value in part.arrays().items()}
        if self.grid is not None:
            out |= {f"grid/{key}": value for key, value in self.grid.arrays().items()}
        elif self.grid_rows:
            out["learning"] = np.concatenate(self.grid_rows)
        return out

    def load(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Inverse of :meth:`arrays`."""
        for name, part in self._components().items():
            start = f"{name}/"
            part.load({k[len(start) :]: v for k, v in arrays.items() if k.startswith(start)})
        grid = {k[5:]: v for k, v in arrays.items() if k.startswith("grid/")}
        self.grid = Grid.from_arrays(grid) if grid else None
        self.grid_rows = []
        self.grid_count = 0
        if "learning" in arrays:
            self.grid_rows = [np.array(arrays["learning"])]
            self.grid_count = len(arrays["learning"])


def _as_quantile(item: Exemplar, fraction: float) -> Exemplar:
    return Exemplar(
        kind=ExemplarKind.QUANTILE, position=item.position, env=item.env, t=item.t,
        activation=item.activation, metrics=item.metrics, context=item.context, quantile=fraction,
    )  # fmt: skip
