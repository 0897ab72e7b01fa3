"""Do the error rates hold? Simulation with known truth, the naive method beside.

Four questions (definitions, "Calibration passes when"): (a) how many runs of pure noise show any
discovery, though series are autocorrelated, periodic and offset by episode; (b) which share of
what is found among planted relations is false, and how much is found beside an oracle that knows
the null's spread; (c) how many runs alert falsely when looked at after every episode, and how long
a true relation waits; (d) how long a drift monitor runs to a false alarm, and how late it sees a
change. The decisions are made by the same functions the correlator uses, on unit sums made
directly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from scipy import special

from interlatent_live.bench.report import BenchReport, bench_report, bench_row
from interlatent_live.statistics.betting import BETS, log_cosh_sums, log_evidence
from interlatent_live.statistics.config import CorrelatorConfig
from interlatent_live.statistics.correlator import Correlator
from interlatent_live.statistics.drift import DriftMonitor
from interlatent_live.statistics.effective_n import jackknife_se, safe_atanh, t_quantile
from interlatent_live.statistics.hashing import mix
from interlatent_live.statistics.screening import (
    benjamini_hochberg,
    benjamini_yekutieli,
    e_bh,
    look_level,
    sign_symmetric_p,
)
from interlatent_live.statistics.units import UnitSums
from interlatent_live.stream import MetricSpec, SparseCodes, steps_without_columns

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from interlatent_live.bench.report import BenchRow

    Floats = NDArray[np.float64]
    Singles = NDArray[np.float32]

METRICS: Final = 8
LEVEL: Final = 0.05
FRESH_SEED: Final = 20_261_123
"""Of full runs: the default of everything that was tried out was 0."""


@dataclass(frozen=True, slots=True)
class World:
    """What stays the same over the runs: how each series behaves, which relations are planted."""

    episodes: int
    steps: int
    phi: Singles
    """[F]."""
    period: Singles
    """[F] period in steps, 0 for AR(1)."""
    offset: Singles
    """[F] standard deviation of an episode's offset."""
    threshold: Singles
    """[F] on above it, in units of the latent series' standard deviation."""
    phi_d: Singles
    """[M], and so on for the metrics."""
    period_d: Singles
    offset_d: Singles
    mixing: Singles
    """[M, M] unit rows: correlated metrics."""

    @classmethod
    def make(cls, features: int, episodes: int, steps: int, seed: int = 0) -> World:
        """A mix of white, slow, very slow and periodic series, half with episode offsets."""
        rng = np.random.default_rng(seed)
        phi = rng.choice([0.0, 0.5, 0.9, 0.99], features)
        period = np.where(rng.random(features) < 0.25, rng.uniform(15, 60, features), 0.0)
        offset = np.where(rng.random(features) < 0.5, 0.7, 0.0)
        density = np.exp(rng.uniform(np.log(0.005), np.log(0.2), features))
        phi_d = np.array([0.0, 0.9, 0.9, 0.99, 0.99, 0.5, 0.9, 0.9])
        period_d = np.array([0, 0, 0, 0, 0, 0, 25.0, 40.0])
        offset_d = np.array([0, 0, 0.7, 0, 0.7, 0.7, 0, 0.7])
        mixing = 0.5 * np.eye(METRICS) + 0.5 * rng.normal(size=(METRICS, METRICS)) / np.sqrt(
            METRICS
        )
        mixing /= np.linalg.norm(mixing, axis=1, keepdims=True)

        def single(x: Floats) -> Singles:
            return x.astype(np.float32)

        return cls(
            episodes, steps, single(phi), single(period), single(offset),
            single(-special.ndtri(density)), single(phi_d), single(period_d), single(offset_d),
            single(mixing),
        )  # fmt: skip

    def run(
        self, rng: np.random.Generator, planted: Planted | None = None
    ) -> tuple[Singles, Singles]:
        """Activations [T, E, F] and metrics [T, E, M] of one run."""
        d = _latent(rng, self.steps, self.episodes, self.phi_d, self.period_d, self.offset_d)
        d = d @ self.mixing.T
        z = _latent(rng, self.steps, self.episodes, self.phi, self.period, self.offset)
        if planted is not None:
            driver = d[:, :, planted.metric]
            keep = np.sqrt(1 - planted.strength**2)
            chosen = planted.feature
            z[:, :, chosen] = keep * z[:, :, chosen] + planted.strength * driver
        z -= self.threshold
        return np.maximum(z, 0.0, out=z), d


