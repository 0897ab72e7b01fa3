"""The agent process: a torch policy that acts as fast as it can, watched by a tap or by nobody.

``python -m interlatent_live.bench.chaos.agent`` takes orders on standard input and answers on
standard output (:mod:`.orders`). While a tap is open it alternates blocks of steps between that tap
and two that nobody listens to. Between two steps C code runs without the interpreter lock, as an
environment's step does; that is not timed.
"""

# The clock that can jump has to be there before anything binds the true one.
# ruff: noqa: E402
from __future__ import annotations

from interlatent_live.bench.chaos.faults.clock import install

install()

import gc
import hashlib
import os
import select
import sys
import time
from dataclasses import asdict
from itertools import permutations
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from interlatent_live.agent.attach import attach
from interlatent_live.bench.chaos.orders import (
    Answer,
    Closed,
    Look,
    Mark,
    Open,
    Opened,
    Order,
    Progress,
    Shut,
    Times,
    decode_order,
    encode,
)
from interlatent_live.bench.chaos.policy import HOOKS, METRICS, WIDTH, Policy, build_policy
from interlatent_live.bench.chaos.steptime import BLOCK, summarise

if TYPE_CHECKING:
    from interlatent_live.agent.tap import Tap

NOBODY: Final = "tcp://127.0.0.1:9"
WARM_UP: Final = 200
EPISODE: Final = 500
ORDERS: Final = tuple(permutations(range(3)))
_C_WORK: Final = bytes(160_000)
"""Hashing this takes 100-200 µs without the interpreter lock."""


class Loop:
    """One policy with one tap."""

    def __init__(self, endpoint: str, agent: str, options: dict[str, Any]) -> None:
        self.policy: Policy = build_policy()
        self.tap: Tap = attach(
            self.policy,
            list(HOOKS),
            [f"metric_{number}" for number in range(METRICS)],
            endpoint=endpoint,
            agent=agent,
            **options,
        )
        random = torch.Generator().manual_seed(1)
        self._obs = list(torch.randn(BLOCK, 1, WIDTH, generator=random))
        self._rows = np.random.default_rng(1).normal(size=(BLOCK, METRICS))
        self._t = 0

    def block(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """µs of each of :data:`BLOCK` policy steps."""
        policy, tap, rows = self.policy, self.tap, self._rows
        times = np.empty(BLOCK)
        clock = time.perf_counter_ns
        with torch.no_grad():
            for i, obs in enumerate(self._obs):
                hashlib.sha256(_C_WORK).digest()
                self._t += 1
                ended = self._t % EPISODE == 0
                began = clock()
                policy(obs)
                tap.complete(rows[i], ended, False)
                times[i] = clock() - began
        return times / 1e3


class Agent:
    """Carries out orders."""

    def __init__(self) -> None:
        self._nobody = Loop(NOBODY, "nobody", {})
        self._again = Loop(NOBODY, "nobody, again", {})
        for _ in range(WARM_UP // BLOCK):
            self._nobody.block()
            self._again.block()
        self._this: Loop | None = None
        self._keep = False
        self._rounds = 0
        self._times: tuple[list[Any], ...] = ([], [], [])

    def serve(self) -> None:
        """Until standard input ends."""
        rest = b""
        while True:
            waiting, _, _ = select.select([0], [], [], None if self._this is None else 0)
            if waiting:
                data = os.read(0, 65536)
                if not data:
                    return
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    answer = self._obey(decode_order(line))
                    sys.stdout.buffer.write(encode(answer) + b"\n")
                    sys.stdout.buffer.flush()
            if self._this is not None:
                self._round(self._this)

    def _round(self, this: Loop) -> None:
        loops = (this, self._nobody, self._again)
        order = ORDERS[self._rounds % len(ORDERS)]
        self._rounds += 1
        for which in order:
            times = loops[which].block()
            if self._keep:
                self._times[which].append(times)

    def _obey(self, order: Order) -> Answer:
        match order:
            case Open():
                self._this = Loop(order.endpoint, order.agent, order.options)
                self._times = ([], [], [])
                self._keep = False
                return Opened(self._this.tap.run_id, self._this.tap.boot_id)
            case Mark(keep):
                self._keep = keep
                return self._progress()
            case Look():
                return self._progress()
            case Shut(timeout_s):
                return self._close(timeout_s)

    def _progress(self) -> Progress:
        if self._this is None:
            return Progress()
        stats = self._this.tap.stats()
        link = stats.link
        return Progress(
            steps=stats.steps,
            sent=link.sent,
            acknowledged=link.acknowledged,
            state=link.state,
            last_error=link.last_error,
            spooled_bytes=link.spooled_bytes,
        )

    def _close(self, timeout_s: float) -> Closed:
        if self._this is None:
            raise RuntimeError("told to close a tap, and none is open")
        began = time.monotonic()
        self._this.tap.close(timeout_s)
        took = time.monotonic() - began
        stats = self._this.tap.stats()
        self._this = None
        gc.collect()  # a tap and its policy may form a cycle; a leak is what stays after this
        kept = [np.array(one).reshape(-1, BLOCK) for one in self._times]
        times = Times(**asdict(summarise(*kept))) if len(kept[0]) else None
        return Closed(
            steps=stats.steps,
            waiting=stats.waiting,
            sent=stats.link.sent,
            acknowledged=stats.link.acknowledged,
            in_flight=stats.link.in_flight,
            lost=dict(stats.link.lost),
            faults=stats.faults,
            last_error=stats.last_error or stats.link.last_error,
            times=times,
            close_s=took,
        )


if __name__ == "__main__":
    torch.set_num_threads(1)
    Agent().serve()
