"""Streams with known truth: metrics that look like control, and features planted on predicates.

What a search, a verdict or a writer is worth shows only where the truth is known. Metrics are
autoregressive with episode offsets; each has a distractor that correlates with it; a planted
feature is on where its predicate holds, up to label noise, and noise features follow hidden
processes that no metric knows of.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

import numpy as np
from scipy.signal import lfilter

from interlatent_live.explanations.predicates import (
    Columns,
    Predicate,
    Term,
    evaluate,
    parse,
    past_of,
    term_text,
    term_values,
)
from interlatent_live.explanations.predicates import Delta as _Delta
from interlatent_live.explanations.predicates import Lag as _Lag
from interlatent_live.explanations.predicates import Metric as _Metric
from interlatent_live.stream import (
    FeatureBatch,
    MetricSpec,
    Role,
    SparseCodes,
    Steps,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.random import Generator
    from numpy.typing import NDArray

HOOK: Final = "planted"


class Kind(StrEnum):
    """What a planted feature follows."""

    THRESHOLD = "single threshold"
    CONJUNCTION = "conjunction"
    INTERVAL = "interval"
    DELTA = "delta"
    LAGGED = "lagged"
    DISJUNCTION = "disjunction"
    NOISE = "noise"
    """Independent on-steps at some density."""
    IRRELEVANT = "metric-irrelevant"
    """A slow hidden process of its own, as autocorrelated as the metrics."""


DESCRIBABLE: Final = (
    Kind.THRESHOLD,
    Kind.CONJUNCTION,
    Kind.INTERVAL,
    Kind.DELTA,
    Kind.LAGGED,
    Kind.DISJUNCTION,
)


@dataclass(frozen=True, slots=True)
class Plan:
    """Sizes and difficulty of a planted stream."""

    per_kind: int = 10
    episodes: int = 60
    steps: int = 400
    metrics: int = 4
    """State metrics; each gets a distractor."""
    phi: float = 0.95
    """Autocorrelation at lag 1 of metrics and of hidden processes."""
    distractor_r: float = 0.8
    label_noise: float = 0.01
    density: tuple[float, float] = (0.005, 0.2)
    kinds: tuple[Kind, ...] = tuple(Kind)
    seed: int = 0


@dataclass(frozen=True, slots=True)
class PlantedFeature:
    """The truth of one feature; ``predicate`` is None where no metric describes it."""

    kind: Kind
    predicate: Predicate | None


@dataclass(frozen=True, slots=True, eq=False)
class PlantedStream:
    """A stream as batches, one per episode, with its truth by feature index."""

    specs: tuple[MetricSpec, ...]
    batches: tuple[FeatureBatch, ...]
    truth: tuple[PlantedFeature, ...]


def plant(plan: Plan) -> PlantedStream:
    """Make a stream; the same plan gives the same stream."""
    random = np.random.default_rng(plan.seed)
    specs = _specs(plan)
    length = plan.episodes * plan.steps
    episode = np.repeat(np.arange(plan.episodes), plan.steps)
    t = np.tile(np.arange(plan.steps), plan.episodes)
    values = np.empty((length, len(specs)))
    for index in range(plan.metrics):
        offset = random.normal(0, 0.3, plan.episodes)[episode]
        signal = _ar(random, plan.phi, plan.episodes, plan.steps) + offset
        other = _ar(random, plan.phi, plan.episodes, plan.steps)
        r = plan.distractor_r
        values[:, index] = signal
        values[:, plan.metrics + index] = r * signal + np.sqrt(1 - r**2) * other
    values[:, -1] = t
    columns = Columns(tuple(s.name for s in specs), values, past_of(episode, t))
    truth, on = [], []
    for kind in plan.kinds:
        for _ in range(plan.per_kind):
            feature, active = _feature(kind, plan, specs, columns, random)
            truth.append(feature)
            on.append(active)
    active = np.stack(on, axis=1)
    strength = np.where(active, random.gamma(4.0, 0.25, active.shape), 0.0)
    batches = _batches(plan, values, strength, episode, t)
    return PlantedStream(specs, batches, tuple(truth))


def _specs(plan: Plan) -> tuple[MetricSpec, ...]:
    units = ("m", "m/s", "rad", "rad/s", "N", "")
    names = [f"signal_{chr(97 + index)}" for index in range(plan.metrics)]
    names += [f"echo_{chr(97 + index)}" for index in range(plan.metrics)]
    specs = [MetricSpec(name, units[i % plan.metrics % 6]) for i, name in enumerate(names)]
    return (*specs, MetricSpec("time_in_episode", "", Role.CLOCK))


def _ar(random: Generator, phi: float, episodes: int, steps: int) -> NDArray[np.float64]:
    """Unit-variance AR(1) per episode, started from its stationary law, [episodes · steps]."""
    noise = random.normal(0, np.sqrt(1 - phi**2), (episodes, steps))
    noise[:, 0] = random.normal(0, 1, episodes)
    out: NDArray[np.float64] = lfilter([1.0], [1.0, -phi], noise, axis=1).ravel()
    return out


def _feature(
    kind: Kind,
    plan: Plan,
    specs: Sequence[MetricSpec],
    columns: Columns,
    random: Generator,
) -> tuple[PlantedFeature, NDArray[np.bool_]]:
    low, high = np.log(plan.density)
    density = float(np.exp(random.uniform(low, high)))
    if kind is Kind.NOISE:
        return PlantedFeature(kind, None), random.random(len(columns.past)) < density
    if kind is Kind.IRRELEVANT:
        hidden = _ar(random, plan.phi, plan.episodes, plan.steps)
        hidden += np.repeat(random.normal(0, 0.3, plan.episodes), plan.steps)
        return PlantedFeature(kind, None), hidden > np.quantile(hidden, 1 - density)
    predicate = parse(_text(kind, plan, columns, random, density), specs)
    on = evaluate(predicate, columns).holds
    # Noise flips on-steps off and as many off-steps on, so that precision stays meaningful.
    flips = on & (random.random(len(on)) < plan.label_noise)
    spare = np.flatnonzero(~on)
    on = on & ~flips
    on[random.choice(spare, int(flips.sum()), replace=False)] = True
    return PlantedFeature(kind, predicate), on


def _text(kind: Kind, plan: Plan, columns: Columns, random: Generator, density: float) -> str:
    first, second = random.permutation(plan.metrics)[:2]
    a, b = columns.names[first], columns.names[second]
    if kind is Kind.DELTA:
        return _tail(_Delta(a), columns, density, random)
    if kind is Kind.LAGGED:
        return _tail(_Lag(a, int(random.integers(2, 9))), columns, density, random)
    if kind is Kind.THRESHOLD:
        return _tail(_Metric(a), columns, density, random)
    if kind is Kind.INTERVAL:
        values = columns.column(a)
        start = float(random.uniform(0.05, 0.95 - density))
        low, high = np.quantile(values, [start, start + density])
        return f"between({a}, {low:.6g}, {high:.6g})"
    if kind is Kind.DISJUNCTION:
        left = _tail(_Metric(a), columns, density / 2, random)
        return f"{left} or {_tail(_Metric(b), columns, density / 2, random)}"
    share = float(np.sqrt(density))
    left = _tail(_Metric(a), columns, share, random)
    return f"{left} and {_tail(_Metric(b), columns, share, random)}"


def _tail(term: Term, columns: Columns, share: float, random: Generator) -> str:
    values = term_values(term, columns)
    above = bool(random.integers(2))
    edge = float(np.nanquantile(values, 1 - share if above else share))
    return f"{term_text(term)} {'>' if above else '<'} {edge:.6g}"


def _batches(
    plan: Plan,
    values: NDArray[np.float64],
    strength: NDArray[np.float64],
    episode: NDArray[np.int64],
    t: NDArray[np.int64],
) -> tuple[FeatureBatch, ...]:
    out = []
    for number in range(plan.episodes):
        rows = slice(number * plan.steps, (number + 1) * plan.steps)
        steps = Steps(
            first_seq=number * plan.steps,
            env=np.zeros(plan.steps, np.uint16),
            episode=episode[rows].astype(np.uint32),
            t=t[rows].astype(np.uint32),
            time_ns=(1 + np.arange(rows.start, rows.stop)) * 10_000_000,
            controller=np.zeros(plan.steps, np.uint8),
            flags=np.zeros(plan.steps, np.uint8),
            metrics=values[rows],
        )
        codes = sparse_codes(strength[rows])
        out.append(FeatureBatch("planted", "boot", steps, {HOOK: codes}, {HOOK: "sha256:planted"}))
    return tuple(out)


def sparse_codes(dense: NDArray[np.floating]) -> SparseCodes:
    """Dense activations [n, F] ≥ 0 as sparse rows, with unknown reconstruction errors."""
    rows, index = np.nonzero(dense > 0)
    counts = np.bincount(rows, minlength=len(dense))
    unknown = np.full(len(dense), np.nan, np.float32)
    return SparseCodes(
        n_features=dense.shape[1],
        indptr=np.concatenate([[0], np.cumsum(counts)]).astype(np.uint32),
        index=index.astype(np.uint32),
        value=dense[rows, index].astype(np.float32),
        error=unknown,
        error_affine=unknown,
    )
