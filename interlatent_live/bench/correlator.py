"""What the rolling correlator costs per step, beside what people would otherwise write.

Side by side in one run, on one core, 8 metrics, k = 32, batches of 64: the core statistics
(moments, density, on/off means) against a batched Chan merge in dense NumPy doing the same job,
river and a pandas-rolling user; the full default profile; the cost from 2,048 to 131,072 features
for Zipf and for uniform activity; what a step costs by the size of the messages that steps come in;
bytes held against bytes computed. ``device="cuda"`` adds the
device update.
"""

from __future__ import annotations

import importlib
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from interlatent_live.bench.report import BenchReport, bench_report, bench_row, median
from interlatent_live.statistics.config import CorrelatorConfig, SliceSpec
from interlatent_live.statistics.correlator import Correlator
from interlatent_live.statistics.memory import memory_bytes
from interlatent_live.stream import (
    FeatureBatch,
    HookPointSpec,
    Manifest,
    MetricSpec,
    SparseCodes,
    Steps,
    steps_without_columns,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from interlatent_live.bench.report import BenchRow

METRICS: Final = 8
ACTIVE: Final = 32
BATCH: Final = 64
ENVS: Final = 8
EPISODE: Final = 200
SPECS: Final = tuple(MetricSpec(f"m{i}") for i in range(METRICS))


@dataclass(frozen=True, slots=True)
class Stream:
    """A long stream made of a few batches over and over, under new sequence numbers."""

    n_features: int
    steps: tuple[Steps, ...]
    codes: tuple[SparseCodes, ...]

    def batches(self, start: int, count: int) -> Iterator[tuple[Steps, SparseCodes]]:
        """Batches ``start`` … ``start + count − 1`` of the endless stream."""
        for i in range(start, start + count):
            steps = self.steps[i % len(self.steps)]
            first = i * BATCH
            own = np.arange(first, first + BATCH) // ENVS
            t = own % EPISODE
            yield (
                replace(
                    steps,
                    first_seq=first,
                    episode=(own // EPISODE).astype(np.uint32),
                    t=t.astype(np.uint32),
                    flags=(t == EPISODE - 1).astype(np.uint8),
                ),
                self.codes[i % len(self.codes)],
            )


def make_stream(n_features: int, *, zipf: bool, batches: int = 256, seed: int = 0) -> Stream:
    """Random codes with exactly 32 features a row, Zipf(1) or uniform, and white metrics."""
    rng = np.random.default_rng(seed)
    rows = batches * BATCH
    weights = 1.0 / np.arange(1, n_features + 1) if zipf else np.ones(n_features)
    cumulative = np.cumsum(weights / weights.sum())
    place = rng.permutation(n_features)

    def draw(count: int) -> NDArray[np.int64]:
        rank = np.searchsorted(cumulative, rng.random((count, ACTIVE)))
        return np.asarray(np.minimum(rank, n_features - 1), np.int64)

    index = np.sort(draw(rows), axis=1)
    for _ in range(400):
        repeated = np.zeros(index.shape, bool)
        repeated[:, 1:] = index[:, 1:] == index[:, :-1]
        if not repeated.any():
            break
        fresh = draw(rows)
        index = np.sort(np.where(repeated, fresh, index), axis=1)
    index = np.sort(place[index], axis=1).reshape(batches, -1).astype(np.uint32)
    indptr = np.arange(0, BATCH * ACTIVE + 1, ACTIVE, dtype=np.uint32)
    nan = np.full(BATCH, np.nan, np.float32)
    codes, steps = [], []
    for i in range(batches):
        value = rng.exponential(size=BATCH * ACTIVE).astype(np.float32) + np.float32(0.01)
        codes.append(SparseCodes(n_features, indptr, index[i], value, nan, nan))
        columns = steps_without_columns(BATCH, METRICS)
        columns.env[:] = np.arange(BATCH) % ENVS
        columns.metrics[:] = rng.normal(size=(BATCH, METRICS)) + 100.0
        steps.append(columns)
    return Stream(n_features, tuple(steps), tuple(codes))


class DenseChan:
    """The same core statistics as a good NumPy user would write them: batched Chan, dense."""

    def __init__(self, n_features: int) -> None:
        self.n = 0.0
        self.on = np.zeros(n_features)
        self.mean_a = np.zeros(n_features)
        self.ss_a = np.zeros(n_features)
        self.mean_d = np.zeros(METRICS)
        self.ss_d = np.zeros(METRICS)
        self.cross = np.zeros((n_features, METRICS))
        self.on_sum = np.zeros((n_features, METRICS))

    def update(self, a: NDArray[np.float64], d: NDArray[np.float64], *, groups: bool) -> None:
        """Merge a dense batch a [n, F], d [n, M]; ``groups``: density and on/off means too."""
        n = float(len(a))
        total = self.n + n
        mean_a, mean_d = a.mean(axis=0), d.mean(axis=0)
        ca, cd = a - mean_a, d - mean_d
        da, dd = mean_a - self.mean_a, mean_d - self.mean_d
        weight = self.n * n / total
        self.cross += ca.T @ cd + np.multiply.outer(da, dd) * weight
        self.ss_a += np.einsum("ij,ij->j", ca, ca) + da * da * weight
        self.ss_d += np.einsum("ij,ij->j", cd, cd) + dd * dd * weight
        self.mean_a += da * (n / total)
        self.mean_d += dd * (n / total)
        self.n = total
        if groups:
            on = (a > 0).astype(np.float64)
            self.on += on.sum(axis=0)
            self.on_sum += on.T @ d

    def r(self) -> NDArray[np.float64]:
        """[F, M] Pearson r."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(self.cross / np.sqrt(np.multiply.outer(self.ss_a, self.ss_d)))


def run(
    *,
    quick: bool = False,
    device: str = "cpu",
    steps: int | None = None,
    progress: Callable[[str], None] | None = None,
) -> BenchReport:
    """Run the benchmark.

    Args:
        quick: fewer repetitions and steps.
        device: ``cuda`` adds the device update.
        steps: after how many the memory of the full default profile is measured; by default
            2,000,000, which takes two minutes (10,000,000 take ten).
        progress: called with a line before each part.
    """
    say = progress or (lambda _: None)
    rounds = 3 if quick else 7
    notes = [
        "dense NumPy gets its dense arrays for free: making them from sparse codes is not timed",
        "ratios are medians over interleaved rounds of one run",
        "times are CPU time of the one thread, so that other processes do not count",
    ]
    rows: list[BenchRow] = []
    for width, goal in ((2048, "ratio >= 1"), (16_384, "ratio >= 10")):
        say(f"core statistics and dense Chan at F={width:,}")
        rows += _core_against_dense(width, goal, rounds)
    say("full default profile")
    rows += _full(rounds, quick=quick)
    say("scaling with the dictionary")
    rows += _scaling(rounds)
    say("river and pandas")
    rows += _peers(notes)
    say("ingest by message size")
    rows += _ingest(rounds, quick=quick)
    say("memory")
    rows += _memory(quick=quick, full_steps=steps or (100_000 if quick else 2_000_000))
    say("queries")
    rows += _queries()
    if device == "cuda":
        say("device update")
        rows += _device(notes)
    return bench_report("correlator", rows, notes=notes)


def _time_correlator(correlator: Correlator, stream: Stream, start: int, count: int) -> float:
    """Microseconds per step of ``count`` batches, rows prepared beforehand."""
    prepared = list(stream.batches(start, count))
    begin = time.thread_time()
    for steps, codes in prepared:
        correlator.update(steps, codes)
    correlator.view([0])
    return (time.thread_time() - begin) / (count * BATCH) * 1e6


def _core_against_dense(width: int, goal: str, rounds: int) -> list[BenchRow]:
    stream = make_stream(width, zipf=True, batches=64)
    correlator = Correlator(SPECS, width, CorrelatorConfig.core())
    same_job, pearson_only = DenseChan(width), DenseChan(width)
    dense_batches = 16 if width <= 4096 else 4
    dense = [
        (codes.dense().astype(np.float64), steps.metrics)
        for steps, codes in stream.batches(0, dense_batches)
    ]
    ours: list[float] = []
    theirs: list[float] = []
    short: list[float] = []
    for round_ in range(rounds + 1):
        ours.append(_time_correlator(correlator, stream, round_ * 200, 200))
        for target, groups, into in ((same_job, True, theirs), (pearson_only, False, short)):
            begin = time.thread_time()
            for a, d in dense:
                target.update(a, d, groups=groups)
            into.append((time.thread_time() - begin) / (len(dense) * BATCH) * 1e6)
    own, other, least = median(ours[1:]), median(theirs[1:]), median(short[1:])
    ratio = median(t / o for t, o in zip(theirs[1:], ours[1:], strict=True))
    name = f"core, F={width:,}"
    return [
        bench_row(
            f"{name}: dense batched Chan ÷ ours", other, "µs/step", reference="ours (µs/step)",
            reference_value=other / ratio, goal=goal,
        ),
        bench_row(
            f"{name}: Pearson-only dense Chan ÷ ours", least, "µs/step", reference="ours (µs/step)",
            reference_value=own, goal="shown",
        ),
        bench_row(
            f"{name}: throughput", 1e6 / own, "steps/s", reference="limit",
            reference_value=100_000, goal="value >= 100000",
        ),
    ]  # fmt: skip


def _full(rounds: int, *, quick: bool) -> list[BenchRow]:
    width = 2048
    stream = make_stream(width, zipf=True)
    correlator = Correlator(SPECS, width, CorrelatorConfig())
    warm = 200 if quick else 800
    for steps, codes in stream.batches(0, warm):
        correlator.update(steps, codes)
    count = 100 if quick else 400
    taken = [_time_correlator(correlator, stream, warm + i * count, count) for i in range(rounds)]
    return [
        bench_row(
            f"full default profile, F={width:,}: throughput", 1e6 / median(taken), "steps/s",
            reference="limit", reference_value=10_000, goal="value >= 10000",
        )
    ]  # fmt: skip


def _scaling(rounds: int) -> list[BenchRow]:
    out = []
    for zipf, limit in ((True, 1.5), (False, 6.0)):
        widths = (2048, 16_384, 131_072)
        streams = {width: make_stream(width, zipf=zipf, batches=512) for width in widths}
        correlators = {w: Correlator(SPECS, w, CorrelatorConfig.core()) for w in widths}
        taken: dict[int, list[float]] = {width: [] for width in widths}
        for round_ in range(rounds + 2):
            for width in widths:
                cost = _time_correlator(correlators[width], streams[width], round_ * 512, 512)
                if round_ >= 2:
                    taken[width].append(cost)
        base = taken[widths[0]]
        for width in widths[1:]:
            ratio = median(b / a for a, b in zip(base, taken[width], strict=True))
            goal = f"ratio <= {limit:g}" if width == widths[-1] else "shown"
            value = median(taken[width])
            out.append(
                bench_row(
                    f"core, {'Zipf' if zipf else 'uniform'} activity, F={width:,} ÷ F=2,048",
                    value, "µs/step", reference="F=2,048 (µs/step)",
                    reference_value=value / ratio, goal=goal,
                )
            )  # fmt: skip
    return out


def _peers(notes: list[str]) -> list[BenchRow]:
    """Time river (one object per pair) and pandas rolling; an absent package is said in a note."""
    width = 2048
    stream = make_stream(width, zipf=True, batches=64)
    correlator = Correlator(SPECS, width, CorrelatorConfig.core())
    own = median(_time_correlator(correlator, stream, i * 200, 200) for i in range(3))
    rows = []
    batch = [(codes.dense().astype(np.float64), s.metrics) for s, codes in stream.batches(0, 8)]
    river = _optional("river.stats", notes)
    if river is not None:
        few = 128
        pairs = [[river.PearsonCorr() for _ in range(METRICS)] for _ in range(few)]
        a, d = batch[0]
        begin = time.thread_time()
        for row in range(16):
            for f in range(few):
                x = float(a[row, f])
                for m in range(METRICS):
                    pairs[f][m].update(x, float(d[row, m]))
        per_step = (time.thread_time() - begin) / 16 * (width / few) * 1e6
        rows.append(
            bench_row(
                f"river PearsonCorr, F={width:,} (128 features timed)", per_step, "µs/step",
                reference="ours, core (µs/step)", reference_value=own, goal="shown",
            )
        )  # fmt: skip
    pandas = _optional("pandas", notes)
    if pandas is not None:
        few = 16
        a = np.concatenate([item[0][:, :few] for item in batch])
        d = np.concatenate([item[1] for item in batch])
        frame = pandas.DataFrame(np.concatenate((a, d), axis=1))
        begin = time.thread_time()
        for m in range(METRICS):
            frame.iloc[:, :few].rolling(256).corr(frame.iloc[:, few + m])
        per_batch = (time.thread_time() - begin) * (width / few)
        rows.append(
            bench_row(
                f"pandas rolling(256).corr over the last 512 rows, once per batch, F={width:,} "
                "(16 features timed)",
                per_batch / BATCH * 1e6, "µs/step", reference="ours, core (µs/step)",
                reference_value=own, goal="shown",
            )
        )  # fmt: skip
    return rows


def _optional(module: str, notes: list[str]) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        notes.append(f"{module} is not installed, so its row is missing: pip install {module}")
        return None


def _ingest(rounds: int, *, quick: bool) -> list[BenchRow]:
    """The service's core, full default profile with everything watched, by steps a message.

    Eight agents take turns; what waits when the service turns (here 64 messages) is one block an
    agent. The reference is the same without blocks.
    """
    per_agent = 1024 if quick else 4096
    rows = []
    for size in (1, 8, 64):
        messages = _messages(size, per_agent)
        taken: dict[bool, list[float]] = {True: [], False: []}
        for _ in range(max(rounds // 2, 1)):
            for by_block in (True, False):
                taken[by_block].append(_time_ingest(messages, size, by_block=by_block))
        one_by_one = median(taken[False])
        ratio = median(b / a for a, b in zip(taken[False], taken[True], strict=True))
        rows.append(
            bench_row(
                f"ingest of 8 agents, {size} steps a message, full default profile, watched",
                one_by_one * ratio, "µs/step", reference="each message by itself (µs/step)",
                reference_value=one_by_one, goal="ratio <= 1.1",
            )
        )  # fmt: skip
    return rows


AGENTS: Final = 8


def _messages(size: int, per_agent: int) -> list[FeatureBatch]:
    """Messages of eight agents in turns, F = 512 as small policies have."""
    from interlatent_live.wire.slices import slice_features  # noqa: PLC0415 - only here

    stream = make_stream(512, zipf=True)
    error = np.full(BATCH, 0.1, np.float32)
    found = []
    for steps, codes in stream.batches(0, per_agent // BATCH):
        for low in range(0, BATCH, size):
            for agent in range(AGENTS):
                batch = FeatureBatch(
                    f"run-{agent}", f"boot-{agent}", steps, {"hook": replace(codes, error=error)},
                    {"hook": "sha256:0"}, 1,
                )  # fmt: skip
                found.append(slice_features(batch, low, size))
    return found


def _time_ingest(messages: list[FeatureBatch], size: int, *, by_block: bool) -> float:
    """Microseconds per step of the second half of the messages."""
    from interlatent_live.pipeline.blocks import Blocks  # noqa: PLC0415 - only here
    from interlatent_live.pipeline.correlator import CorrelatorCore  # noqa: PLC0415 - only here

    core = CorrelatorCore(CorrelatorConfig(), clock=lambda: 1, limit_bytes=1 << 40)
    for agent in range(AGENTS):
        core.hello(
            Manifest(
                f"agent-{agent}", f"run-{agent}", f"boot-{agent}", "sha256:0",
                (HookPointSpec("hook", 64, 64),), SPECS, env_count=ENVS,
            )
        )  # fmt: skip
    half = len(messages) // 2
    for batch in messages[:half]:
        core.features(batch)
    blocks = Blocks()
    begin = time.thread_time()
    for number, batch in enumerate(messages[half:], 1):
        if not by_block:
            core.features(batch)
            continue
        ready = blocks.add(batch)
        if number % 64 == 0:
            ready += blocks.take()
        for block in ready:
            core.features(block.batch)
    return (time.thread_time() - begin) / ((len(messages) - half) * size) * 1e6


def _memory(*, quick: bool, full_steps: int) -> list[BenchRow]:
    width = 2048
    rows = []
    for name, config, steps in (
        ("core", CorrelatorConfig.core(), 200_000 if quick else 10_000_000),
        ("full default", CorrelatorConfig(), full_steps),
    ):
        stream = make_stream(width, zipf=False)
        correlator = Correlator(SPECS, width, config)
        for columns, codes in stream.batches(0, steps // BATCH):
            correlator.update(columns, codes)
        correlator.finish()
        held = correlator.nbytes
        computed = memory_bytes(config, width, METRICS, active_per_step=ACTIVE, envs=ENVS)
        rows.append(
            bench_row(
                f"{name}: bytes held after {steps:,} steps ÷ computed", held, "bytes",
                reference="computed from the configuration", reference_value=computed,
                goal="ratio <= 1.1",
            )
        )  # fmt: skip
        rows.append(
            bench_row(
                f"{name}: bytes computed ÷ held after {steps:,} steps", computed, "bytes",
                reference="held", reference_value=held, goal="ratio <= 1.1",
            )
        )  # fmt: skip
    return rows


def _queries() -> list[BenchRow]:
    """What asking costs, on a correlator with everything on."""
    from interlatent_live.statistics.query import ProfileQuery, query_profiles  # noqa: PLC0415

    width = 2048
    stream = make_stream(width, zipf=True)
    correlator = Correlator(SPECS, width, CorrelatorConfig())
    for steps, codes in stream.batches(0, 400):
        correlator.update(steps, codes)
    correlator.finish()
    questions: tuple[tuple[str, Callable[[], object]], ...] = (
        ("profile of one feature", lambda: correlator.profile(3)),
        ("table of all features", correlator.table),
        ("first page of 50 of all pairs", lambda: query_profiles(correlator, ProfileQuery())),
    )
    out = []
    for name, ask in questions:
        ask()
        taken = []
        for _ in range(3):
            begin = time.thread_time()
            ask()
            taken.append((time.thread_time() - begin) * 1e3)
        out.append(
            bench_row(
                f"query, F={width:,}: {name}", median(taken), "ms", reference="a second",
                reference_value=1000.0, goal="ratio <= 1",
            )
        )  # fmt: skip
    out += _outlets(correlator)
    return out


def _outlets(correlator: Correlator) -> list[BenchRow]:
    """Alert rules, a slice by predicate, Parquet: one measured line each."""
    import tempfile  # noqa: PLC0415 - only here
    from pathlib import Path  # noqa: PLC0415 - only here

    from interlatent_live.alerts.predicates import parse_values  # noqa: PLC0415
    from interlatent_live.statistics.export import to_parquet  # noqa: PLC0415
    from interlatent_live.statistics.rules import (  # noqa: PLC0415
        AlertRule,
        AlertState,
        Condition,
    )

    rules = [
        AlertState(AlertRule(f"r{i}", (Condition(f"v{i}", ">", 0.5, 0.4),), for_s=1.0))
        for i in range(100)
    ]
    values = {f"v{i}": i / 100 for i in range(100)}
    begin = time.thread_time()
    for step in range(100):
        for rule in rules:
            rule.step(step * 10_000_000, values)
    per_rule = (time.thread_time() - begin) / 10_000 * 1e6
    holds = parse_values("p", "`v1` > 0.5 and not (`fvu` > 0.1 or m0 < 2)", SPECS)
    known = {"metric:m0": 3.0, "metric:v1": 0.6, "fvu": 0.05}
    judged = AlertState(AlertRule("p", predicate=holds, reads=holds.reads, for_s=1.0))
    begin = time.thread_time()
    for step in range(2000):
        judged.step(step * 10_000_000, known)
    per_predicate = (time.thread_time() - begin) / 2000 * 1e6
    table = correlator.table()
    with tempfile.TemporaryDirectory() as folder:
        begin = time.thread_time()
        rows = to_parquet(table, Path(folder) / "profiles.parquet")
        parquet = (time.thread_time() - begin) * 1e3
    width = correlator.n_features
    stream = make_stream(width, zipf=True, batches=64)
    plain = Correlator(SPECS, width, CorrelatorConfig.core())
    high = SliceSpec("high", lambda columns: columns["m0"] > 100.0)
    sliced = Correlator(SPECS, width, CorrelatorConfig.core(slices=(high,)))
    bare = median(_time_correlator(plain, stream, i * 200, 200) for i in range(3))
    cut = median(_time_correlator(sliced, stream, i * 200, 200) for i in range(3))
    return [
        bench_row(
            "one alert rule, one evaluation", per_rule, "µs", reference="a control step at 100 Hz",
            reference_value=10_000.0, goal="ratio <= 0.01",
        ),
        bench_row(
            "one alert rule with a predicate of three comparisons, one evaluation", per_predicate,
            "µs", reference="a control step at 100 Hz", reference_value=10_000.0,
            goal="ratio <= 0.01",
        ),
        bench_row(
            f"Parquet export of {rows:,} pairs", parquet, "ms", reference="a second",
            reference_value=1000.0, goal="ratio <= 1",
        ),
        bench_row(
            "a slice by predicate that holds half of the rows: core cost with it ÷ without", cut,
            "µs/step", reference="without (µs/step)", reference_value=bare, goal="ratio <= 3",
        ),
    ]  # fmt: skip


def _device(notes: list[str]) -> list[BenchRow]:
    """Milliseconds of device time for one update of 8,192 rows, from codes already there."""
    torch = _optional("torch", notes)
    if torch is None or not torch.cuda.is_available():
        notes.append("no CUDA device: the device rows are missing")
        return []
    from interlatent_live.statistics.cuda import DeviceSums  # noqa: PLC0415 - needs torch

    out = []
    for zipf in (False, True):
        for width, active, metrics, goal in (
            (32_768, 32, 32, "value <= 200"),
            (131_072, 64, 32, "shown"),
        ):
            generator = torch.Generator(device="cuda").manual_seed(0)
            n = 8192
            index = _device_codes(torch, generator, n, width, active, zipf=zipf)
            indptr = torch.arange(0, n * active + 1, active, dtype=torch.int32, device="cuda")
            value = torch.rand(n * active, device="cuda", generator=generator) + 0.01
            columns = torch.randn(
                (n, metrics), dtype=torch.float64, device="cuda", generator=generator
            )
            sums = DeviceSums(width, metrics)
            taken = _device_time(torch, lambda: sums.update(indptr, index, value, columns))  # noqa: B023 - called at once
            sparse = sums.kernels
            plain = DeviceSums(width, metrics)
            design = torch.cat((torch.ones_like(columns[:, :1]), columns), dim=1)
            rows = torch.arange(n, device="cuda", dtype=torch.int32).repeat_interleave(active)
            wide = value.double()
            other = _device_time(torch, lambda: plain.add_entries(index, rows, wide, design))  # noqa: B023 - the plain way of the same sums
            kind = "Zipf" if zipf else "uniform"
            out.append(
                bench_row(
                    f"device update, 8,192 rows, F={width:,}, k={active}, {metrics} metrics, {kind}"
                    f"{'' if sparse else ' (no Triton)'}",
                    taken, "µs", reference="index_add_ of the sums alone (µs)",
                    reference_value=other, goal=goal,
                )
            )  # fmt: skip
    return out


def _device_codes(
    torch: Any, generator: Any, n: int, width: int, active: int, *, zipf: bool
) -> Any:
    if not zipf:
        stride = width // active
        low = torch.randint(0, stride, (n, active), device="cuda", generator=generator)
        index = low + torch.arange(active, device="cuda") * stride
        return index.reshape(-1).to(torch.int32)
    weight = -torch.log(torch.arange(1, width + 1, device="cuda", dtype=torch.float32))
    drawn = []
    for _ in range(256):
        noise = -torch.log(-torch.log(torch.rand(width, device="cuda", generator=generator)))
        drawn.append(torch.sort(torch.topk(weight + noise, active).indices).values)
    return torch.stack(drawn).repeat(n // 256, 1).reshape(-1).to(torch.int32)


def _device_time(torch: Any, work: Callable[[], None]) -> float:
    for _ in range(5):
        work()
    taken = []
    for _ in range(30):
        start = torch.cuda.Event(enable_timing=True)
        end = torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        start.record()
        work()
        end.record()
        torch.cuda.synchronize()
        taken.append(start.elapsed_time(end) * 1e3)
    return median(taken)
