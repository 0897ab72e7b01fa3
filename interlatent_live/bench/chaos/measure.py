"""One fault put to one watched agent: step times, books, recovery, leaks.

The order is always the same: the agent attaches and its rows reach the witness; the fault strikes
and lasts; it is lifted; the clock runs until a row taken after that has reached the witness and the
fault says that it healed; the agent closes its tap; then every row must be accounted for, and
nobody may hold more than before.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from interlatent_live.bench.chaos.resources import holding, leaks

if TYPE_CHECKING:
    from interlatent_live.bench.chaos.agent_process import AgentProcess
    from interlatent_live.bench.chaos.faults.fault import Fault
    from interlatent_live.bench.chaos.orders import Closed, Opened, Times
    from interlatent_live.bench.chaos.resources import Holding
    from interlatent_live.bench.chaos.rig import Rig
    from interlatent_live.bench.chaos.witness import Found

RECOVERS_WITHIN_S: Final = 60.0
SETTLES_WITHIN_S: Final = 20.0
AT_REST_S: Final = 2.0
"""Longer than a viewer's socket waits before it connects again."""
FREED_WITHIN_S: Final = 10.0
"""An encoder forgets a silent connection after 5 s; sooner nothing can be called a leak."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one fault did.

    ``steps = acknowledged + declared`` at the agent, and ``steps = received + declared`` at the
    witness; what is missing from either, or was delivered twice, is ``undeclared``.
    """

    fault: Fault
    times: Times | None
    steps: int
    acknowledged: int
    declared: dict[str, int]
    """Rows that the agent declared lost, by reason."""
    received: int
    """Rows that reached the witness, each counted once."""
    declared_at_witness: int
    undeclared: int
    recovered_s: float | None
    """From the end of the fault, or from its one moment; ``None``: not within a minute."""
    leaks: tuple[str, ...]
    memory_bytes: int
    """Growth of memory of the agent and the services together."""
    close_s: float
    complaints: tuple[str, ...] = field(default=())

    @property
    def declared_total(self) -> int:
        """Rows that the agent declared lost."""
        return sum(self.declared.values())


def measure(rig: Rig, agent: AgentProcess, fault: Fault, *, hold_s: float) -> Outcome:
    """Put ``fault`` to ``agent`` for ``hold_s`` seconds.

    Raises:
        RuntimeError: when the agent's rows do not arrive before anything was broken, or the agent
            process fails.
    """
    before = _at_rest(rig)
    agent_before = _holding(agent)
    with ExitStack() as stack:
        endpoint = fault.prepare(rig, stack)
        # The agent's name tells a reader of the encoder's log which row it is.
        opened = agent.open(endpoint, fault.name.replace(" ", "-"), fault.options(rig))
        if not rig.wait(lambda: rig.witness.newest(opened.boot_id) > 0, SETTLES_WITHIN_S):
            raise RuntimeError(
                f"{fault.name}: no row of the agent reached the witness before anything was "
                f"broken; it says {agent.look()}"
            )
        agent.keep_times(keep=True)
        struck = time.monotonic()
        fault.strike(rig, agent)
        if not fault.sudden:
            time.sleep(hold_s)
        lifting = time.monotonic()
        fault.lift(rig, agent)
        recovered_at = _recovery(rig, agent, fault, opened)
        began = struck if fault.sudden else lifting
        # A sudden fault that heals quickly still deserves enough rounds to compare.
        time.sleep(max(0.0, struck + hold_s - time.monotonic()))
        agent.keep_times(keep=False)
        closed = agent.shut()
        found = _settled(rig, opened.boot_id, closed.steps)
        undeclared = _undeclared(closed, found)
        if fault.whole_at_correlator:
            undeclared += _undeclared_at_correlator(rig, opened.run_id, found)
    leaked, memory = _leaked(rig, agent, before, agent_before)
    outcome = Outcome(
        fault=fault,
        times=closed.times,
        steps=closed.steps,
        acknowledged=closed.acknowledged,
        declared={reason: rows for reason, rows in closed.lost.items() if rows},
        received=found.received,
        declared_at_witness=found.declared,
        undeclared=undeclared,
        recovered_s=None if recovered_at is None else recovered_at - began,
        leaks=leaked,
        memory_bytes=memory,
        close_s=closed.close_s,
    )
    return _judged(rig, outcome, closed)


