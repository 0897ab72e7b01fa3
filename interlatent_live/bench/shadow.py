"""What shadow interventions cost the acting policy: ``interlatent-live bench shadow``.

The shipped CartPole policy acts at a control rate, with a tap that nobody listens to. Rounds of
three blocks are compared, each with a tap of its own: without a shadow, without one again, and with
one, which samples on the policy's thread and measures features on a thread beside it, several times
as often as by default, so that a short block has its share. The first two are the same, so what
separates them is the floor of this measurement on this machine (A/A); what the shadow adds can be
told only where it exceeds that.
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
from interlatent_live.agent.shadow import ShadowOptions
from interlatent_live.bench.paired import added_median, added_p99, upper_bound
from interlatent_live.bench.progress import progress_bar
from interlatent_live.bench.report import BenchReport, bench_report, bench_row
from interlatent_live.transcoders.acting import acting_policy

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

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
"""Steps that are not timed: the shadow has samples and measures by then."""
BLOCK: Final = 400
WITHOUT, AGAIN, WITH = range(3)


@dataclass(frozen=True, slots=True)
class _Block:
    micros: NDArray[np.float64]
    """[BLOCK] of each step."""
    measured: int
    """Features that the shadow has measured."""


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
        f"the shadow measured {measured / rounds:.1f} features a round",
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
    micros = np.empty(WARM_UP + BLOCK)
    with attach(
        policy.module,
        [HOOK],
        ["cart_position", "cart_velocity", "pole_angle", "pole_velocity"],
        endpoint=NOBODY,
        actions=("push left", "push right"),
        shadow=options,
    ) as tap:
        due = time.perf_counter()
        for step in range(len(micros)):
            seen = torch.from_numpy(observation[None])
            metrics = observation.astype(np.float64)
            began = time.perf_counter_ns()
            with torch.no_grad():
                outputs = policy.module(seen)
            forward = time.perf_counter_ns() - began
            observation, _, terminated, truncated, _ = env.step(int(outputs.argmax()))
            began = time.perf_counter_ns()
            tap.complete(metrics, terminated, truncated)
            micros[step] = (forward + time.perf_counter_ns() - began) / 1e3
            if terminated or truncated:
                observation, _ = env.reset()
            due += 1 / HZ
            time.sleep(max(0.0, due - time.perf_counter()))
        worker = tap.shadow
        if worker is not None and (worker.off or worker.faults):
            raise RuntimeError(f"the shadow stopped: {worker.off or worker.faults}")
        measured = 0 if worker is None else len(worker.reports())
    env.close()
    return _Block(micros[WARM_UP:], measured)


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
