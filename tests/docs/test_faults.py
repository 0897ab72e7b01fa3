from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

from interlatent_live.bench.chaos.bench import ALL
from interlatent_live.bench.chaos.table import FaultRow

ROOT = Path(__file__).resolve().parents[2]
SPEC = importlib.util.spec_from_file_location("faults_docs", ROOT / ".ci" / "faults_docs.py")
assert SPEC is not None
assert SPEC.loader is not None
pages = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(pages)


def report() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(pages.REPORT.read_text(encoding="utf-8"))
    return found


def test_the_page_of_faults_is_the_committed_report() -> None:
    assert pages.FILE.read_text(encoding="utf-8") == pages.page(report()), "run `make docs`"


def test_the_committed_report_has_every_fault_once() -> None:
    rows = [FaultRow(**row) for row in report()["faults"]]
    assert [(row.name, row.about) for row in rows] == [(kind.name, kind.about) for kind in ALL]


def test_the_committed_rows_add_up() -> None:
    for row in (FaultRow(**row) for row in report()["faults"]):
        missing = row.sent - row.acknowledged - sum(row.declared.values())
        assert missing == 0 or row.undeclared >= abs(missing), row.name
