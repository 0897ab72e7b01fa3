"""What a system of some size would take, from figures that were measured, and where they end.

A plan is arithmetic on committed reports: processor time per step and latency from ``pipeline``,
what the depth of the statistics costs from ``correlator``, bytes per recorded step from ``replay``.
Bandwidth follows from the wire's columns and memory from the limits in the configuration. Nothing
is guessed: an estimate outside what was measured carries the reason, and where a cost was measured
at one size only, it is a range from "does not grow with it" to "grows in proportion". Pure, but for
:func:`load_reports`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

from interlatent_live.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

NEEDED: Final = ("pipeline", "correlator", "replay")
WIDTH, HOOKS, FEATURES, METRICS = 64, 2, 256, 12
"""What ``bench pipeline`` measures with: each hook point's width, how many, their dictionaries."""
PIPELINE_HZ: Final = 50.0
FULL_FEATURES, FULL_METRICS = 2048, 8
"""What ``bench correlator`` measures the full profile with."""
RECORDED_FEATURES, RECORDED_METRICS = 32, 8
"""What ``bench replay`` records, at one hook point, with 5 % of the features on."""
COLUMNS_BYTES: Final = 20
"""Of a step beside activations and metrics: env, episode, t, time, controller, flags."""
Y_EVERY: Final = 8
"""Every how many steps the output of a hook point travels, where nobody says otherwise."""
LATENCY_BAR_MS: Final = 20.0
DAY_S: Final = 86_400
_GROWTH: Final = "from no growth to growth in proportion"


@dataclass(frozen=True, slots=True)
class Load:
    """What is to be watched."""

    agents: int
    hz: float
    hook_points: int = 2
    width: int = 64
    """Of a hook point's input and output."""
    features: int = 256
    """Of each hook point's dictionary."""
    active: int = 16
    """Features on per step and hook point."""
    metrics: int = 12
    full: bool = True
    """The correlator's ``depth``; False: ``core``."""

    @property
    def steps_per_s(self) -> float:
        """Of all agents."""
        return self.agents * self.hz


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number, or a range, and what is to be known to believe it."""

    name: str
    low: float
    high: float
    unit: str
    source: str
    beyond: tuple[str, ...] = ()
    """Where it lies outside what was measured; empty inside."""


@dataclass(frozen=True, slots=True)
class Plan:
    """All estimates for one load, and which of them ends first."""

    load: Load
    estimates: tuple[Estimate, ...]
    limits: tuple[str, ...]
    """In words, what of this load one machine with these processes does not carry."""

    def of(self, name: str) -> Estimate:
        """An estimate by name."""
        return next(one for one in self.estimates if one.name == name)


@dataclass(frozen=True, slots=True)
class Reports:
    """Benchmark reports by name, and the files that they came from."""

    rows: Mapping[str, Sequence[Mapping[str, Any]]]
    files: Mapping[str, str]
    machines: Mapping[str, Mapping[str, str]]

    def row(self, report: str, *words: str) -> Mapping[str, Any]:
        """The row whose case has all the words.

        Raises:
            UserError: when there is none.
        """
        for row in self.rows[report]:
            if all(word in row["case"] for word in words):
                return row
        raise UserError(
            f"{self.files[report]} has no figure for {' '.join(words)!r}: measure it anew with "
            f"`interlatent-live bench {report} --json FILE`"
        )

    def curve(self) -> tuple[Point, ...]:
        """What was measured at several numbers of agents, fewest first."""
        found = []
        for row in self.rows["pipeline"]:
            words = row["case"].split()
            if row["case"].startswith("step → feature p99, ") and words[5] == "agents":
                agents = int(words[4])
                cost = self.row("pipeline", "encoder's processor time per step", f" {agents} agent")
                found.append(Point(agents, cost["value"], row["value"], row["reference_value"]))
        if not found:
            raise UserError(f"{self.files['pipeline']} has no curve over agents; measure it anew")
        return tuple(sorted(found, key=lambda one: one.agents))


@dataclass(frozen=True, slots=True)
class Point:
    """One measured number of agents, each of one copy at 50 Hz."""

    agents: int
    encoder_us: float
    """Processor time per step."""
    p99_ms: float
    p50_ms: float

    @property
    def steps_per_s(self) -> float:
        """Of all of them."""
        return self.agents * PIPELINE_HZ


def load_reports(files: Iterable[Path]) -> Reports:
    """Read benchmark reports; of two of one name the later one counts.

    Raises:
        UserError: when a file is no report, or one that is needed is missing.
    """
    rows: dict[str, list[dict[str, Any]]] = {}
    sources: dict[str, str] = {}
    machines: dict[str, dict[str, str]] = {}
    for file in files:
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
            name = str(found["name"])
            rows[name] = [
                {**row, "case": str(row["case"]), "value": float(row["value"])}
                for row in found["rows"]
            ]
            machines[name] = dict(found.get("machine", {}))
        except OSError as error:
            raise UserError(f"{file} cannot be read: {error.strerror}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{file} is no benchmark report; `interlatent-live bench NAME --json FILE` "
                "writes one"
            ) from error
        sources[name] = str(file)
    missing = [name for name in NEEDED if name not in rows]
    if missing:
        raise UserError(
            f"no figures of {', '.join(missing)}: run `interlatent-live bench {missing[0]} --json "
            "FILE` and name the file with --bench"
        )
    return Reports(rows, sources, machines)


@dataclass(frozen=True, slots=True)
class Memory:
    """What the configuration says of memory, in bytes."""

    limits: int
    """Sum of every buffer's limit, over all services."""
    stream: int
    """Full tables of one run's one hook point (:func:`statistics.memory.memory_bytes`)."""
    tables: int
    """``limits.statistics_bytes``."""


