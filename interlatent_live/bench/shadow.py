"""What shadow interventions cost the acting policy: ``interlatent-live bench shadow``.

The shipped CartPole policy acts at a control rate, with a tap that nobody listens to. Rounds of
three blocks are compared, each with a tap of its own: without a shadow, without one again, and with
one, which samples on the policy's thread and measures features in a process beside it, several
times as often as by default, so that a short block has its share. A block with a shadow begins once
that process measures. The first two are the same, so what separates them is the floor of this
measurement on this machine (A/A); what the shadow adds can be told only where it exceeds that.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import gymnasium
import numpy as np
import torch

from interlatent_live.agent.attach import attach
from interlatent_live.agent.shadow_values import ShadowOptions
from interlatent_live.bench.paired import added_median, added_p99, upper_bound
from interlatent_live.bench.progress import progress_bar
from interlatent_live.bench.report import BenchReport, bench_report, bench_row
from interlatent_live.transcoders.acting import acting_policy

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from interlatent_live.agent.shadow_values import ShadowWorker
    from interlatent_live.bench.report import BenchRow
    from interlatent_live.transcoders.acting import ActingPolicy

HOOK: Final = "hidden.1"
TRANSCODER: Final = Path(__file__).parent.parent / "data" / "transcoders" / "cartpole" / HOOK
NOBODY: Final = "tcp://127.0.0.1:9"
HZ: Final = 200.0
SAMPLE_EVERY: Final = 4
"""Forwards; by default 16."""
PERIOD_S: Final = 0.1
"""Between two features; by default .5."""
WARM_UP: Final = 200
"""Steps that are not timed."""
STARTED_WITHIN_S: Final = 120.0
"""Until the shadow's process has imported torch and measured a first feature, on a busy machine."""
BLOCK: Final = 400
WITHOUT, AGAIN, WITH = range(3)


@dataclass(frozen=True, slots=True)
class _Block:
    micros: NDArray[np.float64]
    """[BLOCK] of each step."""
    measured: int
    """On-steps of features that the shadow took in during the block."""


def run(*, quick: bool = False) -> BenchReport:
    """Measure the added step time with the shadow on, beside the same without it twice.

    Args:
        quick: a sixth of the rounds.

    Returns:
        Rows against "unchanged" as defined: upper 95 % bound of the added median ≤ 5 µs and of the
        added p99 ≤ 50 µs.

    Raises:
        RuntimeError: when the shadow measured nothing, or stopped.
    """
    torch.set_num_threads(1)
    rounds = 5 if quick else 30
    policy = acting_policy("cartpole")
    times = np.empty((3, rounds, BLOCK))
    measured = 0
    with progress_bar(rounds) as begin:
        for number in range(rounds):
            begin(f"round {number + 1}")
            for place in range(3):
                which = (number + place) % 3
                block = _block(policy, shadow=which == WITH, seed=number)
                times[which, number] = block.micros
                measured += block.measured
    if measured == 0:
        raise RuntimeError("the shadow measured no feature, so its cost was not measured either")
    notes = (
        f"{rounds} rounds of {BLOCK} steps per variant at {HZ:g} Hz, one thread",
        f"sampled every {SAMPLE_EVERY}th forward, paused {PERIOD_S:g} s (default: 16th, .5 s)",
        f"the shadow measured features on {measured / rounds:.0f} steps a round, in its process",
        "bounds are upper ends of 95 % bootstrap intervals over rounds",
    )
    return bench_report("shadow", _rows(times), notes=notes)


def _block(policy: ActingPolicy, *, shadow: bool, seed: int) -> _Block:
    """Act for a while under a tap of its own; only policy and tap are timed."""
    options = None
    if shadow:
        options = ShadowOptions(
            transcoders={HOOK: TRANSCODER}, sample_every=SAMPLE_EVERY, period_s=PERIOD_S
        )
    env = gymnasium.make("CartPole-v1", max_episode_steps=100)
    observation, _ = env.reset(seed=seed)
    micros = np.empty(BLOCK)
    with attach(
        policy.module,
        [HOOK],
        ["cart_position", "cart_velocity", "pole_angle", "pole_velocity"],
        endpoint=NOBODY,
        actions=("push left", "push right"),
        shadow=options,
    ) as tap:
        worker = tap.shadow
        due = give_up = time.perf_counter()
        give_up += STARTED_WITHIN_S
        step, before = -WARM_UP, 0
        while step < BLOCK:
            seen = torch.from_numpy(observation[None])
            metrics = observation.astype(np.float64)
            began = time.perf_counter_ns()
            with torch.no_grad():
                outputs = policy.module(seen)
            forward = time.perf_counter_ns() - began
            observation, _, terminated, truncated, _ = env.step(int(outputs.argmax()))
            began = time.perf_counter_ns()
            tap.complete(metrics, terminated, truncated)
            if step >= 0:
                micros[step] = (forward + time.perf_counter_ns() - began) / 1e3
            if terminated or truncated:
                observation, _ = env.reset()
            step += 1
            if step == 0 and worker is not None:
                before = _steps_measured(worker)
                # Still starting: the block has not begun.
                step = 0 if before or time.perf_counter() > give_up else -1
            due += 1 / HZ
            time.sleep(max(0.0, due - time.perf_counter()))
        measured = 0 if worker is None else _steps_measured(worker) - before
    env.close()
    return _Block(micros, measured)


def _steps_measured(worker: ShadowWorker) -> int:
    """On-steps in all its reports.

    Raises:
        RuntimeError: when it stopped, or has no process.
    """
    if worker.off or worker.faults or worker.in_thread_because:
        why = worker.off or worker.in_thread_because or f"{worker.faults} faults"
        raise RuntimeError(f"the shadow does not measure in a process: {why}")
    return sum(one.steps for one in worker.reports())


def _rows(times: NDArray[np.float64]) -> Iterator[BenchRow]:
    """Rows of ``times`` [variant, round, step]."""
    without, again, with_it = times
    for name, added, bar in (("median", added_median, 5), ("p99", added_p99, 50)):
        floor = upper_bound(again, without, added)
        yield bench_row(
            f"added {name} of a step with the shadow on, upper bound",
            upper_bound(with_it, without, added),
            "µs",
            reference="the same of two blocks without a shadow (A/A)",
            reference_value=floor,
            goal=f"value <= {bar}",
        )
        yield bench_row(
            f"added {name} of a step with the shadow on",
            added(with_it, without),
            "µs",
            reference="the same of two blocks without a shadow (A/A)",
            reference_value=added(again, without),
            goal="shown",
        )
    yield bench_row(
        "median step with the shadow on",
        float(np.median(with_it)),
        "µs",
        reference="without",
        reference_value=float(np.median(without)),
        goal="shown",
    )
