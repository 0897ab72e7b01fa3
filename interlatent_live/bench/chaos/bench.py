"""Faults put to the whole live path while an agent acts: what it notices, loses and gets back.

Real services under ``interlatent-live up``, a real torch policy with a tap, and a last consumer
with books of its own. One row a fault: step time beside a tap with nobody listening, measured in
alternating blocks of the same process; steps sent, acknowledged, declared lost and lost in silence;
the time until all is well again; what anybody still holds afterwards.
"""

from __future__ import annotations

import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from interlatent_live.bench.chaos.agent_process import AgentProcess
from interlatent_live.bench.chaos.faults.clock import VARIABLE
from interlatent_live.bench.chaos.faults.disk import DiskFull
from interlatent_live.bench.chaos.faults.many import (
    CorrelatorOutOfDescriptors,
    EncoderOutOfDescriptors,
    ManyAgents,
    SupervisorFrozen,
)
from interlatent_live.bench.chaos.faults.modes import (
    ClockJumps,
    ClockJumpsBack,
    EncodedAtAgent,
    HotReload,
    Nothing,
    Spooled,
)
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
    CorrelatorRestarted,
    EncoderFrozen,
    EncoderKilled,
    ExplainerFrozen,
    ExplainerKilled,
    SlowCorrelator,
    SupervisorKilled,
)
from interlatent_live.bench.chaos.measure import measure
from interlatent_live.bench.chaos.rig import Rig
from interlatent_live.bench.chaos.table import (
    ChaosReport,
    FaultRow,
    chaos_report,
    row_of,
    unmeasured,
)
from interlatent_live.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

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
# The clock comes last, and ahead after back: documents from its hour ahead stay the newest for an
# hour.
ALL: tuple[type[Fault], ...] = (
    Nothing,
    EncoderFrozen,
    EncoderKilled,
    CorrelatorFrozen,
    CorrelatorKilled,
    CorrelatorRestarted,
    SlowCorrelator,
    ExplainerFrozen,
    ExplainerKilled,
    SupervisorFrozen,
    SupervisorKilled,
    Delay,
    Cuts,
    Truncates,
    Duplicated,
    Reordered,
    Spooled,
    DiskFull,
    EncoderOutOfDescriptors,
    CorrelatorOutOfDescriptors,
    EncodedAtAgent,
    HotReload,
    ManyAgents,
    ClockJumpsBack,
    ClockJumps,
)
HOLD_S = 3.0
QUICK_HOLD_S = 2.0
NOTES = (
    "each fault once, on one machine that also runs the agent, the services and the faults",
    "step times in blocks of 50 steps: this tap, one with nobody listening, another such",
)


def run(
    *,
    quick: bool = False,
    only: tuple[str, ...] = (),
    progress: Callable[[str], None] | None = None,
) -> ChaosReport:
    """Every fault once, or those that ``only`` names; ``quick`` some of them, for a shorter time.

    Raises:
        UserError: when there is no fault of that name.
        RuntimeError: when the path does not work before anything was broken.
    """
    faults = named(only) if only else QUICK if quick else ALL
    rows = put_to_the_path(faults, QUICK_HOLD_S if quick else HOLD_S, progress or (lambda _: None))
    return chaos_report(rows, NOTES)


def named(names: Iterable[str]) -> tuple[type[Fault], ...]:
    """The faults of these names, in the order of :data:`ALL`.

    Raises:
        UserError: when there is no fault of that name.
    """
    wanted = set(names)
    unknown = wanted - {kind.name for kind in ALL}
    if unknown:
        known = ", ".join(kind.name for kind in ALL)
        raise UserError(f"there is no fault {min(unknown)!r}; there are: {known}")
    return tuple(kind for kind in ALL if kind.name in wanted)


def put_to_the_path(
    faults: Iterable[type[Fault]], hold_s: float, begin: Callable[[str], None]
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
                try:
                    row = row_of(measure(rig, agent, kind(), hold_s=hold_s))
                except (RuntimeError, OSError) as error:
                    # The other faults deserve their rows; this one fails the command.
                    row = unmeasured(kind, str(error))
                    with suppress(RuntimeError, TypeError, OSError):
                        agent.shut()
                rows.append(row)
    return rows
