"""What watching costs the policy: ``interlatent-live bench hook``.

A policy step (one forward, and with the tap the call that completes the row) is timed on identical
policies in paired interleaved blocks: bare, with bare forward hooks that copy the same tensors to
NumPy (the floor), with a tap nobody listens to, and with a tap in the case at hand. Between two
steps C code runs for a while without the interpreter lock, as an environment's step does; it is not
timed. Second, the running Humanoid: its whole loop with Stable-Baselines3-style prediction, with
and without the tap.
"""

from __future__ import annotations

import copy
import hashlib
import os
import signal
import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from torch import nn

from interlatent_live.agent.attach import attach
from interlatent_live.agent.metrics import MetricSet
from interlatent_live.bench.hook_sink import running_sink
from interlatent_live.bench.paired import added_median, added_p99, upper_bound
from interlatent_live.bench.progress import progress_bar
from interlatent_live.bench.report import BenchReport, BenchRow, bench_report, bench_row

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from interlatent_live.agent.tap import Tap

Y_EVERY: Final = 8
METRICS: Final = 12
BLOCK: Final = 50
"""Steps of one block: long enough for a sender turn or two, short enough to pair."""
WARM_UP: Final = 300
NOBODY: Final = "tcp://127.0.0.1:9"
_C_WORK: Final = bytes(160_000)
"""Hashing this takes 100-200 µs without the interpreter lock."""


def run(*, quick: bool = False) -> BenchReport:
    """Measure added time per step by case, and the loss of a Humanoid loop's throughput.

    Args:
        quick: a tenth of the repetitions.

    Returns:
        Rows against the goals: added time ≤ 2 × the floor, p99 ≤ 100 µs, unchanged (as defined) in
        every case, throughput loss ≤ 5 %.
    """
    torch.set_num_threads(1)
    rounds = 16 if quick else 120
    rows: list[BenchRow] = []
    cases = ("listening", "frozen service", "full buffer")
    with progress_bar(2 * len(cases) + 1) as begin:
        for width in (64, 256):
            for case in cases:
                begin(f"2 × {width}, {case}")
                rows += _case_rows(width, case, rounds)
        begin("the running Humanoid")
        rows += _humanoid_rows(6 if quick else 60)
    notes = (
        f"{rounds} rounds of {BLOCK} steps per variant; {METRICS} float64 metrics",
        f"x of both hook points every step, y every {Y_EVERY}th",
        "added p99 is the p99 of the step with the tap minus the p99 of the bare step",
        "bounds are upper ends of 95 % bootstrap intervals over rounds",
    )
    return bench_report("hook", rows, notes=notes)


# -- the step --------------------------------------------------------------------------------------