def plan(load: Load, reports: Reports, *, cores: int, memory: Memory | None = None) -> Plan:
    """Estimate what a load takes on one machine.

    Args:
        load: what is to be watched.
        reports: measured figures.
        cores: processor cores of the machine.
        memory: what its configuration says; None: leave memory out.
    """
    encoder, correlator = _encoder(load, reports), _correlator(load, reports)
    p99 = _along_curve(load, reports, "step to feature, p99", "ms")
    estimates: tuple[Estimate, ...] = (
        encoder,
        correlator,
        p99,
        _along_curve(load, reports, "step to feature, median", "ms"),
        _exact("bandwidth in, steps", load.steps_per_s * step_bytes(load), "bytes/s"),
        _exact("bandwidth on, features to each consumer", load.steps_per_s * row_bytes(load),
               "bytes/s"),
        _disk(load, reports),
    )  # fmt: skip
    limits = _limits(encoder, correlator, p99, cores)
    if memory is not None:
        tables = load.agents * load.hook_points * memory.stream
        estimates += (
            _exact("memory, tables of all runs once full", tables, "bytes"),
            _exact("memory, sum of the configured limits", memory.limits, "bytes"),
        )
        if tables > memory.tables:
            said = f"the tables of {load.agents * load.hook_points} streams come to"
            allowed = f"limits.statistics_bytes lets them have {memory.tables / 1e9:.3g}"
            limits += (f"{said} {tables / 1e9:.3g} GB, and {allowed}",)
    return Plan(load, estimates, limits)


def curve(loads: Iterable[Load], reports: Reports, *, cores: int) -> list[Plan]:
    """Plans for several loads, such as growing numbers of agents."""
    return [plan(one, reports, cores=cores) for one in loads]


def step_bytes(load: Load) -> float:
    """Of one step as an agent sends it: float32 x, y of every eighth step, float64 metrics."""
    activations = load.hook_points * load.width * 4 * (1 + 1 / Y_EVERY)
    return COLUMNS_BYTES + activations + load.metrics * 8


def row_bytes(load: Load) -> float:
    """Of one step as the encoder hands it on: indices, values and two errors of each hook point."""
    return COLUMNS_BYTES + load.metrics * 8 + load.hook_points * (load.active * 8 + 12)


def _encoder(load: Load, reports: Reports) -> Estimate:
    points = reports.curve()
    measured = [(one.steps_per_s, one.encoder_us * one.steps_per_s / 1e6) for one in points]
    cores, beyond = _between(load.steps_per_s, measured)
    share = load.hook_points * load.width * load.features / (HOOKS * WIDTH * FEATURES)
    low, high = cores, cores
    if share > 1:
        high *= share
        size = f"{HOOKS} hook points of width {WIDTH} and {FEATURES} features"
        beyond += (f"measured with {size}: {_GROWTH} (× {share:.3g})",)
    return Estimate(
        "encoder", low, high, "cores", reports.files["pipeline"], (*beyond, *_other_rate(load))
    )


