"""An agent process that only publishes, for the benchmarks of the live path: no torch, no policy.

``python -m interlatent_live.bench.publisher`` reads its orders as one JSON object from its first
argument and writes one JSON object with its taps' books to standard output.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import numpy as np

from interlatent_live.agent.tap import Tap
from interlatent_live.stream import HookPointSpec, MetricSpec

FLUSH_S: Final = 4.0
"""Longest that all agents of a process together wait for their last rows to be taken."""


class Orders(msgspec.Struct, frozen=True):
    """What to publish: ``copies`` copies of each agent step together, ``hz`` times a second."""

    endpoint: str
    policy_hash: str
    hook_points: dict[str, tuple[int, int]]
    name: str
    agents: int = 1
    copies: int = 16
    hz: float = 100.0
    seconds: float = 10.0
    metrics: int = 12
    episode_steps: int = 500
    start_at: float = 0.0
    """Wall clock, s since the epoch, at which all processes begin."""


@dataclass(slots=True)
class _Agent:
    tap: Tap
    t: int


def publish(orders: Orders) -> dict[str, Any]:
    """Publish as ordered; returns the sum of the taps' books and the time of a publishing call."""
    random = np.random.default_rng(abs(hash(orders.name)) % 2**32)
    pool = 64
    shape = (pool, orders.copies)
    xs = {
        name: random.normal(size=(*shape, d_in)).astype(np.float32)
        for name, (d_in, _) in orders.hook_points.items()
    }
    ys = {
        name: random.normal(size=(*shape, d_out)).astype(np.float32)
        for name, (_, d_out) in orders.hook_points.items()
    }
    rows = random.normal(size=(*shape, orders.metrics))
    agents = [_Agent(_tap(orders, number), 0) for number in range(orders.agents)]

    def publish_one(agent: _Agent, at: int) -> None:
        ended = agent.t == orders.episode_steps - 1
        agent.tap.publish(
            rows[at] if orders.copies > 1 else rows[at, 0],
            x={name: x[at] if orders.copies > 1 else x[at, 0] for name, x in xs.items()},
            y={name: y[at] if orders.copies > 1 else y[at, 0] for name, y in ys.items()},
            truncated=np.full(orders.copies, ended) if orders.copies > 1 else ended,
        )
        agent.t = 0 if ended else agent.t + 1

    # A tap connects with its first step; what that takes is no part of a steady stream.
    for agent in agents:
        publish_one(agent, 0)
    time.sleep(max(0.0, orders.start_at - time.time()))
    began = due = time.perf_counter()
    used = time.process_time()
    calls: list[float] = []
    number = 0
    while due - began < orders.seconds:
        at = number % pool
        for agent in agents:
            called = time.perf_counter()
            publish_one(agent, at)
            calls.append(time.perf_counter() - called)
        number += 1
        due += 1.0 / orders.hz
        time.sleep(max(0.0, due - time.perf_counter()))
    took, used = time.perf_counter() - began, time.process_time() - used
    end = time.perf_counter() + FLUSH_S
    for agent in agents:
        agent.tap.close(max(0.2, end - time.perf_counter()))
    stats = [agent.tap.stats() for agent in agents]
    lost: dict[str, int] = {}
    for one in stats:
        for reason, count in (one.link.lost or {}).items():
            lost[str(reason)] = lost.get(str(reason), 0) + count
    return {
        "steps": sum(one.steps for one in stats),
        "sent": sum(one.link.sent for one in stats),
        "acknowledged": sum(one.link.acknowledged for one in stats),
        "lost": lost,
        "faults": sum(one.faults for one in stats),
        "last_errors": sorted({one.link.last_error for one in stats if one.link.last_error}),
        "seconds": took,
        "processor_s": used,
        "publish_us_p50": float(np.median(calls) * 1e6),
        "publish_us_p99": float(np.quantile(calls, 0.99) * 1e6),
    }


def _tap(orders: Orders, number: int) -> Tap:
    return Tap(
        [MetricSpec(f"metric_{index}", "") for index in range(orders.metrics)],
        agent=f"{orders.name}-{number}",
        endpoint=orders.endpoint,
        policy_hash=orders.policy_hash,
        hook_points=[HookPointSpec(name, *widths) for name, widths in orders.hook_points.items()],
        env_count=orders.copies,
        autoreset="same_step",
        control_hz=orders.hz,
    )


if __name__ == "__main__":
    given = msgspec.json.decode(sys.argv[1], type=Orders)
    sys.stdout.write(json.dumps(publish(given)) + "\n")
