"""``bench encoder``: from activations to sparse features, beside the bare product and the peers.

On the CPU, ours stands beside SAELens' and sparsify's own ``encode`` with the same weights and
rows, one thread each, in turns. The peers live in an environment of their own,
``$INTERLATENT_PEERS_VENV`` (``~/.cache/interlatent-live/peers`` unless set); without it the
reference is NumPy's bare product and the notes say so::

    python -m venv DIR && DIR/bin/pip install torch==2.13.0 sae-lens eai-sparsify

On CUDA, encode and select stand beside cuBLAS' product of the same shape and type (``x @ W``, no
bias, bfloat16 out), both as replayed graphs, in two ways: *one call*, from one event to another
around a single replay, which is what a caller waits for; and *back to back*, twenty in one graph,
which leaves the kernels alone. Host rows are wall time from a NumPy array to NumPy arrays.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import time
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from interlatent_live.bench.progress import progress_bar
from interlatent_live.bench.report import BenchReport, bench_report, bench_row, median
from interlatent_live.encoding.backend import EncoderWeights
from interlatent_live.encoding.cpu import CpuBackend

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from interlatent_live.bench.report import BenchRow
    from interlatent_live.encoding.launch_plan import LaunchPlan, Shape

PEERS_VARIABLE: Final = "INTERLATENT_PEERS_VENV"
DEFAULT_PEERS: Final = Path.home() / ".cache" / "interlatent-live" / "peers"
SHAPES: Final = ((64, 512, 16), (256, 4096, 32), (1024, 32_768, 32))
"""(d_in, F, k)."""
ROUNDS: Final = 5
BURST_SECONDS: Final = 0.1
BACK_TO_BACK: Final = 20
INPUT_SETS: Final = 4
"""Inputs that timed calls rotate through."""


def run(*, quick: bool = False, device: str = "cpu") -> BenchReport:
    """Measure and report.

    Args:
        quick: the two smaller shapes, and on the CPU batches up to 32.
        device: ``cpu`` or ``cuda``.

    Raises:
        UserError: when ``cuda`` is asked for and not there.
    """
    shapes = SHAPES[:2] if quick else SHAPES
    if device == "cpu":
        return _run_cpu(shapes, (1, 32) if quick else (1, 32, 1024))
    return _run_cuda(shapes, (1024,) if quick else (1024, 8192))


def make_weights(shape: tuple[int, int, int], *, by_k: bool) -> EncoderWeights:
    """Random weights with unit pre-activations; thresholds that leave about k features on."""
    d, n_features, k = shape
    rng = np.random.default_rng(0)
    W_enc = rng.standard_normal((d, n_features), np.float32) / np.float32(d**0.5)
    b_enc = rng.standard_normal(n_features, np.float32) * np.float32(0.1)
    if by_k:
        return EncoderWeights(W_enc, b_enc, k=k)
    pre = make_rows(32, d, seed=99) @ W_enc + b_enc
    cut = np.partition(pre.ravel(), -32 * k)[-32 * k]
    return EncoderWeights(W_enc, b_enc, threshold=np.full(n_features, cut, np.float32))


def make_rows(n: int, d: int, *, seed: int = 1) -> NDArray[np.float32]:
    """Random rows [n, d]."""
    return np.random.default_rng(seed).standard_normal((n, d), np.float32)


# --- CPU ------------------------------------------------------------------------------------------


def _run_cpu(shapes: Sequence[tuple[int, int, int]], batches: Sequence[int]) -> BenchReport:
    rows: list[BenchRow] = []
    notes = ["one thread each; bursts in turns, the median of at least 5 bursts' medians"]
    with ExitStack() as stack:
        peers = stack.enter_context(_peers())
        begin = stack.enter_context(progress_bar(2 * len(shapes) * len(batches)))
        if peers is None:
            notes.append(f"${PEERS_VARIABLE} holds no environment: SAELens and sparsify are absent")
        for shape in shapes:
            for by_k in (True, False):
                encoder = CpuBackend().prepare(make_weights(shape, by_k=by_k))
                for n in batches:
                    begin(f"d={shape[0]}, F={shape[1]:,}, batch {n:,}")
                    rows += _cpu_rows(shape, n, encoder.encode, peers, by_k=by_k)
    return bench_report("encoder", rows, notes=notes)


def _cpu_rows(
    shape: tuple[int, int, int],
    n: int,
    encode: Callable[[NDArray[np.float32]], object],
    peers: _Peers | None,
    *,
    by_k: bool,
) -> list[BenchRow]:
    d, n_features, k = shape
    x = make_rows(n, d)
    W_enc = make_weights(shape, by_k=True).W_enc
    kind = f"TopK k={k}" if by_k else f"thresholds, L0 ≈ {k}"
    case = f"CPU encode d={d} F={n_features:,} {kind}, batch {n:,}"
    names = ("saelens", "sparsify") if by_k else ("saelens",)
    taken: dict[str, list[float]] = {name: [] for name in ("ours", "product", *names)}
    for _ in range(ROUNDS):
        taken["ours"].append(_burst(lambda: encode(x)))
        taken["product"].append(_burst(lambda: x @ W_enc))
        if peers is not None:
            for name in names:
                taken[name].append(peers.burst(name, shape, n, by_k=by_k))
    ours = median(taken["ours"])
    table = [
        bench_row(
            case,
            ours,
            "µs",
            reference=f"{name} encode (µs)",
            reference_value=median(taken[name]),
            goal="ratio <= 1.05",
        )
        for name in names
        if peers is not None
    ]
    product = median(taken["product"])
    return [
        *table,
        bench_row(
            case,
            ours,
            "µs",
            reference="NumPy product (µs)",
            reference_value=product,
            goal="shown",
        ),
    ]


def _burst(work: Callable[[], object]) -> float:
    """Median µs of one call in a short burst; the first warms up, unless it outlasts the burst."""
    taken: list[float] = []
    until = time.perf_counter() + BURST_SECONDS
    while len(taken) < 2 or time.perf_counter() < until:
        start = time.perf_counter()
        work()
        taken.append((time.perf_counter() - start) * 1e6)
        if len(taken) == 1 and taken[0] > BURST_SECONDS * 1e6:
            return taken[0]
    return median(taken[1:])


class _Peers:
    """The other packages' encoders, in a process of their own environment."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def burst(self, peer: str, shape: tuple[int, int, int], n: int, *, by_k: bool) -> float:
        """Median µs of one ``encode`` of that peer."""
        request = {"peer": peer, "shape": shape, "n": n, "by_k": by_k, "seconds": BURST_SECONDS}
        if self._process.stdin is None or self._process.stdout is None:  # pragma: no cover
            raise AssertionError("the peers' process has no pipes")
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the peers' process ended; its messages stand above")
        return float(json.loads(line))


