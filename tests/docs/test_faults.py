from __future__ import annotations

import importlib.util
from pathlib import Path

from interlatent_live.bench.chaos.bench import ALL
from interlatent_live.bench.chaos.table import FaultRow

SINCE_THE_LAST_FULL_RUN = {
    "nothing",
    "correlator restarted",
    "supervisor frozen",
    "disk full",
    "encoder out of descriptors",
    "correlator out of descriptors",
    "1,000 agents connect",
    "clock jumps back",
}
"""Faults that came after the committed report; it has all of them or none."""

ROOT = Path(__file__).resolve().parents[2]
SPEC = importlib.util.spec_from_file_location("faults_docs", ROOT / ".ci" / "faults_docs.py")
assert SPEC is not None
assert SPEC.loader is not None
pages = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(pages)


def rows() -> list[FaultRow]:
    return [FaultRow(**row) for row in pages.reports()[0]["faults"]]


def test_the_page_of_faults_is_the_committed_report() -> None:
    assert pages.FILE.read_text(encoding="utf-8") == pages.page(*pages.reports()), "run `make docs`"


def test_the_committed_report_has_every_fault_once() -> None:
    names = [row.name for row in rows()]
    missing = {kind.name for kind in ALL} - set(names)
    assert missing in (set(), SINCE_THE_LAST_FULL_RUN), "run `bench chaos` in full"
    assert names == [kind.name for kind in ALL if kind.name in names]


def test_the_committed_rows_add_up() -> None:
    for row in rows():
        missing = row.sent - row.acknowledged - sum(row.declared.values())
        assert missing == 0 or row.undeclared >= abs(missing), row.name


def test_no_committed_row_lost_steps_in_silence_or_stayed_broken() -> None:
    assert [row.name for row in rows() if not row.held] == []
