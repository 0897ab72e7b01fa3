"""Faults put to the whole live path while an agent acts: what it notices, loses and gets back.

Real services under ``interlatent-live up``, a real torch policy with a tap, and a last consumer
with books of its own. One row a fault: step time beside a tap with nobody listening, measured in
alternating blocks of the same process; steps sent, acknowledged, declared lost and lost in silence;
the time until all is well again; what anybody still holds afterwards.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from interlatent_live.bench.chaos.agent_process import AgentProcess
from interlatent_live.bench.chaos.faults.clock import VARIABLE
from interlatent_live.bench.chaos.faults.modes import ClockJumps, EncodedAtAgent, HotReload, Spooled
from interlatent_live.bench.chaos.faults.network import (
    Cuts,
    Delay,
    Duplicated,
    Reordered,
    Truncates,
)
from interlatent_live.bench.chaos.faults.processes import (
    CorrelatorFrozen,
    CorrelatorKilled,
    EncoderFrozen,
    EncoderKilled,
    ExplainerFrozen,
    ExplainerKilled,
    SlowCorrelator,
    SupervisorKilled,
)
from interlatent_live.bench.chaos.measure import measure
from interlatent_live.bench.chaos.rig import Rig
from interlatent_live.bench.chaos.table import ChaosReport, FaultRow, chaos_report, row_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from interlatent_live.bench.chaos.faults.fault import Fault

QUICK: tuple[type[Fault], ...] = (
    EncoderFrozen,
    EncoderKilled,
    CorrelatorKilled,
    Cuts,
    Duplicated,
    Spooled,
)
"""Those whose breaking would hurt most, for a look of two minutes."""
# The clock comes last: documents from its hour ahead stay the newest for an hour.
ALL: tuple[type[Fault], ...] = (
    EncoderFrozen,
    EncoderKilled,
    CorrelatorFrozen,
    CorrelatorKilled,
    SlowCorrelator,
    ExplainerFrozen,
    ExplainerKilled,
    SupervisorKilled,
    Delay,
    Cuts,
    Truncates,
    Duplicated,
    Reordered,
    Spooled,
    EncodedAtAgent,
    HotReload,
    ClockJumps,
)
HOLD_S = 3.0
QUICK_HOLD_S = 2.0


def run(*, quick: bool = False, progress: Callable[[str], None] | None = None) -> ChaosReport:
    """Every fault once; ``quick`` some of them, for a shorter time.

    Raises:
        RuntimeError: when the path does not work before anything was broken.
    """
    rows = put_to_the_path(
        QUICK if quick else ALL, QUICK_HOLD_S if quick else HOLD_S, progress or (lambda _: None)
    )
    return chaos_report(
        rows,
        (
            "each fault once, on one machine that also runs the agent, the services and the faults",
            "step time beside a tap with nobody listening: alternating blocks of 50 steps",
        ),
    )


def put_to_the_path(
    faults: Sequence[type[Fault]], hold_s: float, begin: Callable[[str], None]
) -> list[FaultRow]:
    """Each fault for ``hold_s`` seconds to one agent that goes on acting; a row each."""
    rows = []
    begin("starting the services")
    with tempfile.TemporaryDirectory() as folder, Rig(Path(folder)) as rig:
        # The agent's clock is the services' clock: one machine, one wall clock.
        clock = {VARIABLE: rig.clock.environment()[VARIABLE]}
        with AgentProcess(clock) as agent:
            for kind in faults:
                begin(kind.name)
                rows.append(row_of(measure(rig, agent, kind(), hold_s=hold_s)))
    return rows
