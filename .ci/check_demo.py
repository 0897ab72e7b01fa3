"""Holds a headless demo's report to what the demo promises; prints each figure beside its bound."""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main() -> int:
    """1 when a promise is broken."""
    report = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    steps, claims = report["steps"], report["claims"]
    sent, encoded = steps["sent"], steps["encoded"]
    lost, gaps = steps["dropped_declared"], steps["gaps_undeclared"]
    eligible, verified = claims["eligible"], claims["verified_share"]
    promises = [
        ("steps encoded = steps sent", f"{encoded} = {sent}", encoded == sent > 0),
        ("declared drops", f"{lost} <= 0", lost <= 0),
        ("undeclared gaps", f"{gaps} <= 0", gaps <= 0),
        ("eligible features", f"{eligible} >= 30", eligible >= 30),
        ("verified share", f"{verified:.2f} >= 0.5", verified >= 0.5),
        ("narration", f"{len(report['narration'])} >= 1", bool(report["narration"])),
    ]
    for name, shown, kept in promises:
        sys.stdout.write(f"{'kept' if kept else 'BROKEN'}: {name}: {shown}\n")
    for name, values in report["latency_ms"].items():
        sys.stdout.write(f"{name}: p50 {values['p50']} ms, p99 {values['p99']} ms\n")
    return int(not all(kept for _, _, kept in promises))


if __name__ == "__main__":
    sys.exit(main())
