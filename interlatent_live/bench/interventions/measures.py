"""Measured with real processes: from a click to a held agent, and when steering ends by itself."""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING

from interlatent_live.bench.interventions.agent_process import AGENT, SAFE, STEERED
from interlatent_live.bench.interventions.real import (
    DATA,
    READY_S,
    first_step,
    intervene,
    resumed,
)
from interlatent_live.control.commands import Operation
from interlatent_live.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from interlatent_live.bench.interventions.real import Rig

AFTER_S = 2.5
"""How long a steered agent is watched after what should end its steering; over two leases."""


def click_to_hold(
    rig: Rig, times: int, operation: Operation, *, console: bool = False
) -> list[float]:
    """Milliseconds from a request to the agent's first safe action, each time anew.

    With ``console`` the request is the page's: HTTP to the console, and from there as ever.
    """
    out = []
    version = 0
    with rig.client() as client:
        for number in range(times):
            resumed(rig, client, after=version)
            # Clicks come at any moment of a step.
            time.sleep(rig.period_ms / 1000 * (number % 10) / 10)
            began = time.monotonic_ns()
            if console:
                version = rig.click(operation)
            else:
                version = client.command(operation, AGENT, reason="bench", ttl_s=60.0).version
            out.append((first_step(rig, began, SAFE) - began) / 1e6)
        resumed(rig, client, after=version)
    return out


def reverted_after(rig: Rig, end: Callable[[], None]) -> float:
    """Milliseconds for which an agent is steered on after ``end``; inf: to the end of the look.

    Somebody at a terminal steers it for 30 s and renews the lease.

    Raises:
        UserError: when nothing is steered to begin with.
    """
    with rig.client() as client:
        resumed(rig, client)
    rig.start_operator(30.0)
    first_step(rig, time.monotonic_ns(), STEERED, READY_S)
    time.sleep(0.5)  # the lease was renewed at least once
    at_ns = time.monotonic_ns()
    end()
    time.sleep(AFTER_S)
    rig.kill("operator")
    steps = [one for one in rig.witness() if one.at_ns > at_ns]
    if not steps or steps[-1].what == STEERED:
        return float("inf")
    last = max((one.at_ns for one in steps if one.what == STEERED), default=at_ns)
    return (last - at_ns) / 1e6


def killer(rig: Rig, *names: str, number: int = signal.SIGKILL) -> Callable[[], None]:
    """Something that sends a signal to these processes, all at once."""

    def kill() -> None:
        for name in names:
            rig.kill(name, number)

    return kill


def end_by(rig: Rig, operation: Operation) -> Callable[[], None]:
    """Something that commands by another client than the one that steers."""

    def command() -> None:
        with rig.client() as client:
            client.command(operation, AGENT, reason="bench", ttl_s=60.0)

    return command


def moved_while_stopped(rig: Rig, restarts: Sequence[str]) -> int:
    """Steps in which a stopped agent moved while each of the parts was killed and started again."""
    with rig.client() as client:
        shown = resumed(rig, client)
        intervene(client, shown, 20.0)
        stopped = client.command(Operation.STOP, AGENT, reason="bench")
        if not stopped.accepted:
            raise UserError(f"the agent refused to stop: {stopped.reason}")
    since = time.monotonic_ns()
    for name in restarts:
        rig.kill(name)
        if name == "agent":
            rig.start_agent()
        else:
            rig.start(name)
        time.sleep(0.5)
    moved = sum(one.gate_ns > since and one.what != SAFE for one in rig.witness())
    with rig.client() as client:
        resumed(rig, client)
    return moved


def frozen_stops(rig: Rig, times: int) -> list[float]:
    """As :func:`click_to_hold` for stops, with all that owns data frozen."""
    killer(rig, *DATA, number=signal.SIGSTOP)()
    try:
        return click_to_hold(rig, times, Operation.STOP)
    finally:
        killer(rig, *DATA, number=signal.SIGCONT)()
