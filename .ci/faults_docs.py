"""Writes docs/faults.md from committed reports, so that it says what was measured."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Any

from interlatent_live.bench.chaos.bench import ALL
from interlatent_live.bench.chaos.table import HEADER, FaultRow, cells

ROOT = Path(__file__).resolve().parent.parent
FILE = ROOT / "docs" / "faults.md"
REPORT = ROOT / "docs" / "benchmarks" / "chaos.json"
SOAK = ROOT / "docs" / "benchmarks" / "soak.json"
TAKEN, RATE = "steps taken by the agents", "rate, all services running"
SILENT = "steps lost undeclared or delivered twice"
DECLARED = "steps declared lost, by agents and encoder together"
HEAD = """\
# Faults: what the live path does when something breaks

Made by `make docs` from `docs/benchmarks/chaos.json`, which this command measures (`--quick` puts
only six of the faults, and is what `.ci/run` runs):

    interlatent-live bench chaos --json docs/benchmarks/chaos.json

`interlatent-live up` runs all services; one agent, a torch policy with two
hook points 64 wide and 12 metrics, acts as fast as it can; a further consumer of features keeps
books of its own. A fault strikes and lasts three seconds, or one moment, and is lifted; then every
step must be accounted for. The command fails when one is not, or when a fault is not recovered from
within a minute.

- **×**: median policy step under the fault ÷ that of a tap nobody listens to, in interleaved
  blocks of 50 steps of the same process.
- **p50, p99**: µs added to the median step and to the 99th percentile; upper ends of 95 %
  intervals. "Unchanged" is at most 5 and 50: a goal, which does not fail the command.
- **floor**: the p99 figure of *another* tap nobody listens to, measured against the first one in
  the same rounds: what "nothing changed" looks like on this machine. Where it is above 50, this run
  cannot show that the bound holds, whatever the tap costs.
- **sent, lost**: steps that the agent took, and those that it declared lost; the encoder
  acknowledged the others.
- **at end**: steps that the last consumer was told are lost; the others reached it. An encoder
  that dies or loses its consumers loses acknowledged steps too, and the next one declares them.
- **silent**: steps missing from the books of the agent, of the correlator (where its statistics
  live through the fault) or of the last consumer, or in them twice. The bound is 0.
- **back**: seconds from the end of the fault (of a kill: from the kill) until steps taken later
  reach the last consumer, and the service that was hit has caught up.
- **remarks**: descriptors and threads that a process holds more than before; what else should not
  be.

"""


WHY = """## Why some rows lose what nobody broke

- A step that the encoder had acknowledged and a consumer never got is declared by the *encoder*, as
  lost upstream: the agent rightly counts it as delivered, so "at end" can be more than "lost".
- A step that reached the last consumer and whose acknowledgement died with the encoder is declared
  by the agent, which cannot know: then "at end" is less than "lost", and the last consumer, which
  has the step, goes by what it has.
- **messages reordered**: a link carries row numbers upwards only. Messages reach the encoder out of
  order, it encodes them as they come, and towards its consumers a hole is declared when the later
  message goes first; the message that was overtaken then is behind the link's number and stays out.
  Holding rows back until the hole is filled would cost every consumer the wait, for what TCP never
  does between an agent and an encoder: only a relay in between can.
- **messages duplicated** costs nothing: the second copy of a row is recognised by its number.
- **network cuts, network truncates**: rows in flight are lost with the connection; without a spool
  they are declared, not sent again.

