"""An agent process that only publishes, for as long as its standard input stays open.

``python -m interlatent_live.bench.chaos.soak_agent`` reads its orders from its first argument,
names its stream in a first line of JSON and its books in a second one. Without torch and without a
policy; its memory must not grow either, so it keeps nothing of what it did.
"""

from __future__ import annotations

import select
import sys
import time
from typing import Final

import msgspec
import numpy as np

from interlatent_live.agent.tap import Tap
from interlatent_live.stream import HookPointSpec, MetricSpec

EPISODE: Final = 500
POOL: Final = 64
CLOSE_WITHIN_S: Final = 10.0


class Orders(msgspec.Struct, frozen=True):
    """What to publish: ``copies`` copies step together, ``hz`` times a second."""

    endpoint: str
    policy_hash: str
    hook_points: tuple[str, ...]
    width: int
    metrics: int
    name: str
    copies: int
    hz: float


class Began(msgspec.Struct, frozen=True):
    """The first line."""

    boot_id: str


class Books(msgspec.Struct, frozen=True):
    """The last line: the tap's own books of all rows."""

    steps: int
    acknowledged: int
    lost: dict[str, int]
    faults: int
    last_error: str


def publish(orders: Orders) -> Books:
    """Publish until standard input ends."""
    tap = Tap(
        [MetricSpec(f"metric_{number}", "") for number in range(orders.metrics)],
        agent=orders.name,
        endpoint=orders.endpoint,
        policy_hash=orders.policy_hash,
        hook_points=[HookPointSpec(one, orders.width, orders.width) for one in orders.hook_points],
        env_count=orders.copies,
        autoreset="same_step",
        control_hz=orders.hz,
    )
    _say(Began(tap.boot_id))
    random = np.random.default_rng(len(orders.name))
    shape = (POOL, orders.copies, orders.width)
    x, y = (random.normal(size=shape).astype(np.float32) for _ in range(2))
    rows = random.normal(size=(POOL, orders.copies, orders.metrics))
    ended, going_on = np.ones(orders.copies, bool), np.zeros(orders.copies, bool)
    number, due = 0, time.perf_counter()
    while not select.select([0], [], [], max(0.0, due - time.perf_counter()))[0]:
        at = number % POOL
        number += 1
        tap.publish(
            rows[at],
            x=dict.fromkeys(orders.hook_points, x[at]),
            y=dict.fromkeys(orders.hook_points, y[at]),
            truncated=going_on if number % EPISODE else ended,
        )
        # What a busy machine held up is made up for, a minute of it is not.
        due = max(due + 1.0 / orders.hz, time.perf_counter() - 1.0)
    tap.close(CLOSE_WITHIN_S)
    stats = tap.stats()
    return Books(
        steps=stats.steps,
        acknowledged=stats.link.acknowledged,
        lost={str(reason): rows for reason, rows in stats.link.lost.items() if rows},
        faults=stats.faults,
        last_error=stats.last_error or stats.link.last_error,
    )


def _say(what: Began | Books) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(what) + b"\n")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    _say(publish(msgspec.json.decode(sys.argv[1], type=Orders)))