@dataclass(frozen=True, slots=True)
class Planted:
    """Features whose latent series follows a metric with a given correlation."""

    feature: NDArray[np.intp]
    metric: NDArray[np.intp]
    strength: Singles


def _latent(  # noqa: PLR0917 - the series' parameters, in the order of World
    rng: np.random.Generator,
    steps: int,
    episodes: int,
    phi: Singles,
    period: Singles,
    offset: Singles,
) -> Singles:
    """[T, E, K] of unit variance: AR(1), or a noisy sinusoid of random phase, plus an offset."""
    k = len(phi)
    out = rng.standard_normal((steps, episodes, k), dtype=np.float32)
    scale = np.sqrt(1 - phi * phi)
    carried = np.empty((episodes, k), np.float32)
    for t in range(1, steps):
        np.multiply(out[t - 1], phi, out=carried)
        out[t] *= scale
        out[t] += carried
    waves = np.flatnonzero(period > 0)
    if len(waves):
        phase = rng.random((episodes, len(waves)), dtype=np.float32) * np.float32(2 * np.pi)
        clock = np.arange(steps, dtype=np.float32)[:, None, None]
        angle = np.float32(2 * np.pi) * clock / period[waves] + phase
        out[:, :, waves] = np.float32(0.5) * out[:, :, waves] + np.float32(
            np.sqrt(2 * 0.75)
        ) * np.sin(angle)
    if offset.any():
        shift = rng.standard_normal((episodes, k), dtype=np.float32) * offset
        out += shift
        out /= np.sqrt(1 + offset * offset)
    return out


def unit_sums(a: Singles, d: Singles, capacity: int | None = None) -> UnitSums:
    """Unit sums of whole episodes a [T, E, F], d [T, E, M], one unit each.

    ``capacity``: units kept; fewer than episodes fold them by key, as in a long stream.
    """
    steps, episodes, features = a.shape
    m = d.shape[2]
    units = UnitSums(episodes, features, m)
    wide = d.astype(np.float64)
    units.keys = mix(np.arange(episodes, dtype=np.uint64))
    units.episodes = units.blocks = episodes
    units.rows[:] = steps
    units.valid[:] = steps
    units.total[:] = wide.sum(axis=0)
    units.square[:] = (wide * wide).sum(axis=0)
    on_a = a.sum(axis=0, dtype=np.float64)
    units.linear[:, :, 0] = on_a
    for e in range(episodes):
        units.linear[e, :, 1:] = a[:, e].T @ d[:, e]
    units.power[:] = np.einsum("tef,tef->ef", a, a)
    units.cross[:] = on_a[:, :, None] * units.total[:, None] / steps
    if capacity is not None and capacity < episodes:
        bits = 64
        while len(np.unique(units.keys >> np.uint64(64 - bits))) > capacity:
            bits -= 1
        units.fold(bits)
    return units


def within_correlations(units: UnitSums) -> Floats:
    """[E, F, M] correlation within each episode; NaN where either did not vary."""
    n = units.rows[:, None]
    ss_a = units.power - units.linear[:, :, 0] ** 2 / n
    ss_d = units.square - units.total**2 / n
    cov = units.linear[:, :, 1:] - units.cross
    with np.errstate(divide="ignore", invalid="ignore"):
        r = cov / np.sqrt(ss_a[:, :, None] * ss_d[:, None])
    return np.where((ss_a <= 1e-5 * units.power)[:, :, None], np.nan, np.clip(r, -1, 1))


