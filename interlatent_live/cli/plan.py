"""``interlatent-live plan``: what a number of agents takes, from measured figures."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from interlatent_live.cli.options import ConfigOption, SetOption, resolve_options

if TYPE_CHECKING:
    from interlatent_live.bench.capacity import Estimate, Plan, Reports

COMMITTED = Path("docs/benchmarks")
CURVE = (1, 10, 50, 100, 200, 500, 1000)


def plan(
    agents: Annotated[int, typer.Option(min=1, help="Agents, each of one copy.")] = 10,
    hz: Annotated[float, typer.Option(min=0.01, help="Steps a second of each.")] = 50.0,
    hook_points: Annotated[int, typer.Option(min=1, help="Of each agent.")] = 2,
    width: Annotated[int, typer.Option(min=1, help="Of a hook point.")] = 64,
    features: Annotated[int, typer.Option(min=1, help="Of each dictionary.")] = 256,
    active: Annotated[int, typer.Option(min=1, help="Features on per step.")] = 16,
    metrics: Annotated[int, typer.Option(min=1, help="Of each agent.")] = 12,
    bench: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Report of `bench pipeline`, `correlator` or `replay` on this machine; "
            "repeatable. [default: those in docs/benchmarks]",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
    config: ConfigOption = None,
    sets: SetOption = None,
) -> None:
    """Say what watching so many agents takes, and what limits it, from measured figures.

    Cores, latency, bandwidth, memory and disk; where what was measured ends, it says so.
    """
    from dataclasses import replace

    from interlatent_live.bench.capacity import NEEDED, Load, Memory, curve, load_reports
    from interlatent_live.bench.capacity import plan as make_plan
    from interlatent_live.bench.report import machine_facts
    from interlatent_live.statistics.config import CorrelatorConfig
    from interlatent_live.statistics.memory import memory_bytes

    settings = resolve_options(config, sets).settings
    committed = [COMMITTED / f"{name}.json" for name in NEEDED]
    reports = load_reports([*(one for one in committed if one.exists()), *(bench or ())])
    cores = int(machine_facts()["cores"])
    held = sum(settings.buffers(one).total for one in settings.services())
    load = Load(agents, hz, hook_points, width, features, active, metrics,
                full=settings.correlator.depth == "full")  # fmt: skip
    options = settings.correlator
    tables = CorrelatorConfig.core() if options.depth == "core" else CorrelatorConfig(
        pane_steps=options.pane_steps, half_lives=options.half_lives, sliding=options.sliding
    )  # fmt: skip
    memory = Memory(
        limits=held,
        stream=memory_bytes(tables, features, metrics, active_per_step=active),
        tables=settings.limits.statistics_bytes,
    )
    found = make_plan(load, reports, cores=cores, memory=memory)
    along = curve(
        (replace(load, agents=one) for one in sorted({*CURVE, agents})), reports, cores=cores
    )
    if as_json:
        print(json.dumps(
            {"plan": asdict(found), "curve": [asdict(one) for one in along],
             "files": dict(reports.files), "machines": dict(reports.machines)},
            indent=1, ensure_ascii=False,
        ))  # fmt: skip
        return
    _print(found, along, reports, machine_facts())


def _print(found: Plan, along: list[Plan], reports: Reports, machine: dict[str, str]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(soft_wrap=True)
    load = found.load
    print(
        f"{load.agents} agents at {load.hz:g} Hz: {load.steps_per_s:,.0f} steps/s, "
        f"{load.hook_points} hook points of width {load.width}, {load.features} features each, "
        f"{load.metrics} metrics, statistics {'full' if load.full else 'core'}"
    )
    print(f"figures: {', '.join(reports.files.values())}; what is computed is not measured")
    table = Table("", "estimate", "", box=None, pad_edge=False)
    for one in found.estimates:
        known = "see below" if one.beyond else "measured"
        known = "computed" if one.source == "computed" else known
        table.add_row(one.name, _shown(one), known)
    console.print(table)
    for one in found.estimates:
        for why in one.beyond:
            print(f"  {one.name}: {why}")
    for limit in found.limits or ("nothing of it is at a limit of one machine",):
        print(f"limits: {limit}")
    table = Table("agents", "encoder", "correlator", "p99", "measured", box=None, pad_edge=False)
    for step in along:
        names = ("encoder", "correlator", "step to feature, p99")
        beyond = any(step.of(name).beyond for name in names)
        table.add_row(
            str(step.load.agents), *(_shown(step.of(name)) for name in names),
            "not all of it" if beyond else "yes",
        )  # fmt: skip
    console.print(table)
    for name, facts in reports.machines.items():
        other = [key for key in ("processor", "cores") if facts.get(key) != machine.get(key)]
        if other:
            print(f"{reports.files[name]} is of another machine: {facts}; measure on this one")


def _shown(one: Estimate) -> str:
    low, high = _number(one.low, one.unit), _number(one.high, one.unit)
    if low == high:
        return low
    return f"{low.removesuffix(f' {one.unit}')} to {high}"


def _number(value: float, unit: str) -> str:
    if not unit.startswith("bytes"):
        return f"{value:.2g} {unit}" if value < 100 else f"{value:,.0f} {unit}"
    for name in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.3g} {name}{unit.removeprefix('bytes')}"
        value /= 1000
    return f"{value:.3g} TB{unit.removeprefix('bytes')}"
