"""The one shape of every benchmark's result: rows that carry the limit or peer they are held to.

A figure without its reference, measured in the same run, says nothing on a noisy machine; so a row
cannot be built without one.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


@dataclass(frozen=True, slots=True)
class BenchRow:
    """One measured case beside its reference.

    ``goal`` is a bound on ``ratio`` or ``value`` in words a machine can check: ``"ratio <= 2"``,
    ``"value >= 50000"``; ``met`` is what :func:`bench_row` computed from it.
    """

    case: str
    value: float
    unit: str
    reference: str
    reference_value: float
    ratio: float
    goal: str
    met: bool


@dataclass(frozen=True, slots=True)
class BenchReport:
    """What ``interlatent-live bench NAME --json FILE`` writes."""

    name: str
    rows: tuple[BenchRow, ...]
    machine: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def to_json(self) -> str:
        """Stable, indented JSON."""
        return json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n"

    def write(self, path: Path) -> None:
        """Write the JSON to ``path``, creating its folder."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.to_json(), encoding="utf-8")


def bench_row(
    case: str, value: float, unit: str, *, reference: str, reference_value: float, goal: str
) -> BenchRow:
    """Build a row and judge it.

    ``goal`` is ``"ratio OP NUMBER"`` or ``"value OP NUMBER"`` with OP ``<=`` or ``>=``, or
    ``"shown"`` for a row without a bar.

    Raises:
        ValueError: when the goal is none of these.
    """
    ratio = value / reference_value if reference_value else float("inf")
    if goal == "shown":
        return BenchRow(case, value, unit, reference, reference_value, ratio, goal, met=True)
    try:
        subject, operator, bound = goal.split()
        observed = {"ratio": ratio, "value": value}[subject]
        met = {"<=": observed <= float(bound), ">=": observed >= float(bound)}[operator]
    except (KeyError, ValueError) as error:
        raise ValueError(f"{goal!r} is not a goal such as 'ratio <= 2'") from error
    return BenchRow(case, value, unit, reference, reference_value, ratio, goal, met)


def bench_report(name: str, rows: Iterable[BenchRow], *, notes: Iterable[str] = ()) -> BenchReport:
    """Rows with the machine and the versions they were measured on."""
    return BenchReport(name, tuple(rows), machine_facts(), version_facts(), tuple(notes))


def machine_facts() -> dict[str, str]:
    """Processor, cores, system and, where torch already is imported, the CUDA device."""
    facts = {
        "system": f"{platform.system()} {platform.machine()}",
        "cores": str(len(os.sched_getaffinity(0))),
        "processor": _processor(),
        "python": platform.python_version(),
    }
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        facts["cuda_device"] = torch.cuda.get_device_name(0)
    return facts


def version_facts() -> dict[str, str]:
    """Versions of the packages a figure depends on."""
    names = ("interlatent-live", "torch", "numpy", "scipy", "pyzmq", "msgpack", "triton")
    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def median(values: Iterable[float]) -> float:
    """Median, the statistic every benchmark reports."""
    return statistics.median(values)


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"