@contextmanager
def _peers() -> Iterator[_Peers | None]:
    folder = os.environ.get(PEERS_VARIABLE, str(DEFAULT_PEERS))
    python = Path(folder) / "bin" / "python"
    if not folder or not python.exists():
        yield None
        return
    script = Path(__file__).with_name("encoder_peers.py")
    # Leaving the block closes its input, at which it ends.
    with subprocess.Popen(  # noqa: S603 - the interpreter that the user named
        [str(python), str(script)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as process:
        yield _Peers(process)


# --- CUDA -----------------------------------------------------------------------------------------


def _run_cuda(shapes: Sequence[tuple[int, int, int]], batches: Sequence[int]) -> BenchReport:
    rows: list[BenchRow] = []
    note = (
        "bfloat16 operands, float32 sums and values; random inputs, "
        f"{INPUT_SETS} sets in rotation; medians of 7 runs; TopK's bound was learned from other "
        "rows of the same stream, and every timed launch was checked to need no repetition"
    )
    for shape in shapes:
        for n in batches:
            rows += _device_rows(shape, n)
    for shape in shapes:
        rows += _host_rows(shape)
    return bench_report("encoder", rows, notes=(note,))


def _device_rows(shape: tuple[int, int, int], n: int) -> list[BenchRow]:
    import torch  # noqa: PLC0415 - CUDA rows only

    d, n_features, k = shape
    goal = "ratio <= 3" if n_features == 512 else "ratio <= 2"
    inputs = [torch.from_numpy(make_rows(n, d, seed=s)).cuda().bfloat16() for s in range(4)]
    weight = torch.from_numpy(make_weights(shape, by_k=True).W_enc).cuda().bfloat16()
    out = torch.empty(n, n_features, device="cuda", dtype=torch.bfloat16)
    bias = torch.zeros(n_features, device="cuda", dtype=torch.bfloat16)
    product = _graph_times([partial(torch.matmul, x, weight, out=out) for x in inputs])

    def eager_topk(x: Any) -> object:
        return torch.topk(torch.relu(torch.addmm(bias, x, weight)), k)

    eager = _graph_times([partial(eager_topk, x) for x in inputs])
    table = []
    for by_k in (True, False):
        launches = _launches(shape, n, inputs, by_k=by_k)
        times = _graph_times(launches)
        kind = f"TopK k={k}" if by_k else f"thresholds, L0 ≈ {k}"
        case = f"CUDA encode and select d={d} F={n_features:,} {kind}, batch {n:,}"
        for way, ours, bare in zip(("one call", "back to back"), times, product, strict=True):
            table.append(
                bench_row(
                    f"{case}, {way}",
                    ours,
                    "µs",
                    reference=f"bare product, {way} (µs)",
                    reference_value=bare,
                    goal=goal,
                )
            )
    table.append(
        bench_row(
            f"eager linear + relu + torch.topk, d={d} F={n_features:,} k={k}, batch {n:,}",
            eager[1],
            "µs",
            reference="bare product, back to back (µs)",
            reference_value=product[1],
            goal="shown",
        )
    )
    return table


def _launches(
    shape: tuple[int, int, int], n: int, inputs: Sequence[Any], *, by_k: bool
) -> list[Callable[[], None]]:
    """Encode and select of each input, on device buffers; checked against float64 first."""
    import torch  # noqa: PLC0415 - CUDA rows only

    from interlatent_live.encoding.launch_plan import (  # noqa: PLC0415 - needs no torch, but CUDA
        Precision,
        Shape,
        Way,
        choose_selection,
        may_mark,
        plan_launch,
    )
    from interlatent_live.encoding.launches import (  # noqa: PLC0415 - needs Triton
        DeviceWeights,
        Scratch,
        encode_rows,
    )
    from interlatent_live.encoding.lower_bound import LowerBound  # noqa: PLC0415

    weights = make_weights(shape, by_k=by_k)
    place = Shape(shape[0], shape[1], Precision.BFLOAT16)
    selection = choose_selection(place, weights.k)
    loaded = DeviceWeights.load(weights, place, torch.device("cuda"))
    bound = torch.zeros(1, device="cuda")

    def prepared(way: Way | None) -> tuple[LaunchPlan, Scratch]:
        plan = plan_launch(place, n, selection, way)
        arena = torch.empty(plan.device_bytes, dtype=torch.uint8, device="cuda")
        return plan, Scratch.carve(arena, plan)

    plan, scratch = prepared(None)
    if may_mark(place, n, selection):
        learner = LowerBound()
        for seed in range(100, 108):
            x = torch.from_numpy(make_rows(n, shape[0], seed=seed)).cuda().bfloat16()
            encode_rows(plan, loaded, x, bound, scratch)
            learner.saw(float(scratch.value.min()), n)
        bound.fill_(learner.value)
        plan, scratch = prepared(Way.MARKED)
    for x in inputs:
        encode_rows(plan, loaded, x, bound, scratch)
        _check(place, weights, x, scratch, plan)
    return [partial(encode_rows, plan, loaded, x, bound, scratch) for x in inputs]


def _check(place: Shape, weights: EncoderWeights, x: Any, scratch: Any, plan: LaunchPlan) -> None:
    """The timed launch must be right: 16 rows against float64 on the rounded operands.

    Raises:
        RuntimeError: when a launch was not whole or not right.
    """
    import torch  # noqa: PLC0415 - CUDA rows only

    count = scratch.count
    if weights.k is None:
        whole = bool(count.max() <= plan.selection.capacity)
    else:
        whole = bool(count.min() >= weights.k)
        if plan.way == "marked":
            whole = whole and bool(count.max() <= plan.selection.room)
    if not whole:
        raise RuntimeError("a timed launch would have to be repeated")
    W_enc = torch.from_numpy(weights.W_enc).cuda().bfloat16().double()
    pre = x[:16].double() @ W_enc + torch.from_numpy(weights.b_enc).cuda()
    tolerance = (place.d_in + 2) * 2.0**-23 * float(pre.abs().max()) * place.d_in**0.5
    for i in range(16):
        on = weights.k or int(count[i])
        index = scratch.index[i, :on].long()
        if weights.k is None:
            cut = torch.from_numpy(np.asarray(weights.threshold)).cuda().double()
            wrong = ((pre[i] > cut + tolerance).sum() > on) | (
                (pre[i] > cut - tolerance).sum() < on
            )
        else:
            kth = torch.topk(pre[i], on).values[-1]
            wrong = (pre[i, index] < kth - tolerance).any()
        wrong = wrong | ((scratch.value[i, :on] - pre[i, index]).abs() > tolerance).any()
        if bool(wrong) or bool((index.diff() <= 0).any()):
            raise RuntimeError(f"row {i} of a timed launch differs from float64")


def _graph_times(calls: Sequence[Callable[[], object]]) -> tuple[float, float]:
    """Median µs of one call by itself, and of one among twenty back to back."""
    import torch  # noqa: PLC0415 - CUDA rows only

    def times(repeats: int) -> float:
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch leaves it so
        graphs = []
        with torch.cuda.stream(stream):
            for call in calls:
                call()
            stream.synchronize()
            for first in range(len(calls) if repeats == 1 else 1):
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph, stream=stream):
                    for i in range(repeats):
                        calls[(first + i) % len(calls)]()
                graphs.append(graph)
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]  # likewise
            taken = []
            for _ in range(7):
                one_run = []
                for graph in graphs * (16 if repeats == 1 else 1):
                    start.record(stream)
                    graph.replay()
                    end.record(stream)
                    end.synchronize()
                    one_run.append(start.elapsed_time(end) * 1e3 / repeats)
                taken.append(median(one_run))
        return median(taken)

    return times(1), times(BACK_TO_BACK)