def _judged(rig: Rig, outcome: Outcome, closed: Closed) -> Outcome:
    said = list(outcome.fault.complaints(rig, outcome))
    if closed.faults:
        said.append(f"{closed.faults} errors inside the tap, the last: {closed.last_error}")
    over = outcome.received + outcome.declared_at_witness - outcome.steps
    if over > 0:
        said.append(f"{over} rows reached the last consumer that were also declared lost to it")
    if outcome.fault.lossless and outcome.received != outcome.steps:
        said.append(f"{outcome.steps - outcome.received} rows are missing from a lossless stream")
    return replace(outcome, complaints=tuple(said))


def _recovery(rig: Rig, agent: AgentProcess, fault: Fault, opened: Opened) -> float | None:
    """When a row from after the fault had arrived and the fault had healed."""
    seq = agent.look().steps
    deadline = time.monotonic() + RECOVERS_WITHIN_S

    def well() -> bool:
        return rig.witness.newest(opened.boot_id) > seq and fault.healed(rig, opened, seq)

    if not rig.wait(well, deadline - time.monotonic()):
        return None
    return time.monotonic()


def _settled(rig: Rig, boot_id: str, steps: int) -> Found:
    """The witness's books once they are complete, or as they stand after a while."""

    def complete() -> bool:
        found = rig.witness.found(boot_id)
        return found.ended and found.received + found.declared >= steps

    rig.wait(complete, SETTLES_WITHIN_S)
    return rig.witness.found(boot_id)


def _undeclared(closed: Closed, found: Found) -> int:
    """Rows without an entry in the agent's or in the witness's books, or in them twice."""
    at_agent = abs(closed.steps - closed.acknowledged - sum(closed.lost.values()))
    at_witness = max(found.undeclared, closed.steps - found.received - found.declared)
    return at_agent + at_witness + found.twice


def _undeclared_at_correlator(rig: Rig, run_id: str, found: Found) -> int:
    """Rows that the witness has, and the correlator neither has nor was told of."""
    total = found.received + found.declared

    def seen() -> bool:
        return rig.processed(run_id) >= total

    rig.wait(seen, SETTLES_WITHIN_S)
    documents = [one for (run, _), one in list(rig.state.profiles.items()) if run == run_id]
    if not documents:
        return total
    document = min(documents, key=lambda one: one.steps)
    told = sum(document.lost.values())
    return abs(total - document.steps - told) + document.lost.get("undeclared", 0)


def _holding(agent: AgentProcess) -> Holding:
    held = holding(agent.pid)
    if held is None:
        raise RuntimeError("the agent process is gone")
    return held


def _at_rest(rig: Rig) -> dict[str, tuple[int, Holding]]:
    """What the services hold once nobody connects anew, as after a fault that broke one of them."""
    deadline = time.monotonic() + FREED_WITHIN_S
    found, since = rig.holdings(), time.monotonic()
    while time.monotonic() < min(since + AT_REST_S, deadline):
        time.sleep(0.1)
        now = rig.holdings()
        if {name: one.fds for name, (_, one) in now.items()} != {
            name: one.fds for name, (_, one) in found.items()
        }:
            since = time.monotonic()
        found = now
    return found


def _leaked(
    rig: Rig,
    agent: AgentProcess,
    before: dict[str, tuple[int, Holding]],
    agent_before: Holding,
) -> tuple[tuple[str, ...], int]:
    """Who holds more than before once everything had time to end, and how much memory more."""
    deadline = time.monotonic() + FREED_WITHIN_S
    while True:
        after = rig.holdings()
        agent_after = _holding(agent)
        found = leaks("agent", agent_before, agent_after)
        memory = agent_after.anonymous_bytes - agent_before.anonymous_bytes
        for name, (pid, held) in after.items():
            if name in before and before[name][0] == pid:
                found += leaks(name, before[name][1], held)
                memory += held.anonymous_bytes - before[name][1].anonymous_bytes
        if not found or time.monotonic() >= deadline:
            return found, memory
        time.sleep(0.1)
