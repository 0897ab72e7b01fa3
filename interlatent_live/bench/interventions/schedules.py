"""Random schedules with real processes: people command, and what they need is killed or frozen.

In each, somebody steers from a terminal while agent, control service and that terminal are killed
(SIGKILL) or frozen (SIGSTOP) at random moments, and somebody else stops, holds and resumes. Judged
afterwards from what the agent's loop wrote down about each step, not from what anybody claims:

- no step is steered whose forward began after the intervention's end: its lifetime as the agent's
  journal says when it began, its lease after the terminal's death, the stop that ended it;
- no step moves whose gate was asked after an accepted stop or hold and before the next resume was
  asked for, restarts of everything included;
- each steered step and each thing that added energy has its ``permitted`` entry in an audit that
  verifies.
"""

from __future__ import annotations

import signal
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from interlatent_live.bench.interventions.agent_process import AGENT, LEASE_S, SAFE, STEERED
from interlatent_live.bench.interventions.real import first_step, intervene, resumed
from interlatent_live.control.commands import ENERGISING, Operation
from interlatent_live.errors import CorruptFileError, UserError

if TYPE_CHECKING:
    import random

    from interlatent_live.bench.interventions.agent_process import Witnessed
    from interlatent_live.bench.interventions.real import Rig

SETTLE_S: Final = 1.6
"""A lease and some: what was left alone at the end must have ended."""
SLACK_NS: Final = 150_000_000
"""For a renewal that was on its way when its sender died, through three processes."""
NEVER: Final = 2**62

_ACTS: Final = (
    "kill agent", "kill control", "kill operator", "freeze agent", "freeze control",
    "freeze operator", "stop", "hold", "steer for a moment", "wait",
)  # fmt: skip


@dataclass(slots=True)
class _Notes:
    """What whoever commands and kills knows."""

    began_ns: int = field(default_factory=time.monotonic_ns)
    stills: list[tuple[int, int]] = field(default_factory=list)
    """From an accepted stop or hold to the next request to resume."""
    operator_gone_ns: list[int] = field(default_factory=list)
    """When a terminal that steered died or froze, or when what could hold its words back thawed."""
    count: Counter[str] = field(default_factory=Counter)


def random_schedule(rig: Rig, pick: random.Random, acts: int = 5) -> tuple[list[str], Counter[str]]:
    """One schedule of so many acts; what it broke, and how often each thing happened."""
    notes = _Notes()
    with rig.client() as client:
        resumed(rig, client)
    for act in (*(pick.choice(_ACTS) for _ in range(acts)), "kill operator"):
        notes.count[act] += 1
        try:
            _steer(rig, pick)
            _do(rig, pick, act, notes)
        except UserError:
            notes.count["not answered"] += 1
        time.sleep(pick.uniform(0.0, 0.4))
    time.sleep(SETTLE_S)
    steps = [one for one in rig.witness() if one.forward_ns >= notes.began_ns]
    notes.count["steps"] += len(steps)
    notes.count["steered steps"] += sum(one.what == STEERED for one in steps)
    return _judge(rig, steps, notes), notes.count


def _steer(rig: Rig, pick: random.Random) -> None:
    """Somebody steers from a terminal, unless one is still at it; mostly it is in force."""
    if not rig.runs("operator"):
        rig.start_operator(pick.uniform(0.5, 8.0))
        if pick.random() < 0.8:  # else something breaks before it is
            first_step(rig, time.monotonic_ns(), STEERED, 8.0)


def _do(rig: Rig, pick: random.Random, act: str, notes: _Notes) -> None:
    match act.partition(" "):
        case "kill", _, "operator":
            if rig.runs("operator"):
                rig.kill("operator")
            notes.operator_gone_ns.append(time.monotonic_ns())
        case "kill", _, name:
            rig.kill(name)
            time.sleep(pick.uniform(0.0, 1.0))
            if name == "agent":
                rig.start_agent()
            else:
                rig.start(name)
                notes.operator_gone_ns.append(time.monotonic_ns())
        case "freeze", _, name:
            rig.kill(name, signal.SIGSTOP)
            time.sleep(pick.uniform(0.1, 1.6))
            rig.kill(name, signal.SIGCONT)
        case "stop" | "hold", _, _:
            _still(rig, pick, Operation(act), notes)
        case "steer", _, _:
            with rig.client("bob") as client:
                intervene(client, resumed(rig, client), pick.uniform(0.2, 1.0))
        case _:
            time.sleep(pick.uniform(0.1, 0.5))


def _still(rig: Rig, pick: random.Random, operation: Operation, notes: _Notes) -> None:
    with rig.client("bob") as client:
        result = client.command(operation, AGENT, reason="bench", ttl_s=30.0)
        if not result.accepted:
            return
        still_ns, version = time.monotonic_ns(), result.version
        if pick.random() < 0.5:
            version = 0  # another life counts anew
            rig.kill("agent")
            rig.start_agent()
        time.sleep(pick.uniform(0.05, 0.6))
        notes.stills.append((still_ns, time.monotonic_ns()))
        resumed(rig, client, after=version)


# ------------------------------------------------------------------------------------- judging


def _judge(rig: Rig, steps: list[Witnessed], notes: _Notes) -> list[str]:
    journal = [line for line in rig.journal() if line["kind"] == "command" and line["accepted"]]
    # The journal has the wall clock, the witness the monotonic one; both are this machine's.
    offset = time.time_ns() - time.monotonic_ns()
    begun = {
        line["command_id"]: int(line["time_ns"]) - offset
        for line in journal
        if line["operation"] == Operation.INTERVENE
    }
    permitted = {
        entry["body"]["command_id"]: entry["body"]
        for entry in rig.entries()
        if entry["kind"] == "permitted"
    }
    broken = [
        f"{line['operation']} took effect without its audit entry"
        for line in journal
        if line["operation"] in ENERGISING and line["command_id"] not in permitted
    ]
    spans = [
        # The agent takes the time before it writes, so the end is never later than this.
        (at, at + int(permitted[command_id]["ttl_ns"]))
        for command_id, at in begun.items()
        if command_id in permitted
    ]
    for one in steps:
        # An intervention acts from before its line in the journal, by what the line takes.
        if one.what == STEERED and not any(
            start - SLACK_NS <= one.at_ns and one.forward_ns <= end for start, end in spans
        ):
            broken.append("a step was steered outside of every permitted lifetime")
            break
    for start, end in notes.stills:
        if any(start < one.gate_ns < end and one.what != SAFE for one in steps):
            broken.append("a stopped or held agent moved")
    if (last := max(notes.operator_gone_ns, default=0)) and any(
        one.what == STEERED and one.forward_ns > last + int(LEASE_S * 1e9) + SLACK_NS
        for one in steps
    ):
        broken.append("steered longer than a lease after the last operator was gone")
    try:
        rig.verify()
    except CorruptFileError as error:
        broken.append(str(error))
    return broken