def _host_rows(shape: tuple[int, int, int]) -> list[BenchRow]:
    """From a float32 array on the host to sparse arrays on the host."""
    import torch  # noqa: PLC0415 - CUDA rows only

    from interlatent_live.encoding.cuda import CudaBackend  # noqa: PLC0415 - needs Triton
    from interlatent_live.encoding.launch_plan import Precision  # noqa: PLC0415

    d, n_features, k = shape
    weight = torch.from_numpy(make_weights(shape, by_k=True).W_enc).cuda().bfloat16()
    one = torch.from_numpy(make_rows(1, d)).cuda().bfloat16()
    product = _graph_times([lambda: torch.matmul(one, weight)])[0]
    table = []
    for precision in (Precision.FLOAT32, Precision.BFLOAT16):
        backend = CudaBackend(
            precision=precision, max_rows=1024, workspace_bytes=320 << 20, warm_rows=(1, 1024)
        )
        encoder = backend.prepare(make_weights(shape, by_k=True))
        name = f"d={d} F={n_features:,} k={k}, {precision}"
        x = make_rows(1, d)
        taken = _walls(lambda: encoder.encode(x), 3000)  # noqa: B023 - called at once
        table.append(
            bench_row(
                f"CUDA host to host {name}, batch 1, p50",
                taken[len(taken) // 2],
                "µs",
                reference="bare product, one call, bfloat16 (µs)",
                reference_value=product,
                goal="value <= 60" if n_features == 4096 else "shown",
            )
        )
        table.append(
            bench_row(
                f"CUDA host to host {name}, batch 1, p99",
                taken[len(taken) * 99 // 100],
                "µs",
                reference="p50 (µs)",
                reference_value=taken[len(taken) // 2],
                goal="shown",
            )
        )
        batches = [make_rows(1024, d, seed=s) for s in range(INPUT_SETS)]
        serial = median(_walls(lambda: [encoder.encode(x) for x in batches], 30))  # noqa: B023
        paired = median(_walls(lambda: _pipelined(encoder, batches), 30))  # noqa: B023
        table.append(
            bench_row(
                f"CUDA host to host {name}, batch 1,024, next submitted before last is read",
                4096 / paired,
                "rows/µs",
                reference="one after the other (rows/µs)",
                reference_value=4096 / serial,
                goal="shown",
            )
        )
        encoder.close()
    return table


def _pipelined(encoder: Any, batches: Sequence[NDArray[np.float32]]) -> None:
    waiting = None
    for x in batches:
        pending = encoder.submit(x)
        if waiting is not None:
            waiting.result()
        waiting = pending
    if waiting is not None:
        waiting.result()


def _walls(work: Callable[[], object], calls: int) -> list[float]:
    """Wall time of each call in µs, ascending; a tenth more calls warm up."""
    for _ in range(calls // 10 + 3):
        work()
    taken = []
    for _ in range(calls):
        start = time.perf_counter()
        work()
        taken.append((time.perf_counter() - start) * 1e6)
    return sorted(taken)


def _main() -> None:
    parser = argparse.ArgumentParser(description="bench encoder, where only NumPy and torch are")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path, required=True)
    arguments = parser.parse_args()
    run(quick=arguments.quick, device=arguments.device).write(arguments.json)


if __name__ == "__main__":
    _main()
