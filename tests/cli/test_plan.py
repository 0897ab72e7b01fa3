"""``plan``: arithmetic on reports, which says where they end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from interlatent_live.bench.capacity import (
    Load,
    Memory,
    curve,
    load_reports,
    plan,
    row_bytes,
    step_bytes,
)
from interlatent_live.cli.main import app
from interlatent_live.errors import UserError

COMMITTED = [
    Path(__file__).parents[2] / "docs" / "benchmarks" / f"{name}.json"
    for name in ("pipeline", "correlator", "replay")
]
CURVE = {8: (1000.0, 30.0, 10.0), 40: (500.0, 90.0, 30.0), 200: (150.0, 500.0, 200.0)}


def row(case, value, reference=1.0):
    return {"case": case, "value": value, "reference_value": reference}


def write(folder, name, rows):
    path = folder / f"{name}.json"
    path.write_text(json.dumps({"name": name, "rows": rows, "machine": {"cores": "64"}}))
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reports")
    pipeline = [
        row("steps/s encoded and correlated, 8 processes × 64 copies", 50_000.0),
        row("processor time per step, correlator", 15.0),
    ]
    for agents, (cost, p99, p50) in CURVE.items():
        at = f"{agents} agents at 50 Hz"
        pipeline += [
            row(f"encoder's processor time per step, {at}", cost),
            row(f"step → feature p99, {at}", p99, p50),
        ]
    return [
        write(folder, "pipeline", pipeline),
        write(folder, "correlator", [row("full default profile, F=2,048: throughput", 25_000.0)]),
        write(folder, "replay", [row("recording", 90.0)]),
    ]


@pytest.fixture(scope="module")
def reports(files):
    return load_reports(files)


@pytest.mark.parametrize("agents", CURVE)
def test_a_measured_point_is_itself(reports, agents):
    found = plan(Load(agents, 50.0, full=False), reports, cores=2)
    cost, p99, p50 = CURVE[agents]
    encoder = found.of("encoder")
    assert encoder.low == encoder.high == pytest.approx(cost * agents * 50 / 1e6)
    assert found.of("step to feature, p99").high == p99
    assert found.of("step to feature, median").high == p50
    assert found.of("correlator").high == pytest.approx(15.0 * agents * 50 / 1e6)
    assert encoder.beyond == found.of("step to feature, p99").beyond == ()


@given(st.integers(1, 5000), st.floats(0.1, 1000), st.integers(1, 8), st.integers(1, 10**5))
def test_estimates_are_ordered_and_what_was_not_measured_is_never_silent(
    reports, agents, hz, hooks, features
):
    load = Load(agents, hz, hook_points=hooks, features=features)
    found = plan(load, reports, cores=2)
    for one in found.estimates:
        assert 0 <= one.low <= one.high
    steps = load.steps_per_s
    if not 400 <= steps <= 10_000:
        assert any("measured" in why for why in found.of("encoder").beyond)
    if steps > 10_000:
        assert any("EXTRAPOLATED" in why for why in found.of("encoder").beyond)
        assert any("EXTRAPOLATED" in why for why in found.of("step to feature, p99").beyond)
    if hooks * features > 512:
        encoder = found.of("encoder")
        assert encoder.high == pytest.approx(encoder.low * hooks * features / 512)
        assert encoder.beyond
    if hz != 50.0:
        assert any("50 Hz" in why for why in found.of("encoder").beyond)
    one_core = max(found.of(name).high for name in ("encoder", "correlator"))
    assert any("one process uses one" in limit for limit in found.limits) == (one_core > 1)


def test_bytes_are_those_of_the_wire():
    load = Load(1, 1.0)
    # 2 × 64 float32, an eighth of y, 12 float64, env, episode, t, time, controller and flags.
    assert step_bytes(load) == 20 + 2 * 64 * 4 * 1.125 + 96
    assert row_bytes(load) == 20 + 96 + 2 * (16 * 8 + 12)


def test_the_full_depth_costs_more_and_more_agents_never_less(reports):
    core, full = (
        plan(Load(100, 50.0, full=depth), reports, cores=2).of("correlator")
        for depth in (False, True)
    )
    assert full.low == pytest.approx(core.low + 2 * 40.0 * 5000 / 1e6)
    along = curve((Load(one, 50.0) for one in (1, 10, 100, 1000)), reports, cores=2)
    for name in ("correlator", "step to feature, p99", "recordings, per day"):
        values = [one.of(name).high for one in along]
        assert values == sorted(values)


def test_tables_that_do_not_fit_their_limit_are_said(reports):
    def limits(agents):
        memory = Memory(limits=10**9, stream=10**6, tables=5 * 10**8)
        found = plan(Load(agents, 0.1), reports, cores=64, memory=memory)
        assert found.of("memory, tables of all runs once full").high == agents * 2 * 10**6
        return [limit for limit in found.limits if "limits.statistics_bytes" in limit]

    assert limits(250) == []
    assert limits(251) == [
        "the tables of 502 streams come to 0.502 GB, and limits.statistics_bytes lets them have 0.5"
    ]


def test_a_report_that_is_missing_or_none_is_told_in_one_sentence(files, tmp_path):
    with pytest.raises(UserError, match=r"no figures of replay: run .*bench replay"):
        load_reports(files[:2])
    bad = tmp_path / "bad.json"
    bad.write_text("[1]")
    with pytest.raises(UserError, match=r"bad\.json is no benchmark report"):
        load_reports([*files, bad])
    with pytest.raises(UserError, match="cannot be read"):
        load_reports([tmp_path / "none"])
    empty = write(tmp_path, "pipeline", [])
    with pytest.raises(UserError, match=r"pipeline\.json has no curve over agents"):
        plan(Load(1, 50.0), load_reports([*files, empty]), cores=2)
    cut = write(tmp_path, "replay", [])
    with pytest.raises(UserError, match="has no figure for 'recording'"):
        plan(Load(1, 50.0), load_reports([*files, cut]), cores=2)


def test_the_committed_reports_can_be_planned_with():
    reports = load_reports(COMMITTED)
    found = plan(Load(200, 50.0), reports, cores=2)
    assert found.of("recordings, per day").low > 1e9
    assert [one.agents for one in reports.curve()] == [8, 40, 104, 200]


def test_the_command_says_where_its_figures_are_from_and_where_they_end(files):
    options = [word for one in files for word in ("--bench", str(one))]
    done = CliRunner().invoke(app, ["plan", "--agents", "500", "--features", "2048", *options])
    assert done.exit_code == 0, done.output
    assert all(str(one) in done.output for one in files)
    assert "EXTRAPOLATED: measured up to 10,000 steps/s, here 25,000" in done.output
    assert "of another machine" in done.output
    told = CliRunner().invoke(app, ["plan", "--agents", "40", "--json", *options])
    shown = json.loads(told.output)
    assert shown["plan"]["load"]["agents"] == 40
    assert [one["load"]["agents"] for one in shown["curve"]] == [1, 10, 40, 50, 100, 200, 500, 1000]