"""


def page(report: dict[str, Any], soak: dict[str, Any] | None) -> str:
    """The whole document of a table and, where there is one, a soak."""
    rows = [FaultRow(**row) for row in report["faults"]]
    table = [HEADER, ("---",) * len(HEADER), *(cells(row) for row in rows)]
    lines = [
        HEAD,
        *("| " + " | ".join(one) + " |" for one in table),
        "",
        *(_about(row) for row in rows),
        *_unmeasured({row.name for row in rows}),
        "",
        _held(rows),
        "",
        _measured(report),
        "",
        WHY,
        *_soak(soak),
    ]
    return "\n".join(lines) + "\n"


def _unmeasured(measured: set[str]) -> list[str]:
    """Faults that the command knows and this table has not."""
    others = [kind for kind in ALL if kind.name not in measured]
    if not others:
        return []
    said = "; ".join(f"**{kind.name}** ({kind.about})" for kind in others)
    return ["", _filled(f"The command also puts these, not measured here yet: {said}.", indent="")]


def _about(row: FaultRow) -> str:
    lost = ", ".join(f"{steps:,} {reason}" for reason, steps in row.declared.items())
    return _filled(f"- **{row.name}**: {row.about}." + (f" Declared: {lost}." if lost else ""))


def _held(rows: list[FaultRow]) -> str:
    total = len(rows)
    said = (
        f"The bound of the median holds in {sum(row.median_held for row in rows)} of {total} rows, "
        f"that of the 99th percentile in {sum(row.p99_held for row in rows)}."
    )
    with_floor = [row for row in rows if row.floor_p99_upper_us is not None]
    if with_floor:
        over = sum(not row.floor_held for row in with_floor)
        said += (
            f" Two taps that nobody listens to differ by more than that bound in {over} of "
            f"{len(with_floor)}: on this machine the services, the faults and the agent share the "
            "cores, the scheduler's pauses fall on one step in a hundred, and a run this short "
            "does not measure them more exactly."
        )
    return _filled(said + _nothing(rows), indent="")


def _nothing(rows: list[FaultRow]) -> str:
    """What the row without any fault says, where there is one."""
    found = [row for row in rows if row.name == "nothing" and row.added_p99_upper_us is not None]
    return "".join(
        f" With nothing broken the same figure is {row.added_p99_upper_us:.0f} µs, beside a floor "
        f"of {row.floor_p99_upper_us or 0.0:.0f} µs."
        for row in found
    )


def _measured(report: dict[str, Any]) -> str:
    facts = [*report["machine"].values(), *(f"{k} {v}" for k, v in report["versions"].items())]
    return _filled(f"Measured on {', '.join(facts)}; {'; '.join(report['notes'])}.", indent="")


def _soak(report: dict[str, Any] | None) -> list[str]:
    head = [
        "## Soak: minutes and millions of steps",
        "",
        "    interlatent-live bench soak --json docs/benchmarks/soak.json",
        "",
        _filled(
            "Ten minutes and ten million steps, or what `--minutes` and `--steps` say: all "
            "services, four processes that publish, a last consumer with books of its own. Every "
            "step has to be accounted for, no process may have to be started again, and neither "
            "memory nor descriptors of any process may grow once bounded tables are full.",
            indent="",
        ),
        "",
    ]
    if report is None:
        return [*head, "A full run of it is not committed yet."]
    return [*head, *_soaked(report)]


def _soaked(report: dict[str, Any]) -> list[str]:
    by_case = {row["case"]: row for row in report["rows"]}

    def value(case: str) -> float:
        return float(by_case[case]["value"])

    growth = {
        case.partition(":")[0]: row
        for case, row in by_case.items()
        if case.endswith("growth of memory, upper 95 % bound")
    }
    fds = [row for case, row in by_case.items() if "growth of descriptors" in case]
    missed = [row["case"] for row in report["rows"] if not row["met"]]
    listed = ", ".join(
        f"{name} {row['reference_value']:+.2f} to {row['value']:+.2f}"
        for name, row in growth.items()
    )
    whole = (
        f"{value(TAKEN):,.0f} steps in {value('time'):.1f} minutes, {value(RATE):,.0f} a second, "
        f"all services running: {value(SILENT):,.0f} lost undeclared, {value(DECLARED):,.0f} "
        f"declared lost on the way to the last consumer, "
        f"{by_case[DECLARED]['reference_value']:,.0f} of them by the agents. Growth of memory in "
        f"bytes a step, 95 % interval: {listed}; the limit is an upper end of 1. Descriptors: the "
        f"upper end is {max(row['value'] for row in fds):g} a minute at most."
    )
    goals = (
        f"Every goal of the run is met ({len(report['rows'])} rows)."
        if not missed
        else f"Not met: {'; '.join(missed)}."
    )
    return [
        _filled(whole, indent=""),
        "",
        _filled(goals, indent=""),
        "",
        _measured(report),
    ]


def _filled(text: str, *, indent: str = "  ") -> str:
    return textwrap.fill(
        text, 100, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def reports() -> tuple[dict[str, Any], dict[str, Any] | None]:
    """The committed table, and the committed soak where there is one."""
    chaos = json.loads(REPORT.read_text(encoding="utf-8"))
    return chaos, json.loads(SOAK.read_text(encoding="utf-8")) if SOAK.exists() else None


if __name__ == "__main__":
    FILE.write_text(page(*reports()), encoding="utf-8")