def _correlator(load: Load, reports: Reports) -> Estimate:
    per_step = reports.row("pipeline", "processor time per step, correlator")["value"]
    beyond: tuple[str, ...] = ()
    hooks = load.hook_points / HOOKS
    low = high = per_step * max(hooks, 1.0)
    sources = reports.files["pipeline"]
    if load.full:
        # What is on top of the core: the full profile is measured by itself, at one size.
        full = 1e6 / reports.row("correlator", "full default profile")["value"]
        sources += f", {reports.files['correlator']}"
        extra = full * load.hook_points
        grown = max(load.metrics / FULL_METRICS, 1.0) * max(load.features / FULL_FEATURES, 1.0)
        low, high = low + extra, high + extra * grown
        if grown > 1:
            size = f"{FULL_FEATURES} features and {FULL_METRICS} metrics"
            beyond += (f"the full profile is measured with {size}: {_GROWTH} (× {grown:.3g})",)
    elif load.metrics > METRICS:
        high *= load.metrics / METRICS
        beyond += (f"measured with {METRICS} metrics",)
    rate = reports.row("pipeline", "steps/s encoded and correlated")["value"]
    if load.steps_per_s > rate:
        beyond += (f"measured up to {rate:,.0f} steps/s, here {load.steps_per_s:,.0f}",)
    scale = load.steps_per_s / 1e6
    return Estimate("correlator", low * scale, high * scale, "cores", sources, beyond)


def _along_curve(load: Load, reports: Reports, name: str, unit: str) -> Estimate:
    median = name.endswith("median")
    found, beyond = _between(
        load.steps_per_s,
        [(one.steps_per_s, one.p50_ms if median else one.p99_ms) for one in reports.curve()],
    )
    share = load.hook_points * load.width * load.features / (HOOKS * WIDTH * FEATURES)
    if share > 1:
        beyond += (f"measured with {FEATURES} features, so more of them are at least as late",)
    return Estimate(
        name, found, found, unit, reports.files["pipeline"], (*beyond, *_other_rate(load))
    )


def _disk(load: Load, reports: Reports) -> Estimate:
    measured = reports.row("replay", "recording")["value"]
    reference = Load(1, 1.0, 1, 1, RECORDED_FEATURES, round(RECORDED_FEATURES * 0.05),
                     RECORDED_METRICS)  # fmt: skip
    grown = row_bytes(load) / row_bytes(reference)
    per_day = load.steps_per_s * DAY_S
    beyond: tuple[str, ...] = ()
    if grown > 1.0:
        size = f"{RECORDED_FEATURES} features and {RECORDED_METRICS} metrics at one hook point"
        beyond = (f"measured with {size}: {_GROWTH} of a row's bytes (× {grown:.3g})",)
    return Estimate(
        "recordings, per day",
        per_day * measured,
        per_day * measured * max(grown, 1.0),
        "bytes",
        reports.files["replay"],
        beyond,
    )


def _exact(name: str, value: float, unit: str) -> Estimate:
    return Estimate(name, value, value, unit, "computed")


def _other_rate(load: Load) -> tuple[str, ...]:
    if load.hz == PIPELINE_HZ:
        return ()
    return (f"measured at {PIPELINE_HZ:g} Hz an agent; taken by steps/s of all of them",)


def _between(x: float, points: Sequence[tuple[float, float]]) -> tuple[float, tuple[str, ...]]:
    """Interpolated between measured points; beyond them drawn on from the last, and said so."""
    first, least = points[0]
    if x < first:
        return least, (f"measured from {first:,.0f} steps/s, of which this is; here {x:,.0f}",)
    for (left, low), (right, high) in pairwise(points):
        if x <= right:
            return low + (high - low) * (x - left) / (right - left), ()
    left, low = points[-2] if len(points) > 1 else (0.0, 0.0)
    right, high = points[-1]
    slope = max((high - low) / (right - left), 0.0)
    return high + slope * (x - right), (
        f"EXTRAPOLATED: measured up to {right:,.0f} steps/s, here {x:,.0f}",
    )


def _limits(encoder: Estimate, correlator: Estimate, p99: Estimate, cores: int) -> tuple[str, ...]:
    found = [
        f"the {one.name} needs {_range(one)} cores, and one process uses one: shards take more"
        for one in (encoder, correlator)
        if one.high > 1
    ]
    if encoder.high + correlator.high > cores:
        found.append(
            f"encoder and correlator together need up to {encoder.high + correlator.high:.2g} "
            f"cores of this machine's {cores}, beside the explainer and the agents"
        )
    if p99.high > LATENCY_BAR_MS:
        found.append(
            f"step to feature takes {p99.high:.3g} ms at the 99th percentile, more than "
            f"{LATENCY_BAR_MS:g}"
        )
    return tuple(found)


def _range(one: Estimate) -> str:
    low, high = f"{one.low:.2g}", f"{one.high:.2g}"
    return low if low == high else f"{low} to {high}"