def prefix(units: UnitSums, count: int) -> UnitSums:
    """The first ``count`` episodes."""
    out = UnitSums(count, units.n_features, units.n_metrics)
    out.keys = units.keys[:count]
    out.episodes = out.blocks = count
    for name in ("rows", "valid", "total", "square", "linear", "power", "cross"):
        getattr(out, name)[...] = getattr(units, name)[:count]
    return out


@dataclass(slots=True)
class Decisions:
    """What each method found in a run, as masks [F, M]."""

    yekutieli: NDArray[np.bool_]
    betting: NDArray[np.bool_]
    naive: NDArray[np.bool_]
    r: Floats


def decide(units: UnitSums, first_look: int) -> Decisions:
    """Discoveries by BY at doubling looks and by e-BH at sixteen peeks; naive BH at the end."""
    episodes = len(units.keys)
    everything = np.arange(units.n_features)
    found = np.zeros((units.n_features, units.n_metrics), bool)
    look, due = 1, first_look
    while due <= episodes:
        p = sign_symmetric_p(prefix(units, due), everything)
        found |= benjamini_yekutieli(p, look_level(LEVEL, look))
        look, due = look + 1, due * 2
    x = within_correlations(units)
    played = np.isfinite(x)
    x = np.where(played, x, 0.0)
    tilt = np.zeros(found.shape)
    cost = np.zeros((len(BETS), *found.shape))
    bets = np.zeros(found.shape, bool)
    stride = max(episodes // 16, 1)
    for low in range(0, episodes, stride):
        block = x[low : low + stride]
        tilt += block.sum(axis=0)
        cost += log_cosh_sums(block)
        tested = np.asarray(played[: low + stride].any(axis=0), bool)
        bets |= e_bh(log_evidence(tilt, cost), LEVEL, tested)
    r = pooled_r(units)
    n = float(units.rows.sum())
    z = np.abs(safe_atanh(r)) * np.sqrt(n - 3)
    return Decisions(found, bets, benjamini_hochberg(2 * special.ndtr(-z), LEVEL), r)


def pooled_r(units: UnitSums) -> Floats:
    """[F, M] Pearson r over all rows."""
    n = float(units.rows.sum())
    a, power = units.linear[:, :, 0].sum(0), units.power.sum(0)
    d, square = units.total.sum(0), units.square.sum(0)
    cov = units.linear[:, :, 1:].sum(0) - np.outer(a, d) / n
    with np.errstate(divide="ignore", invalid="ignore"):
        r = cov / np.sqrt(np.outer(power - a * a / n, square - d * d / n))
    return np.where(np.isfinite(r), np.clip(r, -1, 1), np.nan)


def run(
    *,
    quick: bool = False,
    seed: int | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> BenchReport:
    """Run the calibration.

    Args:
        quick: 40 runs of 128 features instead of 500 of 512, and shorter peeking.
        seed: of every simulation; by default one that nothing was tuned on, and 0 for quick looks.
        progress: called with (part, done, total).
    """
    say = progress or (lambda *_: None)
    if seed is None:
        seed = 0 if quick else FRESH_SEED
    features, runs = (128, 40) if quick else (512, 500)
    world = World.make(features, episodes=128, steps=100, seed=seed)
    rows: list[BenchRow] = []
    spread, more = _null(world, runs, seed, say)
    rows += more
    rows += _planted(world, max(runs // 10, 8), seed, spread, say)
    rows += _single_pairs(800 if quick else 4000, seed, say)
    rows += _shown_intervals(12 if quick else 75, seed, say)
    rows += _peeking(400 if quick else 2000, 200 if quick else 500, seed, say)
    rows += _drift(30 if quick else 200, seed, say)
    setting = (
        f"{runs} runs of {features} features × {METRICS} correlated metrics, densities 0.5–20 %, "
        "128 episodes of 100 steps: white, φ = .5, .9, .99, periodic, half with episode offsets"
    )
    oracle = "oracle: BH on r over its true null spread, known from the null runs"
    notes = (setting, oracle, f"seed {seed}")
    return bench_report("calibration", rows, notes=notes)


def _null(
    world: World, runs: int, seed: int, say: Callable[[str, int, int], None]
) -> tuple[Floats, list[BenchRow]]:
    """(a): any discovery under the complete null, and pair by pair at nominal 5 %."""
    rng = np.random.default_rng([seed, 1])
    any_found = {"BY at doubling looks": 0, "e-BH, 16 peeks": 0, "naive BH": 0}
    squares: Floats | None = None
    false_naive, false_jack = [], []
    for i in range(runs):
        units = unit_sums(*world.run(rng))
        decisions = decide(units, first_look=32)
        any_found["BY at doubling looks"] += bool(decisions.yekutieli.any())
        any_found["e-BH, 16 peeks"] += bool(decisions.betting.any())
        any_found["naive BH"] += bool(decisions.naive.any())
        r = np.nan_to_num(decisions.r)
        squares = r * r if squares is None else squares + r * r
        n = float(units.rows.sum())
        false_naive.append(np.mean(np.abs(np.arctanh(r)) * np.sqrt(n - 3) > 1.96))
        se, _, freedom, _ = jackknife_se(units, np.arange(units.n_features))
        beyond = np.abs(np.arctanh(r)) > t_quantile(0.95, freedom)[:, None] * se
        false_jack.append(np.mean(beyond[np.isfinite(se)]))
        say("complete null", i + 1, runs)
    naive = any_found["naive BH"] / runs
    rows = [
        bench_row(
            f"(a) complete null: runs with any discovery, {name}", count / runs, "share",
            reference="naive BH", reference_value=naive,
            goal="value <= 0.05" if name != "naive BH" else "shown",
        )
        for name, count in any_found.items()
    ]  # fmt: skip
    rows.append(
        bench_row(
            "(a) complete null: pairs whose 95 % interval excludes 0, jackknife",
            float(np.mean(false_jack)), "share", reference="naive interval",
            reference_value=float(np.mean(false_naive)), goal="value <= 0.07",
        )
    )  # fmt: skip
    spread = np.sqrt((squares if squares is not None else np.zeros((1, 1))) / runs)
    return spread, rows


def _planted(
    world: World,
    runs: int,
    seed: int,
    spread: Floats,
    say: Callable[[str, int, int], None],
) -> list[BenchRow]:
    """(b): false discovery proportion and power with relations planted in a tenth of features."""
    rng = np.random.default_rng([seed, 2])
    features = len(world.phi)
    feature = np.sort(rng.choice(features, features // 10, replace=False))
    planted = Planted(
        feature,
        rng.integers(0, METRICS, len(feature)),
        rng.choice([-0.5, -0.3, 0.3, 0.5], len(feature)).astype(np.float32),
    )
    null = np.ones((features, METRICS), bool)
    null[feature] = False
    names = ("BY at doubling looks", "e-BH, 16 peeks", "naive BH", "oracle")
    proportion: dict[str, list[float]] = {name: [] for name in names}
    power: dict[str, list[float]] = {name: [] for name in names}
    for i in range(runs):
        decisions = decide(unit_sums(*world.run(rng, planted)), first_look=32)
        z = np.abs(decisions.r) / np.where(spread > 0, spread, np.inf)
        oracle = benjamini_hochberg(2 * special.ndtr(-z), LEVEL)
        for name, mask in zip(
            names, (decisions.yekutieli, decisions.betting, decisions.naive, oracle), strict=True
        ):
            found = int(mask.sum())
            proportion[name].append(float((mask & null).sum()) / max(found, 1))
            power[name].append(float(mask[feature, planted.metric].mean()))
        say("planted relations", i + 1, runs)
    rows = []
    for name in names:
        bar = "value <= 0.05" if name in names[:2] else "shown"
        rows.append(
            bench_row(
                f"(b) planted: mean false discovery proportion, {name}",
                float(np.mean(proportion[name])), "share", reference="naive BH",
                reference_value=float(np.mean(proportion["naive BH"])), goal=bar,
            )
        )  # fmt: skip
        rows.append(
            bench_row(
                f"(b) planted: power, {name}", float(np.mean(power[name])), "share",
                reference="oracle", reference_value=float(np.mean(power["oracle"])), goal="shown",
            )
        )  # fmt: skip
    return rows


def _single_pairs(runs: int, seed: int, say: Callable[[str, int, int], None]) -> list[BenchRow]:
    """The textbook case: two independent AR(1) series of 1,000 steps, cut into 20 blocks of 50."""
    rows = []
    for number, (name, phi, period, offset) in enumerate(
        (
            ("AR(1), φ = .9", 0.9, 0.0, 0.0),
            ("AR(1), φ = .99, 20 episodes", 0.99, 0.0, 0.0),
            ("periodic", 0.9, 25.0, 0.0),
            ("episode offsets", 0.5, 0.0, 0.7),
        )
    ):
        rng = np.random.default_rng([seed, 3, number])

        def series(count: int, rng: np.random.Generator = rng) -> Singles:
            one = np.ones(count, np.float32)
            shape = (np.float32(phi) * one, np.float32(period) * one, np.float32(offset) * one)  # noqa: B023 - called within the iteration
            long_memory = offset == 0 and period == 0 and phi < 0.95  # noqa: B023 - likewise
            if long_memory:
                flat = _latent(rng, 1000, 1, *shape)
                return np.ascontiguousarray(flat.reshape(20, 50, count).transpose(1, 0, 2))
            return _latent(rng, 50, 20, *shape)

        naive, shown = [], []
        for low in range(0, runs, METRICS):
            # Only the pairs (i, i) are looked at: they share no series.
            units = unit_sums(series(METRICS), series(METRICS))
            z = np.diag(np.abs(safe_atanh(pooled_r(units))))
            naive.append(np.mean(z * np.sqrt(997) > 1.96))
            se, _, freedom, _ = jackknife_se(units, np.arange(METRICS))
            shown.append(np.mean(z > t_quantile(0.95, freedom) * np.diag(se)))
            say(f"single pairs, {name}", min(low + METRICS, runs), runs)
        rows.append(
            bench_row(
                f"independent series, 1,000 steps, {name}: false at nominal 5 %, jackknife",
                float(np.mean(shown)), "share", reference="naive",
                reference_value=float(np.mean(naive)), goal="value <= 0.07",
            )
        )  # fmt: skip
    return rows


def _shown_intervals(runs: int, seed: int, say: Callable[[str, int, int], None]) -> list[BenchRow]:
    """The correlator itself, end to end: intervals it shows for unrelated series, sparse features.

    Endless runs have no episodes to resample, so there the blocks and the ACF must do.
    """
    count, steps = METRICS, 16_384
    specs = tuple(MetricSpec(f"m{i}") for i in range(count))
    one = np.ones(count, np.float32)
    rows = []
    for number, (name, phi, length) in enumerate(
        (
            ("one endless run, φ = .9", 0.9, steps),
            ("one endless run, φ = .99", 0.99, steps),
            ("episodes of 128, φ = .99", 0.99, 128),
        )
    ):
        rng = np.random.default_rng([seed, 6, number])
        naive, shown, pairs = 0, 0, 0
        for i in range(runs):
            shape = (np.float32(phi) * one, 0 * one, 0 * one)
            d = _latent(rng, length, steps // length, *shape)
            a = _latent(rng, length, steps // length, *shape)
            a = np.maximum(a - np.float32(0.84), 0)
            correlator = Correlator(specs, count, CorrelatorConfig(grid_rows=256))
            columns = steps_without_columns(steps, count)
            t = np.arange(steps) % length
            columns.t[:] = t
            columns.episode[:] = np.arange(steps) // length
            columns.flags[:] = t == length - 1
            columns.metrics[:] = d.transpose(1, 0, 2).reshape(steps, count)
            correlator.update(columns, _codes(a.transpose(1, 0, 2).reshape(steps, count)))
            table = correlator.table()
            r, lo, hi = np.diag(table.r), np.diag(table.lo), np.diag(table.hi)
            known = np.isfinite(lo)
            pairs += int(known.sum())
            shown += int(((lo > 0) | (hi < 0))[known].sum())
            naive += int((np.abs(safe_atanh(r)) * np.sqrt(steps - 3) > 1.96)[known].sum())
            say(f"shown intervals, {name}", i + 1, runs)
        rows.append(
            bench_row(
                f"shown 95 % interval excludes 0, unrelated series, {name}", shown / pairs, "share",
                reference="naive interval", reference_value=naive / pairs, goal="value <= 0.08",
            )
        )  # fmt: skip
    return rows


def _codes(dense: Singles) -> SparseCodes:
    on = dense > 0
    indptr = np.zeros(len(dense) + 1, np.uint32)
    np.cumsum(on.sum(axis=1), out=indptr[1:])
    rows, index = np.nonzero(on)
    nan = np.full(len(dense), np.nan, np.float32)
    return SparseCodes(
        dense.shape[1], indptr, index.astype(np.uint32), dense[rows, index], nan, nan
    )


def _pair_correlations(
    rng: np.random.Generator, runs: int, episodes: int, strength: float
) -> Floats:
    """[runs, episodes] within-episode r of a thresholded feature (10 %) and an AR(.9) metric."""
    one = np.ones(1, np.float32)
    out = np.empty((runs, episodes))
    steps = 100
    for i in range(runs):
        own = _latent(rng, steps, episodes, np.float32(0.9) * one, 0 * one, 0 * one)[:, :, 0]
        d = _latent(rng, steps, episodes, np.float32(0.9) * one, 0 * one, 0 * one)[:, :, 0]
        z = np.sqrt(1 - strength**2) * own + strength * d
        a = np.maximum(z - 1.2816, 0)
        ca, cd = a - a.mean(axis=0), d - d.mean(axis=0)
        with np.errstate(divide="ignore", invalid="ignore"):
            r = (ca * cd).sum(0) / np.sqrt((ca**2).sum(0) * (cd**2).sum(0))
        out[i] = np.where(np.isfinite(r), r, np.nan)
    return out


def _peeking(
    runs: int, episodes: int, seed: int, say: Callable[[str, int, int], None]
) -> list[BenchRow]:
    """(c): alerts looked at after every episode."""
    rng = np.random.default_rng([seed, 4])

    def evidence(x: Floats) -> Floats:
        filled = np.nan_to_num(x)
        tilt = np.cumsum(filled, axis=1)
        cost = np.stack([np.cumsum(np.log(np.cosh(b * filled)), axis=1) for b in BETS])
        return log_evidence(tilt, cost)

    def naive_p(x: Floats) -> Floats:
        known = np.isfinite(x)
        n = np.maximum(np.cumsum(known, axis=1), 1)
        filled = np.nan_to_num(x)
        mean = np.cumsum(filled, axis=1) / n
        var = np.maximum(np.cumsum(filled**2, axis=1) / n - mean**2, 1e-12)
        t = np.abs(mean) / np.sqrt(var / np.maximum(n - 1, 1))
        return np.where(n >= 5, 2 * special.stdtr(np.maximum(n - 1, 1), -t), 1.0)

    null = _pair_correlations(rng, runs, episodes, 0.0)
    say("peeking", 1, 2)
    bar = np.log(1 / LEVEL)
    false = float((evidence(null) >= bar).any(axis=1).mean())
    naive_false = float((naive_p(null) <= LEVEL).any(axis=1).mean())
    strength = _strength_for_pearson(rng, 0.3)
    planted = _pair_correlations(rng, runs // 2, 120, strength)
    say("peeking", 2, 2)
    hit = evidence(planted) >= bar
    delay = np.where(hit.any(axis=1), hit.argmax(axis=1) + 1, np.inf)
    p = naive_p(planted)
    powers = (p <= LEVEL).mean(axis=0)
    enough = np.flatnonzero(powers >= 0.8)
    fixed = float(enough[0] + 1) if len(enough) else float("inf")
    return [
        bench_row(
            f"(c) peeking after each of {episodes} episodes: runs that alert falsely", false,
            "share", reference="t-test at 5 %, peeked", reference_value=naive_false,
            goal="value <= 0.05",
        ),
        bench_row(
            "(c) planted |r| = .3: median delay", float(np.median(delay)), "episodes",
            reference="fixed-n t-test with 80 % power", reference_value=fixed, goal="ratio <= 3",
        ),
    ]  # fmt: skip


def _strength_for_pearson(rng: np.random.Generator, wanted: float) -> float:
    """Latent correlation that gives the thresholded feature this Pearson r with the metric."""
    x, y = rng.standard_normal((2, 400_000))
    low, high = 0.0, 1.0
    for _ in range(20):
        middle = (low + high) / 2
        a = np.maximum(np.sqrt(1 - middle**2) * x + middle * y - 1.2816, 0)
        if np.corrcoef(a, y)[0, 1] < wanted:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _drift(runs: int, seed: int, say: Callable[[str, int, int], None]) -> list[BenchRow]:
    """(d): run length to a false alarm, and delay of a shift, for 20 monitors together."""
    rng = np.random.default_rng([seed, 5])
    monitors, reference, stated, horizon = 20, 64, 500.0, 500
    panes = alarms = naive_alarms = naive_panes = 0
    for i in range(runs):
        monitor = DriftMonitor(tuple(f"m{k}" for k in range(monitors)), reference, stated, seed=i)
        values = _pane_values(rng, reference + horizon, monitors)
        mean, sd = values[:reference].mean(0), values[:reference].std(0)
        outside = (np.abs(values[reference:] - mean) > 3 * sd).any(axis=1)
        naive_alarms += bool(outside.any())
        naive_panes += int(outside.argmax()) + 1 if outside.any() else horizon
        for number, row in enumerate(values):
            if monitor.update(row):
                alarms += 1
                panes += number - reference + 1
                break
        else:
            panes += horizon
        say("drift: no change", i + 1, runs)
    length = panes / max(alarms, 1)
    rows = [
        bench_row(
            f"(d) drift, {monitors} monitors: mean run length to a false alarm"
            f"{'' if alarms else ' (none seen: at least)'}",
            length, "panes", reference="stated", reference_value=stated, goal="ratio >= 1",
        ),
        bench_row(
            "(d) drift: the same for a 3-sigma rule", naive_panes / max(naive_alarms, 1), "panes",
            reference="stated", reference_value=stated, goal="shown",
        ),
    ]  # fmt: skip
    for size in (2.0, 4.0):
        delays = []
        for i in range(max(runs // 3, 20)):
            monitor = DriftMonitor(
                tuple(f"m{k}" for k in range(monitors)), reference, stated, seed=1000 + i
            )
            values = _pane_values(rng, reference + 100 + 200, monitors)
            values[reference + 100 :, 7] += size
            delay = 200.0
            for number, row in enumerate(values):
                found = monitor.update(row)
                if number >= reference + 100 and any(alarm.name == "m7" for alarm in found):
                    delay = number - reference - 100 + 1.0
                    break
            delays.append(delay)
            say(f"drift: shift of {size:g} sd", i + 1, max(runs // 3, 20))
        rows.append(
            bench_row(
                f"(d) drift: median delay of a shift of {size:g} sd in 1 of {monitors}",
                float(np.median(delays)), "panes", reference="stated run length",
                reference_value=stated, goal="ratio <= 0.1",
            )
        )  # fmt: skip
    return rows


def _pane_values(rng: np.random.Generator, panes: int, monitors: int) -> Floats:
    """Normal, skewed and heavy-tailed values, of about unit spread."""
    values = rng.normal(size=(panes, monitors))
    values[:, 1::3] = rng.exponential(size=values[:, 1::3].shape)
    values[:, 2::3] = rng.standard_t(3, size=values[:, 2::3].shape) / np.sqrt(3)
    return values
