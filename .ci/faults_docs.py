"""Writes docs/faults.md from docs/benchmarks/chaos.json, so that the table is what was measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from interlatent_live.bench.chaos.table import HEADER, FaultRow, cells

ROOT = Path(__file__).resolve().parent.parent
FILE = ROOT / "docs" / "faults.md"
REPORT = ROOT / "docs" / "benchmarks" / "chaos.json"
HEAD = """\
# Faults: what the live path does when something breaks

Made by `make docs` from `docs/benchmarks/chaos.json`, which this command measures (`--quick` puts
only six of the faults, and is what `.ci/run` runs):

    interlatent-live bench chaos --json docs/benchmarks/chaos.json

`interlatent-live up` runs encoder, correlator and explainer; one agent, a torch policy with two
hook points 64 wide and 12 metrics, acts as fast as it can; a further consumer of features keeps
books of its own. A fault strikes and lasts three seconds, or one moment, and is lifted; then every
step must be accounted for. The command fails when one is not, or when a fault is not recovered from
within a minute.

- **step time**: median policy step under the fault ÷ that of a tap nobody listens to, in
  alternating blocks of 50 steps of the same process.
- **added median, added p99**: upper end of the 95 % interval of what is added to the median and to
  the 99th percentile. "Unchanged" is at most 5 µs and 50 µs: a goal, which does not fail the
  command.
- **sent, acknowledged**: steps that the agent took, and that the encoder acknowledged to it.
- **declared**: steps that the agent says it lost, and why.
- **at the end**: steps that reached the last consumer, and those that it was told are lost. An
  encoder that dies or loses its consumers loses acknowledged steps too, and the next declares them.
- **undeclared**: steps missing from the books of the agent, of the correlator (where its
  statistics live through the fault) or of the last consumer, or in them twice.
- **recovered after**: from the end of the fault (of a kill: from the kill) until steps taken later
  reach the last consumer, and the service that was hit has caught up.
- **leaks and complaints**: descriptors and threads that a process holds more than before; what else
  should not be.

"""


def page(report: dict[str, Any]) -> str:
    """The whole document of one report."""
    rows = [FaultRow(**row) for row in report["faults"]]
    table = [HEADER, ("---",) * len(HEADER), *(cells(row) for row in rows)]
    facts = [*report["machine"].values(), *(f"{k} {v}" for k, v in report["versions"].items())]
    lines = [
        HEAD,
        *("| " + " | ".join(one) + " |" for one in table),
        "",
        *(f"- **{row.name}**: {row.about}." for row in rows),
        "",
        f"{sum(row.unchanged for row in rows)} of {len(rows)} leave the step time unchanged.",
        f"Measured on {', '.join(facts)}; {'; '.join(report['notes'])}.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    FILE.write_text(page(json.loads(REPORT.read_text(encoding="utf-8"))), encoding="utf-8")