class _Policy(nn.Module):
    """Two hook points of one width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Linear(width, width)
        self.second = nn.Linear(width, width)
        self.head = nn.Linear(width, 4)

    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        """Logits [n, 4]."""
        logits: torch.Tensor = self.head(torch.tanh(self.second(torch.tanh(self.first(obs)))))
        return logits


@dataclass(frozen=True)
class _Variant:
    """A policy and what completes its step."""

    policy: nn.Module
    complete: Callable[[], None]


def _nothing() -> None:
    return None


def _floor(policy: nn.Module, hook_points: Sequence[str] = ("first", "second")) -> _Variant:
    """Bare hooks that copy what the tap sends: x every step, y every eighth."""
    kept: dict[str, Any] = {"i": 0}

    def hook(module: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        kept[f"x{id(module)}"] = args[0].detach().numpy().copy()
        count = kept["i"] = kept["i"] + 1
        if count // len(hook_points) % Y_EVERY == 0:
            kept[f"y{id(module)}"] = output.detach().numpy().copy()

    for name in hook_points:
        policy.get_submodule(name).register_forward_hook(hook)
    return _Variant(policy, _nothing)


def _tapped(policy: nn.Module, endpoint: str, stack: ExitStack, **options: Any) -> _Variant:
    tap = attach(
        policy,
        ["first", "second"],
        [f"metric_{i}" for i in range(METRICS)],
        endpoint=endpoint,
        y_every=Y_EVERY,
        **options,
    )
    stack.callback(tap.close, 0.2)
    row = np.arange(METRICS, dtype=np.float64)
    # The ring appears with the first step.
    with torch.no_grad():
        policy(torch.zeros(1, policy.get_parameter("first.weight").shape[1]))
    tap.complete(row, False, False)
    return _Variant(policy, lambda: tap.complete(row, False, False))


def _time_block(variant: _Variant, obs: torch.Tensor, steps: int) -> NDArray[np.float64]:
    """µs of each of ``steps`` policy steps."""
    policy, complete = variant.policy, variant.complete
    times = np.empty(steps)
    clock = time.perf_counter_ns
    with torch.no_grad():
        for i in range(steps):
            hashlib.sha256(_C_WORK).digest()
            began = clock()
            policy(obs)
            complete()
            times[i] = clock() - began
    return times / 1e3


def _interleaved(
    variants: Sequence[_Variant], width: int, rounds: int
) -> list[NDArray[np.float64]]:
    """Times [rounds, BLOCK] per variant, blocks in rotating order."""
    obs = torch.randn(1, width, generator=torch.Generator().manual_seed(0))
    for variant in variants:
        _time_block(variant, obs, WARM_UP)
    out = [np.empty((rounds, BLOCK)) for _ in variants]
    for i in range(rounds):
        for j in range(len(variants)):
            which = (i + j) % len(variants)
            out[which][i] = _time_block(variants[which], obs, BLOCK)
    return out


def _case_rows(width: int, case: str, rounds: int) -> Iterator[BenchRow]:
    torch.manual_seed(0)
    policy = _Policy(width)
    with ExitStack() as stack:
        bare = _Variant(copy.deepcopy(policy), _nothing)
        floor = _floor(copy.deepcopy(policy))
        nobody = _tapped(copy.deepcopy(policy), NOBODY, stack)
        if case == "full buffer":
            this = _tapped(copy.deepcopy(policy), NOBODY, stack, max_steps=64)
        else:
            endpoint, process = stack.enter_context(running_sink())
            this = _tapped(copy.deepcopy(policy), endpoint, stack)
            if case == "frozen service":
                _interleaved([this], width, 4)
                os.kill(process.pid, signal.SIGSTOP)
                stack.callback(os.kill, process.pid, signal.SIGCONT)
        times = _interleaved([bare, floor, nobody, this], width, rounds)
    t_bare, t_floor, t_nobody, t_this = times
    floor_us = added_median(t_floor, t_bare)
    floor_p99 = added_p99(t_floor, t_bare)
    name = f"2 × {width}"
    if case == "listening":
        yield bench_row(
            f"{name}, nobody listening: added time per step",
            added_median(t_nobody, t_bare),
            "µs",
            reference="bare hooks copying the same tensors",
            reference_value=floor_us,
            goal="ratio <= 2",
        )
        yield bench_row(
            f"{name}, nobody listening: added p99",
            added_p99(t_nobody, t_bare),
            "µs",
            reference="bare hooks, added p99",
            reference_value=floor_p99,
            goal="value <= 100",
        )
    yield bench_row(
        f"{name}, {case}: added time per step",
        added_median(t_this, t_bare),
        "µs",
        reference="bare hooks copying the same tensors",
        reference_value=floor_us,
        goal="ratio <= 2",
    )
    yield bench_row(
        f"{name}, {case}: added p99",
        added_p99(t_this, t_bare),
        "µs",
        reference="bare hooks, added p99",
        reference_value=floor_p99,
        goal="value <= 100",
    )
    yield bench_row(
        f"{name}, {case}: added median over nobody listening, upper bound",
        upper_bound(t_this, t_nobody, added_median),
        "µs",
        reference="median step with nobody listening",
        reference_value=float(np.median(t_nobody)),
        goal="value <= 5",
    )
    yield bench_row(
        f"{name}, {case}: added p99 over nobody listening, upper bound",
        upper_bound(t_this, t_nobody, added_p99),
        "µs",
        reference="p99 step with nobody listening",
        reference_value=float(np.percentile(t_nobody, 99)),
        goal="value <= 50",
    )


# -- the Humanoid ----------------------------------------------------------------------------------


def _humanoid_rows(rounds: int) -> Iterator[BenchRow]:
    """The running Humanoid in alternating blocks: bare, with bare hooks (the floor), tapped."""
    import gymnasium  # noqa: PLC0415  only this part needs an environment

    from interlatent_live.environments.metric_packs import metric_pack_for  # noqa: PLC0415

    bare, floor = (_Humanoid(gymnasium.make("Humanoid-v5")) for _ in range(2))
    _floor(floor.policy, floor.hook_points)
    with running_sink() as (endpoint, _):
        env = gymnasium.make("Humanoid-v5")
        tapped = _Humanoid(env)
        tap = attach(
            tapped.policy,
            tapped.hook_points,
            MetricSet.from_env(env, metric_pack_for("Humanoid-v5")),
            env=env,
            endpoint=endpoint,
            y_every=Y_EVERY,
        )
        tapped.env = tap.wrap(env)
        loops = (bare, floor, tapped)
        for loop in loops:
            loop.reset()
            loop.steps(BLOCK)
        seconds = np.empty((rounds, len(loops)))
        for i in range(rounds):
            for which in np.roll(range(len(loops)), i):
                seconds[i, which] = loops[which].steps(BLOCK)
        _check_delivery(tap)
    losses = 100.0 * np.median(1.0 - seconds[:, :1] / seconds, axis=0)
    rate = BLOCK / float(np.median(seconds[:, 0]))
    yield bench_row(
        "Humanoid loop with bare hooks that copy the same tensors: loss of throughput",
        float(losses[1]),
        "%",
        reference="steps/s of the same loop without the tap",
        reference_value=rate,
        goal="shown",
    )
    yield bench_row(
        f"Humanoid loop, {tapped.prediction}, {len(tap.metrics)} metrics: loss of throughput",
        float(losses[2]),
        "%",
        reference="steps/s of the same loop without the tap",
        reference_value=rate,
        goal="value <= 5",
    )


class _Humanoid:
    """The running Humanoid: the expert's weights, in Stable-Baselines3's own policy if it is there.

    Without it the plain policy predicts in the same manner (array in, forward, array out), which is
    faster, so the share that the tap takes is then overstated.
    """

    def __init__(self, env: Any) -> None:
        from interlatent_live.policies.files import load_policy  # noqa: PLC0415  as above

        self.env = env
        self._expert = load_policy("humanoid").module
        self._sb3 = _sb3_policy(self._expert, env)
        self.policy: nn.Module = self._expert if self._sb3 is None else self._sb3
        self.hook_points = ["hidden.0.linear", "hidden.1.linear"]
        self.prediction = "plain prediction"
        if self._sb3 is not None:
            self.hook_points = ["mlp_extractor.policy_net.0", "mlp_extractor.policy_net.2"]
            self.prediction = "Stable-Baselines3 prediction"
        self._low, self._high = env.action_space.low, env.action_space.high
        self._obs: Any = None

    def reset(self) -> None:
        """Begin an episode."""
        self._obs, _ = self.env.reset()

    def _act(self) -> NDArray[Any]:
        obs = torch.as_tensor(self._obs).unsqueeze(0)
        if self._sb3 is not None:
            action, _ = self._sb3.predict(
                self._expert.network_input(obs)[0].numpy(), None, None, True
            )
        else:
            with torch.no_grad():
                action = self._expert(obs)[0].numpy()
        clipped: NDArray[Any] = np.clip(action, self._low, self._high)
        return clipped

    def steps(self, count: int) -> float:
        """Seconds for ``count`` steps, resets not counted."""
        spent = 0.0
        for _ in range(count):
            began = time.perf_counter()
            self._obs, _, terminated, truncated, _ = self.env.step(self._act())
            spent += time.perf_counter() - began
            if terminated or truncated:
                self.reset()
        return spent


def _sb3_policy(expert: Any, env: Any) -> Any:
    """An actor-critic policy of Stable-Baselines3 with the expert's actor; None without it."""
    try:
        from gymnasium.spaces import Box  # noqa: PLC0415  as above
        from stable_baselines3.common.policies import ActorCriticPolicy  # noqa: PLC0415  optional
    except ImportError:
        return None
    first, second = (layer.linear for layer in expert.hidden)
    widths = [first.out_features, second.out_features]
    policy = ActorCriticPolicy(
        Box(-np.inf, np.inf, (first.in_features,), np.float32),
        env.action_space,
        lambda _: 0.0,
        net_arch={"pi": widths, "vf": widths},
        activation_fn=nn.Tanh,
    )
    net = policy.mlp_extractor.policy_net
    for to, source in ((net[0], first), (net[2], second), (policy.action_net, expert.head)):
        to.load_state_dict(source.state_dict())
    return policy


def _check_delivery(tap: Tap) -> None:
    """A tap that lost its steps would be cheap: say so instead of reporting that figure.

    Raises:
        RuntimeError: when steps were lost.
    """
    tap.close(5.0)
    link = tap.stats().link
    if link.lost or link.acknowledged == 0:
        raise RuntimeError(f"the Humanoid's steps did not all arrive: {link}")
