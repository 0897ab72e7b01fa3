from __future__ import annotations

import importlib
import inspect
import json
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from interlatent_live.bench import registry
from interlatent_live.bench.chaos.table import FaultRow, chaos_report
from interlatent_live.bench.report import BenchReport, bench_report, bench_row
from interlatent_live.cli.bench import run_bench
from interlatent_live.cli.main import app
from interlatent_live.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

HERE = __name__


def quick_bench(*, quick: bool = False) -> BenchReport:
    rows = [
        bench_row("fast", 2.0, "µs", reference="peer", reference_value=4.0, goal="ratio <= 1"),
        bench_row("slow", 9.0, "µs", reference="peer", reference_value=3.0, goal="ratio <= 2"),
        bench_row("seen", 1e-7, "s", reference="peer", reference_value=1e7, goal="shown"),
    ]
    return bench_report("sample", rows, notes=["quick" if quick else "thorough"])


def not_a_bench() -> int:
    return 3


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.BENCHES, "sample", f"{HERE}:quick_bench")
    monkeypatch.setitem(registry.BENCHES, "broken", f"{HERE}:not_a_bench")
    monkeypatch.setitem(registry.BENCHES, "absent", "no_such_package_at_all:run")


def test_the_table_says_in_words_what_was_met() -> None:
    result = CliRunner().invoke(app, ["bench", "sample"], env={"COLUMNS": "100"})
    assert result.exit_code == 0
    lines = {
        word: line
        for line in result.stdout.splitlines()
        for word in ("fast", "slow", "seen")
        if word in line
    }
    assert "ratio <= 1: met" in lines["fast"]
    assert "ratio <= 2: NOT met" in lines["slow"]
    assert "shown" in lines["seen"]
    assert "1 of 2 goals met" in result.stdout


def test_the_report_is_written_as_json(tmp_path: Path) -> None:
    file = tmp_path / "new" / "out.json"
    result = CliRunner().invoke(app, ["bench", "sample", "--quick", "--json", str(file)])
    assert result.exit_code == 0
    report = json.loads(file.read_text(encoding="utf-8"))
    assert list(report) == ["name", "rows", "machine", "versions", "notes"]
    assert list(report["rows"][0]) == [
        "case", "value", "unit", "reference", "reference_value", "ratio", "goal", "met",
    ]  # fmt: skip
    assert report["notes"] == ["quick"]


def test_a_missed_goal_fails_only_on_request() -> None:
    assert CliRunner().invoke(app, ["bench", "sample", "--require"]).exit_code == 1


def test_the_list_names_each_and_what_it_measures() -> None:
    result = CliRunner().invoke(app, ["bench", "list"], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    for name in registry.BENCHES:
        assert name in result.stdout
    assert "needs the package no_such_package_at_all" in result.stdout


def test_what_can_not_be_honoured_is_refused() -> None:
    with pytest.raises(UserError, match=r"no benchmark 'nope'; there are: .*sample"):
        run_bench("nope", registry.BENCHES, {})
    with pytest.raises(UserError, match="sample has no --device"):
        run_bench("sample", registry.BENCHES, {"device": "cuda"})
    with pytest.raises(UserError, match="there is no fault 'nope'; there are: nothing, "):
        run_bench("chaos", registry.BENCHES, {"only": ("nope",)})
    with pytest.raises(UserError, match="needs the package no_such_package_at_all"):
        run_bench("absent", registry.BENCHES, {})
    with pytest.raises(TypeError, match="returned int"):
        run_bench("broken", registry.BENCHES, {})


def test_every_registered_benchmark_exists_and_says_what_it_measures() -> None:
    own = {
        name: target
        for name, target in registry.BENCHES.items()
        if target.startswith("interlatent_live.")
    }
    for name, target in own.items():
        module_name, _, attribute = target.partition(":")
        module = importlib.import_module(module_name)
        assert module.__doc__, name
        parameters = inspect.signature(getattr(module, attribute)).parameters.values()
        assert all(parameter.default is not parameter.empty for parameter in parameters), name


def chatty_bench(*, progress: Callable[[str], None] | None = None) -> BenchReport:
    assert progress is not None
    progress("a part")
    row = FaultRow(
        name="a fault", about="it breaks", rounds=0, nobody_us=None, fault_us=None, ratio=None,
        added_median_upper_us=None, added_p99_upper_us=None, sent=7, acknowledged=5,
        declared={"age": 1}, received=5, declared_at_end=1, undeclared=1, recovered_s=1.0,
        leaks=(), complaints=(), memory_bytes=0,
    )  # fmt: skip
    return chaos_report([row], [])


def test_a_table_of_its_own_is_shown_and_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.BENCHES, "chatty", f"{HERE}:chatty_bench")
    result = CliRunner().invoke(app, ["bench", "chatty"], env={"COLUMNS": "200"})
    assert result.exit_code == 1
    (line,) = [line for line in result.stdout.splitlines() if "a fault" in line]
    assert line.split()[2:] == ["–", "–", "–", "–", "7", "1", "1", "1", "1.0", "–"]
