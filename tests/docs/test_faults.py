from __future__ import annotations

import importlib.util
from pathlib import Path

from interlatent_live.bench.chaos.bench import ALL
from interlatent_live.bench.chaos.table import FaultRow

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
    assert [row.name for row in rows()] == [kind.name for kind in ALL], "run `bench chaos` in full"


def test_the_committed_rows_add_up() -> None:
    for row in rows():
        missing = row.sent - row.acknowledged - sum(row.declared.values())
        assert missing == 0 or row.undeclared >= abs(missing), row.name


def test_no_committed_row_lost_steps_in_silence_or_stayed_broken() -> None:
    assert [row.name for row in rows() if not row.held] == []
