"""The table of faults fits a terminal, whatever happened."""

from __future__ import annotations

from io import StringIO

from rich.console import Console
from rich.table import Table

from interlatent_live.bench.chaos.bench import ALL
from interlatent_live.bench.chaos.table import HEADER, FaultRow, cells, chaos_report, unmeasured


def row(kind, **values):
    given = {
        "rounds": 40,
        "nobody_us": 115.0,
        "fault_us": 117.0,
        "ratio": 1.02,
        "added_median_upper_us": 13.6,
        "added_p99_upper_us": 1880.6,
        "floor_median_upper_us": 1.0,
        "floor_p99_upper_us": 1310.0,
        "sent": 18_300,
        "acknowledged": 13_200,
        "declared": {"no_peer": 2385, "peer_lost": 2686, "age": 29},
        "received": 13_242,
        "declared_at_end": 15_058,
        "undeclared": 0,
        "recovered_s": 16.7,
        "leaks": (),
        "complaints": (),
        "memory_bytes": 0,
    }
    return FaultRow(name=kind.name, about=kind.about, **{**given, **values})


def test_eighty_columns_hold_every_figure_whole():
    rows = [row(kind) for kind in ALL]
    rows[3] = row(ALL[3], leaks=("encoder: 2 descriptors",), complaints=("it died of it",))
    table = Table(box=None, pad_edge=False)
    for name in HEADER:
        table.add_column(name, overflow="fold")
    for one in rows:
        table.add_row(*cells(one))
    out = StringIO()
    Console(file=out, width=80, color_system=None).print(table)
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    shown = " ".join(lines).split()
    for figure in ("1.02", "13.6", "1881", "1310", "18,300", "5,100", "15,058", "16.7"):
        assert shown.count(figure) == len(rows), figure


def test_bounds_are_judged_and_a_row_without_times_holds_none():
    good = row(ALL[0], added_median_upper_us=4.9, added_p99_upper_us=50.0)
    assert good.median_held
    assert good.p99_held
    assert not good.floor_held
    without = row(ALL[0], added_median_upper_us=None, added_p99_upper_us=None, ratio=None)
    assert not without.median_held
    assert not without.p99_held
    assert cells(without)[1:4] == ("–", "–", "–")


def test_a_row_holds_when_nothing_was_lost_in_silence_and_all_came_back():
    assert row(ALL[0]).held
    assert not row(ALL[0], undeclared=1).held
    assert not row(ALL[0], recovered_s=None).held


def test_a_fault_that_could_not_be_measured_fails_the_report():
    report = chaos_report([row(ALL[0]), unmeasured(ALL[1], "no row arrived")], ())
    assert report.failed
    assert not chaos_report([row(ALL[0])], ()).failed
    assert report.details()[1][1][-1] == "no row arrived"
    assert [one.met for one in report.rows[:2]] == [True, False]
